"""`assay doctor`: what will go wrong, in seconds, before anything is loaded."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from assay import paths
from assay.cli.arguments import Adapters, Base, CandidateFile, Revision, TrainedOn
from assay.gating.doctor import examine
from assay.gating.examination import Examination, Finding, Level
from assay.inputs.candidate import chosen_candidate
from assay.record.text import printable
from assay.steps.runner import Runner
from assay.steps.store import Store

MARKS = {Level.FINE: "[green]✓[/]", Level.NOTE: "[yellow]![/]", Level.FAILS: "[red]✗[/]", Level.STOPS: "[red]✗[/]"}

EXAMPLE = "assay doctor --base Qwen/Qwen3-8B --adapter style=./my_adapter"
EXIT_CODES = {0: "nothing was found", 1: "a gate will fail", 2: "the candidate cannot be used"}


def command(
    candidate: CandidateFile = None,
    base: Base = None,
    revision: Revision = None,
    adapter: Adapters = None,
    trained_on: TrainedOn = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> int:
    """It looks at versions, toolchain, GPU, headers, end tokens, memory and disk, and loads no model."""
    chosen = chosen_candidate(candidate, base, adapter or [], revision, trained_on)
    console = Console(highlight=False, soft_wrap=True)
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(Store(paths.cache() / "store"), Path(scratch), "doctor", say=lambda line: None)
        for _, findings, seconds in examine(Examination(chosen, runner)):
            found += findings
            for number, finding in enumerate(findings if not as_json else []):
                show(console, finding, seconds if number == 0 else None)
    if as_json:
        print(json.dumps([finding.to_json() for finding in found], ensure_ascii=False, indent=2))
    elif chosen is None:
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
