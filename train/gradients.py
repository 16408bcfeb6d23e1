"""Checks the backward pass of a 4-bit layer. On some processors it is wrong, without any error."""

from __future__ import annotations

from typing import Any

import torch
from assay.errors import InputError

LARGEST_ERROR = 0.05
"""Relative error that is allowed. The rounding of bf16 gives about 0.002 on CUDA; a missing backward pass gives 1."""


def check_4bit_gradients(model: Any) -> float:
    """Compare the gradients through the first block's 4-bit layers with those through the same layers dequantized.

    bitsandbytes 0.50.2 on a CPU loses the gradient of `Linear4bit` with a warning at most, while the loss stays right:
    a LoRA below such a layer trains on noise.

    Returns:
        The largest relative error of a gradient.

    Raises:
        InputError: the gradients are wrong; the model must not be trained in 4 bits here.
    """
    layers = {name: layer for name, layer in model.named_modules() if type(layer).__name__ == "Linear4bit"}
    if not layers:
        raise InputError(
            "The base has no 4-bit layer, so training would use 16 bits and not the nf4 of the recipe. "
            "Say so: --set quantization=none."
        )
    first = next(iter(layers)).rpartition(".")[0].rpartition(".")[0]
    errors = {name: gradient_error(layer) for name, layer in layers.items() if name.startswith(first)}
    worst = max(errors, key=lambda name: errors[name])
    # `not <=` and not `>`: a NaN must fail, and every comparison with NaN is false.
    if not errors[worst] <= LARGEST_ERROR:
        raise InputError(
            f"{worst}: the gradient through this 4-bit layer is off by {errors[worst]:.0%} against the same layer "
            f"dequantized ({LARGEST_ERROR:.0%} allowed). A LoRA would train on noise. Train on another device, or over "
            "a 16-bit base: --set quantization=none."
        )
    return errors[worst]


def gradient_error(layer: Any) -> float:
    """‖g − g'‖ / ‖g'‖: g is the gradient with respect to the input, g' the same through the dequantized weight.

    A layer without a backward pass has error 1.
    """
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.bfloat16)
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = torch.randn(8, weight.shape[1], generator=generator).to(weight)
    upstream = torch.randn(8, weight.shape[0], generator=generator).to(weight)
    expected = upstream.float() @ weight.float()
    inputs.requires_grad_(True)
    output = layer(inputs)
    if not output.requires_grad:
        return 1.0
    output.backward(upstream)
    if inputs.grad is None:
        return 1.0
    return float((inputs.grad.float() - expected).norm() / expected.norm())
