"""How much of an adapter a file of weights holds, read from the weights alone.

The strength is g = ⟨W' − W, s·BA⟩ / ⟨s·BA, s·BA⟩, pooled over layers: 1 is right, 0 absent, 2 doubled, −1 flipped.
Rounding and quantization are nearly orthogonal to the adapter's change, so they widen g's error and hardly move g. The
strengths of several adapters are solved for together, because adapters that were trained alike resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay.facts import Facts
from assay.inputs.checkpoint import Tensor
from assay.inputs.lora import LoraWeights, LowRankChange

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
ALIKE = 1e4
"""Condition number of the adapters' Gram matrix above which they cannot be told apart."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The strengths of some adapters in one file."""

    pooled: dict[str, float]
    """Adapter to its strength over all layers."""
    error: dict[str, float]
    """Adapter to the standard error of its strength, from the part of the change that no adapter explains."""
    layers: dict[str, dict[str, float]]
    """Tensor to adapter to strength in that tensor alone, for the adapters that change it."""
    relative_size: dict[str, float]
    """Adapter to ‖s·BA‖ / ‖W‖ over the tensors that it changes."""
    distinct: bool
    """Whether the adapters can be told apart."""

    def name_of(self, adapter: str) -> str:
        """`right`, `absent`, `doubled`, `half`, `flipped`, or the number."""
        g, error = self.pooled[adapter], max(0.1, 3 * self.error[adapter])
        for name, value in (("right", 1.0), ("absent", 0.0), ("half", 0.5), ("doubled", 2.0), ("flipped", -1.0)):
            if abs(g - value) <= error * (abs(value) or 0.5):
                return name
        return f"at {g:.2f}"


def measure_strengths(
    base: dict[str, Tensor], adapters: dict[str, LoraWeights], read: Callable[[str], Floats | None]
) -> Strength:
    """The strengths of the adapters in a file.

    Args:
        base: the base's tensors, by name.
        adapters: by name. DoRA and whole saved tensors are no sums of products, so they are left out.
        read: gives a tensor of the file in float32 and in the checkpoint's layout, or None if the file lacks it.
    """
    names = list(adapters)
    gram, products, base_norm2 = np.zeros((len(names), len(names))), np.zeros(len(names)), np.zeros(len(names))
    change_norm2, elements = 0.0, 0
    layers: dict[str, dict[str, float]] = {}
    for weight in sorted({name for lora in adapters.values() for name in lora.changes}):
        changes = {
            name: change
            for name in names
            if (change := adapters[name].changes.get(weight)) and change.magnitude is None
        }
        values = read(weight) if changes else None
        if values is None:
            continue
        before = base[weight].float32()
        difference = np.asarray(values, dtype=np.float32) - before
        own_gram, own_products = _products(changes, difference)
        at = [names.index(name) for name in changes]
        gram[np.ix_(at, at)] += own_gram
        products[at] += own_products
        base_norm2[at] += float(np.vdot(before, before))
        change_norm2 += float(np.vdot(difference, difference))
        elements += difference.size
        layers[weight] = dict(zip(changes, _solve(own_gram, own_products).round(5).tolist(), strict=True))
    pooled = _solve(gram, products)
    unexplained = max(0.0, change_norm2 - float(pooled @ products))
    variances = np.maximum(0.0, np.diag(np.linalg.pinv(gram)))
    errors = np.sqrt(variances * unexplained / max(1, elements - len(names)))
    sizes = [float(np.sqrt(gram[i, i] / base_norm2[i])) if base_norm2[i] else 0.0 for i in range(len(names))]
    return Strength(
        pooled=dict(zip(names, pooled.tolist(), strict=True)),
        error=dict(zip(names, errors.tolist(), strict=True)),
        layers=layers,
        relative_size=dict(zip(names, sizes, strict=True)),
        distinct=_distinct(gram),
    )


def _products(changes: dict[str, LowRankChange], difference: Floats) -> tuple[Matrix, Matrix]:
    """⟨Δi, Δj⟩ and ⟨difference, Δi⟩, computed from the factors, so that no Δ takes memory."""
    factors = [(change.scale, *change.factors()) for change in changes.values()]
    gram = np.array(
        [
            [s * t * float(np.sum((left.T @ other) * (right @ another.T))) for t, other, another in factors]
            for s, left, right in factors
        ]
    )
    products = np.array([s * float(np.sum(left * (difference @ right.T))) for s, left, right in factors])
    return gram, products


def _solve(gram: Matrix, products: Matrix) -> Matrix:
    return np.asarray(np.linalg.lstsq(gram, products, rcond=1e-12)[0], dtype=np.float64)


def _distinct(gram: Matrix) -> bool:
    """Whether the adapters that change anything are far enough from linear dependence."""
    used = np.diag(gram) > 0
    if not used.any():
        return True
    sizes = np.sqrt(np.diag(gram)[used])
    return bool(np.linalg.cond(gram[np.ix_(used, used)] / np.outer(sizes, sizes)) < ALIKE)


def weakest_layers(strength: Strength, adapter: str, expected: float = 1.0, count: int = 3) -> list[str]:
    """The tensors where an adapter's strength is furthest from the expected one, worst first."""
    known: Iterable[tuple[str, float]] = (
        (name, row[adapter]) for name, row in strength.layers.items() if adapter in row
    )
    return [f"{name} {g:.2f}" for name, g in sorted(known, key=lambda one: -abs(one[1] - expected))[:count]]


class AdapterStrength(Facts):
    """The strength ⟨W' − W, s·BA⟩ / ⟨s·BA, s·BA⟩ of the adapter in a file: 1 is right, 0 absent, 2 applied twice."""

    measured: bool = True
    """Whether this architecture's layout is known, so that the file's tensors can be read."""
    strength: float = 0.0
    """Pooled over all layers."""
    strength_standard_error: float = 0.0
    """Standard error of the pooled strength."""
    strength_of_random_adapter: float = 0.0
    """Strength of a random change of equal size: the control, which should be 0."""
    strength_by_layer_median: float | None = None
    """Median over layers."""
    strength_furthest_layers: tuple[str, ...] = ()
    """The layers whose strength is furthest from 1, with the strength."""
    adapter_relative_size: float = 0.0
    """‖s·BA‖ / ‖W‖ over the tensors that the adapter changes; 0 if the adapter is no plain LoRA."""


def adapter_strength(
    base: dict[str, Tensor], lora: LoraWeights, read: Callable[[str], Floats | None]
) -> AdapterStrength:
    """The strength of one adapter in one file, with a random change of equal size as the control."""
    strength = measure_strengths(base, {"": lora, "random": lora.randomized()}, read)
    layers = [row[""] for row in strength.layers.values()]
    return AdapterStrength(
        strength=round(strength.pooled[""], 5),
        strength_standard_error=round(strength.error[""], 6),
        strength_of_random_adapter=round(strength.pooled["random"], 5),
        strength_by_layer_median=round(float(np.median(layers)), 5) if layers else None,
        strength_furthest_layers=tuple(weakest_layers(strength, "")),
        adapter_relative_size=round(strength.relative_size[""], 6),
    )
