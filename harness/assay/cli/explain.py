"""`assay explain`: why a gate did not pass, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from assay import paths
from assay.cli.arguments import Run as RunArgument
from assay.record.outcome import Status
from assay.record.reading import Run, newest_run, read_run
from assay.record.text import cause_is_unknown, evidence_to_send, printable, subject
from assay.record.verdict import GateResult
from assay.validation import refuse_unknown_names

EXPLAINED = tuple(status for status in Status if status not in (Status.PASSED, Status.BLOCKED, Status.MISSING))

EXAMPLE = "assay explain reports/20260209-165643-gates 'merge_ok [style]'"
EXIT_CODES = {0: "explained, or nothing to explain", 2: "there is no such run or gate"}


def command(
    run: RunArgument = None,
    gate: Annotated[
        str | None,
        typer.Argument(metavar="GATE", help="one gate, as in merge_ok or 'merge_ok [style]' (default: all)"),
    ] = None,
) -> int:
    """`assay explain GATE`, without RUN, is about the newest run."""
    if run is not None and gate is None and not run.is_dir():
        run, gate = None, str(run)
    explain(run or newest_run(paths.REPORTS), gate)
    return 0


def explain(folder: Path, name: str | None) -> None:
    """Print what is known of one gate, or of every gate that did not pass.

    Args:
        name: a gate's id, or as the report shows it with its adapter, `merge_ok [style]`.

    Raises:
        InputError: the run has no such gate.
    """
    record = read_run(folder)
    chosen = list(record.gates)
    if name is not None:
        known = {one.expected.gate for one in record.gates} | {subject(one) for one in record.gates}
        refuse_unknown_names(folder, "gate", [name], sorted(known))
        chosen = [one for one in record.gates if name in (one.expected.gate, subject(one))]
    console = Console(highlight=False, soft_wrap=True)
    shown = [one for one in chosen if name is not None or one.outcome.status in EXPLAINED]
    for one in shown:
        _explain(console, record, one)
    if name is None:
        _tell_doctor(console, record)
        _tell_blocked(console, record)
        missing = [subject(one) for one in record.gates if one.outcome.status is Status.MISSING]
        if missing:
            console.print(f"never run: {escape(', '.join(missing))}")
        if all(one.passed for one in record.gates):
            console.print(f"{record.verdict.value}: every gate passed.")


def _explain(console: Console, record: Run, one: GateResult) -> None:
    outcome = one.outcome
    console.print(f"[bold]{escape(subject(one))}[/]  {outcome.status.value} ({one.expected.severity.value})")
    if outcome.blocked_by:
        is_gate = any(outcome.blocked_by == other.expected.gate for other in record.gates)
        where = f": assay explain {record.folder} {outcome.blocked_by}" if is_gate else ""
        console.print(f"  blocked by [bold]{escape(outcome.blocked_by)}[/]{escape(where)}")
    for line in outcome.reason.split("\n"):
        if line.strip():
            console.print(f"  {escape(printable(line))}")
    for place, diagnosis in enumerate(outcome.causes):
        likely = "cause" if place == 0 else "or"
        console.print(f"  [yellow]{likely}[/]: {escape(printable(diagnosis.cause))}")
        console.print(f"  [green]fix[/]:   {escape(printable(diagnosis.fix))}")
        console.print(f"  seen:  {escape(printable('; '.join(diagnosis.evidence)))}", style="dim")
        more = [text for text in (diagnosis.affects, diagnosis.link) if text]
        if more:
            console.print(f"  more:  {escape(', '.join(more))}", style="dim")
    if cause_is_unknown(one):
        console.print("  [yellow]cause[/]: unknown. To have it looked into, send:")
        for line in evidence_to_send(record, one):
            console.print(f"    {escape(line)}")
    console.print()


def _tell_doctor(console: Console, run: Run) -> None:
    """What was known before the first step to go wrong."""
    for one in run.record.doctor:
        if one.level in ("fails", "stops"):
            console.print(f"[bold]before the first step[/]  {escape(one.check)}: {escape(printable(one.text))}")
            console.print(f"  [green]fix[/]:   {escape(printable(one.fix))}\n")


def _tell_blocked(console: Console, record: Run) -> None:
    """Behind what failed, nothing was tested: by culprit."""
    blocked: dict[str, list[str]] = {}
    for one in record.gates:
        if one.outcome.blocked_by:
            blocked.setdefault(one.outcome.blocked_by, []).append(subject(one))
    for culprit, names in blocked.items():
        console.print(f"blocked by [bold]{escape(culprit)}[/], and never tested: {escape(', '.join(names))}")
