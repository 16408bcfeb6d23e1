"""How far one model's next-token distribution is from another's, and how sure that is: pure functions of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import InputError
from assay.measures.statistics import CONFIDENCE

RESAMPLES = 2000
"""Bootstrap resamples; a resample is a row of sums, so thousands take milliseconds."""
FIRST_OF = 4
"""One sequence in so many is compared first where a model should be exact."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One sequence, token by token: a model against the reference, both fed the same tokens."""

    name: str
    kind: str
    """`task` (an answer after its prompt) or `text` (general prose)."""
    kl: NDArray[np.float32]
    """KL(reference‖model) in nats, one a scored token."""
    agrees: NDArray[np.bool_]
    """Whether both put the same token first."""
    right: NDArray[np.bool_]
    """Whether the model puts the token first that does come next."""
    reference_right: NDArray[np.bool_]
    loss: NDArray[np.float32]
    """−log p of the token that does come next, in nats."""
    reference_loss: NDArray[np.float32]


def compare_until_clear(
    compare: Callable[[list[int]], list[Compared]], places: list[int], clear_below: float
) -> list[Compared]:
    """A part of the sequences, the last one (the longest) among them; the others only where that leaves a doubt.

    What should be exact is nearer than rounding moves it, or far off: a few sequences tell which.

    Args:
        compare: a model with the reference on the sequences at these places.
        places: of all sequences.
        clear_below: nats; a mean KL whose whole interval is below it needs no more sequences.
    """
    first = places[::-FIRST_OF]
    compared = compare(first)
    if summarise(compared)["kl_mean_interval"][1] >= clear_below:
        compared += compare([at for at in places if at not in first])
    return compared


def summarise(sequences: Sequence[Compared], seed: int = 0) -> dict[str, Any]:
    """Distances over all scored tokens, each with a 95 % interval by bootstrap over sequences.

    Tokens of one sequence depend on each other, so sequences are drawn and never tokens.

    Raises:
        InputError: nothing was scored.
    """
    if not sequences:
        raise InputError("No sequence was scored, so there is no distance.")
    kl = np.concatenate([one.kl for one in sequences])
    rows = np.array(
        [[one.kl.size, one.kl.sum(), one.agrees.sum(), one.loss.sum() - one.reference_loss.sum()] for one in sequences],
        dtype=np.float64,
    )
    draws = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    sums = rows[draws].sum(axis=1)
    count, total, agreed, lost = rows.sum(axis=0)
    return {
        "sequences": len(sequences),
        "scored_tokens": int(count),
        "kl_mean": _rounded(total / count),
        "kl_mean_interval": _interval(sums[:, 1] / sums[:, 0]),
        "kl_median": _rounded(float(np.median(kl))),
        "kl_p99": _rounded(float(np.quantile(kl, 0.99))),
        "kl_max": _rounded(float(kl.max())),
        "top1_agreement": _rounded(agreed / count),
        "top1_agreement_interval": _interval(sums[:, 2] / sums[:, 0]),
        "perplexity_ratio": _rounded(float(np.exp(lost / count))),
        "perplexity_ratio_interval": _interval(np.exp(sums[:, 3] / sums[:, 0])),
        "flips_to_wrong": int(sum((one.reference_right & ~one.right).sum() for one in sequences)),
        "flips_to_right": int(sum((one.right & ~one.reference_right).sum() for one in sequences)),
    }


def share_lost(deployed: Sequence[Compared], base: Sequence[Compared], seed: int = 0) -> dict[str, Any]:
    """How far deployment moved the fine-tuned model, as a share of how far training had moved the base.

    KL(candidate‖deployed) / KL(candidate‖base), on the same answers: at 1 quantization moved the model as far as
    training did. The interval draws sequences, the same ones for both.
    """
    pairs = {one.name: one for one in base}
    both = [(one, pairs[one.name]) for one in deployed if one.name in pairs]
    if not both:
        raise InputError("No answer was scored in both models, so they cannot be compared.")
    rows = np.array([[one.kl.sum(), other.kl.sum(), one.kl.size] for one, other in both], dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    sums = rows[draws].sum(axis=1)
    total = rows.sum(axis=0)
    return {
        "kl_on_task": _rounded(total[0] / total[2]),
        "kl_of_base_on_task": _rounded(total[1] / total[2]),
        "share_lost": _rounded(total[0] / total[1]) if total[1] else None,
        "share_lost_interval": _interval(sums[:, 0] / np.maximum(sums[:, 1], 1e-12)),
        "task_sequences": len(both),
    }


def loss_enters_at(distances: dict[str, float]) -> str | None:
    """The stage that adds most to the distance from the reference on the way merged → f16 → q4 → runtime.

    None if none was measured. The runtimes both follow q4; `nf4` is a way of its own and no stage on this one.

    Args:
        distances: by stage, in nats.
    """
    before, added = 0.0, {}
    for stage in ("merged", "f16", "q4", "llama_cli", "llama_cpp_python"):
        if stage in distances:
            added[stage] = distances[stage] - before
            before = distances[stage] if stage in ("merged", "f16", "q4") else before
    return max(added, key=lambda stage: added[stage]) if added else None


def _interval(values: NDArray[np.float64]) -> list[float]:
    side = (1 - CONFIDENCE) / 2
    return [_rounded(float(value)) for value in np.quantile(values, [side, 1 - side])]


def _rounded(value: float) -> float:
    """Six significant digits: a distance of 1e-6 is a fact too."""
    return float(f"{value:.6g}")
