"""The record as Markdown and as terminal lines."""

from __future__ import annotations

from assay.record.outcome import Status
from assay.record.reading import Run
from assay.record.verdict import GateResult


def headline(run: Run) -> str:
    """One sentence that says why the verdict is what it is."""
    passed = sum(gate.passed for gate in run.gates)
    open_gates = [gate for gate in run.gates if not gate.passed]
    counts = {status: sum(gate.outcome.status is status for gate in open_gates) for status in Status}
    parts = [f"{count} {status.value}" for status, count in counts.items() if count]
    nothing = "" if run.record.candidate.adapters else "no adapter to release yet: "
    return f"{nothing}{passed} of {len(run.gates)} gates passed" + (f", {', '.join(parts)}" if parts else "")


def subject(gate: GateResult) -> str:
    """The gate's id, with its adapter where the id does not carry it."""
    adapter = gate.expected.adapter
    return (
        gate.expected.gate if adapter is None or adapter in gate.expected.gate else f"{gate.expected.gate} [{adapter}]"
    )


def why(gate: GateResult) -> str:
    """The first line of the reason; of a blocked gate only the name of the gate that blocks it."""
    if gate.outcome.blocked_by:
        return f"blocked by {gate.outcome.blocked_by}"
    return gate.outcome.reason.split("\n")[0]


def cause_is_unknown(gate: GateResult) -> bool:
    """Whether it did not pass and no cause is known. An inconclusive gate names in its reason what it lacks."""
    return gate.outcome.status in (Status.FAILED, Status.ERROR, Status.UNAVAILABLE) and not gate.outcome.causes


def evidence_to_send(run: Run, one: GateResult) -> list[str]:
    """The files that somebody else needs to find an unknown cause."""
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
        f"{headline(run)}. Candidate `{run.record.candidate.name}`, run `{run.record.name}`.",
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
        likeliest = gate.outcome.causes[0]
        lines.append(f"- `{subject(gate)}`: {_cell(likeliest.cause)} Fix: {_cell(likeliest.fix)}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text of a model or a user, made safe for a Markdown table."""
    for char in "\\`*_[]<>|#":
        text = text.replace(char, f"\\{char}" if char not in "<>" else ("&lt;" if char == "<" else "&gt;"))
    return " ".join(text.split())


def terminal_lines(run: Run) -> list[str]:
    """One line per gate, with its likeliest cause and fix, then the verdict and the path of the report."""
    width = max(len(subject(gate)) for gate in run.gates)
    lines = []
    for gate in run.gates:
        line = f"{gate.outcome.status:<12} {gate.expected.severity:<9} {subject(gate):<{width}}"
        lines.append(f"{line}  {printable(why(gate))}".rstrip())
        if gate.outcome.causes:
            likeliest = gate.outcome.causes[0]
            lines.append(f"{'':<23}cause: {printable(likeliest.cause)}")
            lines.append(f"{'':<23}fix:   {printable(likeliest.fix)}")
    return [*lines, "", f"{run.verdict.value}: {headline(run)}", f"Report: {run.folder / 'report.html'}"]


def printable(text: str) -> str:
    """Text without control characters, so that a model's answer cannot control the terminal; at most 300 characters."""
    return "".join(char if char.isprintable() else " " for char in text)[:300]
