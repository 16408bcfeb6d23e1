"""Reads an adapter from its files alone: no torch, no forward, no base weights."""

from __future__ import annotations

import re
from pathlib import Path

from assay.checkpoint import all_finite_max, read_folder, read_header, read_json
from assay.workers import Work

_LORA = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<half>A|B|embedding_A|embedding_B)(\.weight)?$")
_MAGNITUDE = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_magnitude_vector(\.weight)?$")


def targeted_modules(names: list[str]) -> list[str]:
    """The modules that an adapter's tensors change, as the base's checkpoint names them."""
    return sorted({match["module"] for name in names if (match := _LORA.match(name))})


def inspect(work: Work, *, adapter: str, base: str) -> None:
    """Facts about the adapter's config, its tensors' completeness, values, and fit with the base's shapes."""
    config = read_json(Path(adapter) / "adapter_config.json")
    tensors = read_header(Path(adapter) / "adapter_model.safetensors")
    base_tensors = read_folder(Path(base))
    halves: dict[str, dict[str, str]] = {}
    saved: list[str] = []
    unknown: list[str] = []
    for name in tensors:
        if match := _LORA.match(name):
            halves.setdefault(match["module"], {})[match["half"].replace("embedding_", "")] = name
        elif _MAGNITUDE.match(name):
            continue
        elif name.removeprefix("base_model.model.") in base_tensors:
            saved.append(name)
        else:
            unknown.append(name)
    half_missing, not_in_base, misfits, zero = [], [], [], []
    for module, pair in sorted(halves.items()):
        if set(pair) != {"A", "B"}:
            half_missing.append(module)
            continue
        weight = base_tensors.get(f"{module}.weight")
        a, b = tensors[pair["A"]], tensors[pair["B"]]
        if weight is None:
            not_in_base.append(module)
        elif "embedding" not in pair["A"] and (a.shape[1], b.shape[0]) != (weight.shape[1], weight.shape[0]):
            misfits.append(f"{module}: the adapter is {b.shape[0]}×{a.shape[1]}, the base {list(weight.shape)}")
        if all_finite_max(b)[1] == 0.0 or all_finite_max(a)[1] == 0.0:
            zero.append(module)
    not_finite = [name for name, tensor in tensors.items() if all_finite_max(tensor)[0]]
    work.stage(
        "inspect",
        peft_type=config.get("peft_type"),
        rank=config.get("r"),
        alpha=config.get("lora_alpha"),
        target_modules=config.get("target_modules"),
        base_model_name_or_path=config.get("base_model_name_or_path"),
        peft_version=config.get("peft_version"),
        tensors=len(tensors),
        adapted_modules=len(halves),
        saved_modules=saved,
        adapter_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        unknown_tensors=unknown,
        modules_with_one_half=half_missing,
        modules_not_in_base=not_in_base,
        modules_that_misfit=misfits,
        modules_without_effect=zero,
        tensors_not_finite=not_finite,
    )
