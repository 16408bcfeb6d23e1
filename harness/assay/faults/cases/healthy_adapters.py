"""Healthy variants of the adapter. Each computes the function that was trained, unless its title says otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from assay.faults.edits.files import edit_json
from assay.faults.edits.models import (
    READS_REPACKED,
    edit_adapter,
    plain_lora_config,
    remove_module,
    repacks_weights,
    rewrite_as_dora,
    set_adapter_config,
)
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.fault import BASELINE, healthy
from assay.inputs.lora import CONFIG, read_lora_weights
from assay.workers.tensors import cast

Change = Callable[[str, str, Any], Any]
"""From a module, a half (`A` or `B`) and its tensor to the new tensor."""


def _nothing(sandbox: Sandbox) -> None:
    """The candidate stays as it is."""


def _edit_halves(sandbox: Sandbox, change: Change) -> None:
    """Change every lora_A and lora_B."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if match := re.match(r"(.*)\.lora_(A|B)\.weight", name):
                tensors[name] = change(match[1], match[2], tensors[name])

    edit_adapter(sandbox, edit)


def _padded(tensor: Any, half: str, rank: int) -> Any:
    """The half at a higher rank: rows of zeros behind an A, columns of zeros behind a B."""
    rows, columns = tensor.shape
    padded = tensor.new_zeros((rank, columns) if half == "A" else (rows, rank))
    padded[:rows, :columns] = tensor
    return padded


def _rank(sandbox: Sandbox, times: int) -> None:
    config = plain_lora_config(sandbox)
    rank = int(config["r"]) * times
    _edit_halves(sandbox, lambda module, half, tensor: _padded(tensor, half, rank))
    set_adapter_config(sandbox, r=rank, lora_alpha=config["lora_alpha"] * times)


def _alpha(sandbox: Sandbox, alpha: float, **settings: Any) -> None:
    """Another alpha, with B scaled so that the change stays."""
    config = plain_lora_config(sandbox)
    root = settings.get("use_rslora", False)
    scale = alpha / (config["r"] ** 0.5 if root else config["r"])
    factor = config["lora_alpha"] / config["r"] / scale
    _edit_halves(sandbox, lambda module, half, tensor: tensor * factor if half == "B" else tensor)
    set_adapter_config(sandbox, lora_alpha=alpha, **settings)


def _dora(sandbox: Sandbox) -> None:
    if repacks_weights():
        raise NotApplicable(READS_REPACKED)
    rewrite_as_dora(sandbox)


def _stored_as(sandbox: Sandbox, dtype: str) -> None:
    _edit_halves(sandbox, lambda module, half, tensor: cast(tensor, dtype))


def _patterns(sandbox: Sandbox) -> None:
    config = plain_lora_config(sandbox)
    rank, kind = 2 * int(config["r"]), sorted(config["target_modules"])[0]
    _edit_halves(sandbox, lambda module, half, tensor: _padded(tensor, half, rank) if module.endswith(kind) else tensor)
    set_adapter_config(sandbox, rank_pattern={kind: rank}, alpha_pattern={kind: 2 * config["lora_alpha"]})


def _modules(sandbox: Sandbox) -> list[str]:
    """The full names of the modules that the adapter changes."""
    return [low.module for low in read_lora_weights(sandbox.adapter, sandbox.candidate.base.tensors).changes.values()]


def _targets(sandbox: Sandbox, how: str) -> None:
    modules = _modules(sandbox)
    targets: Any = "|".join(re.escape(name) for name in modules) if how == "expression" else modules
    set_adapter_config(sandbox, target_modules=targets, layers_to_transform=None)


def _without(sandbox: Sandbox, kind: str) -> None:
    kinds = {name.rpartition(".")[2] for name in _modules(sandbox)}
    if kind not in kinds or len(kinds) < 3:
        raise NotApplicable(f"the adapter has no {kind} beside others")
    remove_module(sandbox, kind)


def _few_keys(sandbox: Sandbox) -> None:
    def edit(config: dict[str, Any]) -> None:
        for key in [key for key, value in config.items() if not value]:
            del config[key]

    edit_json(sandbox.adapter / CONFIG, edit)


healthy(BASELINE, "The candidate as it was trained.", _nothing, quick=True)
healthy("rank_doubled", "Twice the rank; the new half is zero.", partial(_rank, times=2), quick=True)
healthy("rank_times_8", "Eight times the rank; the rest is zero.", partial(_rank, times=8), quick=True)
healthy("alpha_8", "alpha 8, with B scaled to the same change.", partial(_alpha, alpha=8), quick=True)
healthy("alpha_16", "alpha 16, with B scaled to the same change.", partial(_alpha, alpha=16), quick=True)
healthy("alpha_128", "alpha 128, with B scaled to the same change.", partial(_alpha, alpha=128), quick=True)
healthy("rslora", "rsLoRA: the scale is alpha / √r.", partial(_alpha, alpha=16, use_rslora=True), quick=True)
healthy("dora", "DoRA, with magnitudes that leave the change as it is.", _dora, quick=True)
healthy("adapter_fp16", "The adapter stored in fp16.", partial(_stored_as, dtype="float16"), quick=True)
healthy("adapter_bf16", "The adapter stored in bf16.", partial(_stored_as, dtype="bfloat16"), quick=True)
healthy(
    "patterns",
    "One kind of module at twice the rank and alpha (rank_pattern, alpha_pattern).",
    _patterns,
    quick=True,
)
healthy(
    "targets_by_expression", "target_modules as a regular expression.", partial(_targets, how="expression"), quick=True
)
healthy("targets_in_full", "target_modules as full names.", partial(_targets, how="names"), quick=True)
healthy(
    "without_down_proj", "An adapter that does not change down_proj.", partial(_without, kind="down_proj"), quick=True
)
healthy("without_o_proj", "An adapter that does not change o_proj.", partial(_without, kind="o_proj"), quick=True)
healthy("older_config", "adapter_config.json with few keys, as an older peft wrote it.", _few_keys, quick=True)
healthy(
    "recorded_by_path",
    "adapter_config.json names the base by a folder of the training machine.",
    partial(set_adapter_config, base_model_name_or_path="/workspace/models/base"),
    quick=True,
)
