"""What a number of samples can and cannot show: exact bounds for shares, an exact test for pairs."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from itertools import count

CONFIDENCE = 0.95
"""One-sided for bounds; a paired difference is noise at p ≥ 1 - CONFIDENCE."""


def lower_bound(successes: int, samples: int) -> float:
    """The exact (Clopper–Pearson) one-sided 95 % lower bound of a share."""
    # scipy takes a second to import, which no command that does no statistics should pay.
    from scipy.stats import binomtest

    if samples == 0:
        return 0.0
    test = binomtest(successes, samples, alternative="greater")
    return float(test.proportion_ci(CONFIDENCE, method="exact").low)


def samples_needed(threshold: float, misses: int = 0) -> int:
    """The fewest samples that, with so many misses, show a share above the threshold."""
    return next(n for n in count(misses + 1) if lower_bound(n - misses, n) > threshold)


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


class Paired(StrEnum):
    """What pairs of results on the same samples show about the second one."""

    PASSED = "passed"
    """It loses less than the margin."""
    FAILED = "failed"
    """It loses more than it gains."""
    INCONCLUSIVE = "inconclusive"
    """Neither can be shown with so many samples."""
    OPEN = "open"
    """The samples that are still to be asked can change the answer."""


def judge_pairs(lost: int, gained: int, asked: int, samples: int, margin: float) -> Paired:
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
    """
    rest = samples - asked
    passes_at_best, passes_at_worst = (_keeps(lost + more, samples, margin) for more in (0, rest))
    if passes_at_worst:
        return Paired.PASSED
    if not passes_at_best and _loses(lost, gained + rest):
        return Paired.FAILED
    if not passes_at_best and not _loses(lost + rest, gained):
        return Paired.INCONCLUSIVE
    return Paired.OPEN


@cache
def _keeps(lost: int, samples: int, margin: float) -> bool:
    return samples > 0 and lower_bound(samples - lost, samples) > 1 - margin


@cache
def _loses(lost: int, gained: int) -> bool:
    from scipy.stats import binomtest

    return lost > gained and bool(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue <= 1 - CONFIDENCE)
