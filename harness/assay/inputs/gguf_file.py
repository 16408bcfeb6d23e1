"""A GGUF against the checkpoint it was made from: weights through the converter's permutation, and metadata.

`gguf` is passed in: workers use the toolchain's own copy, the command line the installed one.
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
"""Architectures whose conversion is known here tensor by tensor. Of others only names and shapes are compared."""
PERMUTED = ("llama",)
"""Architectures whose q and k rows the converter reorders, from halves to pairs (`LlamaModel.permute`)."""
NOISE = {
    "F32": 0.001, "F16": 0.001, "BF16": 0.005, "Q8_0": 0.012, "Q6_K": 0.035, "Q5_K": 0.07, "Q5_0": 0.08, "Q5_1": 0.08,
    "Q4_K": 0.14, "Q4_0": 0.16, "Q4_1": 0.14, "Q3_K": 0.28, "Q2_K": 0.55,
}  # fmt: skip
"""Largest share of a tensor's norm that rounding to a type may move it by: about twice what real weights show."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one GGUF under the names of the checkpoint."""

    dequantize: Callable[[Any, Any], Floats]
    """A tensor's data and type to its values, rows × columns."""
    architecture: str
    tensors: dict[str, Any]
    """By the checkpoint's name."""
    heads: dict[str, int]
    """How many heads' rows the converter permuted, by the checkpoint's name."""

    def float32(self, name: str) -> Floats:
        """A tensor's values as the checkpoint lays them out."""
        tensor = self.tensors[name]
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values = self.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        return self.unpermuted(name, values)

    def unpermuted(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Rows of q and k from pairs back to halves."""
        heads = self.heads.get(name)
        if heads is None:
            return values
        rows, *rest = values.shape
        return values.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(values.shape)


def open_reader(gguf: Any, file: Path, mode: str = "r") -> Any:
    """gguf-py's reader, in a third of its time: it reads a vocabulary in 250,000 slices of an `np.memmap`, each of
    which is a memmap too and costs ten times what a slice of the plain array over the same bytes does.

    With mode "r+", what is assigned to a field or a tensor is in the file at once.
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
        names: of the checkpoint's tensors.
        config: the checkpoint's config.json.
        dequantize: a tensor's data and type to its values.

    Raises:
        InputError: an architecture that gguf-py does not know.
    """
    known = settings(config)
    architecture = str(reader.get_field("general.architecture").contents())
    arch = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None or "num_hidden_layers" not in known:
        raise InputError(f"Architecture {architecture!r}: unknown to gguf-py, so its tensors cannot be matched.")
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
    """Tensors of a 16-bit GGUF that are not the checkpoint's, rounded once to the type they are stored in.

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
        wanted = bits_of(source.float32(rows), kind)
        return None if np.array_equal(weights.unpermuted(name, seen)[rows], wanted) else f"{name} ({kind})"

    parts = [(name, rows) for name, tensor in weights.tensors.items() for rows in _parts(tensor)]
    return list(dict.fromkeys(name for name in each(unequal, parts) if name is not None))


def different_metadata(reader: Any, checkpoint: Path, rows: int) -> list[str]:
    """What a GGUF says otherwise than its checkpoint, of all that changes the computation.

    Args:
        rows: of the checkpoint's embedding: the size of its vocabulary.
    """
    config = settings(read_json(checkpoint / "config.json"))
    arch = _field(reader, "general.architecture")
    found = []

    def compare(what: str, seen: Any, wanted: Any) -> None:
        if isinstance(seen, float) and isinstance(wanted, int | float):
            same = bool(np.float32(seen) == np.float32(wanted))
        else:
            same = seen == wanted
        if not same:
            found.append(f"{what}: the GGUF says {seen!r}, the checkpoint {wanted!r}")

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
        seen, wanted = _field(reader, f"{arch}.{key}"), config.get(setting, default)
        implied = {"attention.key_length": _ratio(config)}.get(key)
        # A llama3 scaling is computed into a tensor of factors; of the others the factor itself is stored.
        scaled_by_tensor = key.startswith("rope.scaling") and config.get("rope_type") == "llama3"
        if not (seen is None and (wanted is None or wanted == implied)) and not scaled_by_tensor:
            compare(key, seen, wanted)
    kind, scaling = config.get("rope_type", "default"), _field(reader, f"{arch}.rope.scaling.type")
    if kind not in ("default", "llama3", scaling):
        found.append(f"rope.scaling.type: the GGUF says {scaling!r}, the checkpoint {kind!r}")
    names = {tensor.name for tensor in reader.tensors}
    if kind == "llama3" and "rope_freqs.weight" not in names:
        found.append("rope_freqs.weight: not in the GGUF, though the checkpoint scales its positions (llama3)")
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
        # 3 is a control token, 4 one that the user defined; a special token that is neither is split when it is read.
        elif entry.get("special") and types is not None and types[at] not in (3, 4):
            found.append(f"token {at} {added!r}: of type {types[at]} in the GGUF, a control token in the tokenizer")
    config = read_json(checkpoint / "tokenizer_config.json") if (checkpoint / "tokenizer_config.json").exists() else {}
    ids = added_tokens(checkpoint)
    for role in ("bos", "eos", "pad", "unk"):
        text = token_text(config.get(f"{role}_token"))
        spelled = {"pad": "padding", "unk": "unknown"}.get(role, role)
        seen = _field(reader, f"tokenizer.ggml.{spelled}_token_id")
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
    """How far quantization moved each tensor, as a share of its norm."""

    by_type: dict[str, float]
    """The largest, by type."""
    beyond: list[str]
    """Tensors that moved further than their type explains."""


def quantization_noise(
    dequantize: Callable[[Any, Any], Floats], before: dict[str, Any], after: dict[str, Any], each: Callable[..., Any]
) -> Noise:
    """Every quantized tensor against its 16-bit twin.

    Args:
        dequantize: a tensor's data and type to its values.
        before, after: gguf-py's tensors by name.
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
    """Rows that are dequantized at a time, so that they stay in the processor's cache."""
    rows = int(np.prod(tensor.shape[1:], dtype=np.int64)) if len(tensor.shape) > 1 else int(tensor.data.shape[0])
    count = max(1, elements // int(tensor.shape[0])) if len(tensor.shape) == 2 else rows
    return [slice(start, start + count) for start in range(0, rows, count)] if len(tensor.shape) == 2 else [slice(None)]


def read_weights(gguf: Any, file: Path, base: Path) -> Weights:
    """Open a GGUF from anywhere under the names of a base.

    Raises:
        InputError: no GGUF, or truncated.
        Inconclusive: an architecture whose layout is not modelled.
    """
    try:
        reader = open_reader(gguf, file)
    except (ValueError, OSError, IndexError, KeyError) as problem:
        raise InputError(f"{file}: not a GGUF that can be read ({problem}). Convert or download it again.") from None
    names, config = list(read_folder(base)), read_json(base / "config.json")
    weights = open_weights(gguf, reader, names, config, gguf.quants.dequantize)
    if weights.architecture not in MODELLED:
        raise Inconclusive(
            f"{file}: architecture {weights.architecture!r}. How it is laid out in a GGUF is known here for "
            f"{', '.join(MODELLED)} only."
        )
    return weights
