"""What cases do to tensors and files, on a base and an adapter of a few kilobytes, in fp32 and in bf16."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.edits.files import edit_json, replace_by_lfs_pointer, replace_text, truncate
from assay.faults.edits.models import rewrite_as_dora, set_template
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.edits.tools import wrap_program
from assay.inputs.checkpoint import chat_template, read_folder
from assay.inputs.lora import CONFIG, WEIGHTS, read_lora_weights
from assay.workers import tensors as tensor_files
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WIDTH, RANK, LAYERS = 128, 4, 3
KINDS = {"self_attn.q_proj": WIDTH, "self_attn.o_proj": WIDTH, "mlp.gate_proj": WIDTH, "mlp.down_proj": WIDTH}
ADAPTED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
PREFIX = "base_model.model."


class TinySandbox(SimpleNamespace):
    """A sandbox over a base and an adapter that the test wrote."""

    base: Path
    adapter: Path

    def in_worker(self, worker: str, do: Callable[[], None]) -> None:
        self.in_workers.append((worker, do))

    def run_in(self, worker: str) -> None:
        """Do in this process what the case does in the worker's."""
        assert {name for name, _ in self.in_workers} == {worker}
        for _, do in self.in_workers:
            do()


@pytest.fixture(params=["float32", "bfloat16"])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> TinySandbox:
    dtype = getattr(torch, request.param)
    random = torch.Generator().manual_seed(0)
    base: Tensors = {"model.embed_tokens.weight": torch.randn(32, WIDTH, generator=random).to(dtype)}
    adapter: Tensors = {}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            base[f"{block}.{norm}.weight"] = (1 + torch.rand(WIDTH, generator=random)).to(dtype)
        for kind in KINDS:
            base[f"{block}.{kind}.weight"] = torch.randn(WIDTH, WIDTH, generator=random).to(dtype)
        for kind in ADAPTED:
            module = f"{PREFIX}{block}.{kind}"
            adapter[f"{module}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=random).to(dtype)
            adapter[f"{module}.lora_B.weight"] = torch.randn(WIDTH, RANK, generator=random).to(dtype)
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    save_file(adapter, tmp_path / "adapter" / WEIGHTS)
    config = {"model_type": "llama", "tie_word_embeddings": True, "vocab_size": 32}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    targets = [kind.rpartition(".")[2] for kind in ADAPTED]
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": targets}
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(lora))
    candidate = SimpleNamespace(base=SimpleNamespace(tensors=read_folder(tmp_path / "base")))
    return TinySandbox(
        folder=tmp_path,
        base=tmp_path / "base",
        adapter=tmp_path / "adapter",
        candidate=candidate,
        options=[],
        recorded=True,
        in_workers=[],
    )


def weights(sandbox: TinySandbox) -> Tensors:
    return cast(Tensors, load_file(sandbox.adapter / WEIGHTS))


def base_weights(sandbox: TinySandbox) -> Tensors:
    return {n: t for file in sorted(sandbox.base.glob("*.safetensors")) for n, t in load_file(file).items()}


def config(sandbox: TinySandbox) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sandbox.adapter / CONFIG).read_text())
    return found


def break_with(name: str, sandbox: TinySandbox) -> None:
    FAULTS[name].make(cast(Sandbox, sandbox))


def vary_with(name: str, sandbox: TinySandbox) -> None:
    HEALTHY_VARIANTS[name].make(cast(Sandbox, sandbox))


def equal(left: Tensors, right: Tensors) -> bool:
    """The same names, dtypes and values; NaN equals NaN."""
    return left.keys() == right.keys() and all(
        one.dtype == right[name].dtype and torch.equal(one.nan_to_num(7e3), right[name].nan_to_num(7e3))
        for name, one in left.items()
    )


def a(tensors: Tensors) -> list[str]:
    return [name for name in tensors if "lora_A" in name]


def b(tensors: Tensors) -> list[str]:
    return [name for name in tensors if "lora_B" in name]


def changed(tensors: Tensors, **new: Any) -> Tensors:
    return {**tensors, **new}


# The files of tensors.


def test_an_edit_of_a_link_leaves_the_file_it_names_alone(sandbox: TinySandbox, tmp_path: Path) -> None:
    file, link, before = sandbox.adapter / WEIGHTS, tmp_path / "link.safetensors", weights(sandbox)
    link.symlink_to(file)

    def edit(tensors: Tensors) -> None:
        tensors["new"] = np.arange(3, dtype=np.float32)
        del tensors[b(tensors)[0]]
        tensors[a(tensors)[0]] = tensors[a(tensors)[0]].T

    tensor_files.edit_tensors(link, edit)
    assert equal(weights(sandbox), before)
    expected = {name: tensor for name, tensor in before.items() if name != b(before)[0]}
    expected |= {"new": torch.arange(3, dtype=torch.float32), a(before)[0]: before[a(before)[0]].T.contiguous()}
    assert not link.is_symlink()
    assert equal(load_file(link), expected)


def test_an_edited_checkpoint_of_several_shards_is_one_file(sandbox: TinySandbox) -> None:
    before = base_weights(sandbox)
    vary_with("seven_shards", sandbox)
    index = json.loads((sandbox.base / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 7
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())
    assert equal(base_weights(sandbox), before)
    assert {name: tensor.file.name for name, tensor in read_folder(sandbox.base).items()} == index["weight_map"]
    tensor_files.edit_checkpoint(sandbox.base, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert [file.name for file in sandbox.base.glob("*.safetensors*")] == ["model.safetensors"]
    assert equal(base_weights(sandbox), {n: t for n, t in before.items() if n != "model.embed_tokens.weight"})


# Faults of the adapter.


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("b_all_zero", 0.0),
        ("another_checkpoint_copied", 0.6),
        ("diverged_but_finite", 1000.0),
        ("fine_tune_below_bf16", 0.004),
    ],
)
def test_a_scaled_adapter_has_another_b_and_the_same_a(sandbox: TinySandbox, name: str, factor: float) -> None:
    before = weights(sandbox)
    break_with(name, sandbox)
    assert equal(weights(sandbox), before | {half: before[half] * factor for half in b(before)})


def test_one_value_is_nan(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("nan_in_adapter", sandbox)
    before[b(before)[0]][0, 0] = float("nan")
    assert equal(weights(sandbox), before)


def test_one_row_is_inf(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("inf_in_adapter", sandbox)
    before[a(before)[0]][0] = float("inf")
    assert equal(weights(sandbox), before)


def test_tensors_are_renamed(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("keys_of_another_class", sandbox)
    renamed = {name.replace("model.layers", "model.language_model.layers"): one for name, one in before.items()}
    assert equal(weights(sandbox), renamed)
    break_with("keys_of_another_library", sandbox)
    ends = {"lora_A.weight": "adapter.linear_A.weight", "lora_B.weight": "adapter.linear_B.weight"}
    assert equal(weights(sandbox), {n[:-13] + ends[n[-13:]]: one for n, one in renamed.items()})


def test_the_last_two_layers_are_missing(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("layers_missing_from_weights", sandbox)
    assert equal(weights(sandbox), {name: one for name, one in before.items() if ".layers.0." in name})


def test_one_half_is_missing(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("one_half_missing", sandbox)
    assert equal(weights(sandbox), {name: one for name, one in before.items() if name != b(before)[0]})


def test_an_adapter_of_a_wider_model_has_64_more_columns(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("adapter_of_a_wider_model", sandbox)
    wider = {name: torch.cat([before[name], before[name][:, :64]], dim=1) for name in a(before)}
    assert equal(weights(sandbox), before | wider)


def test_a_partition_is_empty(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("partition_saved_as_whole", sandbox)
    assert equal(weights(sandbox), before | {name: before[name][:0] for name in b(before)})


def test_a_small_fine_tune_is_a_quarter_and_leaves_out_down_proj(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    break_with("fine_tune_smaller_than_4_bit_noise", sandbox)
    scaled = before | {name: before[name] * 0.25 for name in b(before)}
    assert equal(weights(sandbox), {name: one for name, one in scaled.items() if "down_proj" not in name})
    assert config(sandbox)["target_modules"] == ["q_proj", "o_proj"]


def test_settings_of_the_adapter_change_and_nothing_else_does(sandbox: TinySandbox) -> None:
    before, old = weights(sandbox), config(sandbox)
    break_with("rank_edited", sandbox)
    break_with("alpha_edited_after_training", sandbox)
    assert config(sandbox) == old | {"r": 1, "lora_alpha": 8}
    assert not sandbox.recorded
    assert equal(weights(sandbox), before)


# Faults of the base and of the merged checkpoint.


def test_outlier_channels_compute_the_same_function(sandbox: TinySandbox) -> None:
    before, adapter = base_weights(sandbox), weights(sandbox)
    break_with("outlier_channels", sandbox)
    after, block = base_weights(sandbox), "model.layers.1."
    for norm, column in (("input_layernorm", "self_attn.q_proj"), ("post_attention_layernorm", "mlp.gate_proj")):
        old, new = (
            one[f"{block}{column}.weight"].float() * one[f"{block}{norm}.weight"].float() for one in (before, after)
        )
        torch.testing.assert_close(new, old, rtol=0.02, atol=0.02)
    q = f"{block}self_attn.q_proj.weight"
    expected = before[q].clone()
    expected[:, ::64] *= 24.0
    assert torch.equal(after[q], expected)
    assert torch.equal(after[f"{block}mlp.down_proj.weight"], before[f"{block}mlp.down_proj.weight"])
    lora = f"{PREFIX}{block}self_attn.q_proj.lora_A.weight"
    expected = adapter[lora].clone()
    expected[:, ::64] *= 24.0
    assert equal(weights(sandbox), weights(sandbox) | {lora: expected})


def test_a_weight_beyond_f16_belongs_to_a_dead_channel(sandbox: TinySandbox) -> None:
    before = base_weights(sandbox)
    break_with("value_beyond_f16", sandbox)
    before["model.layers.0.mlp.gate_proj.weight"][0] = 0
    before["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e5
    assert equal(base_weights(sandbox), before)


def test_one_weight_of_the_base_is_nan_or_all_of_a_matrix_are_updated(sandbox: TinySandbox) -> None:
    before = base_weights(sandbox)
    break_with("nan_in_base", sandbox)
    before["model.layers.0.input_layernorm.weight"][0] = float("nan")
    break_with("base_updated_since_training", sandbox)
    before["model.layers.0.mlp.down_proj.weight"] *= 1.01
    assert equal(base_weights(sandbox), before)


def _norm_doubled(tensors: Tensors) -> None:
    tensors["model.layers.0.input_layernorm.weight"] *= 2


def _projections_zero(tensors: Tensors) -> None:
    for kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors[f"model.layers.0.self_attn.{kind}.weight"] *= 0


def _in_f16(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(torch.float16)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nan_after_merging", lambda t: t["model.layers.0.mlp.down_proj.weight"][0].__setitem__(0, float("nan"))),
        ("norm_doubled", _norm_doubled),
        ("embedding_rows_reversed", lambda t: t.update({EMBEDDING: t[EMBEDDING].flip(0)})),
        ("projections_zeroed", _projections_zero),
        ("tensor_missing_after_merging", lambda t: t.pop("model.layers.0.post_attention_layernorm.weight")),
        ("merged_in_f16", _in_f16),
    ],
)
def test_a_merged_checkpoint_is_damaged_before_it_is_examined(
    sandbox: TinySandbox, name: str, expected: Callable[[Tensors], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.workers import merge

    more = {f"model.layers.0.self_attn.{kind}.weight": torch.ones(2, 2) for kind in ("k_proj", "v_proj")}
    tensor_files.edit_checkpoint(sandbox.base, lambda tensors: tensors.update(more))
    tensors = base_weights(sandbox)
    monkeypatch.setattr(merge, "replay_merge", lambda base, adapter, merged: base_weights(sandbox))
    break_with(name, sandbox)
    sandbox.run_in("merge.fold")
    expected(tensors)
    assert equal(cast(Any, merge).replay_merge(None, None, sandbox.base), tensors)


EMBEDDING = "model.embed_tokens.weight"


def adapted_layer(sandbox: TinySandbox) -> Any:
    """A linear layer with an adapter, in the shape that peft gives it."""
    halves, layer = weights(sandbox), torch.nn.Module()
    layer.base_layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    layer.base_layer.weight.data = base_weights(sandbox)["model.layers.0.self_attn.q_proj.weight"]
    layer.lora_A, layer.lora_B, layer.scaling = torch.nn.ModuleDict(), torch.nn.ModuleDict(), {"default": 2.0}
    for modules, half in ((layer.lora_A, "A"), (layer.lora_B, "B")):
        modules["default"] = torch.nn.Linear(1, 1, bias=False)
        modules["default"].weight.data = halves[f"{PREFIX}model.layers.0.self_attn.q_proj.lora_{half}.weight"]
    return layer


@pytest.fixture
def mounted(sandbox: TinySandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Mounts an adapter with a stand-in for peft, after what a fault does to peft in a worker."""

    class PeftModel:
        @staticmethod
        def from_pretrained(model: Any, path: str) -> Any:
            return model

    peft: Any = ModuleType("peft")
    peft.PeftModel = PeftModel
    monkeypatch.setitem(sys.modules, "peft", peft)

    def mount(name: str, worker: str) -> Any:
        break_with(name, sandbox)
        sandbox.run_in(worker)
        model = torch.nn.Sequential(adapted_layer(sandbox))
        return PeftModel.from_pretrained(model, "adapter")[0]

    return mount


def test_an_adapter_rounded_to_eight_bits_keeps_three_bits_of_mantissa(
    sandbox: TinySandbox, mounted: Callable[[str, str], Any]
) -> None:
    before, after = adapted_layer(sandbox), mounted("adapter_rounded_to_fp8", "bnb.mount")
    for old, new in ((before.lora_A, after.lora_A), (before.lora_B, after.lora_B)):
        weight = old["default"].weight.data
        assert torch.equal(new["default"].weight.data, weight.to(torch.float8_e4m3fn).to(weight.dtype))
        assert not torch.equal(new["default"].weight.data, weight)
    assert torch.equal(after.base_layer.weight, before.base_layer.weight)


@pytest.mark.parametrize(
    ("name", "worker", "scale"),
    [
        ("adapter_scaled_twice", "bnb.mount", 4.0),
        ("adapter_scaled_by_rank", "bnb.mount", 1.0),
        ("adapter_merged_twice", "merge.fold", 4.0),
        ("adapter_merged_at_half", "merge.fold", 1.0),
        ("adapter_subtracted", "merge.fold", -2.0),
        ("one_layer_not_merged", "merge.fold", 0.0),
    ],
)
def test_a_scale_is_wrong(mounted: Callable[[str, str], Any], name: str, worker: str, scale: float) -> None:
    assert mounted(name, worker).scaling == {"default": scale}


def test_a_4_bit_base_is_what_bitsandbytes_rounds_to(sandbox: TinySandbox, mounted: Callable[[str, str], Any]) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    before, after = adapted_layer(sandbox), mounted("merged_onto_4_bit", "merge.fold")
    weight = before.base_layer.weight.data
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    assert torch.equal(after.base_layer.weight.data, dequantize_4bit(packed, state).to(weight.dtype))
    assert torch.equal(after.lora_B["default"].weight, before.lora_B["default"].weight)


# Healthy variants.


def changes(sandbox: TinySandbox) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """What the adapter adds to each tensor of the base."""
    lora = read_lora_weights(sandbox.adapter, read_folder(sandbox.base))
    return {name: low.scale * (low.factors()[0] @ low.factors()[1]) for name, low in lora.changes.items()}


@pytest.mark.parametrize(
    "name",
    ["rank_doubled", "rank_times_8", "alpha_8", "alpha_16", "alpha_128", "rslora", "patterns", "targets_in_full",
     "targets_by_expression", "older_config", "adapter_bf16", "adapter_fp16"],
)  # fmt: skip
def test_an_adapter_written_otherwise_makes_the_same_change(sandbox: TinySandbox, name: str) -> None:
    before = changes(sandbox)
    vary_with(name, sandbox)
    after = changes(sandbox)
    assert after.keys() == before.keys()
    for module, change in before.items():
        np.testing.assert_allclose(after[module], change, rtol=0.02, atol=0.05)


def test_a_higher_rank_is_zeros_behind_the_same_values(sandbox: TinySandbox) -> None:
    before = weights(sandbox)
    vary_with("rank_doubled", sandbox)
    padded = {
        name: torch.cat([one, torch.zeros_like(one)], dim=0 if "lora_A" in name else 1) for name, one in before.items()
    }
    assert equal(weights(sandbox), padded)
    assert (config(sandbox)["r"], config(sandbox)["lora_alpha"]) == (2 * RANK, 8)


def test_dora_has_the_magnitudes_of_the_merged_weights(sandbox: TinySandbox) -> None:
    before, low = weights(sandbox), changes(sandbox)
    rewrite_as_dora(cast(Sandbox, sandbox))
    base, after = base_weights(sandbox), weights(sandbox)
    for weight, change in low.items():
        magnitude = after.pop(f"{PREFIX}{weight.removesuffix('.weight')}.lora_magnitude_vector")
        assert magnitude.dtype == torch.float32
        expected = np.linalg.norm(base[weight].float().numpy() + change, axis=1)
        np.testing.assert_allclose(magnitude.numpy(), expected, rtol=1e-5)
    assert equal(after, before)
    with pytest.raises(NotApplicable, match="no plain LoRA"):
        rewrite_as_dora(cast(Sandbox, sandbox))


def test_the_vocabulary_is_padded_with_zeros(sandbox: TinySandbox) -> None:
    before = base_weights(sandbox)
    vary_with("padded_vocabulary", sandbox)
    rows = torch.zeros(128, WIDTH, dtype=before[EMBEDDING].dtype)
    assert equal(base_weights(sandbox), before | {EMBEDDING: torch.cat([before[EMBEDDING], rows])})
    assert json.loads((sandbox.base / "config.json").read_text())["vocab_size"] == 32 + 128


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_base_is_stored_in_another_dtype(sandbox: TinySandbox, dtype: str) -> None:
    before = base_weights(sandbox)
    vary_with({"float32": "base_fp32", "float16": "base_fp16"}[dtype], sandbox)
    assert equal(base_weights(sandbox), {name: one.to(getattr(torch, dtype)) for name, one in before.items()})
    assert json.loads((sandbox.base / "config.json").read_text())["dtype"] == dtype


def test_the_head_is_a_copy_of_the_embedding(sandbox: TinySandbox) -> None:
    before = base_weights(sandbox)
    vary_with("head_untied", sandbox)
    assert equal(base_weights(sandbox), before | {"lm_head.weight": before[EMBEDDING]})
    assert json.loads((sandbox.base / "config.json").read_text())["tie_word_embeddings"] is False
    with pytest.raises(NotApplicable, match="not tied"):
        vary_with("head_stored_twice", sandbox)


# Files and programs.


def test_edits_of_files_replace_links(tmp_path: Path) -> None:
    def linked(name: str) -> tuple[Path, Path]:
        file, link = tmp_path / name, tmp_path / f"{name}.link"
        file.write_text('{"a": "ä"}', encoding="utf-8")
        link.symlink_to(file)
        return file, link

    edits: dict[str, Callable[[Path], object]] = {
        '{\n  "a": "ä",\n  "b": 1\n}': lambda link: edit_json(link, lambda data: data.update(b=1)),
        "text": lambda link: replace_text(link, "text"),
        '{"a":': lambda link: truncate(link, 0.5),
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n": replace_by_lfs_pointer,
    }
    for number, (expected, edit) in enumerate(edits.items()):
        file, link = linked(str(number))
        edit(link)
        assert not link.is_symlink()
        assert (file.read_text(encoding="utf-8"), link.read_text(encoding="utf-8")) == ('{"a": "ä"}', expected)


def test_a_base_has_one_template_or_none(sandbox: TinySandbox) -> None:
    set_template(sandbox.base, "new")
    assert chat_template(sandbox.base) == "new"
    set_template(sandbox.base, None)
    assert not (sandbox.base / "chat_template.jinja").exists()
    assert json.loads((sandbox.base / "tokenizer_config.json").read_text()) == {}


def test_a_wrapped_program_leaves_the_self_test_alone(tmp_path: Path) -> None:
    program = tmp_path / "llama-cli"
    program.write_text('#!/bin/sh\necho "real $@"\n')
    program.chmod(0o755)
    sandbox = SimpleNamespace(toolchain=SimpleNamespace(bin=tmp_path))
    wrap_program(cast(Sandbox, sandbox), "llama-cli", '"$real" "$@" --seed 7')
    for model, expected in (("m", "real m --seed 7"), ("self-test-q4", "real self-test-q4")):
        assert subprocess.check_output([program, model], text=True).strip() == expected
