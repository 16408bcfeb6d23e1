"""The verdict is a function of the record, and nothing reads as success by being absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from assay.record.outcome import Outcome, Status
from assay.record.reading import read_run
from assay.record.run import Expected, Severity
from assay.record.verdict import Verdict
from assay.record.writing import append_outcome

from tests.samples import write_run


@pytest.mark.parametrize(
    ("primary", "secondary", "verdict", "code"),
    [
        (Status.PASSED, Status.PASSED, Verdict.RELEASE, 0),
        (Status.PASSED, Status.FAILED, Verdict.RELEASE_WITH_WARNINGS, 0),
        (Status.PASSED, Status.BLOCKED, Verdict.RELEASE_WITH_WARNINGS, 0),
        (Status.PASSED, Status.UNAVAILABLE, Verdict.RELEASE_WITH_WARNINGS, 0),
        (Status.PASSED, Status.ERROR, Verdict.RELEASE_WITH_WARNINGS, 0),
        (Status.PASSED, None, Verdict.HOLD, 1),
        (None, Status.PASSED, Verdict.HOLD, 1),
        *[
            (status, Status.PASSED, Verdict.HOLD, 1)
            for status in Status
            if status not in (Status.PASSED, Status.MISSING)
        ],
    ],
)
def test_the_verdict_follows_from_severity_and_status(
    tmp_path: Path, primary: Status | None, secondary: Status | None, verdict: Verdict, code: int
) -> None:
    run = read_run(write_run(tmp_path, {"p": ("primary", primary), "s": ("secondary", secondary)}))
    assert (run.verdict, run.verdict.exit_code) == (verdict, code)


def test_a_run_without_an_adapter_is_never_a_release(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", {"data_ok": ("secondary", Status.PASSED)}))
    assert run.verdict is Verdict.RELEASE
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["candidate"]["adapters"] = {}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert read_run(tmp_path / "run").verdict is Verdict.HOLD


def test_an_inconclusive_primary_gate_holds_unless_the_policy_warns(tmp_path: Path) -> None:
    gates: dict[str, tuple[str, Status | None]] = {"p": ("primary", Status.INCONCLUSIVE)}
    assert read_run(write_run(tmp_path / "a", gates)).verdict is Verdict.HOLD
    assert read_run(write_run(tmp_path / "b", gates, inconclusive="warn")).verdict is Verdict.RELEASE_WITH_WARNINGS


def test_a_gate_without_a_record_is_missing(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, {"p": ("primary", None)}))
    assert [gate.outcome.status for gate in run.gates] == [Status.MISSING]


def test_of_two_records_the_worse_stands(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {"p": ("primary", Status.FAILED)})
    append_outcome(folder, Outcome(gate="p", adapter=None, status=Status.PASSED))
    assert read_run(folder).verdict is Verdict.HOLD


def test_a_line_that_was_being_written_when_the_run_died_counts_as_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {"p": ("primary", Status.PASSED), "s": ("secondary", Status.PASSED)})
    text = (folder / "gates.jsonl").read_text()
    (folder / "gates.jsonl").write_text(text[:-10])
    statuses = [gate.outcome.status for gate in read_run(folder).gates]
    assert statuses == [Status.PASSED, Status.MISSING]


def test_expected_is_keyed_by_gate_and_adapter() -> None:
    gate = Expected(gate="merge_ok", route="gguf", severity=Severity.SECONDARY, candidate="c", adapter="style")
    assert gate.key == ("merge_ok", "style")
