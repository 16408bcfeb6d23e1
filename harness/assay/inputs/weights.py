"""Weights by name, as float32, of a file in any format that is known here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.errors import InputError
from assay.inputs.checkpoint import Tensor, read_folder, read_header
from assay.inputs.number_formats import dequantize_saved_nf4

Floats = NDArray[np.float32]


def weight_reader(file: Path, base: Path) -> Callable[[str], Floats | None]:
    """A function that reads one tensor by the checkpoint's name for it; None if the file does not have it.

    Args:
        file: a GGUF, a safetensors file, or a checkpoint's folder.
        base: folder of the base, whose config a GGUF's layout depends on.

    Raises:
        InputError: the file is missing, or a GGUF while the package that reads it is not installed.
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
    return dequantize_saved_nf4(tensors, name) if tensor.dtype == "U8" else tensor.float32()
