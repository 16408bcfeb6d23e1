"""How far one model's next-token distribution is from another's, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay.errors import InputError
from assay.facts import Facts, Interval, Nats, Share, Tokens
from assay.measures.statistics import CONFIDENCE

Sums = NDArray[np.float64]
RESAMPLES = 2000
"""Bootstrap resamples. A resample is a row of sums, so thousands take milliseconds."""
FIRST_OF = 4
"""One sequence in this many is compared first where a model is expected to be exact."""
STAGES = ("merged", "f16", "q4")
"""The way from the reference to the shipped file; each stage begins where the stage before it ends."""
RUNTIMES = ("llama_cli", "llama_cpp_python")
"""The runtimes that the shipped file runs in; each begins at q4."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One sequence, token by token: a model against the reference, both fed the same tokens."""

    name: str
    kind: str
    """`task` (an answer after its prompt) or `text` (general prose)."""
    kl: NDArray[np.float32]
    """KL(reference‖model) in nats, one value per scored token."""
    agrees: NDArray[np.bool_]
    """Whether model and reference put the same token first."""
    right: NDArray[np.bool_]
    """Whether the token that the model puts first is the one that follows."""
    reference_right: NDArray[np.bool_]
    """The same of the reference."""
    loss: NDArray[np.float32]
    """−log p of the token that follows, in nats."""
    reference_loss: NDArray[np.float32]
    """The same of the reference."""


class Distance(Facts):
    """How far a model is from the reference on the same tokens. Intervals are at 95 %, by bootstrap over sequences."""

    sequences: int
    """Sequences that every form is fed."""
    scored_tokens: Tokens
    """Positions compared."""
    kl_mean: Nats
    """Mean of KL(reference‖model)."""
    kl_mean_interval: Interval
    kl_median: Nats
    kl_p99: Nats
    kl_max: Nats
    top1_agreement: Share
    """Positions at which both put the same token first."""
    top1_agreement_interval: Interval
    perplexity_ratio: float
    """The model's perplexity over the reference's."""
    perplexity_ratio_interval: Interval
    flips_to_wrong: int
    """Positions that the reference gets right and the model gets wrong."""
    flips_to_right: int


class TaskShare(Facts):
    """What deployment costs of the fine-tune, on the task's own answers."""

    kl_on_task: Nats
    """Mean KL(reference‖deployed)."""
    kl_of_base_on_task: Nats
    """Mean KL(reference‖base without the adapter), on the same answers."""
    share_lost: float | None
    """kl_on_task over kl_of_base_on_task: at 1 deployment moved the model as far as training had.

    None if training moved nothing."""
    share_lost_interval: Interval
    """By bootstrap over answers."""
    task_sequences: int
    """Answers that the share is computed from."""


def compare_until_clear(
    compare: Callable[[list[int]], list[Compared]], places: list[int], clear_below: float
) -> list[Compared]:
    """Compare one sequence in `FIRST_OF`, and the others only if the first ones do not decide.

    A model that is expected to be exact differs by less than rounding, or by far more: a few sequences tell which.

    Args:
        compare: compares a model with the reference on the sequences at these places.
        places: of all sequences, by length; the last one, the longest, is always compared.
        clear_below: nats. If the whole interval of the mean KL is below it, the other sequences are not compared.
    """
    first = places[::-FIRST_OF]
    compared = compare(first)
    if summarise_divergence(compared).kl_mean_interval[1] >= clear_below:
        compared += compare([at for at in places if at not in first])
    return compared


def summarise_divergence(sequences: Sequence[Compared], seed: int = 0) -> Distance:
    """Distances over all scored tokens, with 95 % bootstrap intervals.

    The bootstrap draws whole sequences, because the tokens of one sequence depend on each other.

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
    count, kl_sum, agreed, loss_added = rows.sum(axis=0)
    return Distance(
        sequences=len(sequences),
        scored_tokens=int(count),
        kl_mean=_rounded(kl_sum / count),
        kl_mean_interval=_interval(rows, lambda sums: sums[1] / sums[0], seed),
        kl_median=_rounded(float(np.median(kl))),
        kl_p99=_rounded(float(np.quantile(kl, 0.99))),
        kl_max=_rounded(float(kl.max())),
        top1_agreement=_rounded(agreed / count),
        top1_agreement_interval=_interval(rows, lambda sums: sums[2] / sums[0], seed),
        perplexity_ratio=_rounded(float(np.exp(loss_added / count))),
        perplexity_ratio_interval=_interval(rows, lambda sums: np.exp(sums[3] / sums[0]), seed),
        flips_to_wrong=int(sum((one.reference_right & ~one.right).sum() for one in sequences)),
        flips_to_right=int(sum((one.right & ~one.reference_right).sum() for one in sequences)),
    )


def share_lost(deployed: Sequence[Compared], base: Sequence[Compared], seed: int = 0) -> TaskShare:
    """How far deployment moved the fine-tuned model, as a share of how far training had moved the base.

    The share is KL(candidate‖deployed) / KL(candidate‖base) on the same answers: at 1, deployment moved the model as
    far as training did.

    Raises:
        InputError: no answer was scored in both models.
    """
    of_base = {one.name: one for one in base}
    pairs = [(one, of_base[one.name]) for one in deployed if one.name in of_base]
    if not pairs:
        raise InputError("No answer was scored in both models, so they cannot be compared.")
    rows = np.array([[one.kl.sum(), other.kl.sum(), one.kl.size] for one, other in pairs], dtype=np.float64)
    moved, trained, count = rows.sum(axis=0)
    return TaskShare(
        kl_on_task=_rounded(moved / count),
        kl_of_base_on_task=_rounded(trained / count),
        share_lost=_rounded(moved / trained) if trained else None,
        share_lost_interval=_interval(rows, lambda sums: sums[0] / np.maximum(sums[1], 1e-12), seed),
        task_sequences=len(pairs),
    )


def loss_enters_at(distances: dict[str, float]) -> str | None:
    """The stage or runtime that adds most to the distance from the reference; None if none was measured.

    Args:
        distances: stage or runtime to mean KL, in nats. `nf4` is a deployment of its own and is not looked at.
    """
    before, added = 0.0, {}
    for stage in STAGES:
        if stage in distances:
            added[stage] = distances[stage] - before
            before = distances[stage]
    added |= {runtime: distances[runtime] - before for runtime in RUNTIMES if runtime in distances}
    return max(added, key=lambda stage: added[stage]) if added else None


def _interval(rows: Sums, statistic: Callable[[Sums], Sums], seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic of column sums.

    Args:
        rows: one row per sequence; whole rows are drawn.
        statistic: takes the sums of the columns, the columns along the first axis.
    """
    if len(rows) == 1:
        # Every resample of a single row is that row; scipy refuses it.
        only = _rounded(float(statistic(rows[0])))
        return only, only
    # scipy takes a second to import.
    from scipy.stats import bootstrap

    def of_places(places: NDArray[np.int64], axis: int) -> Sums:
        return statistic(np.moveaxis(rows[places].sum(axis=axis - 1), -1, 0))

    found = bootstrap(
        (np.arange(len(rows)),),
        of_places,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return _rounded(float(low)), _rounded(float(high))


def _rounded(value: float) -> float:
    """Six significant digits, so that a distance of 1e-6 keeps them too."""
    return float(f"{value:.6g}")
