"""What a number of samples can prove: exact bounds for shares, an exact test for pairs."""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum
from functools import cache

CONFIDENCE = 0.95
"""One-sided for bounds. A paired difference with p ≥ 1 - CONFIDENCE counts as noise."""


def lower_bound(successes: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The exact (Clopper–Pearson) one-sided lower bound of a share; 0 without samples."""
    # scipy takes a second to import, and a command without statistics should not wait for it.
    from scipy.stats import binomtest

    if samples == 0:
        return 0.0
    test = binomtest(successes, samples, alternative="greater")
    return float(test.proportion_ci(confidence, method="exact").low)


def samples_needed(threshold: float, misses: int = 0) -> int:
    """The fewest samples that prove a share above `threshold` (below 1), if `misses` of them are wrong."""
    enough = misses + 1
    while not _exceeds(enough - misses, enough, threshold):
        enough *= 2
    return bisect_left(range(enough), True, lo=misses, key=lambda n: _exceeds(n - misses, n, threshold))


def judge_share(successes: int, samples: int, threshold: float) -> str:
    """`met`, `not met`, or `cannot be shown with n=17 (needs 36)` if the share is high enough, but n too small."""
    if lower_bound(successes, samples) > threshold:
        return "met"
    if samples == 0 or successes / samples <= threshold:
        return "not met"
    return f"cannot be shown with n={samples} (needs {samples_needed(threshold, samples - successes)})"


def paired_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p of two models on the same samples.

    Args:
        only_first, only_second: number of samples that only that model got right.
    """
    from scipy.stats import binomtest

    disagreeing = only_first + only_second
    return float(binomtest(only_first, disagreeing, 0.5).pvalue) if disagreeing else 1.0


class Shown(StrEnum):
    """What the samples so far show about a claim."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    """All samples together can show neither."""
    OPEN = "open"
    """The samples that are not asked yet can decide."""


def judge_pairs(lost: int, gained: int, asked: int, samples: int, margin: float, comparisons: int = 1) -> Shown:
    """Whether a deployed form keeps what its reference gets right, or whether the remaining samples must be asked.

    Passed: the exact one-sided 95 % upper bound of the share lost is below the margin. Failed, if not passed: McNemar's
    exact one-sided test shows at 5 % that more was lost than gained. So a form that loses a net margin or more passes
    at most once in 20, and a form that loses no more than it gains fails at most once in 20. Asking ends as soon as no
    answer to the remaining samples could change the outcome, so stopping early changes neither error rate.

    Args:
        lost: samples that the reference gets right and the deployed form does not.
        gained: samples that the deployed form gets right and the reference does not.
        asked: samples asked so far.
        samples: samples in all.
        margin: the share of samples that may be lost.
        comparisons: number of claims tested together, see `judge_exceeds`.
    """
    rest = samples - asked
    passes_at_best, passes_at_worst = (_exceeds(samples - lost - more, samples, 1 - margin) for more in (0, rest))
    if passes_at_worst:
        return Shown.PASSED
    if not passes_at_best and _loses(lost, gained + rest, comparisons):
        return Shown.FAILED
    if not passes_at_best and not _loses(lost + rest, gained, comparisons):
        return Shown.INCONCLUSIVE
    return Shown.OPEN


def judge_exceeds(right: int, asked: int, samples: int, threshold: float, comparisons: int = 1) -> Shown:
    """Whether a share exceeds its threshold, or whether the remaining samples must be asked.

    Passed: the exact one-sided 95 % lower bound is above the threshold. Failed: the upper bound is not above it. So a
    share at the threshold passes at most once in 20, and a share above it fails at most once in 20.

    Args:
        right: samples asked so far that are right.
        asked: samples asked so far.
        samples: samples in all.
        threshold: the share to exceed.
        comparisons: number of claims tested together. One failed claim fails all of them, so the 5 % of a failure is
            divided by this number (Bonferroni).
    """
    best = right + samples - asked
    if _exceeds(right, samples, threshold):
        return Shown.PASSED
    if _misses(best, samples, threshold, comparisons):
        return Shown.FAILED
    if not _exceeds(best, samples, threshold) and not _misses(right, samples, threshold, comparisons):
        return Shown.INCONCLUSIVE
    return Shown.OPEN


@cache
def _exceeds(right: int, samples: int, threshold: float) -> bool:
    return samples > 0 and lower_bound(right, samples) > threshold


@cache
def _misses(right: int, samples: int, threshold: float, comparisons: int) -> bool:
    return samples > 0 and 1 - lower_bound(samples - right, samples, 1 - (1 - CONFIDENCE) / comparisons) <= threshold


@cache
def _loses(lost: int, gained: int, comparisons: int) -> bool:
    from scipy.stats import binomtest

    if lost <= gained:
        return False
    return float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue) <= (1 - CONFIDENCE) / comparisons
