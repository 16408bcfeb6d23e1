"""Replays a merge: every tensor of a merged checkpoint is compared with what a known recipe makes of base and adapter.

A tensor that the adapter targets must equal base + scale·B A under a recipe, bit for bit; every other tensor must equal
the base's. numpy alone; files are mapped, and one tensor is worked on at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import InputError
from assay.facts import Bytes, Facts
from assay.inputs.checkpoint import Tensor, all_finite_max, read_folder
from assay.inputs.lora import LoraWeights, LowRankChange, read_lora_weights
from assay.inputs.model_files import compare_files
from assay.inputs.number_formats import bits_of, nf4_round_trip
from assay.machine import usable_cores
from assay.measures.merge_defects import (
    Defect,
    equal,
    may_be_left_out,
    stray_files,
    targeted_defect,
    untargeted_defect,
)
from assay.measures.merge_recipes import NESTED, MergeRecipe, merge_recipes, off_by_one_ulp

_FULL_SEARCHES = 4
"""Tensors on which every recipe is tried before the rarer recipes are given up."""
_CANDIDATES = 8
"""Recipes that are tried on all tensors, in case one of them makes them all."""


@dataclass(kw_only=True)
class MergeFindings:
    """What the replay of a merge found."""

    adapter: LoraWeights
    recipe: str | None = None
    """The name of the recipe that makes most tensors; a note says so if it does not make all."""
    recipes: Counter[str] = field(default_factory=Counter)
    """Recipe to the number of tensors that it makes."""
    off_by_one_ulp: int = 0
    """Elements that differ from the recipe's by one ULP."""
    elements: int = 0
    """Weights compared, in all tensors."""
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)

    @property
    def summary(self) -> str:
        """One line: the recipe, or the number of defects per kind with the first of each."""
        if not self.defects:
            return f"healthy: {self.recipe or 'the adapter changes no tensor'}"
        parts = []
        for kind, count in Counter(defect.kind for defect in self.defects).most_common():
            first = next(defect for defect in self.defects if defect.kind == kind)
            parts.append(f"{kind} in {count}: {first.where} ({first.detail})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "healthy": not self.defects,
            "recipe": self.recipe,
            "recipes": dict(self.recipes),
            "elements": self.elements,
            "elements_one_ulp_off": self.off_by_one_ulp,
            "defects": [asdict(defect) for defect in self.defects],
            "notes": self.notes,
        }


def replay_merge(
    base: Path, adapter: Path, merged: Path, say: Callable[[str], None] = lambda line: None
) -> MergeFindings:
    """Compare every tensor and every file of `merged` with what base and adapter make.

    Args:
        base, adapter, merged: folders.
        say: takes a line of progress every 200 tensors.

    Raises:
        InputError: a folder lacks safetensors or a config, holds pickles only, or the adapter is of another base.
    """
    before, after = read_folder(base), read_folder(merged)
    lora = read_lora_weights(adapter, before)
    found = MergeFindings(adapter=lora)
    unknown = sorted(set(lora.changes) - set(before))
    if unknown:
        raise InputError(f"{adapter}: adapts {unknown[0]}, which {base} does not have. Is it an adapter of this base?")
    found.defects += [*stray_files(merged, after), *_unpaired(before, after)]
    found.notes += [f"{adapter.name} has a tensor that is no LoRA: {name}" for name in lora.unknown]
    files, notes = compare_files(base, merged)
    found.defects += [Defect(kind=one.kind, where=one.file, detail=one.detail) for one in files]
    found.notes += notes

    replay = _Replay(found)
    both = sorted(set(before) & set(after))
    # Targeted tensors first: they tell whether the base went through nf4, and then the other tensors did too.
    both.sort(key=lambda name: name not in lora.changes)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for number, name in enumerate(both, 1):
            replay.tensor(name, before[name], after[name], pool)
            if number % 200 == 0:
                say(f"{number} of {len(both)} tensors")
        replay.settle(before, after, pool)
    found.elements = sum(int(np.prod(after[name].shape)) for name in both)
    _call_partly_applied(found)
    return found


def _unpaired(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[Defect]:
    """Tensors that only one side has."""
    unpaired = {name for name in {*before} ^ {*after} if not may_be_left_out(name, before, after)}
    missing, extra = sorted(unpaired & set(before)), sorted(unpaired & set(after))
    return [
        *(Defect(kind="missing", where=name, detail="the base has it, the checkpoint does not") for name in missing),
        *(Defect(kind="extra", where=name, detail="the base has no such tensor") for name in extra),
    ]


def _call_partly_applied(found: MergeFindings) -> None:
    """Where some tensors hold the adapter and others do not, the merge was cut short: its name is `partly applied`."""
    absent = [defect for defect in found.defects if defect.kind == "absent"]
    if absent and found.recipes:
        targeted = len(found.adapter.changes)
        for defect in absent:
            at = found.defects.index(defect)
            detail = f"still the base's, as {len(absent)} of {targeted} targeted tensors are"
            found.defects[at] = Defect(kind="partly applied", where=defect.where, detail=detail)


class _Replay:
    """Goes through the tensors and remembers which recipes make them."""

    def __init__(self, found: MergeFindings) -> None:
        self.found = found
        self.lora = found.adapter
        self.known: list[MergeRecipe] = []
        """Recipes that made a tensor, the latest first."""
        self.made_by: dict[str, MergeRecipe] = {}
        """Targeted tensor to the recipe that makes it."""
        self.unexplained = 0
        """Targeted tensors that no recipe makes."""

    def settle(self, before: dict[str, Tensor], after: dict[str, Tensor], pool: ThreadPoolExecutor) -> None:
        """Name the recipe that makes all tensors, if there is one.

        Several recipes make a small change, so the first that fitted one tensor may give way to one that fits all.
        """
        for recipe in self.known[:_CANDIDATES]:
            others = [name for name, other in self.made_by.items() if other != recipe]
            if all(
                off_by_one_ulp(recipe, self.lora.changes[name], before[name], after[name], pool) is not None
                for name in others
            ):
                self.made_by = dict.fromkeys(self.made_by, recipe)
                break
        names = [self._name(recipe, self.lora.changes[name]) for name, recipe in self.made_by.items()]
        self.found.recipes = Counter(names)
        if names:
            self.found.recipe = self.found.recipes.most_common(1)[0][0]
        if len(self.found.recipes) > 1:
            counts = ", ".join(f"{count} × {name}" for name, count in self.found.recipes.most_common())
            self.found.notes.append(f"the tensors were merged by different recipes: {counts}")

    @staticmethod
    def _name(recipe: MergeRecipe, change: LowRankChange) -> str:
        return f"{recipe.name}, DoRA" if change.magnitude is not None else recipe.name

    def tensor(self, name: str, before: Tensor, after: Tensor, pool: ThreadPoolExecutor) -> None:
        """Compare one tensor that base and checkpoint have."""
        self.found.dtypes.add(after.dtype)
        if name not in self.lora.touched and before.dtype == after.dtype and equal(before, after):
            return  # whatever the dtype: buffers of integers too
        if before.shape != after.shape or after.dtype not in ("BF16", "F16", "F32"):
            detail = f"{after.dtype} {list(after.shape)}, the base has {before.dtype} {list(before.shape)}"
            self._defect("misshapen", name, detail)
        elif name in self.lora.changes:
            self._targeted(self.lora.changes[name], before, after, pool)
        else:
            self._untargeted(name, self.lora.saved.get(name, before), before, after)

    def _targeted(self, change: LowRankChange, before: Tensor, after: Tensor, pool: ThreadPoolExecutor) -> None:
        if list(after.shape) != [part.shape[axis] for axis, part in enumerate(change.factors())]:
            self._defect("misshapen", change.weight, "the adapter was made for another shape")
            return
        for recipe in (*self.known, *self._untried(after.dtype)):
            off = off_by_one_ulp(recipe, change, before, after, pool)
            if off is not None:
                self.known = [recipe, *(one for one in self.known if one != recipe)]
                self.made_by[change.weight] = recipe
                self.found.off_by_one_ulp += off
                return
        self.unexplained += 1
        kind, detail = targeted_defect(change, before, after)
        self._defect(kind, change.weight, detail)

    def _untried(self, dtype: str) -> list[MergeRecipe]:
        """Recipes to try after the known ones.

        These are all others until some tensors had no recipe, and then those with the known recipe's base: one
        checkpoint is merged onto one base.
        """
        untried = [recipe for recipe in merge_recipes(dtype) if recipe not in self.known]
        if not self.known and self.unexplained < _FULL_SEARCHES:
            return untried
        like = self.known[0] if self.known else MergeRecipe(name="")
        return [one for one in untried if (one.base, one.computes_in) == (like.base, like.computes_in)]

    def _untargeted(self, name: str, expected: Tensor, before: Tensor, after: Tensor) -> None:
        if equal(expected, after):
            return
        nested = [one.base == "nf4 double" for one in self.known if one.base != "stored"]
        if nested and len(after.shape) == 2:
            values = nf4_round_trip(expected.float32(), double_quantization=nested[0])
            off = bits_of(values, after.dtype) != bits_of(after.float32(), after.dtype)
            if off.mean() <= NESTED:
                self.found.off_by_one_ulp += int(off.sum())
                return
        kind, detail = untargeted_defect(expected, after)
        if name in self.lora.saved and equal(before, after):
            kind, detail = "absent", "the adapter saved this tensor whole, the checkpoint has the base's"
        self._defect(kind, name, detail)

    def _defect(self, kind: str, where: str, detail: str) -> None:
        self.found.defects.append(Defect(kind=kind, where=where, detail=detail))


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


def merge_facts(found: MergeFindings, merged: Path) -> MergedCheckpoint:
    """The merged checkpoint beside base and adapter."""
    lora, after = found.adapter, read_folder(merged)
    kinds: dict[str, list[str]] = {}
    for defect in found.defects:
        kinds.setdefault(defect.kind, []).append(defect.where)
    without_effect = sorted(change.weight for change in lora.changes.values() if not all_finite_max(change.b)[1])
    not_finite, largest, where = [], 0.0, ""
    for name, tensor in after.items():
        count, peak = all_finite_max(tensor)
        if count:
            not_finite.append(name)
        if peak > largest:
            largest, where = peak, name
    others = [d.where for d in found.defects if d.where in after and d.where not in lora.touched and d.kind != "extra"]
    unchanged = [where for kind in ("absent", "partly applied") for where in kinds.get(kind, [])]
    return MergedCheckpoint(
        tensors=len(after),
        parameters=sum(int(np.prod(tensor.shape)) for tensor in after.values()),
        checkpoint_bytes=sum(tensor.nbytes for tensor in after.values()),
        dtypes=sorted(found.dtypes),
        tensors_missing=kinds.get("missing", []),
        tensors_extra=kinds.get("extra", []),
        tensors_targeted=len(lora.touched),
        targeted_unchanged=sorted(unchanged),
        targeted_without_effect=without_effect,
        others_changed=sorted(others),
        tensors_not_finite=not_finite,
        largest_absolute_value=largest,
        largest_absolute_value_in=where,
    )
