"""Causes are named by evidence, ranked by how much of it there is, and not named without."""

from __future__ import annotations

from pathlib import Path

import pytest
from assay.errors import InputError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.gating.causes import FILE, Causes, read_causes
from assay.gating.gate import read_gates
from assay.paths import GATES
from assay.record.outcome import Outcome, Status, unstaged
from assay.steps.step import StepUse

IDS = [gate.id for gate in read_gates(GATES)]
ONE = """version = 1
[[cause]]
id = "overflow"
gates = ["merge_ok"]
if = [{ fact = "largest", above = 65504.0 }]
also = [{ log = 'overflow in (?P<where>\\w+)' }]
cause = "$largest is too large in $where, for $adapter."
fix = "use bf16"
"""
OTHER = """[[cause]]
id = "other"
gates = ["merge_ok", "convert_f16_ok"]
if = [{ reason = 'holds' }]
cause = "something else"
fix = "do something else"
"""


def causes(tmp_path: Path, text: str) -> Causes:
    (tmp_path / FILE).write_text(text)
    return read_causes(tmp_path / FILE, IDS)


def outcome(tmp_path: Path, *, log: str = "", reason: str = "w holds 1e5", **facts: object) -> Outcome:
    (tmp_path / "log.txt").write_text(log)
    use = StepUse(step="s", digest="0", seconds=0.0, peak_rss_bytes=0, reused_from=None, log="log.txt")
    return Outcome(
        gate="merge_ok", adapter="style", status=Status.FAILED, reason=reason, facts=unstaged(facts), steps=(use,)
    )


def named(found: Causes, tmp_path: Path, seen: Outcome, gate: str = "merge_ok") -> list[str]:
    return [finding.id for finding in found.fitting(tmp_path, gate, seen)]


def test_the_cause_with_more_evidence_comes_first_whatever_the_file_s_order(tmp_path: Path) -> None:
    known = causes(tmp_path, "version = 1\n" + OTHER + ONE.removeprefix("version = 1\n"))
    assert named(known, tmp_path, outcome(tmp_path, largest=1e5)) == ["other", "overflow"]
    assert named(known, tmp_path, outcome(tmp_path, largest=1e5, log="overflow in cast")) == ["overflow", "other"]


def test_its_texts_name_what_was_seen(tmp_path: Path) -> None:
    known = causes(tmp_path, ONE)
    (finding,) = known.fitting(tmp_path, "merge_ok", outcome(tmp_path, largest=1e5, log="overflow in cast"))
    assert finding.cause == "100000.0 is too large in cast, for style."
    assert finding.evidence == ("fact largest: 100000.0", "log: overflow in cast")


def test_without_its_evidence_or_at_another_gate_nothing_is_named(tmp_path: Path) -> None:
    known = causes(tmp_path, ONE)
    assert named(known, tmp_path, outcome(tmp_path, largest=9.0, log="overflow in cast")) == []
    assert named(known, tmp_path, outcome(tmp_path)) == [], "a fact that is not there is no evidence"
    assert named(known, tmp_path, outcome(tmp_path, largest=True)) == [], "a truth value is no number"
    assert named(known, tmp_path, outcome(tmp_path, largest=1e5), gate="convert_f16_ok") == []


def test_a_log_that_is_gone_is_no_evidence_and_no_error(tmp_path: Path) -> None:
    seen = outcome(tmp_path, largest=1e5)
    (tmp_path / "log.txt").unlink()
    assert named(causes(tmp_path, ONE), tmp_path, seen) == ["overflow"]


@pytest.mark.parametrize(
    ("test", "fits", "does_not"),
    [
        ("below = 0.5", 0.4, 0.5),
        ("equals = false", False, None),
        ("empty = false", ["x"], []),
        ("empty = true", [], ["x"]),
        ("matches = '^a'", ["b", "ab"], ["b"]),
        ("above = 1, below = 2", 1.5, 2.5),
    ],
)
def test_every_test_of_a_fact(tmp_path: Path, test: str, fits: object, does_not: object) -> None:
    known = causes(tmp_path, ONE.replace("above = 65504.0", test))
    assert named(known, tmp_path, outcome(tmp_path, largest=fits)) == ["overflow"]
    assert named(known, tmp_path, outcome(tmp_path, largest=does_not)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("fix =", "fixx =", "unknown key 'fixx'. Did you mean 'fix'"),
        ("merge_ok", "merge_okay", "unknown key 'merge_okay'. Did you mean 'merge_ok'"),
        ("above =", "abov =", "unknown key 'abov'. Did you mean 'above'"),
        ('fix = "use bf16"', "", "the key 'fix' is missing"),
        ("overflow in (", "overflow in ((", "no regular expression"),
        (", above = 65504.0", "", "needs one of"),
        ("fact =", 'log = "x", fact =', "names one of reason, log and fact"),
        ("above = 65504.0", 'above = "x"', "is of another kind"),
        ("log = ", "above = 1, log = ", "go with a fact"),
        ("version = 1", "version = 2", "`version = 1` expected"),
        ("[[cause]]", "[[cause]", "not valid TOML"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace("`", ".")) as problem:
        causes(tmp_path, ONE.replace(old, new, 1))
    assert FILE in str(problem.value)


def test_a_cause_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'overflow' is there twice"):
        causes(tmp_path, ONE + ONE.removeprefix("version = 1\n"))


def test_every_cause_is_provoked_by_a_defect_and_every_defect_has_one() -> None:
    known = read_causes(GATES / FILE, IDS)
    faults, _ = (FAULTS, HEALTHY_VARIANTS)
    assert {cause.id for cause in known.all} == {fault.cause for fault in faults.values()}
