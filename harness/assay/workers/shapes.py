"""A model's shapes from its config alone: built without memory for its weights."""

from __future__ import annotations

from typing import Any

from assay.steps.adapter import ModelShapes, ReadShapes
from assay.workers import Work


def read(work: Work, *, config: str) -> None:
    """Every parameter's name and shape, and which are linear layers that become 4-bit."""
    model, linears = build(config)
    parameters = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    work.reached(ReadShapes.read, ModelShapes(parameters=parameters, linears=sorted(linears)))


def build(config: str) -> tuple[Any, list[str]]:
    """The model on torch's meta device, a tied head tied, and the names of its linear weights but the head's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(config, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model.tie_weights()
    head = model.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return model, [f"{name}.weight" for name, module in linears.items() if module is not head]
