"""`assay check-merge`: how a merged checkpoint from anyone was merged, with no run and no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from assay.cli.arguments import AsJson, BaseToCompare
from assay.errors import InputError
from assay.inputs.bases import find_base
from assay.inputs.candidate import Adapter
from assay.measures.merge_replay import MergeFindings, replay_merge

EXAMPLE = "assay check-merge --base Qwen/Qwen3-8B --adapter ./my_adapter ./merged"
HEALTHY, DEFECT, CANNOT_TELL = 0, 1, 3
EXIT_CODES = {HEALTHY: "healthy", DEFECT: "a defect", 2: "a file cannot be used", CANNOT_TELL: "cannot tell"}
SHOWN = 40
"""Defects in the table; --json lists all."""


def command(
    merged: Annotated[Path, typer.Argument(metavar="MERGED", help="the merged checkpoint's folder")],
    base: BaseToCompare,
    adapter: Annotated[str, typer.Option(metavar="WHERE", help="folder or hub id")],
    as_json: AsJson = False,
) -> int:
    """It accounts for every tensor of the checkpoint by replaying the merge."""
    if not merged.is_dir():
        raise InputError(f"{merged}: no such folder. A merged checkpoint is a folder with config.json and safetensors.")
    with Console(stderr=True).status("replaying the merge …") as status:
        found = replay_merge(
            base_folder(base), adapter_folder(adapter), merged, say=lambda line: status.update(f"replaying: {line}")
        )
    # Without a recipe there is nothing to say about tensors whose change is none (DoRA, fused experts): not a defect.
    unknown = not found.defects and found.recipe is None and bool(found.adapter.changes)
    code = CANNOT_TELL if unknown or not found.adapter.touched else DEFECT if found.defects else HEALTHY
    if as_json:
        print(json.dumps({"exit_code": code, **found.to_json()}, ensure_ascii=False, indent=2))
    else:
        _show(Console(highlight=False), merged, found, code)
    return code


def _show(console: Console, merged: Path, found: MergeFindings, code: int) -> None:
    if code == HEALTHY:
        console.print(
            f"[green]healthy[/]: {len(found.adapter.touched)} tensors {found.recipe or 'replaced whole'}; all others"
        )
        console.print(f"are the base's ({found.elements:,} weights, {found.off_by_one_ulp} of them off by one ULP).")
    elif code == CANNOT_TELL:
        console.print("[yellow]cannot tell[/]: the adapter changes no tensor that can be replayed.")
    else:
        console.print(f"[red]{len(found.defects)} defects[/] in {merged}")
        table = Table(box=None)
        for name in ("kind", "where", "what"):
            table.add_column(name, overflow="fold")
        for defect in found.defects[:SHOWN]:
            table.add_row(defect.kind, defect.where, defect.detail)
        console.print(table)
        if len(found.defects) > SHOWN:
            console.print(f"… and {len(found.defects) - SHOWN} more; --json lists them all")
    for note in found.notes:
        console.print(f"note: {note}")


def base_folder(spec: str) -> Path:
    """A base's folder as it is, whether or not it has all that a candidate's base needs; or a hub id's, fetched."""
    return Path(spec) if Path(spec).is_dir() else find_base(spec).path


def adapter_folder(spec: str) -> Path:
    return Adapter(name="adapter", source=spec).path
