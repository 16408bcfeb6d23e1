"""The verdict is a function of the record, and nothing reads as success by being absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from assay.errors import AssayError
from assay.files import write_json
from assay.record.record import Expected, Outcome, Severity, Status, Verdict, append_outcome, newest_run, read_run

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


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', "{not json"])
def test_a_broken_run_json_cannot_be_judged(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(AssayError, match="cannot be read"):
        read_run(tmp_path)


def test_a_broken_line_within_the_record_cannot_be_judged(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {"p": ("primary", Status.PASSED)})
    (folder / "gates.jsonl").write_text("garbage\n" + (folder / "gates.jsonl").read_text())
    with pytest.raises(AssayError, match="cannot be read"):
        read_run(folder)


def test_a_run_that_expects_nothing_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="no gate is expected"):
        read_run(write_run(tmp_path, {}))


def test_the_newest_run_is_by_its_own_time_and_never_the_example(tmp_path: Path) -> None:
    for name, started in (("old", "2026-01-01"), ("new", "2026-02-01"), ("example", "2027-01-01")):
        write_run(tmp_path / name, {"p": ("primary", Status.PASSED)}, started_at=started)
    assert newest_run(tmp_path).name == "new"


def test_an_outcome_survives_its_line() -> None:
    outcome = Outcome(gate="g", adapter="a", status=Status.FAILED, reason="é\n<b>", facts={"Step.stage": {"n": [1, 2]}})
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, loop)
    assert json.loads(path.read_text()) == {"a": 1}


def test_expected_is_keyed_by_gate_and_adapter() -> None:
    gate = Expected(gate="merge_ok", route="gguf", severity=Severity.SECONDARY, candidate="c", adapter="style")
    assert gate.key == ("merge_ok", "style")
