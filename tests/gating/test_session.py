"""What a run's folder holds once pytest has begun and once it has ended, whatever becomes of the doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from assay import paths
from assay.gating import preflight, session
from assay.gating.examination import Examination, Finding, Level
from assay.gating.session import GatesSession
from assay.record.outcome import Status
from assay.record.reading import read_run
from assay.record.verdict import Verdict

from tests.record.test_schema import assert_fits

GIVEN = ["--base", "./nowhere", "--adapter", "style=./none"]


def start(run: Path) -> GatesSession:
    """Begin a run of a candidate that does not exist, without pytest."""
    options: dict[str, Any] = {"--base": "./nowhere", "--adapter": ["style=./none"], "--run": str(run)}
    options |= {"--max-new-tokens": 8, "--deadline": 1.0, "--gates": []}
    hook = SimpleNamespace(pytest_assay_executor=lambda config: None)
    config = SimpleNamespace(
        hook=hook, getoption=lambda name, default=None: options.get(name, default), option=SimpleNamespace()
    )
    return GatesSession.start(cast(pytest.Config, config), paths.GATES)


def examine(examination: Examination) -> Iterator[tuple[str, list[Finding], float]]:
    """A doctor that finds one thing and then breaks."""
    yield "disk", [Finding(check="disk", level=Level.STOPS, text="no room\nat all", fix="free some")], 0.0
    raise KeyError("broken")


def test_a_doctor_that_breaks_is_a_finding_and_the_gates_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "examine", examine)
    begun = start(tmp_path)
    assert [one.check for one in read_run(tmp_path).record.doctor] == ["disk", "doctor"]
    assert begun.runner.no_room == "no room\nat all. free some"
    assert begun.header() == [
        "assay doctor: disk: no room",
        "assay doctor: doctor: the doctor broke: KeyError: 'broken'",
        "assay doctor: no step that holds a model begins",
    ]


def test_a_run_that_is_interrupted_while_the_doctor_looks_still_expects_its_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "preflight", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path)
    run = read_run(tmp_path)
    assert run.verdict is Verdict.HOLD
    assert {gate.outcome.status for gate in run.gates} == {Status.MISSING}


def test_run_json_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "examine", lambda examination: iter([]))
    written = []
    monkeypatch.setattr(session, "write_record", lambda folder, record: written.append(folder))
    start(tmp_path)
    assert written == [tmp_path]


def test_the_record_of_a_run_fits_the_schemas_and_explains_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "gates", "-q", "-p", "no:cacheprovider", *GIVEN, "--run", str(tmp_path)]
    done = subprocess.run(
        [*command, "-k", "adapter_files or base_quant"], cwd=paths.REPOSITORY, capture_output=True, text=True
    )
    assert (tmp_path / "gates.jsonl").exists(), done.stdout + done.stderr
    assert_fits(tmp_path)
    expected = json.loads((tmp_path / "run.json").read_text())["expected"]
    assert all(gate["title"] and gate["guide"] for gate in expected)
