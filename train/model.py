"""The model that a recipe trains: a frozen base in nf4 or unquantized, with a fresh LoRA on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from assay.files import read_json
from assay.inputs.bases import Base
from assay.measures import sizing
from assay.workers.model import full_dtype, load_full, load_nf4
from peft import LoraConfig, get_peft_model

from train.gradients import check_4bit_gradients
from train.recipe import LoraSettings, Recipe


def load_base(recipe: Recipe, path: Path) -> Any:
    """The frozen base: nf4 with double quantization on CUDA if the recipe says so, else 16 or 32 bits."""
    if not in_4bit(recipe):
        model, _, _ = load_full(str(path))
        return model
    model, _, _ = load_nf4(str(path))
    check_4bit_gradients(model)
    return model


def with_lora(model: Any, lora: LoraSettings) -> Any:
    """The base with a fresh adapter on it, whose B halves are zero."""
    blocks = model.config.num_hidden_layers
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        layers_to_transform=list(range(max(0, blocks - lora.last_blocks), blocks)) if lora.last_blocks else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def in_4bit(recipe: Recipe) -> bool:
    """Whether this machine trains the recipe over a 4-bit base."""
    return recipe.quantization == "nf4" and torch.cuda.is_available()


def held_in(recipe: Recipe) -> str:
    """The format of the frozen base and the device, for people."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    if in_4bit(recipe):
        return f"nf4 on {device}"
    dtype = str(full_dtype()).removeprefix("torch.")
    instead = " instead of nf4 (4-bit gradients need CUDA)" if recipe.quantization == "nf4" else ""
    return f"{dtype}{instead} on {device}"


def predicted_peak_bytes(recipe: Recipe, base: Base, tokens: int) -> int:
    """Memory of the tensors at the peak of a step, from shapes alone.

    Args:
        tokens: per step on one device, padding counted.
    """
    shapes = sizing.shapes_from_headers(base.tensors, read_json(base.path / "config.json"))
    return sizing.training_peak_bytes(
        shapes,
        sizing.adapted(shapes, recipe.lora.targets, recipe.lora.last_blocks),
        recipe.lora.rank,
        tokens=tokens,
        quantization="nf4" if in_4bit(recipe) else "none",
        checkpointing=recipe.gradient_checkpointing,
        element_bytes=2 if in_4bit(recipe) else full_dtype().itemsize,
    )
