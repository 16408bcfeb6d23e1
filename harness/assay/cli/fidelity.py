"""`assay check-merge` and `assay strength`: the fidelity of files from anyone, with no run and no torch.

Exit codes of both: 0 healthy, 1 a defect, 2 what was given cannot be used, 3 cannot tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from assay.errors import InputError
from assay.inputs.bases import find_base
from assay.inputs.candidate import Adapter
from assay.inputs.checkpoint import Tensor, read_folder, read_header
from assay.inputs.lora import read_lora_weights
from assay.inputs.number_formats import dequantize_saved_nf4
from assay.measures.merge_replay import replay_merge
from assay.measures.strength import Strength, measure_strengths, weakest_layers

HEALTHY, DEFECT, CANNOT_TELL = 0, 1, 3
Floats = NDArray[np.float32]


def check_merge(base: str, adapter: str, merged: Path, *, as_json: bool) -> int:
    """Account for every tensor of a merged checkpoint, and print how it was merged or what is wrong with it.

    Raises:
        InputError: one of the three cannot be used.
    """
    if not merged.is_dir():
        raise InputError(f"{merged}: no such folder. A merged checkpoint is a folder with config.json and safetensors.")
    console = Console(stderr=True)
    with console.status("replaying the merge …") as status:
        found = replay_merge(
            _base(base), _adapter(adapter), merged, say=lambda line: status.update(f"replaying: {line}")
        )
    # Without a recipe there is nothing to say about tensors whose change is none (DoRA, fused experts): not a defect.
    unknown = not found.defects and found.recipe is None and bool(found.adapter.changes)
    code = CANNOT_TELL if unknown or not found.adapter.touched else DEFECT if found.defects else HEALTHY
    if as_json:
        print(json.dumps({"exit_code": code, **found.to_json()}, ensure_ascii=False, indent=2))
        return code
    out = Console(highlight=False)
    if code == HEALTHY:
        out.print(
            f"[green]healthy[/]: {len(found.adapter.touched)} tensors {found.recipe or 'replaced whole'}; all others"
        )
        out.print(f"are the base's ({found.elements:,} weights, {found.off_by_one_ulp} of them one step off).")
    elif code == CANNOT_TELL:
        out.print("[yellow]cannot tell[/]: the adapter changes no tensor that can be replayed.")
    else:
        out.print(f"[red]{len(found.defects)} defects[/] in {merged}")
        table = Table(box=None)
        for name in ("kind", "where", "what"):
            table.add_column(name, overflow="fold")
        for defect in found.defects[:40]:
            table.add_row(defect.kind, defect.where, defect.detail)
        out.print(table)
        if len(found.defects) > 40:
            out.print(f"… and {len(found.defects) - 40} more; --json lists them all")
    for note in found.notes:
        out.print(f"note: {note}")
    return code


def strength(base: str, adapters: list[str], file: Path, *, as_json: bool) -> int:
    """Say which adapter, at what strength, is in a GGUF or a checkpoint.

    Args:
        adapters: folders or hub ids, each optionally as NAME=WHERE.

    Raises:
        InputError: a file cannot be used.
    """
    folder = _base(base)
    tensors = read_folder(folder)
    loras = {}
    for given in adapters:
        name, separator, where = given.partition("=")
        path = _adapter(where if separator else given)
        loras[name if separator else path.name] = read_lora_weights(path, tensors)
    if len(loras) < len(adapters):
        raise InputError("Two adapters have the same name; give each as NAME=WHERE.")
    with Console(stderr=True).status(f"reading {file.name} …"):
        measured = measure_strengths(tensors, loras, _reader(file, folder))
    code = _judge(measured)
    if as_json:
        table = {
            name: {
                "strength": measured.pooled[name],
                "standard_error": measured.error[name],
                "is": measured.name_of(name),
                "relative_size": measured.relative_size[name],
                "layers": {layer: row[name] for layer, row in measured.layers.items() if name in row},
            }
            for name in loras
        }
        print(json.dumps({"exit_code": code, "adapters": table, "distinct": measured.distinct}, indent=2))
        return code
    table_ = Table(box=None)
    for title in ("adapter", "is", "strength", "± standard error", "‖ΔW‖/‖W‖", "furthest layers, alone"):
        table_.add_column(title, overflow="fold")
    for name in loras:
        numbers = (f"{measured.pooled[name]:.4f}", f"{measured.error[name]:.4f}", f"{measured.relative_size[name]:.4f}")
        far = ", ".join(weakest_layers(measured, name)) if abs(measured.pooled[name]) > 0.25 else ""
        table_.add_row(name, measured.name_of(name), *numbers, far)
    out = Console(highlight=False)
    out.print(table_)
    if not measured.layers:
        out.print("[yellow]cannot tell[/]: no tensor that these adapters change is in the file, or they are all DoRA.")
    elif not measured.distinct:
        out.print("[yellow]cannot tell[/]: these adapters are too much alike to be told apart.")
    return code


def _judge(measured: Strength) -> int:
    """Healthy is exactly one adapter at strength 1 and no trace of any other."""
    if not measured.layers or not measured.distinct or max(measured.error.values()) > 0.2:
        return CANNOT_TELL
    names = [measured.name_of(name) for name in measured.pooled]
    return HEALTHY if names.count("right") == 1 and names.count("absent") == len(names) - 1 else DEFECT


def _base(spec: str) -> Path:
    return Path(spec) if Path(spec).is_dir() else find_base(spec).path


def _adapter(spec: str) -> Path:
    return Adapter(name="adapter", source=spec).path


def _reader(file: Path, base: Path) -> Callable[[str], Floats | None]:
    """Reads one tensor of a GGUF, a checkpoint's folder or one safetensors file, by the checkpoint's name."""
    if file.is_file() and file.suffix == ".gguf":
        try:
            import gguf
        except ImportError:
            raise InputError(f"{file}: reading a GGUF needs the package gguf: `pip install gguf`.") from None
        from assay.inputs.gguf_file import read_weights

        weights = read_weights(gguf, file, base)
        return lambda name: weights.float32(name) if name in weights.tensors else None
    if file.is_dir():
        tensors = read_folder(file)
    elif file.is_file():
        tensors = read_header(file)
    else:
        raise InputError(f"{file}: not found. A GGUF, a safetensors file or a folder of them is expected.")
    return lambda name: _read(tensors, name)


def _read(tensors: dict[str, Tensor], name: str) -> Floats | None:
    tensor = tensors.get(name)
    if tensor is None:
        return None
    return dequantize_saved_nf4(tensors, name) if tensor.dtype == "U8" else tensor.float32()
