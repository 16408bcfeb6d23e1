"""Coverage, Format and Refusal of an answer, and what so many samples can show."""

from __future__ import annotations

import pytest
from assay.inputs.dataset import read_dataset
from assay.measures.answers import Kind
from assay.measures.metrics import score, summarise_scores
from assay.measures.statistics import judge_share, lower_bound, paired_p, samples_needed
from assay.paths import REPOSITORY

DATASET = read_dataset(REPOSITORY / "train" / "data")
SAMPLES = DATASET.samples("eval", ["style", "writing"], "en")
ONE = SAMPLES[0]
DECLINED = next(sample for sample in SAMPLES if sample.should_refuse)


def marks(text: str, kind: Kind = Kind.OK, sample: object = ONE) -> tuple[bool, bool, bool]:
    one = score(sample, text, kind, DATASET)  # type: ignore[arg-type]
    return one.coverage, one.format, one.refusal


def test_a_reference_scores_in_full_in_both_languages() -> None:
    for language in ("zh", "en"):
        for sample in DATASET.samples("eval", ["style", "writing"], language):
            assert marks(sample.answer, sample=sample) == (True, True, True), sample.id


def test_each_metric_measures_its_own() -> None:
    headings = DATASET.tasks["style"].headings["en"]
    assert marks("\n".join(f"{heading}\nI do not know." for heading in headings)) == (False, True, True)
    assert marks(ONE.answer.replace("### Derivation\n", "")) == (True, False, True)
    assert marks(ONE.answer.replace("### Derivation", "### Derivations")) == (True, False, True)
    assert marks("\n".join(f"{heading}\nx" for heading in reversed(headings))) == (False, False, True)
    assert marks(ONE.answer + "\n" + ONE.answer) == (True, False, True)
    assert marks(ONE.answer + "\nI must decline.") == (True, True, False)
    assert marks(ONE.answer, sample=DECLINED)[2] is False, "answering what should be declined"


@pytest.mark.parametrize("kind", [Kind.EMPTY, Kind.SPECIAL_ONLY, Kind.WHITE_SPACE, Kind.THINK_ONLY])
def test_an_empty_answer_scores_nothing_and_is_classified(kind: Kind) -> None:
    assert marks("", kind) == (False, False, False)
    assert marks("", kind, DECLINED) == (False, False, False), "saying nothing is no way to decline"
    assert score(ONE, "", kind, DATASET).kind == kind.value


def test_thoughts_do_not_count() -> None:
    assert marks(f"<think>{ONE.answer}</think>No.") == (False, False, True)
    assert marks(f"<think>hm</think>{ONE.answer}") == (True, True, True)


def test_a_summary_has_bounds_and_judges_each_threshold() -> None:
    summary = summarise_scores([score(s, s.answer, Kind.OK, DATASET) for s in SAMPLES], DATASET)
    assert [summary[task]["n"] for task in ("style", "writing", "all")] == [11, 6, 17]
    assert summary["all"]["coverage"]["lower_bound"] == pytest.approx(0.8384, abs=1e-4)
    assert summary["all"]["format"]["judgement"] == "cannot be shown with n=17 (needs 36)"
    assert "judgement" not in summary["all"]["refusal"], "the thesis set no threshold"
    assert list(summarise_scores([score(ONE, ONE.answer, Kind.OK, DATASET)], DATASET)) == ["style"]


@pytest.mark.parametrize(
    ("successes", "n", "bound"),
    # 1 - 0.05 = P(fewer successes at the bound): 0.05 ** (1/n) where all succeed; the last from a binomial table.
    [(17, 17, 0.05 ** (1 / 17)), (11, 11, 0.05 ** (1 / 11)), (6, 6, 0.05 ** (1 / 6)), (0, 17, 0.0), (12, 17, 0.4782)],
)
def test_lower_bounds_are_exact(successes: int, n: int, bound: float) -> None:
    assert lower_bound(successes, n) == pytest.approx(bound, abs=2e-3)


def test_so_many_samples_are_needed() -> None:
    assert [samples_needed(threshold) for threshold in (0.88, 0.92, 0.95)] == [24, 36, 59]
    assert samples_needed(0.9, misses=1) == 46


@pytest.mark.parametrize(
    ("successes", "n", "said"),
    [
        (36, 36, "met"),
        (35, 35, "cannot be shown with n=35 (needs 36)"),
        (16, 17, "cannot be shown with n=17 (needs 58)"),
        (15, 17, "not met"),
        (0, 0, "not met"),
    ],
)
def test_a_threshold_is_met_not_met_or_cannot_be_shown(successes: int, n: int, said: str) -> None:
    assert judge_share(successes, n, 0.92) == said


def test_a_bound_holds_what_it_promises() -> None:
    """Of many experiments at a true share, at most one in twenty puts its bound above it."""
    import numpy as np

    random = np.random.default_rng(0)
    for share in (0.7, 0.9, 0.95):
        drawn = random.binomial(40, share, size=10_000)
        bounds = np.array([lower_bound(k, 40) for k in range(41)])
        assert np.mean(bounds[drawn] > share) <= 0.055


def test_paired_differences_are_tested_exactly() -> None:
    assert paired_p(5, 0) == 0.0625
    assert paired_p(6, 0) == pytest.approx(0.03125)
    assert paired_p(0, 0) == 1.0
    assert paired_p(3, 3) == 1.0
