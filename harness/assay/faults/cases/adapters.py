"""Faults of an adapter's two files."""

from __future__ import annotations

import pickle
import re
from typing import Any

from assay.faults.edits.files import replace_by_lfs_pointer, truncate
from assay.faults.edits.models import adapter_config, edit_adapter, remove_module, set_adapter_config
from assay.faults.edits.sandbox import Sandbox
from assay.faults.fault import Area, fault
from assay.inputs.lora import CONFIG, WEIGHTS


def _rename(sandbox: Sandbox, old: str, new: str) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[re.sub(old, new, name)] = tensors.pop(name)

    edit_adapter(sandbox, edit)


def _scale(sandbox: Sandbox, factor: float) -> None:
    """Multiply every lora_B, and with it the adapter's whole change."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = tensors[name] * factor

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-untrained", quick=True)
def b_all_zero(sandbox: Sandbox) -> None:
    """Every lora_B is zero: the adapter was saved before the first step, or from one shard of the weights."""
    _scale(sandbox, 0.0)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-diverged", quick=True)
def nan_in_adapter(sandbox: Sandbox) -> None:
    """One value is NaN: peft mounts the adapter, and every answer is empty."""

    def edit(tensors: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = float("nan")

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-diverged", quick=True)
def inf_in_adapter(sandbox: Sandbox) -> None:
    """A whole row is inf: training overflowed in fp16."""

    def edit(tensors: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if "lora_A" in name)[0] = float("inf")

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-keys-renamed", quick=True)
def keys_of_another_class(sandbox: Sandbox) -> None:
    """The tensors have the prefix that a multimodal class saves: peft warns and mounts nothing."""
    _rename(sandbox, r"model\.model\.layers", "model.model.language_model.layers")


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-keys-foreign", quick=True)
def keys_of_another_library(sandbox: Sandbox) -> None:
    """lora_A and lora_B have the names that another library gives them."""
    _rename(sandbox, r"lora_(A|B)\.weight", r"adapter.linear_\1.weight")


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-config-narrower", quick=True)
def config_narrower_than_weights(sandbox: Sandbox) -> None:
    """target_modules names one kind of module of several: peft drops the tensors of the others without a message."""
    set_adapter_config(sandbox, target_modules=["q_proj"])


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-incomplete", quick=True)
def layers_missing_from_weights(sandbox: Sandbox) -> None:
    """The last shard of a sharded adapter was not saved: the last adapted layers compute what the base's do."""

    def edit(tensors: dict[str, Any]) -> None:
        last = max(int(match[1]) for name in tensors if (match := re.search(r"layers\.(\d+)\.", name)))
        for name in [name for name in tensors if f"layers.{last}." in name or f"layers.{last - 1}." in name]:
            del tensors[name]

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-half-missing", quick=True)
def one_half_missing(sandbox: Sandbox) -> None:
    """One lora_B is not in the file: that layer has no change."""

    def edit(tensors: dict[str, Any]) -> None:
        del tensors[next(name for name in tensors if "lora_B" in name)]

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-rank-edited", silent=False, quick=True)
def rank_edited(sandbox: Sandbox) -> None:
    """The config's r differs from the rank of the weights."""
    set_adapter_config(sandbox, r=max(1, int(adapter_config(sandbox)["r"]) // 4))


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-changed-since-training", quick=True)
def alpha_edited_after_training(sandbox: Sandbox) -> None:
    """lora_alpha was doubled after training: the fine-tune is applied at twice its strength."""
    sandbox.recorded = False
    set_adapter_config(sandbox, lora_alpha=2 * int(adapter_config(sandbox)["lora_alpha"]))


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-changed-since-training", quick=True)
def rslora_switched_on_after_training(sandbox: Sandbox) -> None:
    """use_rslora was switched on after training: the scale is alpha / √r instead of alpha / r."""
    sandbox.recorded = False
    set_adapter_config(sandbox, use_rslora=True)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-changed-since-training", quick=True)
def another_checkpoint_copied(sandbox: Sandbox) -> None:
    """The adapter's folder holds the weights of an earlier checkpoint."""
    sandbox.recorded = False
    _scale(sandbox, 0.6)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-misfits", silent=False, quick=True)
def adapter_of_a_wider_model(sandbox: Sandbox) -> None:
    """The adapter was made for a larger model of the same family."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_A" in name:
                width = tensor.shape[1]
                tensors[name] = tensor[:, [*range(width), *range(min(64, width))]]

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-misfits", quick=True)
def partition_saved_as_whole(sandbox: Sandbox) -> None:
    """A partitioned optimizer left each lora_B as an empty tensor, which was saved."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensors[name] = tensor[:0]

    edit_adapter(sandbox, edit)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-dora-disagrees", quick=True)
def dora_without_magnitudes(sandbox: Sandbox) -> None:
    """The config says DoRA and the weights have no magnitudes: peft takes the base's own."""
    set_adapter_config(sandbox, use_dora=True)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-saved-module-missing", quick=True)
def saved_module_missing(sandbox: Sandbox) -> None:
    """modules_to_save names the head, which the file lacks: the base's head is used."""
    set_adapter_config(sandbox, modules_to_save=["lm_head"])


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-no-lora", silent=False, quick=True)
def another_kind_of_adapter(sandbox: Sandbox) -> None:
    """The adapter is an IA3 adapter, whose vectors this chain does not merge."""
    set_adapter_config(sandbox, peft_type="IA3")


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-pickle", silent=False, quick=True)
def adapter_is_a_pickle(sandbox: Sandbox) -> None:
    """The only weights are adapter_model.bin, which can run code when it is loaded."""
    (sandbox.adapter / WEIGHTS).unlink()
    (sandbox.adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))


@fault(Area.ADAPTER, first="adapter_files_ok", cause="file-truncated", silent=False, quick=True)
def adapter_truncated(sandbox: Sandbox) -> None:
    """The upload broke off after half of the file."""
    truncate(sandbox.adapter / WEIGHTS, 0.5)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="file-lfs-pointer", silent=False, quick=True)
def adapter_is_an_lfs_pointer(sandbox: Sandbox) -> None:
    """The file is a Git LFS pointer of three lines."""
    replace_by_lfs_pointer(sandbox.adapter / WEIGHTS)


@fault(Area.ADAPTER, first="adapter_files_ok", cause="adapter-config-broken", silent=False, quick=True)
def adapter_config_cut(sandbox: Sandbox) -> None:
    """adapter_config.json ends in the middle."""
    truncate(sandbox.adapter / CONFIG, 0.5)


@fault(Area.ADAPTER, first="<adapter>_generate_non_empty", cause="answers-degenerate")
def diverged_but_finite(sandbox: Sandbox) -> None:
    """Training diverged to finite values, far too large: every file is well-formed, and the answers are garbage."""
    _scale(sandbox, 1000.0)


@fault(Area.ADAPTER, first="nf4_survives_ok", cause="fine-tune-lost-in-nf4")
def fine_tune_smaller_than_4_bit_noise(sandbox: Sandbox) -> None:
    """The fine-tune moves the base less than 4 bits do: deployed in nf4, it is lost."""
    _scale(sandbox, 0.25)
    # K-quants lose a small change of down_proj, which would be another fault.
    remove_module(sandbox, "down_proj")


@fault(Area.ADAPTER, first="merged_strength_ok", cause="change-swallowed-by-bf16")
def fine_tune_below_bf16(sandbox: Sandbox) -> None:
    """The change is smaller than one ULP of bf16, so merging rounds most of it away."""
    _scale(sandbox, 0.004)
