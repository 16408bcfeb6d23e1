"""`python -m train.experiments.qlora_8b OUT.json`: memory and throughput of QLoRA steps in Qwen3-8B's shape.

The weights are random: neither depends on their values. Needs a GPU of about 24 GB and 20 GB of disk.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from assay.files import write_json
from assay.inputs.bases import EMBEDDED, find_base
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, set_seed

from train.gradients import check_4bit_gradients
from train.recipe import Recipe, read_recipe
from train.training import load_base, with_lora

SHAPES = [(1, 512), (4, 512), (8, 512), (16, 512), (4, 2048)]
STEPS = 6


def main(out: Path) -> None:
    recipe = read_recipe("v3b")
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "steps": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "qwen3-8b"
        write_base(folder)
        started = time.monotonic()
        model = load_base(recipe, folder)
        results["load_nf4_seconds"] = round(time.monotonic() - started, 1)
        results["gradient_error"] = check_4bit_gradients(model)
    gc.collect()
    torch.cuda.empty_cache()
    results["weights_bytes"] = torch.cuda.memory_allocated()
    model = with_lora(model, recipe.lora)
    results["trainable_parameters"] = sum(one.numel() for one in model.parameters() if one.requires_grad)
    for checkpointing in (True, False):
        for batch, length in SHAPES:
            if not checkpointing and batch * length > 4096:
                continue
            changed = recipe.model_copy(update={"gradient_checkpointing": checkpointing})
            one = _steps(changed, model, batch, length)
            results["steps"].append(one)
            print(one, flush=True)
            write_json(out, results)


def write_base(folder: Path) -> None:
    """Qwen3-8B's shape, as its config.json has it, with random bf16 weights."""
    set_seed(0)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_base(EMBEDDED).path).save_pretrained(folder)
    del model
    gc.collect()
    torch.cuda.empty_cache()


def _steps(recipe: Recipe, model: Any, batch: int, length: int) -> dict[str, Any]:
    model.train()
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=recipe.learning_rate)
    tokens = torch.randint(1000, 100000, (batch, length), device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.monotonic()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
    middle = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return {
        "batch": batch,
        "tokens": length,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "seconds_a_step": round(middle, 3),
        "tokens_per_second": round(batch * length / middle),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "loss": round(float(loss), 3),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
