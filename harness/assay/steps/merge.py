"""The step that merges an adapter into its base."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Bytes, Facts, Seconds
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.measures.merge_replay import MergedCheckpoint
from assay.measures.strength import AdapterStrength
from assay.steps.nf4 import TORCH
from assay.steps.step import Stage, Step


class Saving(Facts):
    """The merged checkpoint is saved."""

    merge_seconds: Seconds
    """Time to load, merge and save."""
    peak_host_bytes: Bytes
    """Peak resident memory of the process."""


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
    compare_seconds: Seconds
    """Time that replay and comparison took."""
    notes: list[str]
    """What is unusual and no defect."""


@dataclass(frozen=True, kw_only=True)
class Merge(Step):
    """Merge the adapter into bf16 weights, and save the result as a checkpoint of its own."""

    worker = "merge.fold"
    packages = TORCH
    makes_model = True
    saved = Stage(Saving)
    compared = Stage(MergedCheckpoint)
    replayed = Stage(MergeReplay)
    strength = Stage(AdapterStrength)

    base: Base
    adapter: Adapter

    @property
    def disk_bytes(self) -> int:
        return 2 * self.base.parameters
