"""`assay zoo`: would this pipeline have caught it?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assay import paths
from assay.candidate import Candidate
from assay.errors import InputError
from assay.machine import gpus
from assay.record import write_json
from assay.zoo import OUT_OF_REACH, open_zoo
from assay.zoo.coverage import measured, missed, rates, render, summary
from assay.zoo.keeper import Judged, Keeper

DOCUMENT = paths.REPOSITORY / "docs" / "coverage.md"


def listing() -> int:
    """Every specimen, and what is out of reach."""
    defects, variants = open_zoo()
    table = Table(box=None)
    for name in ("defect", "where", "", "should be seen first by"):
        table.add_column(name, no_wrap=True)
    for one in defects.values():
        table.add_row(one.name, one.place.value, "silent" if one.silent else "loud", escape(one.first))
    console = Console()
    console.print(table)
    console.print(f"\n{len(variants)} healthy variants: {', '.join(variants)}", highlight=False)
    for away in OUT_OF_REACH:
        console.print(f"\nout of reach: {away.name}: {away.title} {away.reason}.", highlight=False)
    return 0


def run(
    candidate: Candidate | None, names: list[str], *, quick: bool, jobs: int, folder: Path | None, publish: bool
) -> int:
    """Judge the specimens, a line each, and say what was caught; 1 if a defect was missed or a healthy one failed.

    Raises:
        InputError: no candidate, or one whose base or adapter cannot be used.
    """
    if candidate is not None and not candidate.adapters:
        raise InputError(f"{candidate.name}: it has no adapter yet, so there is nothing to break. Train it first.")
    if candidate is None:
        raise InputError(
            f"{paths.QUICKSTART}: not found. The zoo breaks a healthy candidate: train one with `nox -s train -- "
            "quickstart`, or name yours with --candidate, or --base and --adapter."
        )
    if publish and (names or quick):
        raise InputError("--publish writes what the whole zoo showed: leave out --quick and names.")
    _ = candidate.base, candidate.adapters[0].path
    folder = folder or paths.REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-zoo"
    folder.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(candidate, folder.resolve(), quick=quick)
    specimens = keeper.specimens(names or None)
    console = Console(highlight=False, soft_wrap=True)
    if gpus():
        console.print("[yellow]note[/]: the zoo forks, which CUDA does not survive: it judges on the processor.")
    console.print(f"{len(specimens)} specimens of {escape(candidate.name)}, adapter {keeper.adapter.name}: {folder}")
    judged: list[Judged] = []
    for one in keeper.run(specimens, max(1, jobs)):
        judged.append(one)
        _tell(console, keeper, one, judged[0], f"{len(judged)} of {len(specimens)}")
    # As they are listed, and not as they ended.
    order = [one.name for one in specimens]
    data = measured(keeper, sorted(judged, key=lambda one: order.index(one.name)))
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


def _tell(console: Console, keeper: Keeper, one: Judged, healthy: Judged, at: str) -> None:
    caught = one.caught_by(healthy)
    if one.not_here is not None:
        said = f"[dim]not here[/]  {one.name}: {escape(one.not_here)}"
    elif one.name in keeper.defects:
        known = keeper.defects[one.name].cause
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
