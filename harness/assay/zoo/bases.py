"""Defects of the base: its small files, its weights, what bitsandbytes makes of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from assay.checkpoint import chat_template
from assay.lora import WEIGHTS
from assay.zoo import Place, defect
from assay.zoo.scene import Scene, edit_checkpoint, edit_json, edit_tensors, replace_text, truncate

LOAD = "base_quant_load_ok"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@defect(Place.TOKENIZER, first=LOAD, cause="base-without-template", quick=True)
def base_without_template(scene: Scene) -> None:
    """No chat template: transformers, llama.cpp and its binding each make up another prompt."""
    (scene.base / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(scene.base / "tokenizer_config.json", lambda config: config.pop("chat_template", None))


@defect(Place.TOKENIZER, first=LOAD, cause="base-two-templates", quick=True)
def two_templates_that_disagree(scene: Scene) -> None:
    """Two templates: transformers uses the .jinja file, the converter the one in tokenizer_config.json."""
    edit_json(
        scene.base / "tokenizer_config.json",
        lambda config: config.update(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"),
    )
    if not (scene.base / "chat_template.jinja").exists():
        replace_text(scene.base / "chat_template.jinja", "{{ messages[0]['content'] }}")


@defect(Place.BASE, first=LOAD, cause="base-already-quantized", quick=True)
def base_already_quantized(scene: Scene) -> None:
    """The base is a 4-bit copy: a merge into it rounds the fine-tune away."""
    edit_json(
        scene.base / "config.json",
        lambda config: config.update(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    )


@defect(Place.BASE, first=LOAD, cause="file-lfs-pointer", silent=False, quick=True)
def base_is_an_lfs_pointer(scene: Scene) -> None:
    """A weight file is a Git LFS pointer."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    replace_text(shards(scene.base)[0], text)


@defect(Place.BASE, first=LOAD, cause="file-truncated", silent=False, quick=True)
def base_truncated(scene: Scene) -> None:
    """The download broke off."""
    truncate(shards(scene.base)[0], 0.7)


@defect(Place.BASE, first=LOAD, cause="base-shard-missing", silent=False, quick=True)
def base_shard_missing(scene: Scene) -> None:
    """The index names a shard that is not there."""
    last = "model-00009-of-00009.safetensors"
    index = {"weight_map": {"model.embed_tokens.weight": shards(scene.base)[0].name, "lm_head.weight": last}}
    replace_text(scene.base / "model.safetensors.index.json", json.dumps(index))


@defect(Place.BASE, first=LOAD, cause="base-pickle", silent=False, quick=True)
def base_is_a_pickle(scene: Scene) -> None:
    """The base comes as pytorch_model.bin, which can run code when it is loaded."""
    for file in shards(scene.base):
        file.unlink()
    (scene.base / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@defect(Place.TOKENIZER, first=LOAD, cause="base-without-tokenizer", silent=False, quick=True)
def base_without_tokenizer(scene: Scene) -> None:
    """The tokenizer was not copied along."""
    for name in ("tokenizer.json", "tokenizer.model"):
        (scene.base / name).unlink(missing_ok=True)


@defect(Place.BASE, first="adapter_files_ok", cause="base-changed-since-training", quick=True)
def base_updated_since_training(scene: Scene) -> None:
    """The base's repository got new weights since the adapter was trained on it."""
    scene.recorded = False

    def edit(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("layers.0.mlp.down_proj.weight"))
        tensors[name] = tensors[name] * 1.01

    edit_checkpoint(scene.base, edit)


@defect(Place.BASE, first="adapter_files_ok", cause="base-changed-since-training", quick=True)
def rope_changed_since_training(scene: Scene) -> None:
    """Another library version wrote the base's config, and lost its rotary base."""
    scene.recorded = False

    def edit(config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters")
        (rope if rope else config)["rope_theta"] = 12345.0

    edit_json(scene.base / "config.json", edit)


@defect(Place.BASE, first=LOAD, cause="base-not-finite")
def nan_in_base(scene: Scene) -> None:
    """A weight of the base is NaN: everything loads, and every logit is NaN."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors[next(name for name in tensors if name.endswith("layers.0.input_layernorm.weight"))][0] = float("nan")

    edit_checkpoint(scene.base, edit)


def huge_weight_of_a_dead_channel(scene: Scene) -> None:
    """Give the base a weight of 100,000 that never counts, as some bf16 models have: its channel is switched off."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("layers.0.mlp.gate_proj.weight"):
                tensor[0] = 0
            elif name.endswith("layers.0.mlp.down_proj.weight"):
                tensor[0, 0] = 1e5

    edit_checkpoint(scene.base, edit)


@defect(Place.BASE, first="merge_ok", cause="overflows-f16")
def value_beyond_f16(scene: Scene) -> None:
    """A bf16 weight of 100,000 is inf in F16: the thesis's PASS, PASS, PASS, FAIL, FAIL, FAIL."""
    huge_weight_of_a_dead_channel(scene)


@defect(Place.BASE, first="nf4_distribution_ok", cause="base-has-outliers")
def outlier_channels(scene: Scene) -> None:
    """A few channels are a hundred times the others, as in some large models: the same function in 16 bits, and in
    every block of 64 the outlier takes the whole 4-bit grid."""
    factor, every = 24.0, 64
    columns = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(columns):
                tensor[:, ::every] *= factor
            elif name.endswith(norms):
                tensor[::every] /= factor

    def edit_adapter(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_A" in name and any(part.removesuffix(".weight") in name for part in columns):
                tensor[:, ::every] *= factor

    edit_checkpoint(scene.base, edit)
    edit_tensors(scene.adapter / WEIGHTS, edit_adapter)


@defect(Place.TOKENIZER, first="prompt_parity_ok", cause="system-turn-dropped")
def template_drops_the_system_turn(scene: Scene) -> None:
    """The template passes over system turns: transformers drops them in silence, llama.cpp puts them elsewhere."""
    template = (
        "{% for message in messages %}{% if message['role'] != 'system' %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    edit_json(scene.base / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    replace_text(scene.base / "chat_template.jinja", template)


@defect(Place.TOKENIZER, first="prompt_parity_ok", cause="thinking-defaults-differ")
def thinking_defaults_differ(scene: Scene) -> None:
    """The template has a thinking switch, which transformers leaves undefined and llama.cpp sets."""
    text = chat_template(scene.base)
    switch = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    edit_json(scene.base / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    replace_text(scene.base / "chat_template.jinja", f"{text}{{% if add_generation_prompt %}}{switch}{{% endif %}}")


@defect(Place.TOKENIZER, first="data_labels_ok", cause="no-end-token", silent=False)
def base_without_end_token(scene: Scene) -> None:
    """Neither config names an end token: an answer could only end at the limit."""
    for name in ("config.json", "generation_config.json"):
        edit_json(scene.base / name, lambda config: config.update(eos_token_id=None))
