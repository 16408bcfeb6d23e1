"""`assay faults`: which gate catches which fault, measured on a candidate."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from assay import paths
from assay.cli.arguments import Adapters, Base, CandidateFile, Revision, TrainedOn
from assay.errors import InputError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS, OUT_OF_REACH
from assay.faults.coverage import alarms, cause_named_by, coverage, missed, rates, summary
from assay.faults.coverage_page import read_measured_with, render, staleness
from assay.faults.digests import measured_with
from assay.faults.fault import Area
from assay.faults.pool import judge_all
from assay.faults.result import CaseResult
from assay.faults.runner import FaultRunner
from assay.files import write_json
from assay.inputs.candidate import Candidate, chosen_candidate
from assay.machine import gpus

PAGE = paths.REPOSITORY / "docs" / "coverage.md"

EXAMPLE = "assay faults --quick --candidate train/out/quickstart/candidate.json"
EXIT_CODES = {
    0: "every fault is caught, and no healthy variant fails a gate",
    1: "a fault is missed, or a healthy variant fails a gate",
    2: "the candidate cannot be used, or there is no such case",
}


def command(
    cases: Annotated[list[str] | None, typer.Argument(metavar="CASE", help="these only (default: all)")] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="every fault and healthy variant, and what is out of reach")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="only what shows before a model is loaded: minutes, not an hour")
    ] = False,
    jobs: Annotated[int, typer.Option(metavar="N", help="cases at a time, each on its share of the cores")] = 1,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder of the records; what is judged there already is kept"),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="write docs/coverage.md")] = False,
    check: Annotated[bool, typer.Option("--check", help="say whether docs/coverage.md is stale; 0 either way")] = False,
    candidate: CandidateFile = None,
    base: Base = None,
    revision: Revision = None,
    adapter: Adapters = None,
    trained_on: TrainedOn = None,
) -> int:
    """It takes copies of the candidate with one fault each, and healthy variants of it, through the gates.

    All cases take an hour or more on two cores.
    """
    if list_:
        return listing()
    if check:
        return say_whether_stale()
    chosen = chosen_candidate(candidate, base, adapter or [], revision, trained_on)
    return inject(chosen, cases or [], quick=quick, jobs=jobs, folder=run, publish=publish)


def listing() -> int:
    """Print every fault with the gate that must catch it first, every healthy variant, and what is out of reach."""
    rows = [("fault", "area", "", "caught first by", "cause", "module")]
    for one in sorted(FAULTS.values(), key=lambda one: list(Area).index(one.area)):
        module = f"faults/cases/{one.module}.py"
        rows.append((one.name, one.area.value, "silent" if one.silent else "loud", one.first, one.cause, module))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for variant in HEALTHY_VARIANTS.values():
        print(f"healthy variant  {variant.name}: {variant.title}")
    print()
    for away in OUT_OF_REACH:
        print(f"out of reach  {away.name}: {away.title} Why: {away.reason}.")
    return 0


def say_whether_stale() -> int:
    """Say in one sentence whether docs/coverage.md was measured with the code of today. Stale is no failure.

    Raises:
        InputError: there is no such page.
    """
    if not PAGE.exists():
        raise InputError(f"{PAGE}: not found. `assay faults --publish` writes it.")
    stale = staleness(read_measured_with(PAGE.read_text(encoding="utf-8")), measured_with())
    print(f"{PAGE} is {stale}" if stale else f"{PAGE} was measured with this code.")
    return 0


def inject(
    candidate: Candidate | None, names: list[str], *, quick: bool, jobs: int, folder: Path | None, publish: bool
) -> int:
    """Judge the cases, print one line per case, then the rates; 1 if a fault was missed or a gate failed a variant.

    Args:
        names: of cases; none means all.
        quick: only gates that load no model, and the cases that they can judge.
        jobs: how many cases to judge at a time.
        folder: of the records. Cases that are judged there already are not judged again.
        publish: write docs/coverage.md.

    Raises:
        InputError: no candidate, or one whose base or adapter cannot be used.
    """
    if candidate is not None and not candidate.adapters:
        raise InputError(f"{candidate.name}: it has no adapter, so there is nothing to break. Train it first.")
    if candidate is None:
        raise InputError(
            f"{paths.QUICKSTART}: not found. `assay faults` breaks a healthy candidate: train one with `nox -s train "
            "-- quickstart`, or name yours with --candidate, or --base and --adapter."
        )
    if publish and not PAGE.parent.is_dir():
        raise InputError("--publish writes docs/coverage.md of the repository, and this is an installed package.")
    if publish and (names or quick):
        raise InputError("--publish writes what all cases show: leave out --quick and names.")
    _ = candidate.base, candidate.adapters[0].path
    folder = folder or paths.REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-faults"
    folder.mkdir(parents=True, exist_ok=True)
    runner = FaultRunner(candidate, folder.resolve(), quick=quick)
    cases = runner.cases(names)
    console = Console(highlight=False, soft_wrap=True)
    if gpus():
        console.print("[yellow]note[/]: cases are judged on the processor, because CUDA does not survive a fork.")
    console.print(f"{len(cases)} cases of {escape(candidate.name)}, adapter {runner.adapter.name}: {folder}")
    results: list[CaseResult] = []
    for one in judge_all(runner, cases, max(1, jobs)):
        results.append(one)
        console.print(f"{len(results):>4} of {len(cases)}  {_line(one, results[0])}  [dim]{one.seconds:.1f} s[/]")
    order = [one.name for one in cases]
    data = coverage(runner, sorted(results, key=lambda one: order.index(one.name)))
    write_json(folder / "coverage.json", data)
    page = render(data, measured_with())
    for file in (folder / PAGE.name, *([PAGE] if publish else [])):
        file.write_text(page, encoding="utf-8")
    console.print()
    for line in summary(data):
        console.print(line)
    console.print(f"Table: {folder / PAGE.name}")
    return 1 if missed(data) or rates(data)["alarms"][0] else 0


def _line(one: CaseResult, baseline: CaseResult) -> str:
    """What the gates made of one case."""
    if one.not_applicable is not None:
        return f"[dim]not applicable[/]  {one.name}: {escape(one.not_applicable)}"
    if one.name in FAULTS:
        caught = one.caught_by(baseline)
        if not caught:
            return f"[red]missed[/]  {one.name}"
        named = "" if cause_named_by(one, baseline) else "  [yellow]cause not named[/]"
        return f"[green]caught[/]  {one.name}: {escape(caught[0])}{named}"
    if failed := alarms(one, baseline):
        return f"[red]false alarm[/]  {one.name}: {escape(', '.join(failed))}"
    return f"[green]healthy[/]  {one.name}"
