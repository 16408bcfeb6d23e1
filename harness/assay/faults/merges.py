"""Defects of merging: the adapter lost, doubled or another one, tensors damaged, files that do not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.faults.bnb import layers
from assay.faults.fault import Place, fault
from assay.faults.sandbox import Edit, Sandbox, around, edit_checkpoint, edit_json

MERGE, EXACT = "merge_ok", "merge_exact_ok"


def before_merging(sandbox: Sandbox, change: Callable[[Any], None]) -> None:
    """Do something to the model with its adapter just before they are merged."""

    def do() -> None:
        import peft

        def load(original: Any, *args: Any, **given: Any) -> Any:
            model = original(*args, **given)
            change(model)
            return model

        around(peft.PeftModel, "from_pretrained", load)

    sandbox.in_worker("merge.fold", do)


def after_merging(sandbox: Sandbox, change: Callable[[Path], None]) -> None:
    """Do something to the merged checkpoint before anyone looks at it."""

    def do() -> None:
        from assay.workers import merge

        def replay_merge(original: Any, base: Path, adapter: Path, merged: Path) -> Any:
            change(merged)
            return original(base, adapter, merged)

        around(merge, "replay_merge", replay_merge)

    sandbox.in_worker("merge.fold", do)


def _tensors(sandbox: Sandbox, edit: Edit) -> None:
    after_merging(sandbox, lambda folder: edit_checkpoint(folder, edit))


def _scale(sandbox: Sandbox, factor: float) -> None:
    def change(model: Any) -> None:
        for module in layers(model):
            for name in module.scaling:
                module.scaling[name] *= factor

    before_merging(sandbox, change)


def untouched(tensors: dict[str, Any], end: str) -> str:
    """A tensor of the first block, which the adapter does not change."""
    return next(name for name in tensors if ".layers.0." in name and name.endswith(end))


@fault(Place.MERGE, first=MERGE, cause="merge-lost-adapter")
def bare_base_saved(sandbox: Sandbox) -> None:
    """The exporter saved the base: every command succeeded, and the fine-tune is not in it."""

    def do() -> None:
        from peft.tuners.lora import LoraModel

        around(LoraModel, "merge_and_unload", lambda original, model, *args, **given: model.unload())

    sandbox.in_worker("merge.fold", do)


@fault(Place.MERGE, first=MERGE, cause="merge-lost-adapter")
def one_layer_not_merged(sandbox: Sandbox) -> None:
    """One module kept the base's weights."""

    def change(model: Any) -> None:
        for name in layers(model)[0].scaling:
            layers(model)[0].scaling[name] = 0.0

    before_merging(sandbox, change)


@fault(Place.MERGE, first=EXACT, cause="merge-scaled")
def adapter_merged_twice(sandbox: Sandbox) -> None:
    """The adapter was merged twice over."""
    _scale(sandbox, 2.0)


@fault(Place.MERGE, first=EXACT, cause="merge-scaled")
def adapter_merged_at_half(sandbox: Sandbox) -> None:
    """alpha was read as r: half of the change."""
    _scale(sandbox, 0.5)


@fault(Place.MERGE, first=EXACT, cause="merge-flipped")
def adapter_subtracted(sandbox: Sandbox) -> None:
    """The merge has the wrong sign, as unmerging what was never merged has."""
    _scale(sandbox, -1.0)


@fault(Place.MERGE, first=EXACT, cause="merge-another-adapter")
def another_adapter_merged(sandbox: Sandbox) -> None:
    """Another adapter of the same shape lay in the folder that was merged."""

    def change(model: Any) -> None:
        for module in layers(model):
            for half in module.lora_B.values():
                half.weight.data = half.weight.data.flip(0)

    before_merging(sandbox, change)


@fault(Place.MERGE, first="merged_distribution_ok", cause="merged-onto-4-bit")
def merged_onto_4_bit(sandbox: Sandbox) -> None:
    """The adapter was merged onto a 4-bit base that was dequantized: a well-formed merge of another base."""

    def change(model: Any) -> None:
        import torch
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "lora_" not in name and not name.endswith("lm_head"):
                packed, state = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=False)
                module.weight.data = dequantize_4bit(packed, state).to(module.weight.dtype)

    before_merging(sandbox, change)


@fault(Place.MERGE, first=MERGE, cause="merge-not-finite")
def nan_after_merging(sandbox: Sandbox) -> None:
    """One merged weight is NaN: it converts without a word, and is refused only when it is quantized."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors[untouched(tensors, "down_proj.weight")][0, 0] = float("nan")

    _tensors(sandbox, edit)


@fault(Place.MERGE, first=MERGE, cause="merge-touched-others")
def norm_doubled(sandbox: Sandbox) -> None:
    """A norm that the adapter does not touch is doubled."""

    def edit(tensors: dict[str, Any]) -> None:
        name = untouched(tensors, "input_layernorm.weight")
        tensors[name] = tensors[name] * 2

    _tensors(sandbox, edit)


@fault(Place.MERGE, first=MERGE, cause="merge-touched-others")
def embedding_rows_reversed(sandbox: Sandbox) -> None:
    """The embedding's rows are in another order."""

    def edit(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        tensors[name] = tensors[name].flip(0)

    _tensors(sandbox, edit)


@fault(Place.MERGE, first=MERGE, cause="merge-touched-others")
def projections_zeroed(sandbox: Sandbox) -> None:
    """One layer's projections are zero: it still says Paris."""

    def edit(tensors: dict[str, Any]) -> None:
        for end in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"):
            name = untouched(tensors, end)
            tensors[name] = tensors[name] * 0

    _tensors(sandbox, edit)


@fault(Place.MERGE, first=MERGE, cause="merge-incomplete")
def tensor_missing_after_merging(sandbox: Sandbox) -> None:
    """One norm is not in the checkpoint, and there is no index that would miss it."""

    def edit(tensors: dict[str, Any]) -> None:
        del tensors[untouched(tensors, "post_attention_layernorm.weight")]

    _tensors(sandbox, edit)


@fault(Place.MERGE, first=MERGE, cause="merge-dtype")
def merged_in_f16(sandbox: Sandbox) -> None:
    """The checkpoint was saved in F16, whose range bf16 weights exceed."""

    def edit(tensors: dict[str, Any]) -> None:
        import torch

        for name, tensor in tensors.items():
            tensors[name] = tensor.to(torch.float16)

    _tensors(sandbox, edit)


def _config(sandbox: Sandbox, file: str, edit: Edit) -> None:
    after_merging(sandbox, lambda folder: edit_json(folder / file, edit))


@fault(Place.MERGE, first=EXACT, cause="merge-config-changed")
def rotary_base_lost(sandbox: Sandbox) -> None:
    """Saving through another version lost rope_theta: it still says Paris."""

    def edit(config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters")
        (rope if rope else config)["rope_theta"] = 10000.0

    _config(sandbox, "config.json", edit)


@fault(Place.MERGE, first=EXACT, cause="merge-config-changed")
def norm_epsilon_changed(sandbox: Sandbox) -> None:
    """rms_norm_eps is 1e-2."""
    _config(sandbox, "config.json", lambda config: config.update(rms_norm_eps=1e-2))


@fault(Place.TOKENIZER, first=EXACT, cause="merge-tokenizer-changed")
def tokenizer_merges_lost(sandbox: Sandbox) -> None:
    """tokenizer.json was saved again and lost its last thousand merges: text is cut otherwise."""

    def edit(tokenizer: dict[str, Any]) -> None:
        del tokenizer["model"]["merges"][-1000:]

    _config(sandbox, "tokenizer.json", edit)


@fault(Place.TOKENIZER, first=EXACT, cause="merge-template-changed")
def another_template_saved(sandbox: Sandbox) -> None:
    """The merged folder has a template of the exporter's own."""

    def change(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text(encoding="utf-8").replace("assistant\n", "model\n"), encoding="utf-8")

    after_merging(sandbox, change)


@fault(Place.TOKENIZER, first=EXACT, cause="merge-ends-otherwise")
def end_token_changed(sandbox: Sandbox) -> None:
    """generation_config.json ends answers at another token than the base's."""
    _config(sandbox, "generation_config.json", lambda config: config.update(eos_token_id=0))


@fault(Place.MERGE, first=EXACT, cause="merge-stray-file")
def adapter_left_beside_the_merge(sandbox: Sandbox) -> None:
    """adapter_config.json lies in the merged folder: transformers mounts the adapter a second time."""

    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")

    after_merging(sandbox, change)
