"""Causes are named by failure code, typed facts and tools' logs, the one that asks for most first."""

from __future__ import annotations

from pathlib import Path

import pytest
from assay.errors import InputError
from assay.faults.catalogue import FAULTS
from assay.gating.causes import FILE, Causes, read_causes
from assay.gating.gate import read_gates
from assay.paths import GATES
from assay.record.outcome import Outcome, Status
from assay.steps.catalogue import Merge
from assay.steps.step import StepUse

from tests.gates.healthy import HEALTHY

IDS = [gate.id for gate in read_gates(GATES)]
ONE = """version = 1
[[cause]]
id = "overflow"
codes = ["overflows"]
gates = ["merge_ok"]
when = "is_large"
log = 'overflow in (?P<where>\\w+)'
cause = "$largest_absolute_value is too large in $where, for $adapter ($file)."
fix = "use bf16"
"""
OTHER = """[[cause]]
id = "other"
codes = ["overflows", "dtype"]
cause = "something else"
fix = "do something else"
"""
PREDICATES = """
from assay.steps.merge import MergedCheckpoint

def is_large(facts: MergedCheckpoint) -> bool:
    \"\"\"A weight is above 65504.\"\"\"
    return facts.largest_absolute_value > 65504
"""


def causes(tmp_path: Path, text: str) -> Causes:
    (tmp_path / "predicates.py").write_text(PREDICATES)
    (tmp_path / FILE).write_text(text)
    return read_causes(tmp_path / FILE, IDS)


def outcome(tmp_path: Path, *, log: str = "", code: str = "overflows", largest: float = 1e5) -> Outcome:
    (tmp_path / "log.txt").write_text(log)
    use = StepUse(step="s", digest="0", seconds=0.0, peak_rss_bytes=0, reused_from=None, log="log.txt")
    facts = {**HEALTHY[Merge.compared].model_dump(), "largest_absolute_value": largest}
    return Outcome(
        gate="merge_ok",
        adapter="style",
        status=Status.FAILED,
        code=code,
        details={"file": "x.safetensors"},
        facts={Merge.compared.id: facts},
        steps=(use,),
    )


def named(found: Causes, tmp_path: Path, seen: Outcome, gate: str = "merge_ok") -> list[str]:
    return [finding.id for finding in found.fitting(tmp_path, gate, seen)]


LOG = "overflow in cast"


def test_the_cause_that_asks_for_more_comes_first_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    known = causes(tmp_path, "version = 1\n" + OTHER + ONE.removeprefix("version = 1\n"))
    assert named(known, tmp_path, outcome(tmp_path, log=LOG)) == ["overflow", "other"]
    assert named(known, tmp_path, outcome(tmp_path)) == ["other"], "its log is not there"


def test_its_texts_name_what_was_seen(tmp_path: Path) -> None:
    known = causes(tmp_path, ONE)
    (finding,) = known.fitting(tmp_path, "merge_ok", outcome(tmp_path, log=LOG))
    assert finding.cause == "1e+05 is too large in cast, for style (x.safetensors)."
    assert finding.evidence == (
        "failure code: overflows",
        "facts: A weight is above 65504.",
        "log: overflow in cast",
    )


def test_without_all_that_it_asks_for_nothing_is_named(tmp_path: Path) -> None:
    known = causes(tmp_path, ONE)
    assert named(known, tmp_path, outcome(tmp_path, log=LOG, largest=9.0)) == []
    assert named(known, tmp_path, outcome(tmp_path, log=LOG, code="dtype")) == []
    assert named(known, tmp_path, outcome(tmp_path, log=LOG), gate="convert_f16_ok") == []
    without_facts = outcome(tmp_path, log=LOG)
    without_facts.facts.clear()
    assert named(known, tmp_path, without_facts) == [], "facts that are not there are no evidence"


def test_facts_of_another_version_are_no_evidence_and_no_error(tmp_path: Path) -> None:
    seen = outcome(tmp_path, log=LOG)
    seen.facts[Merge.compared.id]["a_fact_of_the_future"] = 1
    assert named(causes(tmp_path, ONE), tmp_path, seen) == []


def test_a_log_that_is_gone_is_no_evidence_and_no_error(tmp_path: Path) -> None:
    seen = outcome(tmp_path, log=LOG)
    (tmp_path / "log.txt").unlink()
    assert named(causes(tmp_path, ONE + OTHER), tmp_path, seen) == ["other"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("fix =", "fixx =", "fix"),
        ("merge_ok", "merge_okay", "merge_okay"),
        ('codes = ["overflows"]', 'codes = "overflows"', "codes"),
        ('when = "is_large"', 'when = "is_larg"', "is_larg"),
        ("overflow in (", "overflow in ((", "a regular expression"),
        ("version = 1", "version = 2", "version"),
        ("[[cause]]", "[[cause]", "not valid TOML"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as problem:
        causes(tmp_path, ONE.replace(old, new, 1))
    assert FILE in str(problem.value)


def test_a_cause_asks_for_a_code_or_a_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected failure codes, or a pattern"):
        causes(tmp_path, OTHER.replace('codes = ["overflows", "dtype"]\n', "").join(["version = 1\n", ""]))


def test_a_cause_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'overflow' is there twice"):
        causes(tmp_path, ONE + ONE.removeprefix("version = 1\n"))


def test_every_cause_is_provoked_by_a_fault_and_every_fault_has_one() -> None:
    known = read_causes(GATES / FILE, IDS)
    assert {cause.id for cause in known.all} == {fault.cause for fault in FAULTS.values()}
