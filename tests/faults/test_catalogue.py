"""The list of cases: whole, everywhere, readable by people and by grep, and free of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from assay import paths
from assay.cli.faults import listing
from assay.errors import InputError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS, OUT_OF_REACH
from assay.faults.fault import BASELINE, Area
from assay.faults.runner import FaultRunner
from assay.gating.gate import read_gates
from assay.inputs.candidate import Candidate


def test_there_are_as_many_cases_as_there_must_be_and_in_every_area() -> None:
    assert len(FAULTS) >= 60
    assert len(HEALTHY_VARIANTS) >= 50
    assert {one.area for one in FAULTS.values()} == set(Area)
    for one in (*FAULTS.values(), *HEALTHY_VARIANTS.values()):
        assert one.title.endswith("."), one.name


def test_every_gate_is_first_to_catch_a_fault() -> None:
    assert {one.first for one in FAULTS.values()} == {gate.id for gate in read_gates(paths.GATES)}


def test_the_gates_id_leads_to_the_fault() -> None:
    for one in FAULTS.values():
        source = (paths.PACKAGE / "faults" / "cases" / f"{one.module}.py").read_text(encoding="utf-8")
        before, _, _ = source.partition(f"\ndef {one.name}(")
        decorator = before.rpartition("@fault(")[2]
        assert f'first="{one.first}"' in decorator, one.name


def test_the_list_shows_all_of_a_fault_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing() == 0
    lines = capsys.readouterr().out.splitlines()
    for one in FAULTS.values():
        line = next(line for line in lines if line.startswith(f"{one.name} "))
        loudness = "silent" if one.silent else "loud"
        for part in (one.area.value, loudness, one.first, one.cause, f"faults/cases/{one.module}.py"):
            assert part in line, one.name
    for name in (*HEALTHY_VARIANTS, *(one.name for one in OUT_OF_REACH)):
        assert any(f"  {name}: " in line for line in lines), name


def test_the_list_needs_no_torch(tmp_path: Path) -> None:
    for name in ("torch", "safetensors", "transformers", "peft"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "assay", "faults", "--list"]
    done = subprocess.run(command, cwd=paths.REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(FAULTS) <= set(done.stdout.split())


def test_cases_are_chosen_by_name_after_the_baseline(
    runner: FaultRunner, named_candidate: Candidate, tmp_path: Path
) -> None:
    assert [one.name for one in runner.cases(["nan_in_base", BASELINE])] == [BASELINE, "nan_in_base"]
    assert [one.name for one in runner.cases()] == [BASELINE, *FAULTS, *(n for n in HEALTHY_VARIANTS if n != BASELINE)]
    quick = FaultRunner(named_candidate, tmp_path, quick=True).cases()
    assert all(one.quick for one in quick)
    assert len(quick) > 40
    with pytest.raises(InputError, match=r"unknown case 'nan_in_bass'. Did you mean 'nan_in_base'\?"):
        runner.cases(["nan_in_bass"])
