"""The step that merges an adapter into its base."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Bytes, Facts, Seconds
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.steps.nf4 import TORCH
from assay.steps.step import Stage, Step
from assay.steps.strength import AdapterStrength


class Saving(Facts):
    """The merged checkpoint is saved."""

    merge_seconds: Seconds
    """Time to load, merge and save."""
    peak_host_bytes: Bytes
    """Peak resident memory of the process."""


class MergedCheckpoint(Facts):
    """The merged checkpoint against the base and the adapter. Lists hold names of tensors."""

    tensors: int
    """Tensors in the checkpoint."""
    parameters: int
    """Weights in the checkpoint."""
    checkpoint_bytes: Bytes
    """Size of all tensors."""
    dtypes: list[str]
    """As safetensors spells them."""
    tensors_missing: list[str]
    """Tensors of the base that the checkpoint lacks."""
    tensors_extra: list[str]
    """Tensors of the checkpoint that the base lacks."""
    tensors_targeted: int
    """Tensors that the adapter changes."""
    targeted_unchanged: list[str]
    """Tensors that the adapter changes and that are still the base's, in whole or in part."""
    targeted_without_effect: list[str]
    """Tensors that the adapter targets with a lora_B of zero."""
    others_changed: list[str]
    """Tensors that the adapter does not touch and that are not the base's."""
    tensors_not_finite: list[str]
    """Tensors that hold NaN or inf."""
    largest_absolute_value: float
    """Largest finite absolute value of any weight."""
    largest_absolute_value_in: str
    """The tensor that holds it."""
    compare_seconds: Seconds
    """Time that the comparison took."""


class MergeDefect(Facts):
    """One thing that is wrong with a merged checkpoint."""

    kind: str
    """`absent`, `scaled`, `sign-flipped`, …: see `assay.measures.merge_defects.Defect`."""
    where: str
    """The tensor or the file."""
    detail: str
    """What was seen of it."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.detail}"


class MergeReplay(Facts):
    """The merge, replayed from base and adapter, bit for bit."""

    recipe: str | None
    """The known procedure that makes most tensors; None if none does."""
    recipes: dict[str, int]
    """Procedure to number of tensors that it makes."""
    elements_compared: int
    """Weights compared."""
    elements_one_ulp_off: int
    """Weights that differ from the procedure's by one unit in the last place."""
    defects: list[MergeDefect]
    """What is wrong with the checkpoint, most important first."""
    notes: list[str]
    """What is unusual and no defect."""


@dataclass(frozen=True, kw_only=True)
class Merge(Step):
    """Merge the adapter into bf16 weights, and save the result as a checkpoint of its own."""

    worker = "merge.fold"
    packages = TORCH
    saved = Stage(Saving)
    compared = Stage(MergedCheckpoint)
    replayed = Stage(MergeReplay)
    strength = Stage(AdapterStrength)

    base: Base
    adapter: Adapter

    @property
    def disk_bytes(self) -> int:
        return 2 * self.base.parameters
