"""Merge forensics: every tensor of a merged checkpoint is accounted for, by replaying the merge that made it.

A tensor that the adapter targets must equal base + scale·B A under a named way of rounding, bit for bit; every other
one must equal the base. numpy alone, one tensor at a time, files mapped and not read whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import InputError
from assay.inputs.checkpoint import Tensor, all_finite_max, read_folder, read_header
from assay.inputs.lora import CONFIG as ADAPTER_CONFIG
from assay.inputs.lora import Lora, Low, read_lora
from assay.inputs.model_files import compare_files
from assay.inputs.number_formats import bits_of, nf4_round_trip, round_to
from assay.machine import usable_cores

SUMMATION = 1e-4
"""Share of elements that may be one step off: a sum of products in another order rounds them the other way."""
NESTED = 5e-3
"""The same after double quantization: bitsandbytes' processor kernel finds the nearest of its 256 scales by a table
that is too coarse for one scale in 500, which moves its 64 weights by a hundredth."""
_FULL_SEARCHES = 4
"""Tensors that every recipe is tried on before the rarer ones are given up."""
_CHUNK = 1 << 20
"""Elements worked on at a time and core."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to compute base + scale·B A."""

    name: str
    base: str = "stored"
    """`stored`, or `nf4` and `nf4 double`: dequantized from 4 bits first."""
    rounds_factors: bool = False
    """A and B are cast to the dtype of the computation before they are multiplied."""
    rounds_product: bool = False
    """B A is rounded before it is scaled: a matrix product in 16 bits."""
    rounds_delta: bool = False
    """scale·B A is rounded before it is added."""
    computes_in: str | None = None
    """The dtype that the sum is rounded to; None for the one stored. Another one is a cross-dtype export."""

    @property
    def slack(self) -> float:
        return NESTED if self.base == "nf4 double" else SUMMATION


_WAYS: dict[str, dict[str, bool]] = {
    "added in fp32, rounded once (peft's default with an fp32 adapter)": {},
    "delta rounded before it is added (safe_merge, or peft with a 16-bit adapter)": {"rounds_delta": True},
    "adapter cast to 16 bits, delta rounded (peft, autocast off)": {"rounds_factors": True, "rounds_delta": True},
    "adapter cast to 16 bits, added in fp32, rounded once": {"rounds_factors": True},
    "product, delta and sum in 16 bits (peft on a GPU)": {
        "rounds_factors": True,
        "rounds_product": True,
        "rounds_delta": True,
    },
}


def recipes(stored: str) -> Iterator[Recipe]:
    """Every known way to a checkpoint of that dtype, the common ones first."""
    for base in ("stored", "nf4 double", "nf4"):
        onto = {"stored": "", "nf4": ", onto an nf4 base", "nf4 double": ", onto a doubly quantized nf4 base"}[base]
        for computes_in in (None, *(dtype for dtype in ("BF16", "F16", "F32") if dtype != stored)):
            exported = f", computed in {computes_in} and exported as {stored}" if computes_in else ""
            for way, how in _WAYS.items():
                yield Recipe(name=f"{way}{onto}{exported}", base=base, computes_in=computes_in, **how)


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that is wrong with a merged checkpoint."""

    kind: str
    """absent, scaled, sign-flipped, another adapter, partly applied, zeroed, reordered, missing, extra, stray,
    altered, misshapen or a file's own (config, generation config, tokenizer, template)."""
    where: str
    """The tensor or the file."""
    detail: str


@dataclass(kw_only=True)
class Findings:
    """What forensics found."""

    adapter: Lora
    recipe: str | None = None
    """The merge's name: that of most tensors, if not of all (then a note says so)."""
    recipes: Counter[str] = field(default_factory=Counter)
    """How many tensors each recipe explains."""
    off_by_one_step: int = 0
    """Elements that are one step off the recipe's."""
    elements: int = 0
    """Weights compared, in all tensors."""
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line: the recipe, or the defects by kind."""
        if not self.defects:
            return f"healthy: {self.recipe or 'the adapter changes no tensor'}"
        told = []
        for kind, count in Counter(defect.kind for defect in self.defects).most_common():
            first = next(defect for defect in self.defects if defect.kind == kind)
            told.append(f"{kind} in {count}: {first.where} ({first.detail})")
        return "; ".join(told)

    def to_json(self) -> dict[str, Any]:
        return {
            "healthy": not self.defects,
            "recipe": self.recipe,
            "recipes": dict(self.recipes),
            "elements": self.elements,
            "elements_one_step_off": self.off_by_one_step,
            "defects": [asdict(defect) for defect in self.defects],
            "notes": self.notes,
        }


def examine(base: Path, adapter: Path, merged: Path, say: Callable[[str], None] = lambda line: None) -> Findings:
    """Account for every tensor and every file of `merged`.

    Args:
        say: called with one line of progress a few times a minute.

    Raises:
        InputError: one of the three is not what it should be: no safetensors, no config, a pickle.
    """
    before, after = read_folder(base), read_folder(merged)
    lora = read_lora(adapter, before)
    found = Findings(adapter=lora)
    strangers = sorted({name for name in lora.changes if name not in before})
    if strangers:
        raise InputError(
            f"{adapter}: adapts {strangers[0]}, which {base} does not have. Is it an adapter of this base?"
        )
    found.defects += _stray(merged, after)
    found.notes += [f"{adapter.name} has a tensor that is no LoRA: {name}" for name in lora.unknown]
    redundant = {name for name in {*before} ^ {*after} if _is_redundant(name, before, after)}
    for name in sorted(set(before) - set(after) - redundant):
        found.defects.append(Defect(kind="missing", where=name, detail="the base has it, the checkpoint does not"))
    for name in sorted(set(after) - set(before) - redundant):
        found.defects.append(Defect(kind="extra", where=name, detail="the base has no such tensor"))
    files, notes = compare_files(base, merged)
    found.defects += [Defect(kind=one.kind, where=one.file, detail=one.detail) for one in files]
    found.notes += notes

    replay = _Replay(found)
    both = sorted(set(before) & set(after))
    # Targeted tensors first: they tell whether the base went through nf4, which the others then did too.
    both.sort(key=lambda name: name not in lora.changes)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for number, name in enumerate(both, 1):
            replay.tensor(name, before[name], after[name], pool)
            if number % 200 == 0:
                say(f"{number} of {len(both)} tensors")
        replay.settle(before, after, pool)
    found.elements = sum(int(np.prod(after[name].shape)) for name in both)
    _whole(found)
    return found


def _whole(found: Findings) -> None:
    """Some layers without the adapter and others with it: the merge was cut short, and that is its name."""
    absent = [defect for defect in found.defects if defect.kind == "absent"]
    if absent and found.recipes:
        wanted = len(found.adapter.changes)
        for defect in absent:
            at = found.defects.index(defect)
            detail = f"still the base's, as {len(absent)} of {wanted} targeted tensors are"
            found.defects[at] = Defect(kind="partly applied", where=defect.where, detail=detail)


class _Replay:
    """Goes through the tensors and remembers which recipes still explain all of them."""

    def __init__(self, found: Findings) -> None:
        self.found = found
        self.lora = found.adapter
        self.known: list[Recipe] = []
        """Recipes that explained a tensor, the last one first."""
        self.explained: dict[str, Recipe] = {}
        self.unexplained = 0

    def settle(self, before: dict[str, Tensor], after: dict[str, Tensor], pool: ThreadPoolExecutor) -> None:
        """Name the one recipe of all tensors. Several explain a small change, so the first that fitted one tensor may
        have to give way to the one that fits them all."""
        for recipe in self.known[:8]:
            others = [name for name, other in self.explained.items() if other != recipe]
            if all(
                _steps_off(recipe, self.lora.changes[name], before[name], after[name], pool) is not None
                for name in others
            ):
                self.explained = dict.fromkeys(self.explained, recipe)
                break
        names = [self._name(recipe, self.lora.changes[name]) for name, recipe in self.explained.items()]
        self.found.recipes = Counter(names)
        if names:
            self.found.recipe = self.found.recipes.most_common(1)[0][0]
        if len(self.found.recipes) > 1:
            told = ", ".join(f"{count} × {name}" for name, count in self.found.recipes.most_common())
            self.found.notes.append(f"not all tensors were merged in one way: {told}")

    @staticmethod
    def _name(recipe: Recipe, low: Low) -> str:
        return f"{recipe.name}, DoRA" if low.magnitude is not None else recipe.name

    def tensor(self, name: str, before: Tensor, after: Tensor, pool: ThreadPoolExecutor) -> None:
        self.found.dtypes.add(after.dtype)
        if name not in self.lora.touched and before.dtype == after.dtype and equal(before, after):
            return  # whatever its dtype: buffers of integers too
        if before.shape != after.shape or after.dtype not in ("BF16", "F16", "F32"):
            detail = f"{after.dtype} {list(after.shape)}, the base has {before.dtype} {list(before.shape)}"
            self._defect("misshapen", name, detail)
        elif name in self.lora.changes:
            self._targeted(self.lora.changes[name], before, after, pool)
        else:
            self._other(name, self.lora.saved.get(name, before), before, after)

    def _targeted(self, low: Low, before: Tensor, after: Tensor, pool: ThreadPoolExecutor) -> None:
        if list(after.shape) != [part.shape[axis] for axis, part in enumerate(low.factors())]:
            self._defect("misshapen", low.weight, "the adapter was made for another shape")
            return
        for recipe in (*self.known, *self._others(after.dtype)):
            off = _steps_off(recipe, low, before, after, pool)
            if off is not None:
                self.known = [recipe, *(one for one in self.known if one != recipe)]
                self.explained[low.weight] = recipe
                self.found.off_by_one_step += off
                return
        self.unexplained += 1
        kind, detail = diagnose(low, before, after)
        self._defect(kind, low.weight, detail)

    def _others(self, dtype: str) -> list[Recipe]:
        """Recipes worth trying beside the known ones: all of them until some tensors had none, then those of the
        same base, since one checkpoint is merged onto one base."""
        fresh = [recipe for recipe in recipes(dtype) if recipe not in self.known]
        if not self.known and self.unexplained < _FULL_SEARCHES:
            return fresh
        like = self.known[0] if self.known else Recipe(name="")
        return [one for one in fresh if (one.base, one.computes_in) == (like.base, like.computes_in)]

    def _other(self, name: str, wanted: Tensor, before: Tensor, after: Tensor) -> None:
        if equal(wanted, after):
            return
        nested = [one.base == "nf4 double" for one in self.known if one.base != "stored"]
        if nested and len(after.shape) == 2:
            values = nf4_round_trip(wanted.float32(), double_quantization=nested[0])
            off = bits_of(values, after.dtype) != bits_of(after.float32(), after.dtype)
            if off.mean() <= NESTED:
                self.found.off_by_one_step += int(off.sum())
                return
        kind, detail = describe(wanted, after)
        if name in self.lora.saved and equal(before, after):
            kind, detail = "absent", "the adapter saved this tensor whole, the checkpoint has the base's"
        self._defect(kind, name, detail)

    def _defect(self, kind: str, where: str, detail: str) -> None:
        self.found.defects.append(Defect(kind=kind, where=where, detail=detail))


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit the same; stored in another dtype, `a` is first rounded to `b`'s, as loading it does."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return bool(np.array_equal(a.raw(), b.raw()))
    # A 16-bit export of a 16-bit base went through that dtype's own rounding once.
    return bool(np.array_equal(bits_of(a.float32(), b.dtype), bits_of(b.float32(), b.dtype)))


def _rows(tensor: Tensor) -> list[slice]:
    """Slices of rows that are worked on at a time."""
    count = max(1, _CHUNK // max(1, int(np.prod(tensor.shape[1:]))))
    return [slice(start, min(start + count, tensor.shape[0])) for start in range(0, tensor.shape[0], count)]


def _steps_off(recipe: Recipe, low: Low, before: Tensor, after: Tensor, pool: ThreadPoolExecutor) -> int | None:
    """How many elements are one step off the recipe's; None if it does not explain the tensor."""
    left, right = low.factors()
    dtype = recipe.computes_in or after.dtype
    if recipe.rounds_factors:
        left, right = round_to(left, dtype), round_to(right, dtype)
    weight = None
    if recipe.base != "stored":
        # The blocks run over the whole weight, so it is dequantized whole.
        weight = nf4_round_trip(before.float32(), double_quantization=recipe.base == "nf4 double")
    norms = None
    if low.magnitude is not None:
        norms = low.magnitude.float32().reshape(-1)
    chunk = partial(_chunk_off, recipe, low.scale, left, right, weight, norms, dtype, before, after)
    allowed, off = recipe.slack * int(np.prod(after.shape)), 0
    slices = _rows(after)
    # A wrong recipe shows in its first rows.
    for part in (slices[:1], slices[1:]):
        for count in pool.map(chunk, part):
            if count is None:
                return None
            off += count
        if off > allowed:
            return None
    return off


def _chunk_off(
    recipe: Recipe,
    scale: float,
    left: Floats,
    right: Floats,
    weight: Floats | None,
    magnitude: Floats | None,
    dtype: str,
    before: Tensor,
    after: Tensor,
    rows: slice,
) -> int | None:
    """Elements of these rows that are one step off; None if any is further off."""
    delta = left[rows] @ right
    if recipe.rounds_product:
        delta = round_to(delta, dtype)
    if scale != 1.0:
        delta *= np.float32(scale)
    values = before.float32(rows) if weight is None else weight[rows]
    if before.dtype != dtype or weight is not None:
        values = round_to(values, dtype)
    if magnitude is not None:
        if recipe.rounds_delta:
            delta = round_to(delta, dtype)
        summed = values + delta
        norm = np.linalg.norm(summed, axis=1)
        delta = summed * (magnitude[rows] / norm)[:, None]
        values = np.zeros_like(delta)
    elif recipe.rounds_delta:
        delta = round_to(delta, dtype)
    delta += values
    stored = after.bits(rows)
    if after.dtype == "F32":
        seen = stored.view(np.float32)
        # Not bits: in 32 bits every other order of summation shows.
        far = np.abs(seen - round_to(delta, dtype)) > 2e-6 * (np.abs(seen) + np.abs(delta - values)) + 1e-12
        return None if far.any() else 0
    made = bits_of(delta if dtype == after.dtype else round_to(delta, dtype), after.dtype)
    unequal = made != stored
    if not unequal.any():
        return 0
    if recipe.base == "nf4 double":
        # A scale one step off moves its whole block by a hundredth of the largest weight, at most.
        made_values, seen_values = round_to(delta, after.dtype), after.float32(rows)
        return int(unequal.sum()) if np.abs(made_values - seen_values).max() <= 0.03 * np.abs(values).max() else None
    steps = np.abs(_ordered(made[unequal]) - _ordered(stored[unequal]))
    return int(unequal.sum()) if steps.max() <= 1 else None


def _ordered(bits: NDArray[Any]) -> NDArray[np.int32]:
    """16-bit floats as integers in the order of their values, so that neighbours differ by one."""
    signed = bits.astype(np.int32)
    return np.where(signed & 0x8000, -(signed & 0x7FFF), signed)


def diagnose(low: Low, before: Tensor, after: Tensor) -> tuple[str, str]:
    """What was done to a targeted tensor instead: the kind of defect, and the numbers that say so."""
    if equal(before, after):
        return "absent", "still the base's"
    left, right = low.factors()
    delta = (left @ right) * np.float32(low.scale)
    change = after.float32() - before.float32()
    if not np.isfinite(change).all():
        return "not finite", f"{int((~np.isfinite(change)).sum())} values are NaN or inf"
    own = float(np.vdot(delta, delta))
    if own == 0.0:
        return "altered", "the adapter changes nothing here, the checkpoint differs from the base"
    g = float(np.vdot(change, delta)) / own
    rest = float(np.linalg.norm(change - np.float32(g) * delta)) / float(np.linalg.norm(change))
    untouched = ~np.any(change, axis=1) & np.any(delta, axis=1)
    # Rounding leaves its own rest, larger the smaller the adapter is beside the weights.
    step = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}[after.dtype]
    noise = step * float(np.linalg.norm(after.float32())) / float(np.linalg.norm(change))
    if rest <= max(0.02, noise):
        if abs(g + 1) <= 0.05:
            return "sign-flipped", f"the adapter is in it at strength {g:.3f}"
        if abs(g - 1) > 0.01:
            return "scaled", f"the adapter is in it at strength {g:.3f}, 1 wanted"
    if untouched.any() and untouched.mean() < 1:
        share = f"{int(untouched.sum())} of {untouched.size} rows are still the base's"
        return "partly applied", share
    if _low_rank_share(change, left.shape[1]) > 0.5:
        return "another adapter", f"the change is of low rank and not this adapter's, which is in it at {g:.3f}"
    return "altered", f"the adapter is in it at strength {g:.3f}, and {rest:.0%} of the change is something else"


def _low_rank_share(change: Floats, rank: int) -> float:
    """How much of a change (of its squared norm) a matrix of about that rank holds, from a random sketch of it."""
    sketch = np.random.default_rng(0).standard_normal((change.shape[1], rank + 8), dtype=np.float32)
    directions, _ = np.linalg.qr(change @ (change.T @ (change @ sketch)))
    return float(np.linalg.norm(directions.T @ change) ** 2 / np.linalg.norm(change) ** 2)


def describe(before: Tensor, after: Tensor) -> tuple[str, str]:
    """How a tensor that should be the base's differs from it."""
    a, b = before.float32(), after.float32()
    if not np.isfinite(b).all():
        return "not finite", f"{int((~np.isfinite(b)).sum())} values are NaN or inf"
    if not b.any():
        return "zeroed", "all zero"
    k = float(np.vdot(a, b)) / max(float(np.vdot(a, a)), 1e-30)
    if np.allclose(b, k * a, rtol=0.01, atol=1e-7):
        return "scaled", f"the base's times {k:.3g}"
    if a.ndim == 2 and a.shape[0] > 1:
        if np.array_equal(b, a[::-1]):
            return "reordered", "the rows are reversed"
        one, other = (np.sort(values.view(np.uint32).sum(axis=1, dtype=np.uint64)) for values in (a, b))
        if np.array_equal(one, other):
            return "reordered", "the base's rows in another order"
    share = float(np.mean(a != b))
    return "altered", f"{share:.2%} of its values differ from the base's, though the adapter does not touch it"


def _stray(merged: Path, after: dict[str, Tensor]) -> list[Defect]:
    """Files beside the checkpoint that a loader may take for part of it."""
    used = {tensor.file for tensor in after.values()}
    found = []
    for file in sorted(merged.glob("*.safetensors")):
        if file in used:
            continue
        twice = sorted(set(read_header(file)) & set(after))
        if twice:
            found.append(Defect(kind="stray", where=file.name, detail=f"holds {twice[0]} a second time"))
    if (merged / ADAPTER_CONFIG).exists():
        detail = "transformers would mount the adapter a second time on the merged weights"
        found.append(Defect(kind="stray", where=ADAPTER_CONFIG, detail=detail))
    return found


def _is_redundant(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """A buffer that loading computes, or a tied head stored beside its embedding: left out, or added, on purpose."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    side = before if name in before else after
    twin = next((other for other in side if other.endswith("embed_tokens.weight")), None)
    # The config says tied or not, and is compared by itself: here the values tell.
    return bool(re.fullmatch(r"(.*\.)?lm_head\.weight", name) and twin and equal(side[name], side[twin]))


def facts(found: Findings, merged: Path) -> dict[str, Any]:
    """What gates judge, of one examination."""
    lora, after = found.adapter, read_folder(merged)
    kinds: dict[str, list[str]] = {}
    for defect in found.defects:
        kinds.setdefault(defect.kind, []).append(defect.where)
    idle = sorted(low.weight for low in lora.changes.values() if not all_finite_max(low.b)[1])
    bad, largest, where = [], 0.0, ""
    for name, tensor in after.items():
        count, peak = all_finite_max(tensor)
        if count:
            bad.append(name)
        if peak > largest:
            largest, where = peak, name
    others = [d.where for d in found.defects if d.where in after and d.where not in lora.touched and d.kind != "extra"]
    unchanged = [where for kind in ("absent", "partly applied") for where in kinds.get(kind, [])]
    return {
        "tensors": len(after),
        "parameters": sum(int(np.prod(tensor.shape)) for tensor in after.values()),
        "checkpoint_bytes": sum(tensor.nbytes for tensor in after.values()),
        "dtypes": sorted(found.dtypes),
        "tensors_missing": kinds.get("missing", []),
        "tensors_extra": kinds.get("extra", []),
        "tensors_targeted": len(lora.touched),
        "targeted_unchanged": sorted(unchanged),
        "targeted_without_effect": idle,
        "others_changed": sorted(others),
        "tensors_not_finite": bad,
        "largest_absolute_value": largest,
        "largest_absolute_value_in": where,
        "recipe": found.recipe,
        "recipes": dict(found.recipes),
        "elements_compared": found.elements,
        "elements_one_step_off": found.off_by_one_step,
        "defects": [f"{defect.kind}: {defect.where}: {defect.detail}" for defect in found.defects],
        "notes": found.notes,
    }
