"""Defects of an adapter's two files."""

from __future__ import annotations

import pickle
import re
from typing import Any

from assay.faults.fault import Place, fault
from assay.faults.sandbox import Edit, Sandbox, edit_json, edit_tensors, replace_text, truncate
from assay.inputs.lora import CONFIG, WEIGHTS

FILES = "adapter_files_ok"


def _weights(sandbox: Sandbox, edit: Edit) -> None:
    edit_tensors(sandbox.adapter / WEIGHTS, edit)


def _config(sandbox: Sandbox, **changes: Any) -> None:
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(changes))


def _rename(sandbox: Sandbox, old: str, new: str) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[re.sub(old, new, name)] = tensors.pop(name)

    _weights(sandbox, edit)


def scale_b(sandbox: Sandbox, factor: float) -> None:
    """Multiply every lora_B, and with it the adapter's whole change."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = tensors[name] * factor

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-untrained", quick=True)
def b_all_zero(sandbox: Sandbox) -> None:
    """Every lora_B is zero: saved before the first step, or from one shard of the weights."""
    scale_b(sandbox, 0.0)


@fault(Place.ADAPTER, first=FILES, cause="adapter-diverged", quick=True)
def nan_in_adapter(sandbox: Sandbox) -> None:
    """One value is NaN: peft mounts it, and greedy decoding answers with nothing."""

    def edit(tensors: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = float("nan")

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-diverged", quick=True)
def inf_in_adapter(sandbox: Sandbox) -> None:
    """A whole row is inf: training overflowed in fp16."""

    def edit(tensors: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if "lora_A" in name)[0] = float("inf")

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-keys-renamed", quick=True)
def keys_of_another_class(sandbox: Sandbox) -> None:
    """The keys are prefixed as a multimodal class saves them: peft warns, and mounts nothing."""
    _rename(sandbox, r"model\.model\.layers", "model.model.language_model.layers")


@fault(Place.ADAPTER, first=FILES, cause="adapter-keys-foreign", quick=True)
def keys_of_another_library(sandbox: Sandbox) -> None:
    """The halves are called as another library calls them."""
    _rename(sandbox, r"lora_(A|B)\.weight", r"adapter.linear_\1.weight")


@fault(Place.ADAPTER, first=FILES, cause="adapter-config-narrower", quick=True)
def config_narrower_than_weights(sandbox: Sandbox) -> None:
    """target_modules names one kind of module of several: the others' tensors are dropped without a word."""
    _config(sandbox, target_modules=["q_proj"])


@fault(Place.ADAPTER, first=FILES, cause="adapter-incomplete", quick=True)
def layers_missing_from_weights(sandbox: Sandbox) -> None:
    """The last shard of a sharded adapter was not saved: the last adapted layers run as the base's."""

    def edit(tensors: dict[str, Any]) -> None:
        last = max(int(match[1]) for name in tensors if (match := re.search(r"layers\.(\d+)\.", name)))
        for name in [name for name in tensors if f"layers.{last}." in name or f"layers.{last - 1}." in name]:
            del tensors[name]

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-half-missing", quick=True)
def one_half_missing(sandbox: Sandbox) -> None:
    """One lora_B is not in the file: that layer has no change."""

    def edit(tensors: dict[str, Any]) -> None:
        del tensors[next(name for name in tensors if "lora_B" in name)]

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-rank-edited", silent=False, quick=True)
def rank_edited(sandbox: Sandbox) -> None:
    """The config's r is not the weights'."""
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(r=max(1, int(config["r"]) // 4)))


@fault(Place.ADAPTER, first=FILES, cause="adapter-changed-since-training", quick=True)
def alpha_edited_after_training(sandbox: Sandbox) -> None:
    """lora_alpha was doubled after training: the fine-tune is applied twice as strongly."""
    sandbox.recorded = False
    edit_json(sandbox.adapter / CONFIG, lambda config: config.update(lora_alpha=2 * int(config["lora_alpha"])))


@fault(Place.ADAPTER, first=FILES, cause="adapter-changed-since-training", quick=True)
def rslora_switched_on_after_training(sandbox: Sandbox) -> None:
    """use_rslora was switched on after training: the scale is alpha / √r instead of alpha / r."""
    sandbox.recorded = False
    _config(sandbox, use_rslora=True)


@fault(Place.ADAPTER, first=FILES, cause="adapter-changed-since-training", quick=True)
def another_checkpoint_copied(sandbox: Sandbox) -> None:
    """An earlier checkpoint's weights lie in the adapter's folder."""
    sandbox.recorded = False
    scale_b(sandbox, 0.6)


@fault(Place.ADAPTER, first=FILES, cause="adapter-misfits", silent=False, quick=True)
def adapter_of_a_wider_model(sandbox: Sandbox) -> None:
    """The adapter was made for a larger model of the same family."""

    def edit(tensors: dict[str, Any]) -> None:
        import torch

        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensors[name] = torch.cat([tensor, tensor[:, :64]], dim=1)

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-misfits", quick=True)
def partition_saved_as_whole(sandbox: Sandbox) -> None:
    """A partitioned optimizer left each lora_B as an empty tensor, and that was saved."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensors[name] = tensor[:0]

    _weights(sandbox, edit)


@fault(Place.ADAPTER, first=FILES, cause="adapter-dora-disagrees", quick=True)
def dora_without_magnitudes(sandbox: Sandbox) -> None:
    """The config says DoRA, the weights have no magnitudes: peft takes the base's own."""
    _config(sandbox, use_dora=True)


@fault(Place.ADAPTER, first=FILES, cause="adapter-saved-module-missing", quick=True)
def saved_module_missing(sandbox: Sandbox) -> None:
    """modules_to_save names the head, which the file lacks: the base's is used."""
    _config(sandbox, modules_to_save=["lm_head"])


@fault(Place.ADAPTER, first=FILES, cause="adapter-no-lora", silent=False, quick=True)
def another_kind_of_adapter(sandbox: Sandbox) -> None:
    """It is an IA3 adapter, whose vectors this chain does not merge."""
    _config(sandbox, peft_type="IA3")


@fault(Place.ADAPTER, first=FILES, cause="adapter-pickle", silent=False, quick=True)
def adapter_is_a_pickle(sandbox: Sandbox) -> None:
    """There is only adapter_model.bin, which can run code when it is loaded."""
    (sandbox.adapter / WEIGHTS).unlink()
    (sandbox.adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))


@fault(Place.ADAPTER, first=FILES, cause="file-truncated", silent=False, quick=True)
def adapter_truncated(sandbox: Sandbox) -> None:
    """The upload broke off: half of the file is there."""
    truncate(sandbox.adapter / WEIGHTS, 0.5)


@fault(Place.ADAPTER, first=FILES, cause="file-lfs-pointer", silent=False, quick=True)
def adapter_is_an_lfs_pointer(sandbox: Sandbox) -> None:
    """The file is a Git LFS pointer of three lines."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    replace_text(sandbox.adapter / WEIGHTS, text)


@fault(Place.ADAPTER, first=FILES, cause="adapter-config-broken", silent=False, quick=True)
def adapter_config_cut(sandbox: Sandbox) -> None:
    """adapter_config.json ends in the middle."""
    truncate(sandbox.adapter / CONFIG, 0.5)


@fault(Place.ADAPTER, first="<adapter>_generate_non_empty", cause="answers-degenerate")
def diverged_but_finite(sandbox: Sandbox) -> None:
    """Training diverged to finite values, far too large: every file is well-formed, and the answers are garbage."""
    scale_b(sandbox, 1000.0)


@fault(Place.ADAPTER, first="nf4_survives_ok", cause="fine-tune-lost-in-nf4")
def fine_tune_smaller_than_4_bit_noise(sandbox: Sandbox) -> None:
    """The fine-tune moves the base less than 4 bits do: deployed in nf4, nothing of it is left."""
    scale_b(sandbox, 0.25)

    def edit(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "down_proj" in name]:
            del tensors[name]

    # K-quants swallow a small change in this one, which would be another fault.
    _weights(sandbox, edit)
    edit_json(
        sandbox.adapter / CONFIG,
        lambda config: config.update(target_modules=[one for one in config["target_modules"] if one != "down_proj"]),
    )


@fault(Place.ADAPTER, first="merged_strength_ok", cause="change-swallowed-by-bf16")
def fine_tune_below_bf16(sandbox: Sandbox) -> None:
    """The change is smaller than a step of bf16, so merging rounds most of it away."""
    scale_b(sandbox, 0.004)
