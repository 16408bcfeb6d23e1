"""Folds an adapter into bf16 weights with peft, then compares the result with the base, tensor by tensor."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from assay.checkpoint import Tensor, all_finite_max, read_folder, read_header, read_json
from assay.workers import Work, host_peak_bytes
from assay.workers.adapter import targeted_modules

_OWN = re.compile(r"config\.json$|.*\.safetensors\.index\.json$")
"""Files that describe the merged weights themselves and are not copied from the base."""


def fold(work: Work, *, base: str, adapter: str) -> None:
    """Save base + adapter under `checkpoint/`, with the base's own tokenizer and template files, byte for byte."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    started = time.monotonic()
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False
    )
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    checkpoint = work.folder / "checkpoint"
    model.save_pretrained(checkpoint)
    for file in Path(base).iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not _OWN.match(file.name):
            shutil.copyfile(file, checkpoint / file.name)
    work.stage("merge", merge_seconds=round(time.monotonic() - started, 3), peak_host_bytes=host_peak_bytes())
    work.stage("compare", **compare(Path(base), checkpoint, Path(adapter)))


def compare(base: Path, checkpoint: Path, adapter: Path) -> dict[str, Any]:
    """Facts on a merged checkpoint against its base and adapter. Streams: one tensor in memory at a time."""
    before, after = read_folder(base), read_folder(checkpoint)
    lora = read_header(adapter / "adapter_model.safetensors")
    names = list(lora)
    targeted = {f"{module}.weight" for module in targeted_modules(names)}
    targeted |= {saved for name in names if (saved := name.removeprefix("base_model.model.")) in before}
    changed, not_finite, largest, where = set(), [], 0.0, ""
    dropped = sorted(name for name in set(before) - set(after) if _is_redundant(name, before, base))
    idle = {
        f"{module}.weight"
        for name, tensor in lora.items()
        if "lora_B" in name and all_finite_max(tensor)[1] == 0.0
        for module in targeted_modules([name])
    }
    for name in sorted(set(before) & set(after)):
        if not _same_in_bf16(before[name], after[name]):
            changed.add(name)
        bad, peak = all_finite_max(after[name])
        if bad:
            not_finite.append(name)
        if peak > largest:
            largest, where = peak, name
    return {
        "tensors": len(after),
        "parameters": sum(int(np.prod(tensor.shape)) for tensor in after.values()),
        "checkpoint_bytes": sum(tensor.nbytes for tensor in after.values()),
        "dtypes": sorted({tensor.dtype for tensor in after.values()}),
        "tensors_missing": sorted(set(before) - set(after) - set(dropped)),
        "tensors_dropped_as_redundant": dropped,
        "tensors_extra": sorted(set(after) - set(before)),
        "tensors_targeted": len(targeted),
        "targeted_unchanged": sorted(targeted - changed - idle),
        "targeted_without_effect": sorted(idle),
        "others_changed": sorted(changed - targeted),
        "tensors_not_finite": not_finite,
        "largest_absolute_value": largest,
        "largest_absolute_value_in": where,
    }


def _is_redundant(name: str, before: dict[str, Tensor], base: Path) -> bool:
    """Whether transformers leaves it out on purpose: a buffer that it computes, or a tied head stored twice."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    twin = next((other for other in before if other.endswith("embed_tokens.weight")), None)
    tied = read_json(base / "config.json").get("tie_word_embeddings", True)
    return bool(name == "lm_head.weight" and tied and twin and _same_in_bf16(before[name], before[twin]))


def _same_in_bf16(a: Tensor, b: Tensor) -> bool:
    """Bit for bit the same; a base stored in another type is first rounded to bf16, as loading it does."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return bool(np.array_equal(a.raw(), b.raw()))
    return bool(np.array_equal(_to_bf16(a.float32()), _to_bf16(b.float32())))


def _to_bf16(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, dtype=np.uint32)
