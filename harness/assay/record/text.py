"""The record as Markdown and as terminal lines."""

from __future__ import annotations

from assay.record.record import Judged, Run, Status


def headline(run: Run) -> str:
    """One sentence that says why the verdict is what it is."""
    passed = sum(gate.passed for gate in run.gates)
    open_gates = [gate for gate in run.gates if not gate.passed]
    counts = {status: sum(gate.outcome.status is status for gate in open_gates) for status in Status}
    parts = [f"{count} {status.value}" for status, count in counts.items() if count]
    nothing = "" if run.candidate["adapters"] else "no adapter to release yet: "
    return f"{nothing}{passed} of {len(run.gates)} gates passed" + (f", {', '.join(parts)}" if parts else "")


def subject(gate: Judged) -> str:
    """The gate's id, with its adapter where the id does not carry it."""
    adapter = gate.expected.adapter
    return (
        gate.expected.gate if adapter is None or adapter in gate.expected.gate else f"{gate.expected.gate} [{adapter}]"
    )


def why(gate: Judged) -> str:
    """The first line of the reason; of a blocked gate only the culprit, whose own line says the rest."""
    if gate.outcome.blocked_by:
        return f"blocked by {gate.outcome.blocked_by}"
    return gate.outcome.reason.split("\n")[0]


def cause_is_unknown(gate: Judged) -> bool:
    """Whether it did not pass and nobody knows why. What is inconclusive says itself what it lacks."""
    return gate.outcome.status in (Status.FAILED, Status.ERROR, Status.UNAVAILABLE) and not gate.outcome.causes


def evidence_to_send(run: Run, one: Judged) -> list[str]:
    """What somebody else needs to find a cause that is not known."""
    key = f'"gate": "{one.outcome.gate}"'
    return [
        f"{run.folder / 'run.json'}  (candidate, machine, versions)",
        f"the line with {key} of {run.folder / 'gates.jsonl'}  (facts)",
        *(f"{run.folder / use.log}  ({use.step})" for use in one.outcome.steps),
    ]


def render_markdown(run: Run) -> str:
    """A summary for a pull request or a CI page."""
    lines = [
        f"# {run.verdict.value}",
        "",
        f"{headline(run)}. Candidate `{run.candidate['name']}`, run `{run.name}`.",
        "",
    ]
    lines += ["| gate | severity | status | seconds | why |", "|---|---|---|---:|---|"]
    for gate in run.gates:
        seconds = f"{gate.outcome.seconds:.1f}"
        cell = _cell(why(gate))
        lines.append(f"| `{subject(gate)}` | {gate.expected.severity} | {gate.outcome.status} | {seconds} | {cell} |")
    told = [gate for gate in run.gates if gate.outcome.causes]
    if told:
        lines += ["", "## What to do", ""]
    for gate in told:
        finding = gate.outcome.causes[0]
        lines.append(f"- `{subject(gate)}`: {_cell(finding.cause)} Fix: {_cell(finding.fix)}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that a model or a user wrote, made safe for a Markdown table."""
    for char in "\\`*_[]<>|#":
        text = text.replace(char, f"\\{char}" if char not in "<>" else ("&lt;" if char == "<" else "&gt;"))
    return " ".join(text.split())


def terminal_lines(run: Run) -> list[str]:
    """One line a gate, then the verdict and where the report is."""
    width = max(len(subject(gate)) for gate in run.gates)
    lines = []
    for gate in run.gates:
        line = f"{gate.outcome.status:<12} {gate.expected.severity:<9} {subject(gate):<{width}}"
        lines.append(f"{line}  {printable(why(gate))}".rstrip())
        if gate.outcome.causes:
            finding = gate.outcome.causes[0]
            lines.append(f"{'':<23}cause: {printable(finding.cause)}")
            lines.append(f"{'':<23}fix:   {printable(finding.fix)}")
    return [*lines, "", f"{run.verdict.value}: {headline(run)}", f"Report: {run.folder / 'report.html'}"]


def printable(text: str) -> str:
    """Without control characters: a model's answer must not drive the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)[:300]
