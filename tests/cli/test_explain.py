"""`assay explain` says why, what to do, and what to send where nobody knows why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from assay import paths
from assay.cli.explain import explain
from assay.errors import InputError
from assay.record.outcome import Diagnosis, Outcome, Status
from assay.record.reading import read_run
from assay.record.rendering import write_reports
from assay.record.text import terminal_lines
from assay.record.writing import append_outcome

from tests.samples import write_run

FOUND = Diagnosis(
    id="overflow",
    cause="A value [bold]overflowed[/] <b>F16</b>.",
    fix="nox -s gates -- --gguf-dtype bf16",
    link="https://example.org/1",
    affects="llama.cpp before b9",
    evidence=("fact largest: 1e5",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gates: dict[str, tuple[str, Status | None]] = {
        "good_ok": ("primary", Status.PASSED),
        "known_ok": ("secondary", None),
        "odd_ok": ("primary", None),
        "behind_ok": ("secondary", None),
    }
    run = write_run(tmp_path / "run", gates)
    for outcome in (
        Outcome(gate="known_ok", adapter=None, status=Status.FAILED, reason="w holds 1e5", causes=(FOUND,)),
        Outcome(gate="odd_ok", adapter=None, status=Status.FAILED, reason="nobody\x1b[31m knows"),
        Outcome(gate="behind_ok", adapter=None, status=Status.BLOCKED, reason="w", blocked_by="known_ok"),
    ):
        append_outcome(run, outcome)
    return run


def said(capsys: pytest.CaptureFixture[str], folder: Path, gate: str | None = None) -> str:
    explain(folder, gate)
    return capsys.readouterr().out


def test_a_known_cause_comes_with_its_fix_its_evidence_and_its_link(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, folder)
    assert "cause: A value [bold]overflowed[/] <b>F16</b>." in text, "what a file says is not mark-up"
    assert "fix:   nox -s gates -- --gguf-dtype bf16" in text
    assert "seen:  fact largest: 1e5" in text
    assert "llama.cpp before b9, https://example.org/1" in text


def test_an_unknown_cause_says_what_to_send(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, folder, "odd_ok")
    assert "cause: unknown" in text
    assert str(folder / "gates.jsonl") in text
    assert "\x1b[31m" not in text
    assert "known_ok" not in text


def test_what_is_blocked_is_told_by_culprit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "blocked by known_ok, and never tested: behind_ok" in said(capsys, folder)
    assert "assay explain" in said(capsys, folder, "behind_ok")


def test_a_gate_that_is_not_there_names_the_nearest(folder: Path) -> None:
    with pytest.raises(InputError, match=r"unknown gate 'know_ok'\. Did you mean 'known_ok'\?"):
        explain(folder, "know_ok")


def test_the_record_keeps_causes_and_every_rendering_shows_them_first(folder: Path) -> None:
    known = next(gate for gate in read_run(folder).gates if gate.expected.gate == "known_ok")
    assert known.outcome.causes == (FOUND,)
    write_reports(folder)
    html = (folder / "report.html").read_text()
    assert html.index("What to do") < html.index("<h2>Gates</h2>")
    assert html.index("odd_ok") < html.index("known_ok"), "what holds the release comes first"
    assert "&lt;b&gt;F16&lt;/b&gt;" in html
    assert "nox -s gates -- --gguf-dtype bf16" in html
    assert "Not tested, because this gate blocks them: behind_ok" in html
    assert "The cause is not known" in html
    assert "nox -s gates" in (folder / "summary.md").read_text()
    assert any(line.strip().startswith("fix:") for line in terminal_lines(read_run(folder)))


def test_the_command_takes_a_gate_of_a_run(folder: Path) -> None:
    command = [sys.executable, "-m", "assay", "explain", str(folder), "known_ok"]
    done = subprocess.run(command, cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, "fix:" in done.stdout) == (0, True), done.stderr
