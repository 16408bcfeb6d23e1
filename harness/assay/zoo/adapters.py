"""Defects of an adapter's two files."""

from __future__ import annotations

import pickle
import re
from typing import Any

from assay.lora import CONFIG, WEIGHTS
from assay.zoo import Place, defect
from assay.zoo.scene import Edit, Scene, edit_json, edit_tensors, replace_text, truncate

FILES = "adapter_files_ok"


def _weights(scene: Scene, edit: Edit) -> None:
    edit_tensors(scene.adapter / WEIGHTS, edit)


def _config(scene: Scene, **changes: Any) -> None:
    edit_json(scene.adapter / CONFIG, lambda config: config.update(changes))


def _rename(scene: Scene, old: str, new: str) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[re.sub(old, new, name)] = tensors.pop(name)

    _weights(scene, edit)


def scale_b(scene: Scene, factor: float) -> None:
    """Multiply every lora_B, and with it the adapter's whole change."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = tensors[name] * factor

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-untrained", quick=True)
def b_all_zero(scene: Scene) -> None:
    """Every lora_B is zero: saved before the first step, or from one shard of the weights."""
    scale_b(scene, 0.0)


@defect(Place.ADAPTER, first=FILES, cause="adapter-diverged", quick=True)
def nan_in_adapter(scene: Scene) -> None:
    """One value is NaN: peft mounts it, and greedy decoding answers with nothing."""

    def edit(tensors: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = float("nan")

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-diverged", quick=True)
def inf_in_adapter(scene: Scene) -> None:
    """A whole row is inf: training overflowed in fp16."""

    def edit(tensors: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if "lora_A" in name)[0] = float("inf")

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-keys-renamed", quick=True)
def keys_of_another_class(scene: Scene) -> None:
    """The keys are prefixed as a multimodal class saves them: peft warns, and mounts nothing."""
    _rename(scene, r"model\.model\.layers", "model.model.language_model.layers")


@defect(Place.ADAPTER, first=FILES, cause="adapter-keys-foreign", quick=True)
def keys_of_another_library(scene: Scene) -> None:
    """The halves are called as another library calls them."""
    _rename(scene, r"lora_(A|B)\.weight", r"adapter.linear_\1.weight")


@defect(Place.ADAPTER, first=FILES, cause="adapter-config-narrower", quick=True)
def config_narrower_than_weights(scene: Scene) -> None:
    """target_modules names one kind of module of several: the others' tensors are dropped without a word."""
    _config(scene, target_modules=["q_proj"])


@defect(Place.ADAPTER, first=FILES, cause="adapter-incomplete", quick=True)
def layers_missing_from_weights(scene: Scene) -> None:
    """The last shard of a sharded adapter was not saved: the last adapted layers run as the base's."""

    def edit(tensors: dict[str, Any]) -> None:
        last = max(int(match[1]) for name in tensors if (match := re.search(r"layers\.(\d+)\.", name)))
        for name in [name for name in tensors if f"layers.{last}." in name or f"layers.{last - 1}." in name]:
            del tensors[name]

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-half-missing", quick=True)
def one_half_missing(scene: Scene) -> None:
    """One lora_B is not in the file: that layer has no change."""

    def edit(tensors: dict[str, Any]) -> None:
        del tensors[next(name for name in tensors if "lora_B" in name)]

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-rank-edited", silent=False, quick=True)
def rank_edited(scene: Scene) -> None:
    """The config's r is not the weights'."""
    edit_json(scene.adapter / CONFIG, lambda config: config.update(r=max(1, int(config["r"]) // 4)))


@defect(Place.ADAPTER, first=FILES, cause="adapter-changed-since-training", quick=True)
def alpha_edited_after_training(scene: Scene) -> None:
    """lora_alpha was doubled after training: the fine-tune is applied twice as strongly."""
    scene.recorded = False
    edit_json(scene.adapter / CONFIG, lambda config: config.update(lora_alpha=2 * int(config["lora_alpha"])))


@defect(Place.ADAPTER, first=FILES, cause="adapter-changed-since-training", quick=True)
def rslora_switched_on_after_training(scene: Scene) -> None:
    """use_rslora was switched on after training: the scale is alpha / √r instead of alpha / r."""
    scene.recorded = False
    _config(scene, use_rslora=True)


@defect(Place.ADAPTER, first=FILES, cause="adapter-changed-since-training", quick=True)
def another_checkpoint_copied(scene: Scene) -> None:
    """An earlier checkpoint's weights lie in the adapter's folder."""
    scene.recorded = False
    scale_b(scene, 0.6)


@defect(Place.ADAPTER, first=FILES, cause="adapter-misfits", silent=False, quick=True)
def adapter_of_a_wider_model(scene: Scene) -> None:
    """The adapter was made for a larger model of the same family."""

    def edit(tensors: dict[str, Any]) -> None:
        import torch

        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensors[name] = torch.cat([tensor, tensor[:, :64]], dim=1)

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-misfits", quick=True)
def partition_saved_as_whole(scene: Scene) -> None:
    """A partitioned optimizer left each lora_B as an empty tensor, and that was saved."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensors[name] = tensor[:0]

    _weights(scene, edit)


@defect(Place.ADAPTER, first=FILES, cause="adapter-dora-disagrees", quick=True)
def dora_without_magnitudes(scene: Scene) -> None:
    """The config says DoRA, the weights have no magnitudes: peft takes the base's own."""
    _config(scene, use_dora=True)


@defect(Place.ADAPTER, first=FILES, cause="adapter-saved-module-missing", quick=True)
def saved_module_missing(scene: Scene) -> None:
    """modules_to_save names the head, which the file lacks: the base's is used."""
    _config(scene, modules_to_save=["lm_head"])


@defect(Place.ADAPTER, first=FILES, cause="adapter-no-lora", silent=False, quick=True)
def another_kind_of_adapter(scene: Scene) -> None:
    """It is an IA3 adapter, whose vectors this chain does not merge."""
    _config(scene, peft_type="IA3")


@defect(Place.ADAPTER, first=FILES, cause="adapter-pickle", silent=False, quick=True)
def adapter_is_a_pickle(scene: Scene) -> None:
    """There is only adapter_model.bin, which can run code when it is loaded."""
    (scene.adapter / WEIGHTS).unlink()
    (scene.adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))


@defect(Place.ADAPTER, first=FILES, cause="file-truncated", silent=False, quick=True)
def adapter_truncated(scene: Scene) -> None:
    """The upload broke off: half of the file is there."""
    truncate(scene.adapter / WEIGHTS, 0.5)


@defect(Place.ADAPTER, first=FILES, cause="file-lfs-pointer", silent=False, quick=True)
def adapter_is_an_lfs_pointer(scene: Scene) -> None:
    """The file is a Git LFS pointer of three lines."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    replace_text(scene.adapter / WEIGHTS, text)


@defect(Place.ADAPTER, first=FILES, cause="adapter-config-broken", silent=False, quick=True)
def adapter_config_cut(scene: Scene) -> None:
    """adapter_config.json ends in the middle."""
    truncate(scene.adapter / CONFIG, 0.5)


@defect(Place.ADAPTER, first="<adapter>_generate_non_empty", cause="answers-degenerate")
def diverged_but_finite(scene: Scene) -> None:
    """Training diverged to finite values, far too large: every file is well-formed, and the answers are garbage."""
    scale_b(scene, 1000.0)


@defect(Place.ADAPTER, first="nf4_survives_ok", cause="fine-tune-lost-in-nf4")
def fine_tune_smaller_than_4_bit_noise(scene: Scene) -> None:
    """The fine-tune moves the base less than 4 bits do: deployed in nf4, nothing of it is left."""
    scale_b(scene, 0.25)

    def edit(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "down_proj" in name]:
            del tensors[name]

    # K-quants swallow a small change in this one, which would be another defect.
    _weights(scene, edit)
    edit_json(
        scene.adapter / CONFIG,
        lambda config: config.update(target_modules=[one for one in config["target_modules"] if one != "down_proj"]),
    )


@defect(Place.ADAPTER, first="merged_strength_ok", cause="change-swallowed-by-bf16")
def fine_tune_below_bf16(scene: Scene) -> None:
    """The change is smaller than a step of bf16, so merging rounds most of it away."""
    scale_b(scene, 0.004)
