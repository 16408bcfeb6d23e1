"""Compares a GGUF with the checkpoint that it was made from: weights (through the converter's permutation), metadata.

The module `gguf` is an argument: workers use the toolchain's copy, the command line the installed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import Inconclusive, InputError
from assay.files import read_json
from assay.inputs.checkpoint import Tensor, read_folder
from assay.inputs.model_files import added_tokens, settings, token_text
from assay.inputs.number_formats import bits_of

Floats = NDArray[np.float32]

MODELLED = ("llama", "qwen2", "qwen3")
"""Architectures whose conversion is known here tensor by tensor. Others are compared by names and shapes only."""
PERMUTED = ("llama",)
"""Architectures whose q and k rows the converter reorders from halves to pairs (llama.cpp, `LlamaModel.permute`)."""
NOISE = {
    "F32": 0.001, "F16": 0.001, "BF16": 0.005, "Q8_0": 0.012, "Q6_K": 0.035, "Q5_K": 0.07, "Q5_0": 0.08, "Q5_1": 0.08,
    "Q4_K": 0.14, "Q4_0": 0.16, "Q4_1": 0.14, "Q3_K": 0.28, "Q2_K": 0.55,
}  # fmt: skip
"""Type to the largest share of a tensor's norm by which rounding may move it: about twice what real weights show."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one GGUF under the names of the checkpoint."""

    dequantize: Callable[[Any, Any], Floats]
    """Takes a tensor's data and type, gives its values, rows × columns."""
    architecture: str
    """As gguf-py spells it."""
    tensors: dict[str, Any]
    """gguf-py's tensors, by the checkpoint's names."""
    heads: dict[str, int]
    """Tensor whose rows the converter permuted to its number of heads, by the checkpoint's names."""

    def float32(self, name: str) -> Floats:
        """A tensor's values in the checkpoint's layout."""
        tensor = self.tensors[name]
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values = self.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        return self.unpermuted(name, values)

    def unpermuted(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """The values with rows of q and k moved from pairs back to halves."""
        heads = self.heads.get(name)
        if heads is None:
            return values
        rows, *rest = values.shape
        return values.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(values.shape)


def open_reader(gguf: Any, file: Path, mode: str = "r") -> Any:
    """gguf-py's reader, in a third of its time.

    gguf-py reads a vocabulary in 250,000 slices of an `np.memmap`. Each slice is a memmap too, and costs ten times as
    much as a slice of the plain array over the same bytes.

    Args:
        mode: "r", or "r+" to write every assignment to a field or a tensor to the file at once.
    """

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> NDArray[np.uint8]:
            return self._bytes

        @data.setter
        def data(self, mapped: NDArray[np.uint8]) -> None:
            self._bytes = np.asarray(mapped)

    return Reader(str(file), mode)


def open_weights(
    gguf: Any,
    reader: Any,
    names: Iterator[str] | list[str],
    config: dict[str, Any],
    dequantize: Callable[[Any, Any], Floats],
) -> Weights:
    """Match a GGUF's tensors with a checkpoint's names.

    Args:
        reader: gguf-py's.
        names: of the checkpoint's tensors.
        config: the checkpoint's config.json.
        dequantize: takes a tensor's data and type, gives its values.

    Raises:
        InputError: gguf-py does not know the architecture.
    """
    known = settings(config)
    architecture = str(reader.get_field("general.architecture").contents())
    arch = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None or "num_hidden_layers" not in known:
        raise InputError(f"Architecture {architecture!r}: not known to gguf-py, so its tensors cannot be matched.")
    table = gguf.get_tensor_name_map(arch, int(known["num_hidden_layers"]))
    held = {tensor.name: tensor for tensor in reader.tensors}
    tensors, heads = {}, {}
    for name in names:
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped in held:
            tensors[name] = held[mapped]
            if architecture in PERMUTED and ("q_proj" in name or "k_proj" in name):
                heads[name] = int(known["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
    return Weights(dequantize=dequantize, architecture=architecture, tensors=tensors, heads=heads)


def unequal_tensors(weights: Weights, checkpoint: dict[str, Tensor], each: Callable[..., Any]) -> list[str]:
    """Names of the tensors of a 16-bit GGUF that are not the checkpoint's, rounded once to the stored type.

    Args:
        each: maps a function over items, as `map` or a thread pool's does.
    """

    def unequal(part: tuple[str, slice]) -> str | None:
        name, rows = part
        tensor, source = weights.tensors[name], checkpoint[name]
        kind = tensor.tensor_type.name
        if kind not in ("F16", "BF16", "F32"):
            return f"{name} ({kind})"
        seen = tensor.data.view(np.uint32 if kind == "F32" else np.uint16).reshape(source.shape)
        expected = bits_of(source.float32(rows), kind)
        return None if np.array_equal(weights.unpermuted(name, seen)[rows], expected) else f"{name} ({kind})"

    parts = [(name, rows) for name, tensor in weights.tensors.items() for rows in _parts(tensor)]
    return list(dict.fromkeys(name for name in each(unequal, parts) if name is not None))


def different_metadata(reader: Any, checkpoint: Path, rows: int) -> list[str]:
    """Where a GGUF's metadata differs from its checkpoint in what changes the computation, one sentence each.

    Args:
        reader: gguf-py's.
        checkpoint: folder.
        rows: of the checkpoint's embedding, which is the size of its vocabulary.
    """
    config = settings(read_json(checkpoint / "config.json"))
    arch = _field(reader, "general.architecture")
    found = []

    def compare(what: str, seen: Any, expected: Any) -> None:
        if isinstance(seen, float) and isinstance(expected, int | float):
            same = bool(np.float32(seen) == np.float32(expected))
        else:
            same = seen == expected
        if not same:
            found.append(f"{what}: the GGUF says {seen!r}, the checkpoint {expected!r}")

    for key, setting, default in (
        ("rope.freq_base", "rope_theta", 10000.0),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps", None),
        ("attention.head_count", "num_attention_heads", None),
        ("attention.head_count_kv", "num_key_value_heads", None),
        ("block_count", "num_hidden_layers", None),
        ("embedding_length", "hidden_size", None),
        ("feed_forward_length", "intermediate_size", None),
        ("context_length", "max_position_embeddings", None),
        ("attention.key_length", "head_dim", None),
        ("rope.scaling.factor", "factor", None),
        ("rope.scaling.original_context_length", "original_max_position_embeddings", None),
    ):
        seen, expected = _field(reader, f"{arch}.{key}"), config.get(setting, default)
        implied = {"attention.key_length": _ratio(config)}.get(key)
        # The converter computes a llama3 scaling into a tensor; of other scalings it stores the factor.
        scaled_by_tensor = key.startswith("rope.scaling") and config.get("rope_type") == "llama3"
        if not (seen is None and (expected is None or expected == implied)) and not scaled_by_tensor:
            compare(key, seen, expected)
    kind, scaling = config.get("rope_type", "default"), _field(reader, f"{arch}.rope.scaling.type")
    if kind not in ("default", "llama3", scaling):
        found.append(f"rope.scaling.type: the GGUF says {scaling!r}, the checkpoint {kind!r}")
    names = {tensor.name for tensor in reader.tensors}
    if kind == "llama3" and "rope_freqs.weight" not in names:
        found.append("rope_freqs.weight: not in the GGUF, though the checkpoint scales positions (llama3)")
    own_head = (checkpoint / "config.json").exists() and not config.get("tie_word_embeddings", True)
    if own_head != ("output.weight" in names):
        found.append(f"output.weight: {'not ' if own_head else ''}in the GGUF, tie_word_embeddings is {not own_head}")
    return found + _different_tokens(reader, checkpoint, rows)


def _ratio(config: dict[str, Any]) -> int | None:
    heads = config.get("num_attention_heads")
    return int(config["hidden_size"]) // int(heads) if heads and "hidden_size" in config else None


def _different_tokens(reader: Any, checkpoint: Path, rows: int) -> list[str]:
    if not (checkpoint / "tokenizer.json").exists():
        return []
    found = []
    tokens, kinds = reader.get_field("tokenizer.ggml.tokens"), reader.get_field("tokenizer.ggml.token_type")
    if tokens is None or len(tokens.data) != rows:
        found.append(f"tokens: the GGUF has {0 if tokens is None else len(tokens.data)}, the embedding {rows}")
        return found
    types = None if kinds is None else kinds.contents()
    listed = read_json(checkpoint / "tokenizer.json").get("added_tokens", [])
    for entry in listed:
        at, added = int(entry["id"]), str(entry["content"])
        token = bytes(tokens.parts[tokens.data[at]]).decode(errors="replace") if at < rows else None
        if token != added:
            found.append(f"token {at}: the GGUF has {token!r}, the tokenizer {added!r}")
        # Type 3 is a control token, type 4 a user-defined one. llama.cpp splits a special token of any other type.
        elif entry.get("special") and types is not None and types[at] not in (3, 4):
            found.append(f"token {at} {added!r}: of type {types[at]} in the GGUF, a control token in the tokenizer")
    config = read_json(checkpoint / "tokenizer_config.json") if (checkpoint / "tokenizer_config.json").exists() else {}
    ids = added_tokens(checkpoint)
    for role in ("bos", "eos", "pad", "unk"):
        text = token_text(config.get(f"{role}_token"))
        key = {"pad": "padding", "unk": "unknown"}.get(role, role)
        seen = _field(reader, f"tokenizer.ggml.{key}_token_id")
        if text in ids and seen is not None and seen != ids[text]:
            found.append(f"{role}_token: the GGUF says {seen}, the tokenizer {ids[text]} ({text!r})")
        if text in ids and seen is None and role == "eos":
            found.append(f"eos_token: not in the GGUF, the tokenizer has {ids[text]} ({text!r})")
    return found


def _field(reader: Any, name: str) -> Any:
    entry = reader.get_field(name)
    return None if entry is None else entry.contents()


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far quantization moved tensors, as shares of their norms."""

    by_type: dict[str, float]
    """Type to the largest share."""
    beyond: list[str]
    """Tensors that moved further than `NOISE` allows for their type."""


def quantization_noise(
    dequantize: Callable[[Any, Any], Floats], before: dict[str, Any], after: dict[str, Any], each: Callable[..., Any]
) -> Noise:
    """Compare every quantized tensor with the 16-bit tensor of the same name.

    Args:
        dequantize: takes a tensor's data and type, gives its values.
        before, after: gguf-py's tensors by name, in 16 bits and quantized.
        each: maps a function over items, as `map` or a thread pool's does.
    """

    def moved(part: tuple[str, slice]) -> tuple[str, float, float]:
        name, rows = part
        exact, seen = (
            np.asarray(dequantize(tensor.data[rows], tensor.tensor_type), dtype=np.float32).reshape(-1)
            for tensor in (before[name], after[name])
        )
        seen = seen - exact
        return name, float(np.dot(seen, seen)), float(np.dot(exact, exact))

    both = [name for name in after if name in before]
    parts = [(name, rows) for name in both for rows in _parts(after[name])]
    moves, norms = dict.fromkeys(both, 0.0), dict.fromkeys(both, 0.0)
    for name, move, norm in each(moved, parts):
        moves[name] += move
        norms[name] += norm
    by_type: dict[str, float] = {}
    beyond = []
    for name in both:
        kind = after[name].tensor_type.name
        share = float(np.sqrt(moves[name] / norms[name])) if norms[name] else float(moves[name] > 0)
        by_type[kind] = max(by_type.get(kind, 0.0), round(share, 5))
        if not share <= NOISE.get(kind, 1.0):
            beyond.append(f"{name} {kind} by {share:.0%}")
    return Noise(by_type=by_type, beyond=beyond)


def _parts(tensor: Any, elements: int = 1 << 20) -> list[slice]:
    """Slices of rows to dequantize at a time, so that they stay in the processor's cache."""
    rows = int(np.prod(tensor.shape[1:], dtype=np.int64)) if len(tensor.shape) > 1 else int(tensor.data.shape[0])
    count = max(1, elements // int(tensor.shape[0])) if len(tensor.shape) == 2 else rows
    return [slice(start, start + count) for start in range(0, rows, count)] if len(tensor.shape) == 2 else [slice(None)]


def read_weights(gguf: Any, file: Path, base: Path) -> Weights:
    """Open any GGUF under the tensor names of a base.

    Args:
        base: folder.

    Raises:
        InputError: the file is no GGUF, or truncated.
        Inconclusive: the layout of the architecture is not known.
    """
    try:
        reader = open_reader(gguf, file)
    except (ValueError, OSError, IndexError, KeyError) as problem:
        raise InputError(f"{file}: not a readable GGUF ({problem}). Convert or download it again.") from None
    names, config = list(read_folder(base)), read_json(base / "config.json")
    weights = open_weights(gguf, reader, names, config, gguf.quants.dequantize)
    if weights.architecture not in MODELLED:
        raise Inconclusive(
            f"{file}: architecture {weights.architecture!r}. The layout of a GGUF is known here only for "
            f"{', '.join(MODELLED)}."
        )
    return weights
