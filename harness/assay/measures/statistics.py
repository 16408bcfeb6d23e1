"""What a number of samples can and cannot show: exact bounds for shares, an exact test for pairs."""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum
from functools import cache

CONFIDENCE = 0.95
"""One-sided for bounds; a paired difference is noise at p ≥ 1 - CONFIDENCE."""


def lower_bound(successes: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The exact (Clopper–Pearson) one-sided lower bound of a share, at 95 % confidence if not said otherwise."""
    # scipy takes a second to import, which no command that does no statistics should pay.
    from scipy.stats import binomtest

    if samples == 0:
        return 0.0
    test = binomtest(successes, samples, alternative="greater")
    return float(test.proportion_ci(confidence, method="exact").low)


def samples_needed(threshold: float, misses: int = 0) -> int:
    """The fewest samples that, with so many misses, show a share above the threshold, which is below 1."""
    enough = misses + 1
    while not _exceeds(enough - misses, enough, threshold):
        enough *= 2
    return bisect_left(range(enough), True, lo=misses, key=lambda n: _exceeds(n - misses, n, threshold))


def judge_share(successes: int, samples: int, threshold: float) -> str:
    """`met`, `not met`, or `cannot be shown with n=17 (needs 36)`: right so often, but too seldom asked."""
    if lower_bound(successes, samples) > threshold:
        return "met"
    if samples == 0 or successes / samples <= threshold:
        return "not met"
    return f"cannot be shown with n={samples} (needs {samples_needed(threshold, samples - successes)})"


def paired_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p of two results on the same samples, from those that only one of them got right."""
    from scipy.stats import binomtest

    disagreeing = only_first + only_second
    return float(binomtest(only_first, disagreeing, 0.5).pvalue) if disagreeing else 1.0


class Shown(StrEnum):
    """What samples show."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    """Neither can be shown with so many samples."""
    OPEN = "open"
    """The samples that are still to be asked can change the answer."""


def judge_pairs(lost: int, gained: int, asked: int, samples: int, margin: float, of: int = 1) -> Shown:
    """Whether a deployed form keeps what its reference gets right, and whether the rest need be asked at all.

    Passed: the exact one-sided 95 % upper bound of the share lost is below the margin. Failed, if not passed: McNemar's
    exact one-sided test shows at 5 % that more was lost than gained. So a form that loses a net margin or more passes,
    and one that loses no more than it gains fails, each at most once in 20. Asking ends as soon as no answer to the
    remaining samples could change the outcome: that cannot move either error rate.

    Args:
        lost: samples that the reference gets right and the deployed form does not.
        gained: the reverse.
        asked: samples asked so far.
        samples: samples in all.
        margin: the share of samples that may be lost.
        of: how many things are judged together, see `judge_exceeds`.
    """
    rest = samples - asked
    passes_at_best, passes_at_worst = (_exceeds(samples - lost - more, samples, 1 - margin) for more in (0, rest))
    if passes_at_worst:
        return Shown.PASSED
    if not passes_at_best and _loses(lost, gained + rest, of):
        return Shown.FAILED
    if not passes_at_best and not _loses(lost + rest, gained, of):
        return Shown.INCONCLUSIVE
    return Shown.OPEN


def judge_exceeds(right: int, asked: int, samples: int, threshold: float, of: int = 1) -> Shown:
    """Whether a share exceeds its threshold, and whether the rest need be asked at all.

    Passed: the exact one-sided 95 % lower bound is above it. Failed: the upper bound is not. So a share at the
    threshold passes, and one above it fails, each at most once in 20.

    Args:
        right: of the samples asked so far.
        asked: samples asked so far.
        samples: samples in all.
        threshold: the share to exceed.
        of: how many things are judged together. One failure fails all, so each may be wrong only that much more seldom.
    """
    best = right + samples - asked
    if _exceeds(right, samples, threshold):
        return Shown.PASSED
    if _misses(best, samples, threshold, of):
        return Shown.FAILED
    if not _exceeds(best, samples, threshold) and not _misses(right, samples, threshold, of):
        return Shown.INCONCLUSIVE
    return Shown.OPEN


@cache
def _exceeds(right: int, samples: int, threshold: float) -> bool:
    return samples > 0 and lower_bound(right, samples) > threshold


@cache
def _misses(right: int, samples: int, threshold: float, of: int) -> bool:
    return samples > 0 and 1 - lower_bound(samples - right, samples, 1 - (1 - CONFIDENCE) / of) <= threshold


@cache
def _loses(lost: int, gained: int, of: int) -> bool:
    from scipy.stats import binomtest

    if lost <= gained:
        return False
    return float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue) <= (1 - CONFIDENCE) / of
