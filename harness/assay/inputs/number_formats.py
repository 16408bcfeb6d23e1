"""Number formats in numpy: rounding to 16 bits, and the nf4 of bitsandbytes, quantized and dequantized."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import Inconclusive
from assay.inputs.checkpoint import Tensor

Floats = NDArray[np.float32]

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share an nf4 scale, and scales that share a scale of their own (the defaults of bitsandbytes)."""

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
"""The 16 values of NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E)."""


def bf16_bits(values: Floats) -> NDArray[np.uint16]:
    """The values rounded to bfloat16, nearest even, as bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits >> 16) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def widen(bits: NDArray[np.uint16]) -> Floats:
    """bfloat16 bits as float32, without loss."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def round_to(values: Floats, dtype: str) -> Floats:
    """The values rounded to BF16 or F16 and widened again; F32 stays as it is."""
    if dtype == "BF16":
        return widen(bf16_bits(values))
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return values


def bits_of(values: Floats, dtype: str) -> NDArray[np.unsignedinteger]:
    """The values as a file of that dtype stores them."""
    if dtype == "BF16":
        return bf16_bits(values)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    return np.ascontiguousarray(values).view(np.uint32)


def nf4_round_trip(weight: Floats, *, double_quantization: bool) -> Floats:
    """The weight after bitsandbytes quantized and dequantized it: blocks of 64 along the rows, in float32.

    Source: bitsandbytes 0.50, `functional.quantize_4bit`.
    """
    flat = np.ascontiguousarray(weight).reshape(-1)
    whole = np.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    scales = np.abs(whole).max(axis=1)
    middles = (NF4[1:] + NF4[:-1]) / 2
    scaled = whole * (np.float32(1) / np.maximum(scales, np.float32(1e-38)))[:, None]
    values = NF4[np.searchsorted(middles, scaled)]
    if double_quantization:
        scales = _nested_round_trip(scales)
    return np.asarray((values * scales[:, None]).reshape(-1)[: flat.size].reshape(weight.shape), dtype=np.float32)


def _nested_round_trip(scales: Floats) -> Floats:
    """The scales after a round trip through 8 bits: blocks of 256 around the mean, on the dynamic map."""
    offset = scales.mean(dtype=np.float32)
    centred = np.pad(scales - offset, (0, -scales.size % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK)
    largest = np.abs(centred).max(axis=1)
    table = dynamic_map()
    scaled = centred * (np.float32(1) / np.maximum(largest, np.float32(1e-38)))[:, None]
    nearest = table[np.searchsorted((table[1:] + table[:-1]) / 2, scaled)]
    return np.asarray((nearest * largest[:, None]).reshape(-1)[: scales.size] + offset, dtype=np.float32)


def dequantize_saved_nf4(tensors: dict[str, Tensor], name: str) -> Floats:
    """A weight that bitsandbytes saved in 4 bits (`save_pretrained` of a 4-bit model), in the shape of the weight.

    Source: bitsandbytes 0.50, `functional.QuantState.as_dict`.

    Args:
        tensors: of the checkpoint, by name: the packed weight under `name`, and its quantization state beside it.

    Raises:
        Inconclusive: the bytes are no 4-bit weight of bitsandbytes, or quantized to another type than nf4.
    """
    parts = {part.removeprefix(f"{name}."): tensor for part, tensor in tensors.items() if part.startswith(f"{name}.")}
    saved = next((tensor for part, tensor in parts.items() if part.startswith("quant_state.bitsandbytes__")), None)
    if saved is None or "absmax" not in parts:
        raise Inconclusive(f"{name}: stored as bytes, but not as bitsandbytes stores 4 bits.")
    state: dict[str, Any] = json.loads(saved.raw().tobytes())
    if state["quant_type"] != "nf4":
        raise Inconclusive(f"{name}: quantized as {state['quant_type']}; only nf4 is known here.")
    if "nested_absmax" in parts:
        levels = parts["nested_quant_map"].float32()[parts["absmax"].raw()]
        each = np.repeat(parts["nested_absmax"].float32(), int(state["nested_blocksize"]))[: levels.size]
        scales = levels * each + np.float32(state["nested_offset"])
    else:
        scales = parts["absmax"].float32()
    packed = tensors[name].raw()
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    count = int(np.prod(state["shape"]))
    values = NF4[codes[:count]] * np.repeat(scales, int(state["blocksize"]))[:count]
    return np.asarray(values.reshape(state["shape"]), dtype=np.float32)


@cache
def dynamic_map() -> Floats:
    """The 256 values of an 8-bit scale in bitsandbytes, finer near zero (arXiv 1511.04561)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _linspace(2**exponent + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - 6))
        values += [*means.tolist(), *(-means).tolist()]
    return np.sort(np.array(values, dtype=np.float32))


def _linspace(count: int) -> Floats:
    """torch.linspace(0.1, 1, count) in float32: from both ends towards the middle, each value rounded once."""
    start, end = np.float32(0.1), np.float32(1)
    step, at = np.float64((end - start) / np.float32(count - 1)), np.arange(count)
    return np.where(at < count // 2, start + step * at, end - step * (count - 1 - at)).astype(np.float32)
