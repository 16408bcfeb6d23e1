"""`assay doctor`: what will go wrong, in seconds, before anything is loaded."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from assay import paths
from assay.gating.doctor import Finding, Level, Patient, examine
from assay.inputs.candidate import Candidate
from assay.record.text import printable
from assay.steps.runner import Bench
from assay.steps.store import Store

MARKS = {Level.FINE: "[green]✓[/]", Level.NOTE: "[yellow]![/]", Level.FAILS: "[red]✗[/]", Level.STOPS: "[red]✗[/]"}


def run(candidate: Candidate | None, *, as_json: bool) -> int:
    """Examine and print; 1 if a gate will fail, 0 otherwise."""
    console = Console(highlight=False, soft_wrap=True)
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Store(paths.cache() / "store"), Path(scratch), "doctor", say=lambda line: None)
        for _, findings, seconds in examine(Patient(candidate, bench)):
            found += findings
            for number, finding in enumerate(findings if not as_json else []):
                show(console, finding, seconds if number == 0 else None)
    if as_json:
        print(json.dumps([finding.to_json() for finding in found], ensure_ascii=False, indent=2))
    elif candidate is None:
        console.print("No candidate was named and none is trained here: the machine alone was examined.", style="dim")
    return 1 if any(finding.level in (Level.FAILS, Level.STOPS) for finding in found) else 0


def show(console: Console, finding: Finding, seconds: float | None) -> None:
    """One finding as a line, with its fix below."""
    took = f"  [dim]{seconds:.1f} s[/]" if seconds is not None and seconds >= 0.1 else ""
    first, _, rest = finding.text.partition("\n")
    foretold = f"  [dim]({escape(finding.gate)})[/]" if finding.gate else ""
    console.print(f"{MARKS[finding.level]} {finding.check:<10} {escape(printable(first))}{foretold}{took}")
    if rest:
        console.print(f"             {escape(printable(rest))}", style="dim")
    if finding.fix and finding.level is not Level.FINE:
        console.print(f"             [green]fix[/]: {escape(printable(finding.fix))}")
