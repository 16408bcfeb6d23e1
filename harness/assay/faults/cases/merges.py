"""Faults of merging: the adapter lost, doubled or exchanged, tensors damaged, files that do not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.faults.edits.files import edit_json
from assay.faults.edits.sandbox import Sandbox
from assay.faults.edits.workers import adapted_modules, after_merging, before_merging, scale_adapter, wrap
from assay.faults.fault import Area, fault
from assay.inputs.number_formats import nf4_round_trip
from assay.workers.tensors import Edit, cast, edit_checkpoint


def _edit_merged(sandbox: Sandbox, edit: Edit) -> None:
    """Change the merged checkpoint's tensors."""
    after_merging(sandbox, lambda folder: edit_checkpoint(folder, edit))


def _edit_merged_json(sandbox: Sandbox, file: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of the merged checkpoint."""
    after_merging(sandbox, lambda folder: edit_json(folder / file, edit))


def _first(tensors: dict[str, Any], end: str) -> str:
    """The name of the first block's tensor that ends so."""
    return next(name for name in tensors if ".layers.0." in name and name.endswith(end))


@fault(Area.MERGE, first="merge_ok", cause="merge-lost-adapter")
def bare_base_saved(sandbox: Sandbox) -> None:
    """The exporter saved the base: every command succeeded, and the fine-tune is not in the checkpoint."""

    def unload(original: Any, model: Any, *args: Any, **given: Any) -> Any:
        return model.unload()

    wrap(sandbox, "merge.fold", "peft.tuners.lora:LoraModel", "merge_and_unload", unload)


@fault(Area.MERGE, first="merge_ok", cause="merge-lost-adapter")
def one_layer_not_merged(sandbox: Sandbox) -> None:
    """One module kept the base's weights."""

    def change(model: Any) -> None:
        for name in adapted_modules(model)[0].scaling:
            adapted_modules(model)[0].scaling[name] = 0.0

    before_merging(sandbox, change)


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-scaled")
def adapter_merged_twice(sandbox: Sandbox) -> None:
    """The adapter was merged twice."""
    before_merging(sandbox, lambda model: scale_adapter(model, 2.0))


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-scaled")
def adapter_merged_at_half(sandbox: Sandbox) -> None:
    """alpha was read as r: the merge has half of the change."""
    before_merging(sandbox, lambda model: scale_adapter(model, 0.5))


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-flipped")
def adapter_subtracted(sandbox: Sandbox) -> None:
    """The merge has the wrong sign, as after unmerging an adapter that was never merged."""
    before_merging(sandbox, lambda model: scale_adapter(model, -1.0))


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-another-adapter")
def another_adapter_merged(sandbox: Sandbox) -> None:
    """Another adapter of the same shape was merged."""

    def change(model: Any) -> None:
        for module in adapted_modules(model):
            for half in module.lora_B.values():
                half.weight.data = half.weight.data.flip(0)

    before_merging(sandbox, change)


@fault(Area.MERGE, first="merged_distribution_ok", cause="merged-onto-4-bit")
def merged_onto_4_bit(sandbox: Sandbox) -> None:
    """The adapter was merged onto a 4-bit base that was dequantized: a well-formed merge of another base."""

    def change(model: Any) -> None:
        for name, weight in model.named_parameters():
            is_linear = weight.ndim == 2 and not any(part in name for part in ("lora_", "embed_tokens", "lm_head"))
            if is_linear:
                rounded = nf4_round_trip(weight.data.float().numpy(), double_quantization=False)
                weight.data.copy_(weight.data.new_tensor(rounded))

    before_merging(sandbox, change)


@fault(Area.MERGE, first="merge_ok", cause="merge-not-finite")
def nan_after_merging(sandbox: Sandbox) -> None:
    """One merged weight is NaN: the converter says nothing, and only the quantizer refuses it."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors[_first(tensors, "down_proj.weight")][0, 0] = float("nan")

    _edit_merged(sandbox, edit)


@fault(Area.MERGE, first="merge_ok", cause="merge-touched-others")
def norm_doubled(sandbox: Sandbox) -> None:
    """A norm that the adapter does not change is doubled."""

    def edit(tensors: dict[str, Any]) -> None:
        name = _first(tensors, "input_layernorm.weight")
        tensors[name] = tensors[name] * 2

    _edit_merged(sandbox, edit)


@fault(Area.MERGE, first="merge_ok", cause="merge-touched-others")
def embedding_rows_reversed(sandbox: Sandbox) -> None:
    """The rows of the embedding are in another order."""

    def edit(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        tensors[name] = tensors[name].flip(0)

    _edit_merged(sandbox, edit)


@fault(Area.MERGE, first="merge_ok", cause="merge-touched-others")
def projections_zeroed(sandbox: Sandbox) -> None:
    """The attention projections of one layer are zero: short answers are still right."""

    def edit(tensors: dict[str, Any]) -> None:
        for end in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"):
            name = _first(tensors, end)
            tensors[name] = tensors[name] * 0

    _edit_merged(sandbox, edit)


@fault(Area.MERGE, first="merge_ok", cause="merge-incomplete")
def tensor_missing_after_merging(sandbox: Sandbox) -> None:
    """One norm is not in the checkpoint, and no index lists it."""

    def edit(tensors: dict[str, Any]) -> None:
        del tensors[_first(tensors, "post_attention_layernorm.weight")]

    _edit_merged(sandbox, edit)


@fault(Area.MERGE, first="merge_ok", cause="merge-dtype")
def merged_in_f16(sandbox: Sandbox) -> None:
    """The checkpoint was saved in F16, whose range is smaller than that of bf16."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = cast(tensor, "float16")

    _edit_merged(sandbox, edit)


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-config-changed")
def rotary_base_lost(sandbox: Sandbox) -> None:
    """Saving through another version of the library lost rope_theta: short answers are still right."""

    def edit(config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters")
        (rope if rope else config)["rope_theta"] = 10000.0

    _edit_merged_json(sandbox, "config.json", edit)


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-config-changed")
def norm_epsilon_changed(sandbox: Sandbox) -> None:
    """rms_norm_eps is 1e-2."""
    _edit_merged_json(sandbox, "config.json", lambda config: config.update(rms_norm_eps=1e-2))


@fault(Area.TOKENIZER, first="merge_exact_ok", cause="merge-tokenizer-changed")
def tokenizer_merges_lost(sandbox: Sandbox) -> None:
    """tokenizer.json was saved again and lost its last thousand merges: text is tokenized differently."""

    def edit(tokenizer: dict[str, Any]) -> None:
        del tokenizer["model"]["merges"][-1000:]

    _edit_merged_json(sandbox, "tokenizer.json", edit)


@fault(Area.TOKENIZER, first="merge_exact_ok", cause="merge-template-changed")
def another_template_saved(sandbox: Sandbox) -> None:
    """The merged folder has a template of the exporter's own."""

    def change(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text(encoding="utf-8").replace("assistant\n", "model\n"), encoding="utf-8")

    after_merging(sandbox, change)


@fault(Area.TOKENIZER, first="merge_exact_ok", cause="merge-ends-otherwise")
def end_token_changed(sandbox: Sandbox) -> None:
    """generation_config.json ends answers at another token than the base's."""
    _edit_merged_json(sandbox, "generation_config.json", lambda config: config.update(eos_token_id=0))


@fault(Area.MERGE, first="merge_exact_ok", cause="merge-stray-file")
def adapter_left_beside_the_merge(sandbox: Sandbox) -> None:
    """adapter_config.json is in the merged folder: transformers mounts the adapter a second time."""

    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")

    after_merging(sandbox, change)
