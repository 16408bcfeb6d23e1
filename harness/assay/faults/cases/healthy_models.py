"""Healthy variants of other architectures and shapes: random small models that recite one sentence."""

from __future__ import annotations

from functools import partial
from typing import Any

from assay.faults.edits.sandbox import Sandbox
from assay.faults.fault import healthy
from assay.workers.random_model import write_random_model


def _random(
    sandbox: Sandbox, architecture: str, *, lora: dict[str, Any] | None = None, std: float = 0.5, **shape: Any
) -> None:
    write_random_model(
        sandbox.candidate.base.path,
        sandbox.base,
        sandbox.adapter,
        architecture=architecture,
        shape=shape,
        lora=lora or {},
        std=std,
    )


healthy("random_llama", "A random Llama.", partial(_random, architecture="llama"))
healthy("random_olmo2", "A random OLMo 2.", partial(_random, architecture="olmo2"))
healthy("random_smollm3", "A random SmolLM3.", partial(_random, architecture="smollm3"))
healthy("random_granite", "A random Granite.", partial(_random, architecture="granite"))
healthy("random_qwen3", "A random Qwen3.", partial(_random, architecture="qwen3", head_dim=64))
healthy(
    "random_qwen3_wide_heads",
    "A random Qwen3 whose heads together are wider than its hidden size.",
    partial(_random, architecture="qwen3", head_dim=128),
)
healthy("random_mistral", "A random Mistral.", partial(_random, architecture="mistral", sliding_window=None))
healthy(
    "random_with_many_key_heads",
    "A random Llama with as many key heads as query heads.",
    partial(_random, architecture="llama", num_key_value_heads=4),
)
healthy(
    "random_with_one_key_head",
    "A random Llama with one key head.",
    partial(_random, architecture="llama", num_key_value_heads=1),
)
healthy(
    "random_rslora",
    "A random Qwen3 with rsLoRA.",
    partial(_random, architecture="qwen3", head_dim=64, std=0.25, lora={"use_rslora": True, "lora_alpha": 8}),
)
healthy(
    "random_dora",
    "A random Qwen3 with DoRA.",
    partial(_random, architecture="qwen3", head_dim=64, lora={"use_dora": True}),
)
healthy(
    "random_all_linear",
    "A random Llama with an adapter on every linear layer.",
    partial(_random, architecture="llama", std=0.15, lora={"target_modules": "all-linear"}),
)
