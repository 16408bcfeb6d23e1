"""Edits of a base and of an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from assay.faults.edits.files import edit_json
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.inputs.lora import CONFIG, WEIGHTS, read_lora_weights
from assay.machine import cpu_flags
from assay.workers.tensors import Edit, edit_checkpoint, edit_tensors

READS_REPACKED = "bitsandbytes repacks 4-bit weights on this processor (AVX512-BF16), and DoRA reads them afterwards"


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder."""
    return sorted(folder.glob("*.safetensors"))


def base_config(sandbox: Sandbox) -> dict[str, Any]:
    """The base's config.json."""
    config: dict[str, Any] = json.loads((sandbox.base / "config.json").read_text(encoding="utf-8"))
    return config


def edit_base_config(sandbox: Sandbox, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the base's config.json in place."""
    edit_json(sandbox.base / "config.json", edit)


def set_template(base: Path, text: str | None) -> None:
    """Give a base one chat template, in chat_template.jinja, or none."""
    edit_json(base / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    if text is not None:
        (base / "chat_template.jinja").write_text(text, encoding="utf-8")


def edit_adapter(sandbox: Sandbox, edit: Edit) -> None:
    """Change the adapter's tensors in place."""
    edit_tensors(sandbox.adapter / WEIGHTS, edit)


def adapter_config(sandbox: Sandbox) -> dict[str, Any]:
    """The adapter's adapter_config.json."""
    config: dict[str, Any] = json.loads((sandbox.adapter / CONFIG).read_text(encoding="utf-8"))
    return config


def set_adapter_config(sandbox: Sandbox, **settings: Any) -> None:
    """Set keys of adapter_config.json."""
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(settings))


def remove_module(sandbox: Sandbox, kind: str) -> None:
    """Remove one kind of module (`down_proj`) from the adapter: from its tensors and from target_modules."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if kind in name]:
            del tensors[name]

    edit_adapter(sandbox, edit)
    targets = [target for target in adapter_config(sandbox)["target_modules"] if target != kind]
    set_adapter_config(sandbox, target_modules=targets)


def plain_lora_config(sandbox: Sandbox) -> dict[str, Any]:
    """The adapter's config.

    Raises:
        NotApplicable: it is DoRA or rsLoRA or has patterns, so it cannot be written as another kind of itself.
    """
    config = adapter_config(sandbox)
    if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora"):
        raise NotApplicable("the adapter is no plain LoRA, so it cannot be written as another kind of itself")
    return config


def rewrite_as_dora(sandbox: Sandbox) -> None:
    """Write the adapter as DoRA, with the magnitudes that leave its change as it is.

    Raises:
        NotApplicable: the adapter is no plain LoRA.
    """
    plain_lora_config(sandbox)
    base = sandbox.candidate.base.tensors
    lora = read_lora_weights(sandbox.adapter, base)

    def edit(tensors: dict[str, Any]) -> None:
        for weight, low in lora.changes.items():
            left, right = low.factors()
            whole = base[weight].float32() + np.float32(low.scale) * (left @ right)
            magnitude = np.linalg.norm(whole, axis=1).astype(np.float32)
            tensors[f"base_model.model.{low.module}.lora_magnitude_vector"] = magnitude

    edit_adapter(sandbox, edit)
    set_adapter_config(sandbox, use_dora=True)


def repacks_weights() -> bool:
    """Whether bitsandbytes rearranges 4-bit weights at the first forward, so that a later reader reads garbage."""
    return "avx512_bf16" in cpu_flags()


def write_weight_beyond_f16(sandbox: Sandbox) -> None:
    """Give the base a weight of 100,000, as some bf16 models have. Its channel is switched off, so it never counts."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("layers.0.mlp.gate_proj.weight"):
                tensor[0] = 0
            elif name.endswith("layers.0.mlp.down_proj.weight"):
                tensor[0, 0] = 1e5

    edit_checkpoint(sandbox.base, edit)
