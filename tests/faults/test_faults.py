"""The quick cases, for real: which gate catches each, that healthy variants pass, and that only copies are altered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from assay import paths
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.files import digest_files
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.dataset import read_dataset

from tests.samples import write_adapter

pytestmark = [pytest.mark.slow(seconds=160), pytest.mark.needs_toolchain]

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candidate.json with an adapter that was never trained, and the dataset that it says it was trained on."""
    folder, data, base = tmp_path_factory.mktemp("faults"), paths.REPOSITORY / "train" / "data", find_base(EMBEDDED)
    shapes = {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in base.tensors.items()
        if any(kind in name for kind in KINDS)
    }
    adapter = write_adapter(folder / "adapter_style", shapes, base=EMBEDDED, rank=16, scale=0.01)
    recipe = {"adapters": {"style": ["style"]}, "language": "en", "max_tokens": 512}
    record = {
        "version": 1,
        "name": "stand-in",
        "base": {"id": EMBEDDED, "revision": None, "digest": base.digest},
        "adapters": {"style": {"path": str(adapter), "digest": None}},
        "training": {"recipe": recipe, "dataset": {"path": str(data), "digest": read_dataset(data).digest}},
    }
    (folder / "candidate.json").write_text(json.dumps(record))
    return folder / "candidate.json"


def faults(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", "faults", *arguments]
    return subprocess.run(command, cwd=paths.REPOSITORY, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="session")
def judged(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all quick cases."""
    folder = tmp_path_factory.mktemp("judged")
    before = _contents(candidate.parent)
    done = faults(
        "--quick", "--jobs", str(len(os.sched_getaffinity(0))), "--candidate", str(candidate), "--run", str(folder)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _contents(candidate.parent) == before, "only copies are altered"
    return folder


def _contents(folder: Path) -> str:
    return digest_files(folder, sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))


def _coverage(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "coverage.json").read_text())
    return found


def test_every_quick_fault_is_caught_by_its_first_gate_with_its_cause(judged: Path) -> None:
    data = _coverage(judged)
    assert set(data["faults"]) == {name for name, one in FAULTS.items() if one.quick}
    for name, one in data["faults"].items():
        assert one["not_applicable"] is None, name
        assert one["caught_by"][:1] == [FAULTS[name].first], name
        assert one["cause_named_by"], name


def test_no_quick_gate_fails_on_a_healthy_variant(judged: Path) -> None:
    data = _coverage(judged)
    assert set(data["variants"]) == {name for name, one in HEALTHY_VARIANTS.items() if one.quick}
    for name, one in data["variants"].items():
        assert (one["alarms"], one["causes_that_fit"]) == ([], []), name
        assert one["not_applicable"] is None or "bitsandbytes" in one["not_applicable"], name


def test_a_judged_case_is_judged_again_only_when_what_it_depends_on_changed(candidate: Path, judged: Path) -> None:
    case = judged / "b_all_zero" / "case.json"
    kept, other = case.stat().st_mtime_ns, judged / "nan_in_adapter" / "case.json"
    other.write_text(other.read_text().replace('"digest": "', '"digest": "of another time '))
    given = ("b_all_zero", "nan_in_adapter", "--quick", "--candidate", str(candidate), "--run", str(judged))
    assert faults(*given).returncode == 0
    assert case.stat().st_mtime_ns == kept
    assert "of another time" not in other.read_text()


def test_a_wrong_name_and_a_missing_candidate_are_one_sentence(candidate: Path, tmp_path: Path) -> None:
    done = faults("no_such_thing", "--candidate", str(candidate), "--run", str(tmp_path))
    assert done.returncode == 2
    assert "unknown case 'no_such_thing'" in done.stderr
    assert "Traceback" not in done.stderr
    done = faults("--candidate", str(tmp_path / "none.json"))
    assert (done.returncode, "not found" in done.stderr) == (2, True)
    done = faults("--publish", "--quick", "--candidate", str(candidate))
    assert (done.returncode, "leave out --quick" in done.stderr) == (2, True)
