"""`assay strength`: which adapter, at what strength, is in a file from anyone, with no run and no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from assay.cli.arguments import AsJson, BaseToCompare
from assay.cli.check_merge import CANNOT_TELL, DEFECT, EXIT_CODES, HEALTHY, adapter_folder, base_folder
from assay.errors import InputError
from assay.inputs.checkpoint import read_folder
from assay.inputs.lora import read_lora_weights
from assay.inputs.weights import weight_reader
from assay.measures.strength import Strength, measure_strengths, weakest_layers

EXAMPLE = "assay strength --base Qwen/Qwen3-8B --adapter style=./my_adapter model-q4_k_m.gguf"
EXIT_CODES = {**EXIT_CODES, HEALTHY: "exactly one adapter, at strength 1", DEFECT: "none, several, or another strength"}


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a GGUF, a safetensors file or a checkpoint's folder")],
    base: BaseToCompare,
    adapter: Annotated[list[str], typer.Option(metavar="[NAME=]WHERE", help="folder or hub id; may be repeated")],
    as_json: AsJson = False,
) -> int:
    """Strength 1 is right, 0 is absent, 2 is doubled."""
    folder = base_folder(base)
    tensors = read_folder(folder)
    loras = {}
    for given in adapter:
        name, separator, where = given.partition("=")
        path = adapter_folder(where if separator else given)
        loras[name if separator else path.name] = read_lora_weights(path, tensors)
    if len(loras) < len(adapter):
        raise InputError("Two adapters have the same name; give each as NAME=WHERE.")
    with Console(stderr=True).status(f"reading {file.name} …"):
        measured = measure_strengths(tensors, loras, weight_reader(file, folder))
    code = _judge(measured)
    if as_json:
        print(json.dumps({"exit_code": code, **_as_json(measured)}, indent=2))
    else:
        _show(Console(highlight=False), measured)
    return code


def _judge(measured: Strength) -> int:
    """Healthy is exactly one adapter at strength 1 and no trace of any other."""
    if not measured.layers or not measured.distinct or max(measured.error.values()) > 0.2:
        return CANNOT_TELL
    names = [measured.name_of(name) for name in measured.pooled]
    return HEALTHY if names.count("right") == 1 and names.count("absent") == len(names) - 1 else DEFECT


def _as_json(measured: Strength) -> dict[str, Any]:
    adapters = {
        name: {
            "strength": measured.pooled[name],
            "standard_error": measured.error[name],
            "is": measured.name_of(name),
            "relative_size": measured.relative_size[name],
            "layers": {layer: row[name] for layer, row in measured.layers.items() if name in row},
        }
        for name in measured.pooled
    }
    return {"adapters": adapters, "distinct": measured.distinct}


def _show(console: Console, measured: Strength) -> None:
    table = Table(box=None)
    for title in ("adapter", "is", "strength", "± standard error", "‖ΔW‖/‖W‖", "furthest layers, alone"):
        table.add_column(title, overflow="fold")
    for name in measured.pooled:
        numbers = (f"{measured.pooled[name]:.4f}", f"{measured.error[name]:.4f}", f"{measured.relative_size[name]:.4f}")
        far = ", ".join(weakest_layers(measured, name)) if abs(measured.pooled[name]) > 0.25 else ""
        table.add_row(name, measured.name_of(name), *numbers, far)
    console.print(table)
    if not measured.layers:
        console.print(
            "[yellow]cannot tell[/]: no tensor that these adapters change is in the file, or they are all DoRA."
        )
    elif not measured.distinct:
        console.print("[yellow]cannot tell[/]: these adapters are too much alike to be told apart.")
