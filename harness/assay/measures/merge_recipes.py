"""Merge recipes: the known procedures that compute base + scale·B A, and whether one of them makes a stored tensor.

Two merges of the same adapter differ in bits, because libraries round at different places. A recipe names these places.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.inputs.checkpoint import Tensor
from assay.inputs.lora import LowRankChange
from assay.inputs.number_formats import bits_of, nf4_round_trip, round_to

SUMMATION = 1e-4
"""Share of elements that may differ by one ULP: a sum of products in another order rounds them to the neighbour."""
NESTED = 5e-3
"""The same share after double quantization. The CPU kernel of bitsandbytes finds the nearest of its 256 scales in a
table that is too coarse for one scale in 500; a wrong scale moves its 64 weights by a hundredth."""
_CHUNK = 1 << 20
"""Elements that one core works on at a time."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MergeRecipe:
    """One procedure that computes base + scale·B A."""

    name: str
    base: str = "stored"
    """`stored`, or the format that the base is quantized to and dequantized from first: `nf4` or `nf4 double`."""
    rounds_factors: bool = False
    """A and B are cast to the dtype of the computation before they are multiplied."""
    rounds_product: bool = False
    """B A is rounded before it is scaled, as a matrix product in 16 bits is."""
    rounds_delta: bool = False
    """scale·B A is rounded before it is added to the base."""
    computes_in: str | None = None
    """The dtype that the sum is rounded to; None for the stored one. Another dtype makes a cross-dtype export."""

    @property
    def slack(self) -> float:
        """Share of elements that may differ by one ULP."""
        return NESTED if self.base == "nf4 double" else SUMMATION


_ROUNDING: dict[str, dict[str, bool]] = {
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


def merge_recipes(stored: str) -> Iterator[MergeRecipe]:
    """Every known recipe for a checkpoint of dtype `stored`, the common ones first."""
    for base in ("stored", "nf4 double", "nf4"):
        onto = {"stored": "", "nf4": ", onto an nf4 base", "nf4 double": ", onto a doubly quantized nf4 base"}[base]
        for computes_in in (None, *(dtype for dtype in ("BF16", "F16", "F32") if dtype != stored)):
            exported = f", computed in {computes_in} and exported as {stored}" if computes_in else ""
            for rounding, flags in _ROUNDING.items():
                yield MergeRecipe(name=f"{rounding}{onto}{exported}", base=base, computes_in=computes_in, **flags)


def off_by_one_ulp(
    recipe: MergeRecipe, change: LowRankChange, before: Tensor, after: Tensor, pool: ThreadPoolExecutor
) -> int | None:
    """How many elements of `after` differ by one ULP from what the recipe makes of `before` and the adapter.

    Returns:
        None if the recipe does not make the tensor: an element differs by more, or too many differ by one ULP.
    """
    operands = _operands(recipe, change, before, recipe.computes_in or after.dtype)
    allowed, off = recipe.slack * int(np.prod(after.shape)), 0
    slices = _rows(after)
    # The first rows alone rule out most wrong recipes.
    for part in (slices[:1], slices[1:]):
        for count in pool.map(lambda rows: _rows_off(operands, after, rows), part):
            if count is None:
                return None
            off += count
        if off > allowed:
            return None
    return off


@dataclass(frozen=True, kw_only=True)
class _Operands:
    """What a recipe computes one tensor from. All arrays are float32 and hold values of `dtype` where it rounds."""

    recipe: MergeRecipe
    dtype: str
    left: Floats
    """out × rank."""
    right: Floats
    """rank × in."""
    scale: float
    before: Tensor
    dequantized: Floats | None
    """The base's weight after a round trip through nf4, out × in; None if the recipe takes the stored one."""
    magnitude: Floats | None
    """DoRA's norm per row; None for a LoRA."""

    def merged(self, rows: slice) -> tuple[Floats, Floats]:
        """The merged weight of these rows before its last rounding, and the base's part of it."""
        delta = self.left[rows] @ self.right
        if self.recipe.rounds_product:
            delta = round_to(delta, self.dtype)
        if self.scale != 1.0:
            delta *= np.float32(self.scale)
        if self.recipe.rounds_delta:
            delta = round_to(delta, self.dtype)
        values = self.before.float32(rows) if self.dequantized is None else self.dequantized[rows]
        if self.before.dtype != self.dtype or self.dequantized is not None:
            values = round_to(values, self.dtype)
        if self.magnitude is not None:
            summed = values + delta
            delta = summed * (self.magnitude[rows] / np.linalg.norm(summed, axis=1))[:, None]
            values = np.zeros_like(delta)
        delta += values
        return delta, values


def _operands(recipe: MergeRecipe, change: LowRankChange, before: Tensor, dtype: str) -> _Operands:
    left, right = change.factors()
    if recipe.rounds_factors:
        left, right = round_to(left, dtype), round_to(right, dtype)
    dequantized = None
    if recipe.base != "stored":
        # nf4 blocks run over the whole weight, so the weight is dequantized whole.
        dequantized = nf4_round_trip(before.float32(), double_quantization=recipe.base == "nf4 double")
    magnitude = None if change.magnitude is None else change.magnitude.float32().reshape(-1)
    return _Operands(
        recipe=recipe,
        dtype=dtype,
        left=left,
        right=right,
        scale=change.scale,
        before=before,
        dequantized=dequantized,
        magnitude=magnitude,
    )


def _rows(tensor: Tensor) -> list[slice]:
    """Slices of rows of about `_CHUNK` elements each."""
    count = max(1, _CHUNK // max(1, int(np.prod(tensor.shape[1:]))))
    return [slice(start, min(start + count, tensor.shape[0])) for start in range(0, tensor.shape[0], count)]


def _rows_off(operands: _Operands, after: Tensor, rows: slice) -> int | None:
    """How many elements of these rows differ by one ULP; None if any differs by more."""
    merged, values = operands.merged(rows)
    stored = after.bits(rows)
    if after.dtype == "F32":
        seen = stored.view(np.float32)
        # A tolerance and not bits: in 32 bits every other order of summation shows.
        far = np.abs(seen - round_to(merged, operands.dtype)) > 2e-6 * (np.abs(seen) + np.abs(merged - values)) + 1e-12
        return None if far.any() else 0
    made = bits_of(merged if operands.dtype == after.dtype else round_to(merged, operands.dtype), after.dtype)
    unequal = made != stored
    if not unequal.any():
        return 0
    if operands.recipe.base == "nf4 double":
        # A scale that differs by one level moves its whole block by at most a hundredth of the largest weight.
        distance = np.abs(round_to(merged, after.dtype) - after.float32(rows)).max()
        return int(unequal.sum()) if distance <= 0.03 * np.abs(values).max() else None
    ulps = np.abs(_ordered(made[unequal]) - _ordered(stored[unequal]))
    return int(unequal.sum()) if ulps.max() <= 1 else None


def _ordered(bits: NDArray[Any]) -> NDArray[np.int32]:
    """16-bit floats as integers in the order of their values, so that neighbours differ by one."""
    signed = bits.astype(np.int32)
    return np.where(signed & 0x8000, -(signed & 0x7FFF), signed)
