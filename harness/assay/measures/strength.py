"""How much of an adapter is in a file of weights, read from the weights alone.

g = ⟨W' − W, s·BA⟩ / ⟨s·BA, s·BA⟩, pooled over layers: 1 is right, 0 absent, 2 doubled, −1 flipped. Rounding and
quantization are nearly orthogonal to the adapter's change, so they widen g's error and hardly move g. Of several
adapters all strengths are solved for together: adapters trained alike resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.inputs.checkpoint import Tensor
from assay.inputs.lora import Lora, Low

Floats = NDArray[np.float32]
ALIKE = 1e4
"""Condition number of the adapters' Gram matrix above which they cannot be told apart."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The strengths of some adapters in one file."""

    pooled: dict[str, float]
    """By adapter, over all layers."""
    error: dict[str, float]
    """Standard error of each, from what no adapter explains."""
    layers: dict[str, dict[str, float]]
    """Tensor to adapter to strength in that tensor alone, of those adapters that change it."""
    relative_size: dict[str, float]
    """‖s·BA‖ / ‖W‖ over the tensors that the adapter changes."""
    distinct: bool
    """Whether the adapters can be told apart at all."""

    def name_of(self, adapter: str) -> str:
        """`right`, `absent`, `doubled`, `half`, `flipped`, or the number."""
        g, error = self.pooled[adapter], max(0.1, 3 * self.error[adapter])
        for name, wanted in (("right", 1.0), ("absent", 0.0), ("half", 0.5), ("doubled", 2.0), ("flipped", -1.0)):
            if abs(g - wanted) <= error * (abs(wanted) or 0.5):
                return name
        return f"at {g:.2f}"


def measure(base: dict[str, Tensor], adapters: dict[str, Lora], read: Callable[[str], Floats | None]) -> Strength:
    """Strengths of the adapters in a file.

    Args:
        base: the base's tensors.
        adapters: by name. DoRA and whole saved tensors are no sums of products: they are left out.
        read: gives a tensor of the file in float32 and in the checkpoint's layout, or None if the file lacks it.
    """
    names = list(adapters)
    gram, seen = np.zeros((len(names), len(names))), np.zeros(len(names))
    left_over, count = 0.0, 0
    base_norm = np.zeros(len(names))
    layers: dict[str, dict[str, float]] = {}
    for weight in sorted({name for lora in adapters.values() for name in lora.changes}):
        lows = {name: low for name in names if (low := adapters[name].changes.get(weight)) and low.magnitude is None}
        values = read(weight) if lows else None
        if values is None:
            continue
        before = base[weight].float32()
        change = np.asarray(values, dtype=np.float32) - before
        own, products = _products(lows, change)
        at = [names.index(name) for name in lows]
        gram[np.ix_(at, at)] += own
        seen[at] += products
        left_over += float(np.vdot(change, change))
        count += change.size
        base_norm[at] += float(np.vdot(before, before))
        layers[weight] = dict(zip(lows, (_solve(own, products)).round(5).tolist(), strict=True))
    pooled = _solve(gram, seen)
    rest = max(0.0, left_over - float(pooled @ seen))
    inverse = np.linalg.pinv(gram)
    errors = np.sqrt(np.maximum(0.0, np.diag(inverse)) * rest / max(1, count - len(names)))
    used = np.diag(gram) > 0
    part = (
        gram[np.ix_(used, used)] / np.sqrt(np.outer(np.diag(gram)[used], np.diag(gram)[used])) if used.any() else None
    )
    return Strength(
        pooled=dict(zip(names, pooled.tolist(), strict=True)),
        error=dict(zip(names, errors.tolist(), strict=True)),
        layers=layers,
        relative_size={
            name: float(np.sqrt(gram[i, i] / base_norm[i])) if base_norm[i] else 0.0 for i, name in enumerate(names)
        },
        distinct=part is None or bool(np.linalg.cond(part) < ALIKE),
    )


def _products(lows: dict[str, Low], change: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """⟨Δi, Δj⟩ and ⟨change, Δi⟩, from the factors: no Δ is ever written out."""
    factors = [(low.scale, *low.factors()) for low in lows.values()]
    own = np.array(
        [
            [s * t * float(np.sum((left.T @ other) * (right @ another.T))) for t, other, another in factors]
            for s, left, right in factors
        ]
    )
    seen = np.array([s * float(np.sum(left * (change @ right.T))) for s, left, right in factors])
    return own, seen


def _solve(gram: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.lstsq(gram, seen, rcond=1e-12)[0], dtype=np.float64)


def weakest_layers(strength: Strength, adapter: str, wanted: float = 1.0, count: int = 3) -> list[str]:
    """The tensors where an adapter is furthest from the strength wanted, worst first."""
    known: Iterable[tuple[str, float]] = (
        (name, row[adapter]) for name, row in strength.layers.items() if adapter in row
    )
    return [f"{name} {g:.2f}" for name, g in sorted(known, key=lambda one: -abs(one[1] - wanted))[:count]]


def facts(base: dict[str, Tensor], lora: Lora, read: Callable[[str], Floats | None]) -> dict[str, Any]:
    """What a gate judges of one adapter in one file, with a random change of equal size as the control."""
    strength = measure(base, {"": lora, "random": lora.randomized()}, read)
    layers = [row[""] for row in strength.layers.values()]
    return {
        "strength": round(strength.pooled[""], 5),
        "strength_standard_error": round(strength.error[""], 6),
        "strength_of_random_adapter": round(strength.pooled["random"], 5),
        "strength_by_layer_median": round(float(np.median(layers)), 5) if layers else None,
        "strength_furthest_layers": weakest_layers(strength, ""),
        "adapter_relative_size": round(strength.relative_size[""], 6),
    }
