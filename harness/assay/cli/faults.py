"""`assay faults`: would this pipeline have caught it?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assay import paths
from assay.cli.arguments import Adapters, Base, CandidateFile, Revision, TrainedOn
from assay.errors import InputError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.coverage import measured, missed, rates, render, summary
from assay.faults.fault import OUT_OF_REACH
from assay.faults.runner import FaultRunner, Judged
from assay.files import write_json
from assay.inputs.candidate import Candidate, chosen_candidate
from assay.machine import gpus

DOCUMENT = paths.REPOSITORY / "docs" / "coverage.md"

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
    publish: Annotated[bool, typer.Option("--publish", help="write docs/coverage.json and docs/coverage.md")] = False,
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
        listing()
        return 0
    chosen = chosen_candidate(candidate, base, adapter or [], revision, trained_on)
    return inject(chosen, cases or [], quick=quick, jobs=jobs, folder=run, publish=publish)


def listing() -> None:
    """Every case, and what is out of reach."""
    table = Table(box=None)
    for name in ("fault", "where", "", "should be seen first by"):
        table.add_column(name, no_wrap=True)
    for one in FAULTS.values():
        table.add_row(one.name, one.place.value, "silent" if one.silent else "loud", escape(one.first))
    console = Console()
    console.print(table)
    console.print(f"\n{len(HEALTHY_VARIANTS)} healthy variants: {', '.join(HEALTHY_VARIANTS)}", highlight=False)
    for away in OUT_OF_REACH:
        console.print(f"\nout of reach: {away.name}: {away.title} {away.reason}.", highlight=False)


def inject(
    candidate: Candidate | None, names: list[str], *, quick: bool, jobs: int, folder: Path | None, publish: bool
) -> int:
    """Judge the cases, a line each, and say what was caught; 1 if a fault was missed or a healthy one failed.

    Raises:
        InputError: no candidate, or one whose base or adapter cannot be used.
    """
    if candidate is not None and not candidate.adapters:
        raise InputError(f"{candidate.name}: it has no adapter yet, so there is nothing to break. Train it first.")
    if candidate is None:
        raise InputError(
            f"{paths.QUICKSTART}: not found. The faults breaks a healthy candidate: train one with `nox -s train -- "
            "quickstart`, or name yours with --candidate, or --base and --adapter."
        )
    if publish and not DOCUMENT.parent.is_dir():
        raise InputError("--publish writes docs/coverage.md of the repository, and this is an installed package.")
    if publish and (names or quick):
        raise InputError("--publish writes what the whole faults showed: leave out --quick and names.")
    _ = candidate.base, candidate.adapters[0].path
    folder = folder or paths.REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-faults"
    folder.mkdir(parents=True, exist_ok=True)
    runner = FaultRunner(candidate, folder.resolve(), quick=quick)
    cases = runner.cases(names or None)
    console = Console(highlight=False, soft_wrap=True)
    if gpus():
        console.print("[yellow]note[/]: the faults forks, which CUDA does not survive: it judges on the processor.")
    console.print(f"{len(cases)} cases of {escape(candidate.name)}, adapter {runner.adapter.name}: {folder}")
    judged: list[Judged] = []
    for one in runner.run(cases, max(1, jobs)):
        judged.append(one)
        _tell(console, runner, one, judged[0], f"{len(judged)} of {len(cases)}")
    # As they are listed, and not as they ended.
    order = [one.name for one in cases]
    data = measured(runner, sorted(judged, key=lambda one: order.index(one.name)))
    write_json(folder / "coverage.json", data)
    (folder / "coverage.md").write_text(render(data), encoding="utf-8")
    if publish:
        write_json(DOCUMENT.with_suffix(".json"), data)
        part = DOCUMENT.with_name(f".{DOCUMENT.name}.part")
        part.write_text(render(data), encoding="utf-8")
        part.replace(DOCUMENT)
    console.print()
    for line in summary(data):
        console.print(line)
    console.print(f"Table: {folder / 'coverage.md'}")
    return 1 if missed(data) or rates(data)["alarms"][0] else 0


def _tell(console: Console, runner: FaultRunner, one: Judged, healthy: Judged, at: str) -> None:
    caught = one.caught_by(healthy)
    if one.not_here is not None:
        said = f"[dim]not here[/]  {one.name}: {escape(one.not_here)}"
    elif one.name in runner.faults:
        known = runner.faults[one.name].cause
        is_named = any(one.causes.get(gate, [])[:1] == [known] for gate in caught)
        named = "" if is_named or not caught else "  [yellow]cause not named[/]"
        said = (
            f"[green]caught[/]    {one.name}: {escape(caught[0])}{named}" if caught else f"[red]missed[/]    {one.name}"
        )
    else:
        alarms = one.alarms(healthy) if one is not healthy else one.alarms(Judged(name=""))
        alarm = f"[red]alarm[/]     {one.name}: {escape(', '.join(alarms))}"
        said = alarm if alarms else f"[green]healthy[/]   {one.name}"
    console.print(f"{at:>10}  {said}  [dim]{one.seconds:.1f} s[/]")
