"""A random model that recites one sentence, and an adapter for it: a healthy candidate of another architecture."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

from assay.inputs.lora import CONFIG, WEIGHTS

SENTENCE = (
    "A small heron on the old harbour wall recites one long sentence about ships, weather, salt and rope; "
    "nobody taught it why, yet every evening fishermen stop to listen, smile, then walk home slowly"
)
"""A token that it has twice is recited once, because each token has one successor."""

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""All rows are multiples of 256, so that the model becomes a true Q4_K."""


def write_random_model(
    source: Path,
    base: Path,
    adapter: Path,
    *,
    architecture: str,
    shape: dict[str, Any],
    lora: dict[str, Any],
    std: float,
) -> None:
    """Replace the weights and configs in `base`, and the files in `adapter`, by those of a random model.

    Args:
        source: the folder with the tokenizer; `base` has the same tokenizer files.
        architecture: transformers' `model_type`.
        shape: keys of config.json, over those of SHAPE.
        lora: keys of peft's LoraConfig, over rank 8 and alpha 16 on o_proj, down_proj and v_proj.
        std: the standard deviation of lora_B: more than rounding changes, and less than makes it lose the sentence.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    vocabulary = {"vocab_size": json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(architecture, **{**SHAPE, **vocabulary, **shape}, **ends)
    model: Any = AutoModelForCausalLM.from_config(config)
    _teach(model, tokenizer)
    for file in base.iterdir():
        described = file.name in ("config.json", "generation_config.json") or "index" in file.name
        if described or file.suffix == ".safetensors":
            file.unlink()
    model.to(torch.bfloat16).save_pretrained(base)
    generation = {key: value for key, value in ends.items() if value is not None}
    (base / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    _write_adapter(base, adapter, lora, std)


def _teach(model: Any, tokenizer: Any) -> None:
    """Let the head rank the next token of the sentence first, after the end of any prompt; the end token comes last."""
    import torch

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=False
    )
    sentence = list(dict.fromkeys(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]))
    chain = [prompt[-1], *(token for token in sentence if token != prompt[-1]), tokenizer.eos_token_id]
    embedding, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    embedding.normal_()
    head.copy_(0.05 * torch.randn_like(head))
    for before, after in pairwise(chain):
        head[after] = 0.08 * embedding[before]


def _write_adapter(base: Path, adapter: Path, lora: dict[str, Any], std: float) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 8, "lora_alpha": 16, "target_modules": ["o_proj", "down_proj", "v_proj"], **lora}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
        elif "magnitude" in name:  # DoRA's normalization takes from the change what its magnitudes give back
            parameter.data *= 4
    shutil.rmtree(adapter)
    adapted.save_pretrained(adapter)
    for file in adapter.iterdir():
        if file.name not in (CONFIG, WEIGHTS):
            file.unlink()
