"""Healthy variants of the base. Most compute the function that was trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from assay.faults.edits.files import edit_json
from assay.faults.edits.models import base_config, edit_base_config, set_template, shards, write_weight_beyond_f16
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.fault import healthy
from assay.inputs.checkpoint import chat_template
from assay.workers.tensors import cast, edit_checkpoint, read_tensors, write_tensors


def _stored_as(sandbox: Sandbox, dtype: str) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = cast(tensor, dtype)

    edit_checkpoint(sandbox.base, edit)
    edit_base_config(sandbox, lambda config: config.update(dtype=dtype))


def _sharded(sandbox: Sandbox, count: int) -> None:
    """In `count` files, with the index that names them."""
    files = shards(sandbox.base)
    tensors = read_tensors(files)
    for file in (*files, sandbox.base / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(count):
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        write_tensors({name: tensors[name] for name in part}, sandbox.base / shard)
        weight_map |= dict.fromkeys(part, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (sandbox.base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _head(sandbox: Sandbox, *, tied: bool) -> None:
    """Store a head that equals the embedding. If the config still ties the two, it is merely stored twice."""
    if not base_config(sandbox).get("tie_word_embeddings"):
        raise NotApplicable("the base's head is not tied")

    def edit(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_checkpoint(sandbox.base, edit)
    edit_base_config(sandbox, lambda config: config.update(tie_word_embeddings=tied))


def _beyond_f16(sandbox: Sandbox) -> None:
    """The fault `value_beyond_f16`, deployed as it must be."""
    write_weight_beyond_f16(sandbox)
    sandbox.options += ["--gguf-dtype", "bf16"]


def _files_beside(sandbox: Sandbox) -> None:
    shutil.copyfile(shards(sandbox.base)[0], sandbox.base / "consolidated.safetensors")
    (sandbox.base / "README.md").write_text("# A model\n", encoding="utf-8")
    (sandbox.base / ".gitattributes").write_text("*.safetensors filter=lfs\n", encoding="utf-8")
    (sandbox.base / "original").mkdir()
    (sandbox.base / "original" / "params.json").write_text("{}", encoding="utf-8")


def _older_config(sandbox: Sandbox) -> None:
    def edit(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters", None) or {}
        config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        config["rope_scaling"] = None
        config["torch_dtype"] = config.pop("dtype", "bfloat16")
        config["transformers_version"] = "4.57.6"
        del config["head_dim"]

    config = base_config(sandbox)
    if (config.get("rope_parameters") or {}).get("rope_type", "default") != "default" or "head_dim" not in config:
        raise NotApplicable("the base's positions are scaled")
    edit_base_config(sandbox, edit)


def _template_in(sandbox: Sandbox, *, file: bool) -> None:
    """The base's template in tokenizer_config.json, and in chat_template.jinja too if `file`."""
    text = chat_template(sandbox.base)
    set_template(sandbox.base, text if file else None)
    edit_json(sandbox.base / "tokenizer_config.json", lambda config: config.update(chat_template=text))


def _another_template(sandbox: Sandbox, change: Callable[[str], str]) -> None:
    text = chat_template(sandbox.base)
    if (changed := change(text)) == text:
        raise NotApplicable("the base's template has no such part")
    set_template(sandbox.base, changed)


def _without_system(text: str) -> str:
    """A template that adds nothing to the user's turn. Its comment keeps runtimes from taking it for one they know."""
    changed = re.sub(r"\{% if loop\.first.*?\{% endif %\}", "", text, flags=re.DOTALL)
    return changed if changed == text else "{# no system prompt #}" + changed


def _another_system(text: str) -> str:
    return re.sub(r"You are a helpful[^<']*", "You answer questions on physics and on writing.", text)


def _without_generation_config(sandbox: Sandbox) -> None:
    (sandbox.base / "generation_config.json").unlink(missing_ok=True)


def _two_ends(sandbox: Sandbox) -> None:
    def edit(config: dict[str, Any]) -> None:
        ids = config["eos_token_id"]
        config["eos_token_id"] = [*(ids if isinstance(ids, list) else [ids]), 0]

    edit_json(sandbox.base / "generation_config.json", edit)


def _padded_vocabulary(sandbox: Sandbox) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                rows, columns = tensors[name].shape
                padded = tensors[name].new_zeros((rows + 128, columns))
                padded[:rows] = tensors[name]
                tensors[name] = padded

    edit_checkpoint(sandbox.base, edit)
    edit_base_config(sandbox, lambda config: config.update(vocab_size=config["vocab_size"] + 128))


def _longer_context(sandbox: Sandbox) -> None:
    edit_base_config(sandbox, lambda config: config.update(max_position_embeddings=32768))


def _require_llama(sandbox: Sandbox) -> None:
    if base_config(sandbox).get("model_type") != "llama":
        raise NotApplicable("the base is no Llama, whose function other architectures can compute")


def _llama3_positions(sandbox: Sandbox) -> None:
    """With positions scaled as in Llama 3, for which the converter computes a tensor."""

    def edit(config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
        scaled = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config["rope_parameters"] = {**rope, **scaled, "original_max_position_embeddings": 8192}
        config["max_position_embeddings"] = 32768

    _require_llama(sandbox)
    edit_base_config(sandbox, edit)


def _as_mistral(sandbox: Sandbox) -> None:
    """As a Mistral without a sliding window."""

    def edit(config: dict[str, Any]) -> None:
        config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
        for key in ("attention_bias", "mlp_bias", "pretraining_tp"):
            config.pop(key, None)

    _require_llama(sandbox)
    edit_base_config(sandbox, edit)


healthy("base_fp32", "The base stored in fp32.", partial(_stored_as, dtype="float32"))
healthy("base_fp16", "The base stored in fp16.", partial(_stored_as, dtype="float16"))
healthy("one_shard", "The base in one file that an index names.", partial(_sharded, count=1), quick=True)
healthy("two_shards", "The base in two files.", partial(_sharded, count=2), quick=True)
healthy("seven_shards", "The base in seven files.", partial(_sharded, count=7))
healthy("beyond_f16_in_bf16", "A weight beyond F16, converted to bf16.", _beyond_f16)
healthy("head_untied", "A head of its own, equal to the embedding.", partial(_head, tied=False))
healthy("head_stored_twice", "A tied head that is stored nevertheless.", partial(_head, tied=True))
healthy(
    "files_beside", "consolidated.safetensors, README.md and more files beside the base.", _files_beside, quick=True
)
healthy("base_config_of_transformers_4", "config.json as transformers 4 wrote it.", _older_config)
healthy("template_in_config", "The template in tokenizer_config.json.", partial(_template_in, file=False), quick=True)
healthy("template_twice", "The same template in both files.", partial(_template_in, file=True), quick=True)
healthy(
    "without_system_prompt",
    "A template without a system prompt of its own.",
    partial(_another_template, change=_without_system),
)
healthy(
    "another_system_prompt",
    "A template with another system prompt.",
    partial(_another_template, change=_another_system),
)
healthy(
    "without_generation_config",
    "No generation_config.json: config.json names the end token.",
    _without_generation_config,
)
healthy("two_end_tokens", "Two tokens that end an answer.", _two_ends)
healthy("padded_vocabulary", "128 rows of zeros behind the vocabulary.", _padded_vocabulary)
healthy("longer_context", "A context of 32,768 tokens.", _longer_context)
healthy("llama3_positions", "Positions scaled as in Llama 3.", _llama3_positions)
healthy("as_mistral", "The same function as a Mistral.", _as_mistral)
