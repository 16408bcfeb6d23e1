"""Reads safetensors folders by their headers, one tensor at a time, with numpy alone.

The reader is our own because the library's has no bf16 in numpy, reads values into memory, and says less about a broken
file. This one maps the file, so that a model larger than the memory can be compared without torch.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import InputError
from assay.files import read_json

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}
_EXPONENT = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
"""Float type to the integer type that holds its bits, and the bits of infinity."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """The place of one tensor in a file."""

    file: Path
    dtype: str
    """As safetensors spells it: BF16, F16, F32, …"""
    shape: tuple[int, ...]
    begin: int
    """Offset from the start of the file, in bytes."""
    nbytes: int

    def raw(self) -> NDArray[np.uint8]:
        """The bytes, mapped and not read into memory."""
        if not self.nbytes:
            return np.empty(0, dtype=np.uint8)
        stat = self.file.stat()
        whole = _mapped(self.file, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return whole[self.begin : self.begin + self.nbytes]

    def bits(self, rows: slice = slice(None)) -> NDArray[Any]:
        """The bits of the values as unsigned integers, mapped; for BF16, F16, F32 and U8."""
        width = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "U8": "u1"}[self.dtype]
        return np.frombuffer(self.raw(), dtype=np.dtype(width)).reshape(self.shape)[rows]

    def float32(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """The values of these rows in float32; from BF16 and F16 without loss."""
        values = np.frombuffer(self.raw(), dtype=np.dtype(_NUMPY[self.dtype])).reshape(self.shape)[rows]
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


@lru_cache(maxsize=16)
def _mapped(file: Path, inode: int, size: int, mtime_ns: int) -> NDArray[np.uint8]:
    """A whole file, mapped once: tensors are read in thousands of parts, and to map a part costs as much as to read it.

    Args:
        inode, size, mtime_ns: of the file, so that a file that was replaced is mapped again.
    """
    return np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by name.

    Raises:
        InputError: the file is no safetensors file, truncated, or a Git LFS pointer.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                raise InputError(
                    f"{file}: a Git LFS pointer, not the file. Fetch it with `git lfs pull`.",
                    code="lfs-pointer",
                    file=str(file),
                )
            (length,) = struct.unpack("<Q", start)
            if length > min(size, 100_000_000):
                raise ValueError("header length out of bounds")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = Tensor(
                file=file,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                begin=8 + length + begin,
                nbytes=end - begin,
            )
            if 8 + length + end > size:
                raise InputError(
                    f"{file}: truncated. The header promises {8 + length + end:,} bytes or more, the file has {size:,} "
                    "bytes. Download or save it again.",
                    code="file-truncated",
                    file=str(file),
                )
            if entry["dtype"] in _NUMPY and prod(entry["shape"]) * np.dtype(_NUMPY[entry["dtype"]]).itemsize != (
                end - begin
            ):
                raise ValueError(f"{name} has {end - begin} bytes for shape {entry['shape']}")
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
        raise InputError(f"{file}: not a safetensors file ({problem}). Save it again with safetensors.") from None


def header_bytes(file: Path) -> bytes:
    """The header of a safetensors file that `read_header` accepts: all but the values."""
    with file.open("rb") as stream:
        start = stream.read(8)
        return start + stream.read(struct.unpack("<Q", start)[0])


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder by name, from the safetensors files that transformers loads.

    Raises:
        InputError: no safetensors (or pickles only), a tensor in two files, or an index that names missing files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        seen = f"only pickles ({', '.join(pickles)}), which can run code when loaded" if pickles else "none"
        raise InputError(
            f"{folder}: safetensors expected, {seen} found. Save it again with safetensors.",
            code="only-pickles" if pickles else "no-safetensors",
        )
    # transformers takes the files of the index, else model.safetensors. Others may lie beside them (consolidated.*).
    index = folder / "model.safetensors.index.json"
    named: dict[str, str] = read_json(index).get("weight_map", {}) if index.exists() else {}
    if named:
        files = [folder / name for name in sorted(set(named.values())) if (folder / name).exists()]
    elif folder / "model.safetensors" in files:
        files = [folder / "model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise InputError(f"{folder}: {name} is in both {tensors[name].file.name} and {file.name}. Remove one.")
            tensors[name] = tensor
    if lacking := sorted(set(named) - set(tensors)):
        raise InputError(
            f"{folder}: {index.name} names {len(lacking)} tensors that no file has, {lacking[0]} first. "
            "Download the missing files.",
            code="shard-missing",
        )
    return tensors


def chat_template(folder: Path) -> str:
    """The chat template of a model folder, as transformers would use it.

    Raises:
        InputError: there is none, or two that differ. transformers prefers the `.jinja` file, llama.cpp's converter
            prefers `tokenizer_config.json`, so a deployment would use a prompt that was never tested.
    """
    file = folder / "chat_template.jinja"
    config = folder / "tokenizer_config.json"
    embedded = read_json(config).get("chat_template") if config.exists() else None
    if isinstance(embedded, list):
        embedded = next((entry.get("template") for entry in embedded if entry.get("name") == "default"), None)
    try:
        own = file.read_text(encoding="utf-8") if file.exists() else None
    except UnicodeDecodeError as problem:
        raise InputError(f"{file}: not UTF-8 ({problem.reason} at byte {problem.start}).") from None
    if own is not None and embedded is not None and own != embedded:
        raise InputError(
            f"{folder}: chat_template.jinja and tokenizer_config.json hold different chat templates; transformers uses "
            "the first, llama.cpp's converter the second. Remove the stale one.",
            code="two-chat-templates",
        )
    template = own if own is not None else embedded
    if not template:
        raise InputError(
            f"{folder}: no chat template in chat_template.jinja or tokenizer_config.json. Without it every runtime "
            "makes up a prompt of its own. Add the chat_template.jinja that the model was trained with.",
            code="no-chat-template",
        )
    return str(template)


def all_finite_max(tensor: Tensor, chunk: int = 4_000_000) -> tuple[int, float]:
    """Number of values that are not finite, and the largest absolute value of the others; (0, 0.0) for integers.

    Args:
        chunk: number of values in memory at a time.
    """
    if tensor.dtype not in _EXPONENT:
        return 0, 0.0
    # Without the sign, the bits of a float grow with its value, inf and NaN last, so integers can be compared.
    mapped = np.frombuffer(tensor.raw(), dtype=np.dtype(_EXPONENT[tensor.dtype][0]))
    infinity, bad, largest = _EXPONENT[tensor.dtype][1], 0, 0
    without_sign = mapped.dtype.type(2 ** (8 * mapped.itemsize - 1) - 1)
    for start in range(0, mapped.size, chunk):
        bits = mapped[start : start + chunk] & without_sign
        peak = int(bits.max(initial=0))
        if peak >= infinity:
            finite = bits[bits < infinity]
            bad += bits.size - finite.size
            peak = int(finite.max(initial=0))
        largest = max(largest, peak)
    as_bits = np.array([largest], dtype=mapped.dtype)
    values = as_bits.astype(np.uint32) << 16 if tensor.dtype == "BF16" else as_bits
    kinds = {"BF16": np.float32, "F16": np.float16, "F32": np.float32, "F64": np.float64}
    return bad, float(values.view(kinds[tensor.dtype])[0])
