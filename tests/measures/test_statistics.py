"""What samples show: the thesis's own numbers, and error rates by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from assay.gating.task import MARGIN
from assay.measures.statistics import Shown, judge_exceeds, judge_pairs, judge_share, lower_bound, samples_needed

SAMPLES = 60


def test_seventeen_of_seventeen_cannot_show_more_than_092() -> None:
    assert judge_share(17, 17, 0.92) == "cannot be shown with n=17 (needs 36)"
    assert lower_bound(17, 17) == pytest.approx(0.838, abs=1e-3)
    assert [samples_needed(threshold) for threshold in (0.88, 0.92, 0.95)] == [24, 36, 59]
    # No answer to any of 17 questions could show that less than a tenth is lost: nothing need be asked for a pass.
    assert judge_pairs(0, 0, 17, 17, MARGIN) is Shown.INCONCLUSIVE


@pytest.mark.parametrize(
    ("lost", "gained", "asked", "samples", "expected"),
    [
        (0, 0, 60, 60, Shown.PASSED),
        (5, 0, 60, 60, Shown.FAILED),
        (6, 6, 60, 60, Shown.INCONCLUSIVE),
        (0, 0, 58, 60, Shown.OPEN),
        (0, 0, 59, 60, Shown.PASSED),
        (20, 0, 20, 60, Shown.OPEN),
        (40, 0, 40, 60, Shown.FAILED),
        (5, 0, 5, 17, Shown.OPEN),
        (0, 0, 13, 17, Shown.INCONCLUSIVE),
    ],
)
def test_asking_ends_when_the_answer_is_clear(
    lost: int, gained: int, asked: int, samples: int, expected: Shown
) -> None:
    assert judge_pairs(lost, gained, asked, samples, MARGIN) is expected


def simulate(p_lost: float, p_gained: float, candidates: int = 10_000) -> tuple[dict[Shown, float], float]:
    """Shares of the outcomes over candidates that are asked one sample after the other, and the mean number asked."""
    random = np.random.default_rng(0)
    drawn = random.random((candidates, SAMPLES))
    lost = np.cumsum(drawn < p_lost, axis=1)
    gained = np.cumsum((drawn >= p_lost) & (drawn < p_lost + p_gained), axis=1)
    seen = dict.fromkeys(Shown, 0)
    total = 0
    for a, b in zip(lost.tolist(), gained.tolist(), strict=True):
        asked = next(
            n for n in range(1, SAMPLES + 1) if judge_pairs(a[n - 1], b[n - 1], n, SAMPLES, MARGIN) != Shown.OPEN
        )
        outcome = judge_pairs(a[asked - 1], b[asked - 1], asked, SAMPLES, MARGIN)
        assert outcome is judge_pairs(a[-1], b[-1], SAMPLES, SAMPLES, MARGIN), "stopping early changes no outcome"
        seen[outcome] += 1
        total += asked
    return {outcome: count / candidates for outcome, count in seen.items()}, total / candidates


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.0, 0.0), (0.05, 0.05), (0.2, 0.2), (0.4, 0.4)])
def test_of_10_000_candidates_that_lose_no_more_than_they_gain_at_most_one_in_20_fails(
    p_lost: float, p_gained: float
) -> None:
    outcomes, _ = simulate(p_lost, p_gained)
    assert outcomes[Shown.FAILED] <= 0.05
    assert outcomes[Shown.OPEN] == 0


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.1, 0.0), (0.15, 0.05), (0.3, 0.2)])
def test_of_10_000_candidates_that_lose_a_tenth_at_most_one_in_20_passes(p_lost: float, p_gained: float) -> None:
    outcomes, _ = simulate(p_lost, p_gained)
    assert outcomes[Shown.PASSED] <= 0.05


def test_a_broken_candidate_fails_and_long_before_the_last_sample() -> None:
    outcomes, asked = simulate(0.9, 0.0)
    assert outcomes[Shown.FAILED] > 0.999
    assert asked < 40


@pytest.mark.parametrize("threshold", [0.85, 0.92])
def test_a_share_at_its_threshold_passes_or_fails_at_most_once_in_20(threshold: float) -> None:
    from scipy.stats import binom

    odds = dict.fromkeys(Shown, 0.0)
    for right in range(SAMPLES + 1):
        odds[judge_exceeds(right, SAMPLES, SAMPLES, threshold)] += binom.pmf(right, SAMPLES, threshold)
    assert 0.01 < odds[Shown.PASSED] <= 0.05
    assert 0.01 < odds[Shown.FAILED] <= 0.05
    drawn = np.random.default_rng(0).random((500, SAMPLES)) < threshold
    for row in np.cumsum(drawn, axis=1).tolist():
        shown = (judge_exceeds(right, asked, SAMPLES, threshold) for asked, right in enumerate(row, 1))
        early = next(one for one in shown if one is not Shown.OPEN)
        assert early is judge_exceeds(row[-1], SAMPLES, SAMPLES, threshold), "stopping early changes no outcome"


@pytest.mark.parametrize(
    ("right", "asked", "samples", "expected"),
    [
        (17, 17, 17, Shown.INCONCLUSIVE),
        (36, 36, 36, Shown.PASSED),
        (0, 0, 36, Shown.OPEN),
        (0, 8, 36, Shown.FAILED),
        (28, 36, 36, Shown.FAILED),
        (35, 36, 36, Shown.INCONCLUSIVE),
    ],
)
def test_a_share_against_092(right: int, asked: int, samples: int, expected: Shown) -> None:
    assert judge_exceeds(right, asked, samples, 0.92) is expected


def test_judged_together_each_may_be_wrong_only_so_much_more_seldom() -> None:
    assert judge_pairs(5, 0, 60, 60, MARGIN) is Shown.FAILED
    assert judge_pairs(5, 0, 60, 60, MARGIN, comparisons=3) is not Shown.FAILED
    assert judge_exceeds(29, 36, 36, 0.93) is Shown.FAILED
    assert judge_exceeds(29, 36, 36, 0.93, comparisons=5) is not Shown.FAILED
