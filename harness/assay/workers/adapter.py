"""Reads an adapter from its files alone: no torch, no forward, no base weights."""

from __future__ import annotations

from pathlib import Path

from assay.inputs.checkpoint import all_finite_max, read_folder
from assay.inputs.lora import rank, read_lora_weights, targets
from assay.steps.adapter import AdapterFiles, InspectAdapter
from assay.workers import Work


def inspect(work: Work, *, adapter: str, base: str) -> None:
    """Facts about the adapter's config, its tensors' completeness, values, and fit with the base's shapes."""
    base_tensors = read_folder(Path(base))
    lora = read_lora_weights(Path(adapter), base_tensors)
    config = lora.config
    halves = sorted(module for module, seen in lora.halves.items() if seen != {"A", "B"})
    not_in_base, misfits, zero, off_rank, without_magnitude = [], [], [], [], []
    for weight, low in lora.changes.items():
        there = base_tensors.get(weight)
        if there is None:
            not_in_base.append(low.module)
            continue
        left, right = (tuple(part.shape) for part in low.factors())
        if (left[0], right[1]) != there.shape:
            misfits.append(f"{low.module}: the adapter is {left[0]}×{right[1]}, the base {list(there.shape)}")
        if not all_finite_max(low.a)[1] or not all_finite_max(low.b)[1]:
            zero.append(low.module)
        if left[1] != (expected := rank(config, low.module)):
            off_rank.append(f"{low.module}: rank {left[1]}, the config says {expected}")
        if bool(config.get("use_dora")) != (low.magnitude is not None):
            without_magnitude.append(low.module)
    wanted_modules = targets(config, base_tensors)
    wanted_saved = config.get("modules_to_save") or []
    facts = AdapterFiles(
        peft_type=config.get("peft_type"),
        rank=config.get("r"),
        alpha=config.get("lora_alpha"),
        target_modules=config.get("target_modules"),
        base_model_name_or_path=config.get("base_model_name_or_path"),
        tensors=len(lora.tensors),
        adapted_modules=len(lora.halves),
        saved_modules=sorted(lora.saved),
        adapter_bytes=sum(tensor.nbytes for tensor in lora.tensors.values()),
        unknown_tensors=lora.unknown,
        modules_with_one_half=halves,
        modules_not_in_base=not_in_base,
        modules_that_misfit=misfits,
        modules_without_effect=zero,
        tensors_not_finite=[name for name, tensor in lora.tensors.items() if all_finite_max(tensor)[0]],
        modules_of_another_rank=off_rank,
        modules_where_dora_disagrees=without_magnitude,
        modules_targeted_but_not_in_file=sorted(set(wanted_modules or []) - set(lora.halves)),
        modules_in_file_but_not_targeted=sorted(set(lora.halves) - set(wanted_modules)) if wanted_modules else [],
        modules_to_save_not_in_file=[
            module for module in wanted_saved if not any(module in name.split(".") for name in lora.saved)
        ],
        scales=sorted({low.scale for low in lora.changes.values()}),
    )
    work.reached(InspectAdapter.inspected, facts)
