"""The faults: its fast subset for real, what it says of what it saw, and that nothing of the user's is touched."""

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
from assay.faults.coverage import measured, missed, rates, render, summary
from assay.faults.fault import OUT_OF_REACH, Place
from assay.faults.runner import HEALTHY, FaultRunner, Judged
from assay.files import digest_files
from assay.gating.gate import read_gates
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.candidate import read_candidate
from assay.inputs.dataset import read_dataset
from assay.record.record import Status

from tests.samples import write_adapter

pytestmark = [pytest.mark.slow(seconds=160), pytest.mark.needs_toolchain]

FAULTS, HEALTHY_VARIANTS = (FAULTS, HEALTHY_VARIANTS)
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
def shown(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fast subset, run."""
    folder = tmp_path_factory.mktemp("shown")
    before = _contents(candidate.parent)
    done = faults(
        "--quick", "--jobs", str(len(os.sched_getaffinity(0))), "--candidate", str(candidate), "--run", str(folder)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _contents(candidate.parent) == before, "what is broken is a copy"
    return folder


def _contents(folder: Path) -> str:
    return digest_files(folder, sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))


def _data(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "coverage.json").read_text())
    return found


def test_the_fast_subset_catches_every_defect_where_it_should_and_names_its_cause(shown: Path) -> None:
    data = _data(shown)
    assert set(data["faults"]) == {name for name, one in FAULTS.items() if one.quick}
    for name, one in data["faults"].items():
        assert one["not_here"] is None, name
        assert one["caught_by"][:1] == [FAULTS[name].first], name
        assert one["cause_named_by"], name


def test_the_fast_subset_says_nothing_against_healthy_variants(shown: Path) -> None:
    data = _data(shown)
    assert set(data["variants"]) == {name for name, one in HEALTHY_VARIANTS.items() if one.quick}
    for name, one in data["variants"].items():
        assert (one["alarms"], one["causes_that_fit"]) == ([], []), name
        assert one["not_here"] is None or "bitsandbytes" in one["not_here"], name


def test_what_was_judged_is_kept_and_judged_again_only_when_it_has_to_be(candidate: Path, shown: Path) -> None:
    case = shown / "b_all_zero" / "case.json"
    kept, other = case.stat().st_mtime_ns, shown / "nan_in_adapter" / "case.json"
    other.write_text(other.read_text().replace('"digest": "', '"digest": "of another time '))
    given = ("b_all_zero", "nan_in_adapter", "--quick", "--candidate", str(candidate), "--run", str(shown))
    assert faults(*given).returncode == 0
    assert case.stat().st_mtime_ns == kept
    assert "of another time" not in other.read_text()


def test_a_wrong_name_and_a_missing_candidate_are_one_sentence(candidate: Path, tmp_path: Path) -> None:
    done = faults("no_such_thing", "--candidate", str(candidate), "--run", str(tmp_path))
    assert (done.returncode, "unknown key 'no_such_thing'" in done.stderr, "Traceback" in done.stderr) == (
        2,
        True,
        False,
    )
    done = faults("--candidate", str(tmp_path / "none.json"))
    assert (done.returncode, "not found" in done.stderr) == (2, True)
    done = faults("--publish", "--quick", "--candidate", str(candidate))
    assert (done.returncode, "leave out --quick" in done.stderr) == (2, True)


def test_the_list_names_everything_and_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    command = [sys.executable, "-m", "assay", "faults", "--list"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=paths.REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in (*FAULTS, *HEALTHY_VARIANTS, *(one.name for one in OUT_OF_REACH)):
        assert name in done.stdout


def test_fault_injection_is_as_large_as_it_must_be_and_everywhere() -> None:
    assert len(FAULTS) >= 60
    assert len(HEALTHY_VARIANTS) >= 50
    assert {one.place for one in FAULTS.values()} == set(Place)
    assert {one.first for one in FAULTS.values()} == {gate.id for gate in read_gates(paths.GATES)}
    for one in (*FAULTS.values(), *HEALTHY_VARIANTS.values()):
        assert one.title.endswith("."), one.name


def canned(name: str, **statuses: Status) -> Judged:
    return Judged(name=name, statuses={gate: status.value for gate, status in statuses.items()}, seconds=1.0)


def test_only_what_the_healthy_candidate_has_not_is_caught() -> None:
    healthy = canned(HEALTHY, a=Status.PASSED, b=Status.FAILED, c=Status.PASSED)
    assert canned("x", a=Status.FAILED, b=Status.FAILED, c=Status.UNAVAILABLE).caught_by(healthy) == ["a", "c"]
    odd = canned("x", a=Status.ERROR, b=Status.FAILED, c=Status.INCONCLUSIVE)
    assert (odd.caught_by(healthy), odd.alarms(healthy)) == ([], ["a"])


def test_a_missed_defect_and_a_false_alarm_are_told(candidate: Path, tmp_path: Path) -> None:
    runner = FaultRunner(read_candidate(candidate), tmp_path)
    judged = [
        canned(HEALTHY, adapter_files_ok=Status.PASSED),
        canned("b_all_zero", adapter_files_ok=Status.PASSED),
        Judged(
            name="nan_in_adapter",
            statuses={"adapter_files_ok": "failed"},
            causes={"adapter_files_ok": ["adapter-untrained", "adapter-diverged"]},
        ),
        canned("rslora", adapter_files_ok=Status.FAILED),
        Judged(name="dora", not_here="no such thing"),
    ]
    data = measured(runner, judged)
    assert missed(data) == ["b_all_zero"]
    assert rates(data) == {"silent": (1, 2), "all": (1, 2), "named": (0, 2), "alarms": (1, 2), "fits": (0, 2)}
    assert summary(data)[0] == "1 of 2 silent faults caught (50.0 %, at least 2.5 %)"
    text = render(data)
    assert "| **missed** |" in text
    assert "| `rslora`: rsLoRA: the scale is alpha / √r. | `adapter_files_ok` |" in text
    assert "not here: no such thing" in text
