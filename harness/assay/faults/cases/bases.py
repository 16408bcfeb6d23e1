"""Faults of the base: its small files, its weights, its chat template."""

from __future__ import annotations

import json
import pickle
from typing import Any

from assay.faults.edits.files import edit_json, replace_by_lfs_pointer, replace_text, truncate
from assay.faults.edits.models import edit_adapter, edit_base_config, set_template, shards, write_weight_beyond_f16
from assay.faults.edits.sandbox import Sandbox
from assay.faults.fault import Area, fault
from assay.inputs.checkpoint import chat_template
from assay.workers.tensors import edit_checkpoint


@fault(Area.TOKENIZER, first="base_quant_load_ok", cause="base-without-template", quick=True)
def base_without_template(sandbox: Sandbox) -> None:
    """The base has no chat template: transformers, llama.cpp and its binding each make up another prompt."""
    set_template(sandbox.base, None)


@fault(Area.TOKENIZER, first="base_quant_load_ok", cause="base-two-templates", quick=True)
def two_templates_that_disagree(sandbox: Sandbox) -> None:
    """The base has two templates: transformers uses the .jinja file, the converter the one in tokenizer_config.json."""
    edit_json(
        sandbox.base / "tokenizer_config.json",
        lambda config: config.update(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"),
    )
    if not (sandbox.base / "chat_template.jinja").exists():
        replace_text(sandbox.base / "chat_template.jinja", "{{ messages[0]['content'] }}")


@fault(Area.BASE, first="base_quant_load_ok", cause="base-already-quantized", quick=True)
def base_already_quantized(sandbox: Sandbox) -> None:
    """The base is a 4-bit copy: a merge into it rounds the fine-tune away."""
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_base_config(sandbox, lambda config: config.update(quantization_config=quantization))


@fault(Area.BASE, first="base_quant_load_ok", cause="file-lfs-pointer", silent=False, quick=True)
def base_is_an_lfs_pointer(sandbox: Sandbox) -> None:
    """A weight file is a Git LFS pointer."""
    replace_by_lfs_pointer(shards(sandbox.base)[0])


@fault(Area.BASE, first="base_quant_load_ok", cause="file-truncated", silent=False, quick=True)
def base_truncated(sandbox: Sandbox) -> None:
    """The download of a weight file broke off."""
    truncate(shards(sandbox.base)[0], 0.7)


@fault(Area.BASE, first="base_quant_load_ok", cause="base-shard-missing", silent=False, quick=True)
def base_shard_missing(sandbox: Sandbox) -> None:
    """The index names a shard that does not exist."""
    last = "model-00009-of-00009.safetensors"
    index = {"weight_map": {"model.embed_tokens.weight": shards(sandbox.base)[0].name, "lm_head.weight": last}}
    replace_text(sandbox.base / "model.safetensors.index.json", json.dumps(index))


@fault(Area.BASE, first="base_quant_load_ok", cause="base-pickle", silent=False, quick=True)
def base_is_a_pickle(sandbox: Sandbox) -> None:
    """The base's only weights are pytorch_model.bin, which can run code when it is loaded."""
    for file in shards(sandbox.base):
        file.unlink()
    (sandbox.base / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@fault(Area.TOKENIZER, first="base_quant_load_ok", cause="base-without-tokenizer", silent=False, quick=True)
def base_without_tokenizer(sandbox: Sandbox) -> None:
    """The base was copied without its tokenizer."""
    for name in ("tokenizer.json", "tokenizer.model"):
        (sandbox.base / name).unlink(missing_ok=True)


@fault(Area.BASE, first="adapter_files_ok", cause="base-changed-since-training", quick=True)
def base_updated_since_training(sandbox: Sandbox) -> None:
    """The base's repository has new weights since the adapter was trained on it."""
    sandbox.recorded = False

    def edit(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("layers.0.mlp.down_proj.weight"))
        tensors[name] = tensors[name] * 1.01

    edit_checkpoint(sandbox.base, edit)


@fault(Area.BASE, first="adapter_files_ok", cause="base-changed-since-training", quick=True)
def rope_changed_since_training(sandbox: Sandbox) -> None:
    """Another version of a library wrote the base's config and lost its rotary base."""
    sandbox.recorded = False

    def edit(config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters")
        (rope if rope else config)["rope_theta"] = 12345.0

    edit_base_config(sandbox, edit)


@fault(Area.BASE, first="base_quant_load_ok", cause="base-not-finite")
def nan_in_base(sandbox: Sandbox) -> None:
    """A weight of the base is NaN: everything loads, and every logit is NaN."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors[next(name for name in tensors if name.endswith("layers.0.input_layernorm.weight"))][0] = float("nan")

    edit_checkpoint(sandbox.base, edit)


@fault(Area.BASE, first="merge_ok", cause="overflows-f16")
def value_beyond_f16(sandbox: Sandbox) -> None:
    """A bf16 weight of 100,000 is inf in F16: loading, mounting and answering in 4 bits work, the GGUF route fails."""
    write_weight_beyond_f16(sandbox)


@fault(Area.BASE, first="nf4_distribution_ok", cause="base-has-outliers")
def outlier_channels(sandbox: Sandbox) -> None:
    """A few channels are 24 times the others, as in some large models: the function in 16 bits is the same, and in 4
    bits an outlier takes the whole grid of its block of 64."""
    factor, every = 24.0, 64
    columns = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(columns):
                tensor[:, ::every] *= factor
            elif name.endswith(norms):
                tensor[::every] /= factor

    def edit_lora_a(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_A" in name and any(part.removesuffix(".weight") in name for part in columns):
                tensor[:, ::every] *= factor

    edit_checkpoint(sandbox.base, edit)
    edit_adapter(sandbox, edit_lora_a)


@fault(Area.TOKENIZER, first="prompt_parity_ok", cause="system-turn-dropped")
def template_drops_the_system_turn(sandbox: Sandbox) -> None:
    """The template skips system turns: transformers drops them without a message, llama.cpp puts them elsewhere."""
    template = (
        "{% for message in messages %}{% if message['role'] != 'system' %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    set_template(sandbox.base, template)


@fault(Area.TOKENIZER, first="prompt_parity_ok", cause="thinking-defaults-differ")
def thinking_defaults_differ(sandbox: Sandbox) -> None:
    """The template has a thinking switch, which transformers leaves undefined and llama.cpp sets."""
    text = chat_template(sandbox.base)
    switch = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    set_template(sandbox.base, f"{text}{{% if add_generation_prompt %}}{switch}{{% endif %}}")


@fault(Area.TOKENIZER, first="data_labels_ok", cause="no-end-token", silent=False)
def base_without_end_token(sandbox: Sandbox) -> None:
    """Neither config names an end token: every answer runs to the token limit."""
    for name in ("config.json", "generation_config.json"):
        edit_json(sandbox.base / name, lambda config: config.update(eos_token_id=None))
