"""Healthy variants: the same candidate written otherwise, other shapes and architectures, other ways to be asked.

Most compute the very function that was trained, so whatever a gate says against one is a false alarm. Architectures
that the candidate's base is not are parrots: random small models that recite one sentence.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from assay import paths
from assay.faults.bases import huge_weight_of_a_dead_channel, shards
from assay.faults.bnb import READS_REPACKED, repacks_weights
from assay.faults.fault import NotApplicable, healthy
from assay.faults.merges import before_merging
from assay.faults.runtimes import ask_task
from assay.faults.sandbox import Sandbox, edit_checkpoint, edit_json, edit_tensors, replace_text
from assay.inputs.checkpoint import chat_template
from assay.inputs.lora import CONFIG, WEIGHTS, read_lora_weights

_SENTENCE = (
    "A small parrot on the old harbour wall recites one long sentence about ships, weather, salt and rope; "
    "nobody taught it why, yet every evening fishermen stop to listen, smile, then walk home slowly"
)


def _nothing(sandbox: Sandbox) -> None:
    """The candidate as it is."""


healthy("as_trained", "The candidate as it was trained.", _nothing, quick=True)


# The adapter, written otherwise.


def _config(sandbox: Sandbox) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((sandbox.adapter / CONFIG).read_text(encoding="utf-8"))
    return config


def _is_plain(sandbox: Sandbox) -> dict[str, Any]:
    config = _config(sandbox)
    if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora"):
        raise NotApplicable("the adapter is no plain LoRA, so it cannot be written as another kind of itself")
    return config


def _rewrite(sandbox: Sandbox, change: Callable[[str, str, Any], Any] | None = None, **settings: Any) -> None:
    """Change every half (`change(module, half, tensor)`) and set keys of the config."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in tensors:
            match = re.match(r"(.*)\.lora_(A|B)\.weight", name)
            if match and change is not None:
                tensors[name] = change(match[1], match[2], tensors[name])

    edit_tensors(sandbox.adapter / WEIGHTS, edit)
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(settings))


def _padded(tensor: Any, half: str, rank: int) -> Any:
    """The same half at a higher rank: zeros behind."""
    import torch

    axis = 0 if half == "A" else 1
    shape = list(tensor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([tensor, torch.zeros(shape, dtype=tensor.dtype)], dim=axis)


def _rank(sandbox: Sandbox, times: int) -> None:
    config = _is_plain(sandbox)
    rank = int(config["r"]) * times
    _rewrite(
        sandbox,
        lambda module, half, tensor: _padded(tensor, half, rank),
        r=rank,
        lora_alpha=config["lora_alpha"] * times,
    )


def _alpha(sandbox: Sandbox, alpha: float, **more: Any) -> None:
    """Another alpha, with B scaled so that the change stays."""
    config = _is_plain(sandbox)
    root = more.get("use_rslora", False)
    scale = alpha / (config["r"] ** 0.5 if root else config["r"])
    factor = config["lora_alpha"] / config["r"] / scale
    _rewrite(sandbox, lambda module, half, tensor: tensor * factor if half == "B" else tensor, lora_alpha=alpha, **more)


def _dora(sandbox: Sandbox) -> None:
    """As DoRA, with the magnitudes that leave the change as it is."""
    if repacks_weights():
        raise NotApplicable(READS_REPACKED)
    as_dora(sandbox)


def as_dora(sandbox: Sandbox) -> None:
    _is_plain(sandbox)
    base = sandbox.candidate.base.tensors
    lora = read_lora_weights(sandbox.adapter, base)

    def edit(tensors: dict[str, Any]) -> None:
        import numpy as np
        import torch

        for weight, low in lora.changes.items():
            left, right = low.factors()
            whole = base[weight].float32() + np.float32(low.scale) * (left @ right)
            tensors[f"base_model.model.{low.module}.lora_magnitude_vector"] = torch.from_numpy(
                np.linalg.norm(whole, axis=1).astype(np.float32)
            )

    edit_tensors(sandbox.adapter / WEIGHTS, edit)
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(use_dora=True))


def _stored_as(sandbox: Sandbox, dtype: str) -> None:
    import torch

    _rewrite(sandbox, lambda module, half, tensor: tensor.to(getattr(torch, dtype)))


def _patterns(sandbox: Sandbox) -> None:
    """One kind of module at twice the rank and alpha."""
    config = _is_plain(sandbox)
    rank, kind = 2 * int(config["r"]), sorted(config["target_modules"])[0]
    _rewrite(
        sandbox,
        lambda module, half, tensor: _padded(tensor, half, rank) if module.endswith(kind) else tensor,
        rank_pattern={kind: rank},
        alpha_pattern={kind: 2 * config["lora_alpha"]},
    )


def _modules(sandbox: Sandbox) -> list[str]:
    """The modules that the adapter changes, by their full names."""
    return [low.module for low in read_lora_weights(sandbox.adapter, sandbox.candidate.base.tensors).changes.values()]


def _targets(sandbox: Sandbox, how: str) -> None:
    modules = _modules(sandbox)
    targets: Any = "|".join(re.escape(name) for name in modules) if how == "expression" else modules
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(target_modules=targets, layers_to_transform=None))


def _without(sandbox: Sandbox, kind: str) -> None:
    """The adapter without one kind of module."""
    if (
        not any(name.endswith(kind) for name in _modules(sandbox))
        or len({n.rpartition(".")[2] for n in _modules(sandbox)}) < 3
    ):
        raise NotApplicable(f"the adapter has no {kind} beside others")

    def edit(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if kind in name]:
            del tensors[name]

    edit_tensors(sandbox.adapter / WEIGHTS, edit)
    edit_json(
        sandbox.adapter / CONFIG,
        lambda config: config.update(target_modules=[one for one in config["target_modules"] if one != kind]),
    )


def _few_keys(sandbox: Sandbox) -> None:
    """adapter_config.json as an older library wrote it."""

    def edit(config: dict[str, Any]) -> None:
        for key in [key for key, value in config.items() if not value]:
            del config[key]

    edit_json(sandbox.adapter / CONFIG, edit)


def _set(sandbox: Sandbox, **settings: Any) -> None:
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(settings))


healthy("rank_doubled", "Twice the rank, the new half zero.", partial(_rank, times=2), quick=True)
healthy("rank_times_8", "Eight times the rank, the rest zero.", partial(_rank, times=8), quick=True)
healthy("alpha_8", "alpha 8, B scaled to the same change.", partial(_alpha, alpha=8), quick=True)
healthy("alpha_16", "alpha 16, B scaled to the same change.", partial(_alpha, alpha=16), quick=True)
healthy("alpha_128", "alpha 128, B scaled to the same change.", partial(_alpha, alpha=128), quick=True)
healthy("rslora", "rsLoRA: the scale is alpha / √r.", partial(_alpha, alpha=16, use_rslora=True), quick=True)
healthy("dora", "DoRA, with magnitudes of its own.", _dora, quick=True)
healthy("adapter_fp16", "The adapter stored in fp16.", partial(_stored_as, dtype="float16"), quick=True)
healthy("adapter_bf16", "The adapter stored in bf16.", partial(_stored_as, dtype="bfloat16"), quick=True)
healthy(
    "patterns", "One kind of module at another rank and alpha (rank_pattern, alpha_pattern).", _patterns, quick=True
)
healthy(
    "targets_by_expression", "target_modules as a regular expression.", partial(_targets, how="expression"), quick=True
)
healthy("targets_in_full", "target_modules as full names.", partial(_targets, how="names"), quick=True)
healthy("without_down_proj", "An adapter that leaves down_proj alone.", partial(_without, kind="down_proj"), quick=True)
healthy("without_o_proj", "An adapter that leaves o_proj alone.", partial(_without, kind="o_proj"), quick=True)
healthy("older_config", "adapter_config.json of an older peft, with few keys.", _few_keys, quick=True)
healthy("recorded_by_path", "The base recorded as a folder of the training machine.",
        partial(_set, base_model_name_or_path="/workspace/models/base"), quick=True)  # fmt: skip


# The base, written otherwise.


def _weights_as(sandbox: Sandbox, dtype: str) -> None:
    import torch

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(getattr(torch, dtype))

    edit_checkpoint(sandbox.base, edit)
    edit_json(sandbox.base / "config.json", lambda config: config.update(dtype=dtype))


def _sharded(sandbox: Sandbox, count: int) -> None:
    """Over several files, with the index that names them."""
    from safetensors.torch import load_file, save_file

    files = shards(sandbox.base)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in (*files, sandbox.base / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    names = sorted(tensors)
    found: dict[str, str] = {}
    for number in range(count):
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        save_file({name: tensors[name] for name in part}, sandbox.base / shard, metadata={"format": "pt"})
        found |= dict.fromkeys(part, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": found}
    (sandbox.base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _head(sandbox: Sandbox, *, tied: bool) -> None:
    """A head of its own, equal to the embedding; still tied, it is merely stored twice."""
    if not json.loads((sandbox.base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"):
        raise NotApplicable("the base's head is not tied")

    def edit(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_checkpoint(sandbox.base, edit)
    edit_json(sandbox.base / "config.json", lambda config: config.update(tie_word_embeddings=tied))


def _beyond_f16(sandbox: Sandbox) -> None:
    """What makes the fault `value_beyond_f16` pass."""
    huge_weight_of_a_dead_channel(sandbox)
    sandbox.options += ["--gguf-dtype", "bf16"]


def _files_beside(sandbox: Sandbox) -> None:
    """What hub repositories have beside a model."""
    shutil.copyfile(shards(sandbox.base)[0], sandbox.base / "consolidated.safetensors")
    (sandbox.base / "README.md").write_text("# A model\n", encoding="utf-8")
    (sandbox.base / ".gitattributes").write_text("*.safetensors filter=lfs\n", encoding="utf-8")
    (sandbox.base / "original").mkdir()
    (sandbox.base / "original" / "params.json").write_text("{}", encoding="utf-8")


def _older_base_config(sandbox: Sandbox) -> None:
    """config.json as transformers 4 wrote it."""

    def edit(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters", None) or {}
        config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        config["rope_scaling"] = None
        config["torch_dtype"] = config.pop("dtype", "bfloat16")
        config["transformers_version"] = "4.57.6"
        del config["head_dim"]

    config = json.loads((sandbox.base / "config.json").read_text(encoding="utf-8"))
    if (config.get("rope_parameters") or {}).get("rope_type", "default") != "default" or "head_dim" not in config:
        raise NotApplicable("the base's positions are scaled")
    edit_json(sandbox.base / "config.json", edit)


def write_template(sandbox: Sandbox, change: Callable[[str], str], *, where: str = "file") -> None:
    """Another chat template, in its file, in tokenizer_config.json, or in both."""
    text = change(chat_template(sandbox.base))
    (sandbox.base / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(sandbox.base / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    if where in ("file", "both"):
        (sandbox.base / "chat_template.jinja").write_text(text, encoding="utf-8")
    if where in ("config", "both"):
        edit_json(sandbox.base / "tokenizer_config.json", lambda config: config.update(chat_template=text))


def _without_system(text: str) -> str:
    """A template that says nothing the user did not; by its comment no runtime takes it for one that it knows."""
    new = re.sub(r"\{% if loop\.first.*?\{% endif %\}", "", text, flags=re.DOTALL)
    return new if new == text else "{# no system prompt #}" + new


def _another_system(text: str) -> str:
    return re.sub(r"You are a helpful[^<']*", "You answer questions on physics and on writing.", text)


def _changed(change: Callable[[str], str]) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if (new := change(text)) == text:
            raise NotApplicable("the base's template has no such part")
        return new

    return checked


def _ends(sandbox: Sandbox, *, listed: bool) -> None:
    file = sandbox.base / "generation_config.json"
    if not listed:
        file.unlink(missing_ok=True)
        return

    def edit(config: dict[str, Any]) -> None:
        ids = config["eos_token_id"]
        config["eos_token_id"] = [*(ids if isinstance(ids, list) else [ids]), 0]

    edit_json(file, edit)


def _padded_vocabulary(sandbox: Sandbox) -> None:
    """128 rows of no token behind the vocabulary, as large models have for speed."""

    def edit(tensors: dict[str, Any]) -> None:
        import torch

        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                rows = torch.zeros(128, tensors[name].shape[1], dtype=tensors[name].dtype)
                tensors[name] = torch.cat([tensors[name], rows])

    edit_checkpoint(sandbox.base, edit)
    edit_json(sandbox.base / "config.json", lambda config: config.update(vocab_size=config["vocab_size"] + 128))


def _longer_context(sandbox: Sandbox) -> None:
    edit_json(sandbox.base / "config.json", lambda config: config.update(max_position_embeddings=32768))


def _llama3_positions(sandbox: Sandbox) -> None:
    """Positions scaled as Llama 3 does, which the converter computes into a tensor."""

    def edit(config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
        scaled = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config["rope_parameters"] = {**rope, **scaled, "original_max_position_embeddings": 8192}
        config["max_position_embeddings"] = 32768

    _is_llama(sandbox)
    edit_json(sandbox.base / "config.json", edit)


def _is_llama(sandbox: Sandbox) -> None:
    if json.loads((sandbox.base / "config.json").read_text(encoding="utf-8")).get("model_type") != "llama":
        raise NotApplicable("the base is no Llama, whose function other architectures can compute")


def _as_mistral(sandbox: Sandbox) -> None:
    """The same function as a Mistral without a sliding window."""
    _is_llama(sandbox)

    def config(config: dict[str, Any]) -> None:
        config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
        for key in ("attention_bias", "mlp_bias", "pretraining_tp"):
            config.pop(key, None)

    edit_json(sandbox.base / "config.json", config)


healthy("base_fp32", "The base stored in fp32.", partial(_weights_as, dtype="float32"))
healthy("base_fp16", "The base stored in fp16.", partial(_weights_as, dtype="float16"))
healthy("one_shard", "The base in one file that an index names.", partial(_sharded, count=1), quick=True)
healthy("two_shards", "The base in two files.", partial(_sharded, count=2), quick=True)
healthy("seven_shards", "The base in seven files.", partial(_sharded, count=7))
healthy("beyond_f16_in_bf16", "A weight beyond F16, converted to bf16.", _beyond_f16)
healthy("head_untied", "A head of its own, equal to the embedding.", partial(_head, tied=False))
healthy("head_stored_twice", "A tied head that is stored all the same.", partial(_head, tied=True))
healthy("files_beside", "consolidated.safetensors, README and more beside the base.", _files_beside, quick=True)
healthy("base_config_of_transformers_4", "config.json as transformers 4 wrote it.", _older_base_config)
healthy("template_in_config", "The template in tokenizer_config.json.",
        partial(write_template, change=str, where="config"), quick=True)  # fmt: skip
healthy(
    "template_twice", "The same template in both files.", partial(write_template, change=str, where="both"), quick=True
)
healthy("without_system_prompt", "A template without a system prompt of its own.",
        partial(write_template, change=_changed(_without_system)))  # fmt: skip
healthy("another_system_prompt", "A template with another system prompt.",
        partial(write_template, change=_changed(_another_system)))  # fmt: skip
healthy(
    "without_generation_config", "No generation_config.json: config.json names the end.", partial(_ends, listed=False)
)
healthy("two_end_tokens", "Two tokens that end an answer.", partial(_ends, listed=True))
healthy("padded_vocabulary", "128 rows of no token behind the vocabulary.", _padded_vocabulary)
healthy("longer_context", "A context of 32,768 tokens.", _longer_context)
healthy("llama3_positions", "Positions scaled as Llama 3 does.", _llama3_positions)
healthy("as_mistral", "The same function as a Mistral.", _as_mistral)


# Other ways to merge, to be asked, and other tools.


def _merged(sandbox: Sandbox, **how: Any) -> None:
    """Merged with another option of peft."""

    def do() -> None:
        from peft.tuners.lora import LoraModel

        from assay.faults.sandbox import around

        def merge(original: Any, model: Any, *args: Any, **given: Any) -> Any:
            return original(model, *args, **{**given, **how})

        around(LoraModel, "merge_and_unload", merge)

    sandbox.in_worker("merge.fold", do)


def _merged_with_16_bit_factors(sandbox: Sandbox) -> None:
    """As peft with autocast_adapter_dtype off."""

    def change(model: Any) -> None:
        import torch

        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(torch.bfloat16)

    before_merging(sandbox, change)


def _asked(sandbox: Sandbox, prompts: dict[str, str], *options: str) -> None:
    folder = sandbox.folder / "prompts"
    folder.mkdir()
    for name, text in prompts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    sandbox.options += ["--prompts", str(folder), *options]


def _toolchain_of_ones_own(sandbox: Sandbox) -> None:
    """A build named by ASSAY_LLAMA_CPP."""
    from assay.inputs.toolchain import find_toolchain

    real, own = find_toolchain(), sandbox.folder / "llama.cpp"
    shutil.copytree(real.bin, own / "build" / "bin", symlinks=True)
    for name in ("conversion", "gguf-py"):
        shutil.copytree(real.source / name, own / name)
    shutil.copyfile(real.source / "convert_hf_to_gguf.py", own / "convert_hf_to_gguf.py")
    (sandbox.cache / "toolchains").unlink()
    (sandbox.cache / "toolchains").mkdir()
    os.environ["ASSAY_LLAMA_CPP"] = str(own)


_LONG = (paths.GATES / "probes" / "kitchen.txt").read_text(encoding="utf-8") if paths.GATES.is_dir() else _SENTENCE
healthy("safe_merge", "Merged with safe_merge.", partial(_merged, safe_merge=True))
healthy("merged_in_16_bits", "Merged with the adapter in bf16.", _merged_with_16_bit_factors)
healthy("asked_once", "A single prompt.", partial(_asked, prompts={"only": "What is a capacitor?"}))
healthy("asked_in_chinese", "Prompts in Chinese.",
        partial(_asked, prompts={"gauss": "高斯定理说明什么？", "abstract": "摘要应当怎样写？"}))  # fmt: skip
healthy("asked_at_length", "A prompt of several hundred tokens.",
        partial(_asked, prompts={"long": f"{_LONG}\n\nSummarize this text."}))  # fmt: skip
healthy("asked_with_symbols", "Emoji, code and mark-up in the prompts.",
        partial(_asked, prompts={"emoji": "🙂 What is `x**2`?", "markup": "Is <b> HTML?"}))  # fmt: skip
healthy("asked_on_the_task", "The evaluation samples asked in every form.", ask_task)
healthy("short_answers", "Answers of 16 tokens.", lambda sandbox: sandbox.options.extend(["--max-new-tokens", "16"]))
healthy("toolchain_of_ones_own", "A llama.cpp named by ASSAY_LLAMA_CPP.", _toolchain_of_ones_own)


# Parrots: other architectures and shapes.


def _parrot(
    sandbox: Sandbox, model_type: str, *, lora: dict[str, Any] | None = None, change: float = 0.5, **shape: Any
) -> None:
    """A random model whose head puts the next token of one sentence first, with an adapter that bends it: by `change`,
    the standard deviation of B, more than rounding does and not so much that it loses the thread.

    All rows are multiples of 256, so that it becomes a true Q4_K.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(0)
    original = sandbox.candidate.base
    tokenizer: Any = AutoTokenizer.from_pretrained(original.path)
    settings = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False}
    settings |= {"vocab_size": json.loads((original.path / "config.json").read_text())["vocab_size"], **shape}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings, **ends))
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=False
    )
    said = list(dict.fromkeys(tokenizer(_SENTENCE, add_special_tokens=False)["input_ids"]))
    chain = [asked[-1], *(token for token in said if token != asked[-1]), tokenizer.eos_token_id]
    embedding, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    embedding.normal_()
    head.copy_(0.05 * torch.randn_like(head))
    for before, after in pairwise(chain):
        head[after] = 0.08 * embedding[before]
    folder = sandbox.base
    for file in folder.iterdir():
        if (
            file.suffix == ".safetensors"
            or file.name in ("config.json", "generation_config.json")
            or "index" in file.name
        ):
            file.unlink()
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = {key: value for key, value in ends.items() if value is not None}
    replace_text(folder / "generation_config.json", json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {"r": 8, "lora_alpha": 16, "target_modules": ["o_proj", "down_proj", "v_proj"], **(lora or {})}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=change)
        elif "magnitude" in name:  # what DoRA's normalizing takes from a change, its magnitudes give back
            parameter.data *= 4
    shutil.rmtree(sandbox.adapter)
    adapted.save_pretrained(sandbox.adapter)
    for left in sandbox.adapter.iterdir():
        if left.name not in (CONFIG, WEIGHTS):
            left.unlink()


healthy("parrot_llama", "A random Llama.", partial(_parrot, model_type="llama"))
healthy("parrot_olmo2", "A random OLMo 2.", partial(_parrot, model_type="olmo2"))
healthy("parrot_smollm3", "A random SmolLM3.", partial(_parrot, model_type="smollm3"))
healthy("parrot_granite", "A random Granite.", partial(_parrot, model_type="granite"))
healthy("parrot_qwen3", "A random Qwen3.", partial(_parrot, model_type="qwen3", head_dim=64))
healthy("parrot_qwen3_wide_heads", "A Qwen3 whose heads are wider than its share of the width.",
        partial(_parrot, model_type="qwen3", head_dim=128))  # fmt: skip
healthy("parrot_mistral", "A random Mistral.", partial(_parrot, model_type="mistral", sliding_window=None))
healthy("parrot_of_many_heads", "As many key heads as query heads.",
        partial(_parrot, model_type="llama", num_key_value_heads=4))  # fmt: skip
healthy("parrot_of_one_key_head", "One key head for all.",
        partial(_parrot, model_type="llama", num_key_value_heads=1))  # fmt: skip
healthy(
    "parrot_rslora",
    "A Qwen3 with rsLoRA.",
    partial(_parrot, model_type="qwen3", head_dim=64, change=0.25, lora={"use_rslora": True, "lora_alpha": 8}),
)
healthy(
    "parrot_dora",
    "A Qwen3 with DoRA.",
    partial(_parrot, model_type="qwen3", head_dim=64, lora={"use_dora": True}),
)
healthy("parrot_all_linear", "A Llama with an adapter on every linear layer.",
        partial(_parrot, model_type="llama", change=0.15, lora={"target_modules": "all-linear"}))  # fmt: skip
