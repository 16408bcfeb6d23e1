"""The small files of a model folder: which of their settings change the computation, and whether two folders agree."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import InputError
from assay.files import read_json
from assay.inputs.checkpoint import chat_template

_NEVER_COMPUTE = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_attn_implementation",
    "attention_dropout", "initializer_range", "pretraining_tp", "architectures", "is_llama_config",
    "unsloth_version", "unsloth_fixed", "max_window_layers", "rope_interleaved", "transformers.js_config",
}  # fmt: skip
"""Keys of config.json that say how a model was made or is loaded, not what it computes."""
_NEUTRAL = {
    "rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "use_sliding_window": False, "sliding_window": None, "quantization_config": None,
}  # fmt: skip
"""Value of a key that is left out (transformers' own defaults for decoder models)."""
_GENERATION = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One difference between a file of two model folders."""

    kind: str
    """config, generation config, tokenizer or template."""
    file: str
    detail: str


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json that change the computation, in one layout for transformers 4 and 5.

    The two versions keep the settings of RoPE under different keys. Implied values (head_dim, key-value heads) are
    filled in.
    """
    flat = {key: value for key, value in config.items() if key not in _NEVER_COMPUTE and key != "text_config"}
    flat |= {key: value for key, value in config.get("text_config", {}).items() if key not in _NEVER_COMPUTE}
    for key in ("rope_scaling", "rope_parameters"):
        rope = flat.pop(key, None) or {}
        flat |= {("rope_type" if name == "type" else name): value for name, value in rope.items()}
    heads = flat.get("num_attention_heads")
    if heads and flat.get("head_dim") is None and "hidden_size" in flat:
        flat["head_dim"] = flat["hidden_size"] // heads
    if heads and flat.get("num_key_value_heads") is None:
        flat["num_key_value_heads"] = heads
    if flat.get("use_sliding_window") is False:
        # Qwen's configs name a window and switch it off; transformers then saves no window.
        flat.pop("sliding_window", None)
    return flat


def compare_files(base: Path, merged: Path) -> tuple[list[Difference], list[str]]:
    """Differences between two model folders that change the computation, and notes on what cannot be compared.

    Raises:
        InputError: a config.json is missing or a file is not JSON.
    """
    a, b = (settings(read_json(folder / "config.json")) for folder in (base, merged))
    differences = _compare_settings(a, b)
    # A newer transformers writes keys that an older one leaves to their defaults.
    notes = [
        f"config.json: {key} is {b[key]!r}; the base leaves this key out, and its default is not known here"
        for key in sorted(set(b) - set(a) - set(_NEUTRAL))
        if b[key]
    ]
    expected, seen = _optional(base / "generation_config.json"), _optional(merged / "generation_config.json")
    if expected is not None and seen is None:
        notes.append("generation_config.json: not in the merged folder, so config.json names the end tokens")
    for key in _GENERATION if expected is not None and seen is not None else ():
        assert expected is not None
        assert seen is not None
        if expected.get(key) != seen.get(key):
            detail = f"{key} is {seen.get(key)!r}, the base's {expected.get(key)!r}"
            differences.append(Difference(kind="generation config", file="generation_config.json", detail=detail))
    if not (merged / "tokenizer.json").exists() and not (merged / "tokenizer.model").exists():
        return differences, [*notes, "no tokenizer in the merged folder: copy the base's before you deploy the model"]
    return differences + _compare_tokenizers(base, merged), notes


def _compare_settings(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    found = []
    for key in sorted(set(a) | set(b)):
        one, other = a.get(key, _NEUTRAL.get(key)), b.get(key, _NEUTRAL.get(key))
        # Of keys without a known default, one that only the merge has is noted by the caller, and a false or empty one
        # that only the base has changes nothing.
        if key not in a and key not in _NEUTRAL:
            continue
        if key not in b and key not in _NEUTRAL and not one:
            continue
        if one != other:
            detail = f"{key} is {other!r}, the base's {one!r}"
            found.append(Difference(kind="config", file="config.json", detail=detail))
    return found


def _compare_tokenizers(base: Path, merged: Path) -> list[Difference]:
    found = []
    if (base / "tokenizer.json").exists() and (merged / "tokenizer.json").exists():
        same = (base / "tokenizer.json").read_bytes() == (merged / "tokenizer.json").read_bytes()
        expected, seen = ({}, {}) if same else (read_json(folder / "tokenizer.json") for folder in (base, merged))
        for part in _TOKENIZER:
            if expected.get(part) != seen.get(part):
                detail = f"{part} differs from the base's"
                found.append(Difference(kind="tokenizer", file="tokenizer.json", detail=detail))
    expected = _optional(base / "tokenizer_config.json") or {}
    seen = _optional(merged / "tokenizer_config.json") or {}
    for key in ("eos_token", "bos_token", "add_bos_token", "add_eos_token", "add_prefix_space"):
        if token_text(expected.get(key)) != token_text(seen.get(key)):
            detail = f"{key} is {token_text(seen.get(key))!r}, the base's {token_text(expected.get(key))!r}"
            found.append(Difference(kind="tokenizer", file="tokenizer_config.json", detail=detail))
    try:
        template = chat_template(merged)
    except InputError as problem:
        return [*found, Difference(kind="template", file="chat_template.jinja", detail=str(problem))]
    if template != chat_template(base):
        detail = "another chat template than the base's"
        found.append(Difference(kind="template", file="chat_template.jinja", detail=detail))
    return found


def token_text(value: Any) -> Any:
    """The text of a token: configs hold a string, or an object with `content`."""
    return value.get("content") if isinstance(value, dict) else value


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def end_token_id(folder: Path) -> int | None:
    """The id of the tokenizer's end token, from the tokenizer's own files; None if they name none."""
    token = token_text((_optional(folder / "tokenizer_config.json") or {}).get("eos_token"))
    file = folder / "tokenizer.json"
    if token is None or not file.exists():
        return None
    return added_tokens(folder).get(token)


def added_tokens(folder: Path) -> dict[str, int]:
    """Text of each added token to its id."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {entry["content"]: int(entry["id"]) for entry in tokenizer.get("added_tokens", [])}
