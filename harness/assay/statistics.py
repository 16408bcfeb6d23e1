"""What a number of samples can and cannot show: exact bounds for shares, an exact test for pairs."""

from __future__ import annotations

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
