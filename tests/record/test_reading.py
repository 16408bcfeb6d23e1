"""What is written is read again; what cannot be read is never a verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from assay.errors import AssayError
from assay.files import write_json
from assay.record.outcome import Outcome, Status, facts_by_name
from assay.record.reading import newest_run, read_run
from assay.record.rendering import RENDERINGS, write_reports
from assay.record.text import terminal_lines
from assay.record.verdict import Verdict

from tests.samples import write_run

VERSION_1 = Path(__file__).parent / "version-1"
"""A record of version 1: eight gates of the example at commit 7748b23."""


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


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("run.json", '"severity": "primary"', '"severity": "vital"', "expected.0.severity: .* 'vital' seen"),
        ("run.json", '"revision"', '"revison"', "candidate.revision: Field required"),
        ("run.json", '"version": 2', '"version": 3', "version 3 seen, this Assay reads 1 and 2"),
        ("gates.jsonl", '"reason"', '"raeson"', "line 1: .*raeson: Extra inputs are not permitted"),
        ("gates.jsonl", '"status": "passed"', '"status": "great"', "line 1: .*status: .* 'great' seen"),
    ],
)
def test_an_error_names_the_file_the_key_and_what_was_seen(
    tmp_path: Path, file: str, old: str, new: str, told: str
) -> None:
    path = write_run(tmp_path, {"p": ("primary", Status.PASSED)}) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(AssayError, match=f"{file}.*{told}"):
        read_run(tmp_path)


def test_an_outcome_survives_its_line() -> None:
    outcome = Outcome(
        gate="g",
        adapter="a",
        status=Status.FAILED,
        reason="é\n<b>",
        code="tensors-missing",
        details={"count": 2, "largest": 1.5, "tensor": "w"},
        facts={"Z.first": {"n": [1, 2], "both": 1}, "A.second": {"both": 2}},
    )
    again = Outcome.from_json(outcome.to_json())
    assert again == outcome
    assert facts_by_name(again) == {"n": [1, 2], "both": 2}, "the later stage counts, whatever its name"


def test_a_number_that_is_not_finite_is_json_and_can_be_read_again() -> None:
    nan, inf = float("nan"), float("inf")
    outcome = Outcome(
        gate="g", adapter=None, status=Status.FAILED, details={"loss": nan}, facts={"S.s": {"kl": inf, "all": [nan]}}
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(outcome.to_json(), parse_constant=refuse)
    again = Outcome.from_json(outcome.to_json())
    assert (again.details, again.facts) == ({"loss": "nan"}, {"S.s": {"kl": None, "all": [None]}})


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, loop)
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_record_of_version_1_has_the_verdict_that_it_had() -> None:
    run = read_run(VERSION_1)
    assert run.verdict is Verdict.RELEASE_WITH_WARNINGS
    assert [gate.outcome.gate for gate in run.gates if not gate.passed] == ["q4_task_ok"]
    facts: dict[str, Any] = facts_by_name(next(one.outcome for one in run.gates if one.outcome.gate == "merge_ok"))
    assert facts["checkpoint_bytes"] > 0, "facts of version 1 are found by their names"
    assert run.record.training is not None
    assert run.record.training.versions == {"torch": "2.13.0+cpu"}


def test_every_rendering_of_a_record_of_version_1_still_works(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(VERSION_1, folder)
    assert [path.name for path in write_reports(folder)] == list(RENDERINGS)
    html, markdown = ((folder / name).read_text() for name in ("report.html", "summary.md"))
    for part in ("RELEASE WITH WARNINGS", "checkpoint bytes", "Q4_K_M GGUF", "Evaluation", "Answers", "Where quality"):
        assert part in html, part
    assert markdown.startswith("# RELEASE WITH WARNINGS")
    assert "1 inconclusive" in markdown
    suite = ElementTree.parse(folder / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("skipped")) == ("8", "1")
    assert terminal_lines(read_run(folder))[-2].startswith("RELEASE WITH WARNINGS: 7 of 8 gates passed")
