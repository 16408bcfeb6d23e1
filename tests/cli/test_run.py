"""`assay run`: which folder it judges into, what it passes on, and gates of the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from assay import paths
from assay.cli.run import needs_quickstart
from assay.inputs.bases import EMBEDDED
from assay.record.outcome import Status
from assay.record.reading import Run, read_run
from assay.record.run import Severity

from tests.samples import write_adapter

OWN_GATE = '''
from assay.gating.gate import gate


@gate("small_rank_ok", per="adapter")
def test_small_rank(adapter, sound_adapter):
    """The adapter's rank is small."""
    assert (sound_adapter.path / "adapter_config.json").exists()


@gate("never_ok", per="run")
def test_never():
    """No run passes this gate."""
    assert False, "never"
'''


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    shapes = {f"model.layers.{block}.self_attn.q_proj": (576, 576) for block in range(30)}
    return write_adapter(tmp_path / "adapter", shapes, base=EMBEDDED)


def assay_run(folder: Path, adapter: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", "run", "--base", EMBEDDED, f"--adapter=x={adapter}", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def severities(run: Run) -> dict[str, Severity]:
    return {gate.expected.gate: gate.expected.severity for gate in run.gates}


@pytest.mark.slow(seconds=5)
@pytest.mark.needs_toolchain
def test_gates_of_ones_own_use_the_prerequisites_and_are_secondary_unless_the_policy_says(
    adapter: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "test_own.py").write_text(OWN_GATE)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--no-such-option'\n")
    done = assay_run(tmp_path, adapter, "--gates", "own", "--run", "run", "-k", "rank or never or adapter_files")
    assert done.returncode == 1, done.stdout + done.stderr
    run = read_run(tmp_path / "run")
    seen = {gate.expected.gate: gate.outcome.status for gate in run.gates}
    assert (seen["small_rank_ok"], seen["never_ok"], seen["adapter_files_ok"], seen["merge_ok"]) == (
        Status.PASSED,
        Status.FAILED,
        Status.PASSED,
        Status.MISSING,
    )
    assert list(severities(run).items())[-2:] == [
        ("small_rank_ok", Severity.SECONDARY),
        ("never_ok", Severity.SECONDARY),
    ]
    assert (tmp_path / ".pytest_cache").is_dir(), "--lf works, and the gates' folder stays as it is"


@pytest.mark.needs_toolchain
def test_a_folder_without_gates_is_refused(adapter: Path, tmp_path: Path) -> None:
    done = assay_run(tmp_path, adapter, "--gates", str(adapter), "--run", "run")
    assert done.returncode == 2
    assert "no gate there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.needs_toolchain
def test_an_id_that_is_taken_is_refused(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "test_own.py").write_text(OWN_GATE.replace("never_ok", "merge_ok"))
    done = assay_run(tmp_path, adapter, "--gates", "own", "--run", "run")
    assert done.returncode == 2
    assert "test_own.py::test_never: another gate has the id 'merge_ok'" in done.stderr


def test_the_quickstart_is_trained_only_where_no_candidate_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "QUICKSTART", tmp_path / "candidate.json")
    assert needs_quickstart(["-k", "bnb"])
    for named in (["--base", "x"], ["--base=x"], ["-x", "--candidate", "c.json"]):
        assert not needs_quickstart(named)
    paths.QUICKSTART.touch()
    assert not needs_quickstart([])


@pytest.mark.needs_toolchain
def test_an_older_record_in_the_folder_is_not_judged(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("an older record")
    done = assay_run(tmp_path, adapter, "--run=run")
    assert done.returncode == 2
    assert "not an empty folder" in done.stderr
