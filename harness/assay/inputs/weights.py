"""Weights by name, as float32, of a file in any format that is known here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import Inconclusive, InputError
from assay.inputs.checkpoint import Tensor, read_folder, read_header
from assay.inputs.number_formats import NF4

Floats = NDArray[np.float32]


def weight_reader(file: Path, base: Path) -> Callable[[str], Floats | None]:
    """A function that reads one tensor by the checkpoint's name for it; None if the file does not have it.

    Args:
        file: a GGUF, a safetensors file, or a checkpoint's folder.
        base: folder of the base, whose config a GGUF's layout depends on.

    Raises:
        InputError: not there, or a GGUF without the package that reads it.
        Inconclusive: from the function, for a tensor in a quantized format that is not known.
    """
    if file.is_file() and file.suffix == ".gguf":
        try:
            import gguf
        except ImportError:
            raise InputError(f"{file}: reading a GGUF needs the package gguf: `pip install gguf`.") from None
        from assay.inputs.gguf_file import read_weights

        weights = read_weights(gguf, file, base)
        return lambda name: weights.float32(name) if name in weights.tensors else None
    if file.is_dir():
        tensors = read_folder(file)
    elif file.is_file():
        tensors = read_header(file)
    else:
        raise InputError(f"{file}: not found. A GGUF, a safetensors file or a folder of them is expected.")
    return lambda name: _read(tensors, name)


def _read(tensors: dict[str, Tensor], name: str) -> Floats | None:
    tensor = tensors.get(name)
    if tensor is None:
        return None
    return _dequantized(tensors, name) if tensor.dtype == "U8" else tensor.float32()


def _dequantized(tensors: dict[str, Tensor], name: str) -> Floats:
    """A weight that bitsandbytes saved in 4 bits (`save_pretrained` of a 4-bit model)."""
    parts = {part.removeprefix(f"{name}."): tensor for part, tensor in tensors.items() if part.startswith(f"{name}.")}
    state = next((tensor for part, tensor in parts.items() if part.startswith("quant_state.bitsandbytes__")), None)
    if state is None or "absmax" not in parts:
        raise Inconclusive(f"{name}: stored as bytes, but not as bitsandbytes stores 4 bits.")
    told: dict[str, Any] = json.loads(state.raw().tobytes())
    if told["quant_type"] != "nf4":
        raise Inconclusive(f"{name}: quantized as {told['quant_type']}, which is not modelled here; nf4 is.")
    scales: Floats
    if "nested_absmax" in parts:
        size = int(told["nested_blocksize"])
        levels = parts["nested_quant_map"].float32()[np.asarray(parts["absmax"].raw())]
        each = np.repeat(parts["nested_absmax"].float32(), size)[: levels.size]
        scales = levels * each + np.float32(told["nested_offset"])
    else:
        scales = parts["absmax"].float32()
    packed = np.asarray(tensors[name].raw()).reshape(-1)
    codes = np.empty(2 * packed.size, dtype=np.uint8)
    codes[::2], codes[1::2] = packed >> 4, packed & 15
    count = int(np.prod(told["shape"]))
    values = NF4[codes[:count]] * np.repeat(scales, int(told["blocksize"]))[:count]
    return np.asarray(values.reshape(told["shape"]), dtype=np.float32)
