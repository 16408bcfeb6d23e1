"""Selection: the thesis's formula, its tie, and everything that its figures do not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from assay.errors import InputError
from assay.paths import REPOSITORY

from train.__main__ import main
from train.selection import Experiment, from_figures, select

THESIS = REPOSITORY / "train" / "figures" / "thesis-4.5.5.toml"
THRESHOLDS = {"all": {"coverage": 0.88, "format": 0.92}}
IDS = [f"s{number}" for number in range(17)]


def experiment(name: str, right: int, seconds: float, measured: bool = True) -> Experiment:
    passed = {id: place < right for place, id in enumerate(IDS)}
    share = right / 17
    return Experiment(
        name=name,
        n={"style": 11, "writing": 6, "all": 17},
        shares={(m, t): share for m in ("coverage", "format") for t in ("style", "writing", "all")},
        seconds=seconds,
        measured=measured,
        passed={"coverage": passed, "format": passed},
    )


def test_the_thesiss_figures_select_v3b_and_say_what_they_do_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "--figures", str(THESIS)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Selected: V3B, score 1.0000, the same as V3C; it took the least time to train (as stated" in said
    assert "V3A has no score: style coverage, writing coverage not recorded." in said
    assert "V3A is stated to have taken 35 min 00 s, but V3B began 12 min 45 s after V3A." in said
    assert "V3B is stated to have taken 45 min 00 s, but V3C began 33 min 12 s after V3B." in said
    assert "V3B against V3A: equal within noise (coverage p = 0.0625 at best" in said
    assert "all coverage > 0.88: cannot be shown with n=17 (needs 24); 17 of 17 shows ≥ 0.838" in said
    assert "all format > 0.92: cannot be shown with n=17 (needs 36)" in said


def test_the_highest_score_wins_whatever_it_cost() -> None:
    selection = select([experiment("a", 12, 1), experiment("b", 17, 99)], THRESHOLDS)
    assert selection.selected.name == "b"
    assert selection.selected.score == pytest.approx(1.0)
    assert any("b against a: equal within noise (coverage p = 0.0625" in doubt for doubt in selection.doubts)


def test_equal_scores_go_to_the_cheaper_training() -> None:
    experiments = [experiment("a", 17, 20), experiment("b", 17, 10), experiment("c", 17, 30)]
    selection = select(experiments, THRESHOLDS)
    assert selection.selected.name == "b"
    assert selection.reason == "score 1.0000, the same as a, c; it took the least time to train"


def test_a_real_difference_is_said_to_be_one() -> None:
    selection = select([experiment("a", 4, 1), experiment("b", 17, 1)], THRESHOLDS)
    assert any(doubt.startswith("b against a: a real difference") for doubt in selection.doubts)


def test_the_formula_weighs_as_the_thesis_says() -> None:
    shares = {
        ("coverage", "all"): 0.8,
        ("format", "all"): 0.6,
        ("coverage", "style"): 0.4,
        ("coverage", "writing"): 0.2,
    }
    assert replace(experiment("a", 1, 1), shares=shares).score == pytest.approx(0.4 + 0.18 + 0.04 + 0.02)
    del shares["coverage", "writing"]
    one = replace(experiment("a", 1, 1), shares=shares)
    assert one.score is None
    with pytest.raises(InputError, match="a lacks writing coverage"):
        select([one], THRESHOLDS)


def test_wrong_figures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.toml"
    path.write_text(THESIS.read_text().replace("stated_minutes", "minutes_stated", 1))
    with pytest.raises(InputError, match="minutes_stated"):
        from_figures(path)
    assert main(["select"]) == 2
    assert "name folders of evaluated candidates" in capsys.readouterr().err
    path.write_text("version = 1\n")
    with pytest.raises(InputError, match="the key experiment is missing"):
        from_figures(path)
