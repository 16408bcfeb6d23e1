"""Merge forensics: healthy merges are named, and every way of being broken is, with the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assay.cli.app import main
from assay.inputs.bases import Base, find_base
from assay.inputs.checkpoint import read_folder
from assay.inputs.lora import read_lora_weights
from assay.measures.merge_replay import MergeFindings, replay_merge

from tests.samples import write_adapter

pytestmark = pytest.mark.slow(seconds=30)

SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {"self_attn.q_proj": (256, 256), "mlp.down_proj": (256, 512)}.items()
}
Q = "model.layers.0.self_attn.q_proj.weight"
PEFT, SAFE, ONCE = "peft's default", "safe_merge", "rounded once"


@pytest.fixture(scope="module")
def untied(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The small Qwen3 with a head of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("untied")
    config = AutoConfig.from_pretrained(base.path)
    config.tie_word_embeddings, config.vocab_size = False, 49152
    set_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base.path / name, folder / name)
    return find_base(str(folder))


def in_bf16(folder: Path) -> Path:
    """The adapter as a training in bf16 saves it."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    return folder


@pytest.fixture(scope="module")
def adapter(untied: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(write_adapter(tmp_path_factory.mktemp("lora"), SHAPES, base=untied.id, scale=0.02))


def merged_by_peft(base: Base, adapter: Path, folder: Path, *, nf4: str = "", **how: Any) -> Path:
    """What a person would do: load, mount, merge, save."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=how.pop("dtype", torch.bfloat16))
    if nf4:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
                packed, state = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=nf4 == "double")
                module.weight.data = dequantize_4bit(packed, state)
    cast = how.pop("autocast_adapter_dtype", True)
    mounted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=cast)
    mounted.merge_and_unload(**how).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base.path / name, folder / name)
    return folder


def rewritten(merged: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The checkpoint with some of its tensors changed, saved as it was."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(merged / "model.safetensors")
    change(tensors)
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({}, PEFT),
        ({"safe_merge": True}, SAFE),
        ({"autocast_adapter_dtype": False}, SAFE),
        ({"nf4": "once"}, "onto an nf4 base"),
        ({"nf4": "double"}, "doubly quantized nf4 base"),
    ],
)
def test_a_healthy_merge_of_a_bf16_adapter_is_named(
    untied: Base, adapter: Path, tmp_path: Path, how: dict[str, Any], named: str
) -> None:
    found = replay_merge(untied.path, adapter, merged_by_peft(untied, adapter, tmp_path / "merged", **how))
    assert found.defects == []
    assert named in str(found.recipe)
    assert found.recipes[str(found.recipe)] == len(SHAPES)


def test_fp32_accumulation_rounded_once_is_named(untied: Base, adapter: Path, tmp_path: Path) -> None:
    merged = merged_by_peft(untied, adapter, tmp_path / "merged", safe_merge=True)
    lora, before = read_lora_weights(adapter, untied.tensors), untied.tensors

    def accumulate(tensors: dict[str, Any]) -> None:
        import torch

        for name, low in lora.changes.items():
            left, right = (torch.from_numpy(np.ascontiguousarray(part)) for part in low.factors())
            whole = torch.from_numpy(before[name].float32().copy())
            tensors[name] = whole.addmm_(left, right, alpha=low.scale).bfloat16()

    rewritten(merged, accumulate)
    found = replay_merge(untied.path, adapter, merged)
    assert (found.defects, ONCE in str(found.recipe)) == ([], True), found.summary


@pytest.mark.parametrize("variant", ["rslora", "dora", "patterns", "saved head", "exported as F16", "in fp32"])
def test_every_variant_of_a_healthy_merge_passes(untied: Base, tmp_path: Path, variant: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options: dict[str, dict[str, Any]] = {
        "rslora": {"use_rslora": True, "r": 6},
        "dora": {"use_dora": True},
        "patterns": {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
        "saved head": {"modules_to_save": ["lm_head"]},
    }
    torch.manual_seed(3)
    dtype = torch.float32 if variant == "in fp32" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(untied.path, dtype=dtype)
    config = LoraConfig(
        **{"r": 8, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], **options.get(variant, {})}
    )
    tuned: Any = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or ("modules_to_save" in name and "default" in name):
            parameter.data += torch.randn_like(parameter) * 0.02
    tuned.save_pretrained(tmp_path / "adapter")
    whole = tuned.merge_and_unload()
    (whole.half() if variant == "exported as F16" else whole).save_pretrained(tmp_path / "merged")
    found = replay_merge(untied.path, tmp_path / "adapter", tmp_path / "merged")
    assert found.defects == []
    assert found.recipe
    assert ("DoRA" in str(found.recipe)) == (variant == "dora")


def zero_head(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"].zero_()


def reverse_embeddings(tensors: dict[str, Any]) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def double_norm(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] *= 2


def drop_norm(tensors: dict[str, Any]) -> None:
    del tensors["model.norm.weight"]


def add_one(tensors: dict[str, Any]) -> None:
    tensors["model.extra.weight"] = tensors["model.norm.weight"].clone()


def one_row(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][7] += 0.5


BROKEN = {
    "lm_head zeroed": (zero_head, "zeroed", "lm_head.weight"),
    "embedding rows reversed": (reverse_embeddings, "reordered", "model.embed_tokens.weight"),
    "a norm doubled": (double_norm, "scaled", "model.norm.weight"),
    "a norm missing": (drop_norm, "missing", "model.norm.weight"),
    "a tensor more": (add_one, "extra", "model.extra.weight"),
    "a row of an untouched matrix": (one_row, "altered", "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tensor_that_is_not_what_it_should_be_is_named(
    untied: Base, adapter: Path, tmp_path: Path, case: str
) -> None:
    change, kind, where = BROKEN[case]
    merged = merged_by_peft(untied, adapter, tmp_path / "merged")
    rewritten(merged, change)
    assert defects(replay_merge(untied.path, adapter, merged)) == [(kind, where)]


def defects(found: MergeFindings) -> list[tuple[str, str]]:
    return [(defect.kind, defect.where) for defect in found.defects]


def scaled(k: float) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(lora_alpha=config["lora_alpha"] * k)


@pytest.mark.parametrize(
    ("k", "kind", "strength"), [(2, "scaled", "2.0"), (0.5, "scaled", "0.5"), (-1, "sign-flipped", "-1.0")]
)
def test_a_wrong_scale_is_told_by_its_number(
    untied: Base, adapter: Path, tmp_path: Path, k: float, kind: str, strength: str
) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * k}))
    found = replay_merge(untied.path, adapter, merged_by_peft(untied, other, tmp_path / "merged"))
    assert {defect.kind for defect in found.defects} == {kind}
    assert {defect.where for defect in found.defects} == {f"{module}.weight" for module in SHAPES}
    assert f"strength {strength}" in found.defects[0].detail


def test_a_layer_without_the_adapter_is_partly_applied(untied: Base, adapter: Path, tmp_path: Path) -> None:
    import torch

    merged = merged_by_peft(untied, adapter, tmp_path / "merged")
    before = untied.tensors[Q].float32().copy()
    rewritten(merged, lambda tensors: tensors.update({Q: torch.from_numpy(before).bfloat16()}))
    assert defects(replay_merge(untied.path, adapter, merged)) == [("partly applied", Q)]
    half = read_folder(merged_by_peft(untied, adapter, tmp_path / "whole"))[Q].float32().copy()
    half[:128] = before[:128]
    rewritten(merged, lambda tensors: tensors.update({Q: torch.from_numpy(half).bfloat16()}))
    assert defects(replay_merge(untied.path, adapter, merged)) == [("partly applied", Q)]


def test_a_change_that_several_recipes_explain_takes_the_one_that_explains_all(untied: Base, tmp_path: Path) -> None:
    """B is nearly zero in the first tensor, so any way of rounding fits it; the others were merged with safe_merge."""
    from safetensors.numpy import load_file, save_file

    folder = write_adapter(tmp_path / "adapter", SHAPES, base=untied.id, scale=0.02)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if "lora_B" in name and "layers.0.mlp" in name:
            tensors[name] *= 0
    save_file(tensors, file)
    found = replay_merge(untied.path, folder, merged_by_peft(untied, folder, tmp_path / "merged", safe_merge=True))
    assert (found.defects, found.notes) == ([], [])
    assert SAFE in str(found.recipe)
    assert sum(found.recipes.values()) == len(SHAPES)


def test_a_buffer_of_integers_is_compared_too(untied: Base, adapter: Path, tmp_path: Path) -> None:
    import torch

    base = Path(shutil.copytree(untied.path, tmp_path / "base"))
    merged = merged_by_peft(untied, adapter, tmp_path / "merged")
    for folder in (base, merged):
        rewritten(folder, lambda tensors: tensors.update({"model.places": torch.arange(5)}))
    assert replay_merge(base, adapter, merged).defects == []
    rewritten(merged, lambda tensors: tensors["model.places"].add_(1))
    assert [where for _, where in defects(replay_merge(base, adapter, merged))] == ["model.places"]


def test_the_bare_base_and_another_adapter_are_told_apart(untied: Base, adapter: Path, tmp_path: Path) -> None:
    found = replay_merge(untied.path, adapter, untied.path)
    assert {defect.kind for defect in found.defects} == {"absent"}
    other = in_bf16(write_adapter(tmp_path / "other", SHAPES, base=untied.id, scale=0.02, seed=9))
    found = replay_merge(untied.path, adapter, merged_by_peft(untied, other, tmp_path / "merged"))
    assert {defect.kind for defect in found.defects} == {"another adapter"}
    assert len(found.defects) == len(SHAPES)


def edit_json(file: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not None}))

    return edit


def copy_of_a_shard(folder: Path) -> None:
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    ("edit", "kind", "said"),
    [
        (
            edit_json("config.json", rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}),
            "config",
            "rope_theta",
        ),
        (edit_json("config.json", rms_norm_eps=0.01), "config", "rms_norm_eps"),
        (edit_json("config.json", use_sliding_window=True, sliding_window=128), "config", "sliding_window"),
        (edit_json("config.json", quantization_config={"quant_method": "gptq"}), "config", "quantization_config"),
        (edit_json("generation_config.json", eos_token_id=5), "generation config", "eos_token_id"),
        (edit_json("tokenizer.json", normalizer={"type": "Lowercase"}), "tokenizer", "normalizer"),
        (edit_json("tokenizer_config.json", eos_token="<|im_start|>"), "tokenizer", "eos_token"),
        (other_template, "template", "another chat template"),
        (copy_of_a_shard, "stray", "a second time"),
        (adapter_beside, "stray", "mount the adapter a second time"),
    ],
)
def test_a_file_that_is_not_the_bases_is_named(
    untied: Base, adapter: Path, tmp_path: Path, edit: Callable[[Path], None], kind: str, said: str
) -> None:
    merged = merged_by_peft(untied, adapter, tmp_path / "merged")
    edit(merged)
    found = replay_merge(untied.path, adapter, merged)
    assert {defect.kind for defect in found.defects} == {kind}
    assert said in found.defects[0].detail


def test_what_transformers_spells_out_is_no_difference_and_an_unknown_key_is_noted(
    untied: Base, adapter: Path, tmp_path: Path
) -> None:
    merged = merged_by_peft(untied, adapter, tmp_path / "merged")
    edit_json("config.json", use_sliding_window=False, sliding_window=32768, logit_scale=0.5)(merged)
    found = replay_merge(untied.path, adapter, merged)
    assert found.defects == []
    assert "config.json: logit_scale is 0.5" in found.notes[-1]


def test_a_second_look_at_a_healthy_merge_of_assays_own_is_healthy_from_the_command_line(
    untied: Base, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = merged_by_peft(untied, adapter, tmp_path / "merged")
    given = ["check-merge", "--base", str(untied.path), "--adapter", str(adapter)]
    assert main([*given, str(merged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    rewritten(merged, zero_head)
    assert main([*given, str(merged)]) == 1
    assert "lm_head.weight" in capsys.readouterr().out
    assert main([*given, str(tmp_path / "nowhere")]) == 2
    empty = Path(shutil.copytree(adapter, tmp_path / "empty"))
    from safetensors.numpy import save_file

    save_file({}, empty / "adapter_model.safetensors")
    assert main([*given[:-1], str(empty), str(untied.path)]) == 3
