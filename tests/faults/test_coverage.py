"""What is counted, how the page is made, and what is said when the page is stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from assay import paths
from assay.cli import faults as command
from assay.errors import InputError
from assay.faults.coverage import coverage, missed, rates, summary
from assay.faults.coverage_page import read_measured_with, render, staleness
from assay.faults.digests import HERE, measured_with
from assay.faults.fault import BASELINE
from assay.faults.result import CaseResult
from assay.faults.runner import FaultRunner
from assay.record.outcome import Status

NOW = {"gates": "aa", "policy": "bb", "causes": "cc", "steps": "dd", "faults": "ee"}


def result(name: str, **statuses: Status) -> CaseResult:
    return CaseResult(name=name, statuses={gate: status.value for gate, status in statuses.items()}, seconds=1.0)


@pytest.fixture
def data(runner: FaultRunner) -> dict[str, Any]:
    """Coverage of one fault missed, one caught without its cause, one variant failed, one not applicable."""
    results = [
        result(BASELINE, adapter_files_ok=Status.PASSED),
        result("b_all_zero", adapter_files_ok=Status.PASSED),
        CaseResult(
            name="nan_in_adapter",
            statuses={"adapter_files_ok": "failed", "merge_ok": "blocked"},
            causes={"adapter_files_ok": ["adapter-untrained", "adapter-diverged"]},
        ),
        result("rslora", adapter_files_ok=Status.FAILED),
        CaseResult(name="dora", not_applicable="no such thing"),
    ]
    return coverage(runner, results)


def test_a_gate_catches_what_it_does_not_say_of_the_baseline() -> None:
    baseline = result(BASELINE, a=Status.PASSED, b=Status.FAILED, c=Status.PASSED)
    assert result("x", a=Status.FAILED, b=Status.FAILED, c=Status.UNAVAILABLE).caught_by(baseline) == ["a", "c"]
    odd = result("x", a=Status.ERROR, b=Status.FAILED, c=Status.INCONCLUSIVE)
    assert (odd.caught_by(baseline), odd.alarms(baseline)) == ([], ["a"])


def test_a_missed_fault_and_a_false_alarm_are_counted(data: dict[str, Any]) -> None:
    assert missed(data) == ["b_all_zero"]
    assert rates(data) == {"silent": (1, 2), "all": (1, 2), "named": (0, 2), "alarms": (1, 2), "fits": (0, 2)}
    assert summary(data)[:2] == [
        "1 of 2 silent faults caught (50.0 %, at least 2.5 %)",
        "1 of 2 faults caught (50.0 %, at least 2.5 %)",
    ]


def test_the_page_shows_every_case(data: dict[str, Any]) -> None:
    page = render(data, NOW)
    module = "[adapters](../harness/assay/faults/cases/adapters.py)"
    title = "Every lora_B is zero: the adapter was saved before the first step, or from one shard of the weights."
    assert f"| `b_all_zero`: {title} | {module} | silent | **missed** |  | 0 | 1 |" in page
    assert "| `adapter_files_ok` | `nan_in_adapter` (adapters) | 0 |" in page
    assert "| `rslora`: rsLoRA: the scale is alpha / √r. | `adapter_files_ok` | 1 |" in page
    assert "not applicable: no such thing" in page
    assert "`template_wrong_everywhere`" in page


def test_the_page_is_made_from_the_data_alone(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.dumps(data)
    page = render(data, NOW)
    for registry in ("FAULTS", "HEALTHY_VARIANTS", "OUT_OF_REACH"):
        monkeypatch.setattr(f"assay.faults.coverage.{registry}", {})
    monkeypatch.chdir("/")
    assert render(json.loads(before), NOW) == page
    assert json.dumps(data) == before


def test_the_page_carries_what_it_was_measured_with(data: dict[str, Any]) -> None:
    assert read_measured_with(render(data, NOW)) == data["measured_with"] == measured_with()
    assert read_measured_with("# What the gates catch\n") == {}


@pytest.mark.parametrize(
    ("file", "part"),
    [("test_gguf.py", "gates"), ("probes/code.txt", "gates"), ("policy.toml", "policy"), ("causes.toml", "causes")],
)
def test_a_change_of_a_gate_changes_the_digest_of_its_part(file: str, part: str, tmp_path: Path) -> None:
    before, copy = measured_with(), Path(shutil.copytree(paths.GATES, tmp_path / "gates"))
    assert measured_with(gates=copy) == before
    (copy / file).write_text((copy / file).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    after = measured_with(gates=copy)
    assert [name for name in before if after[name] != before[name]] == [part]


@pytest.mark.parametrize("file", ["cases/bnb.py", "edits/models.py", "runner.py"])
def test_a_change_of_a_fault_changes_the_digest_of_the_faults(file: str, tmp_path: Path) -> None:
    before, copy = measured_with(), Path(shutil.copytree(HERE, tmp_path / "faults"))
    (copy / file).write_text((copy / file).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    after = measured_with(faults=copy)
    assert [name for name in before if after[name] != before[name]] == ["faults"]


def test_staleness_names_what_changed() -> None:
    assert staleness(NOW, NOW) == ""
    assert staleness(NOW | {"gates": "x", "steps": "y"}, NOW).startswith("stale: gates, steps changed since")
    assert staleness({}, NOW).startswith("stale: gates, policy, causes, steps, faults changed since")


def test_a_stale_page_is_said_to_be_stale_and_is_no_failure(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "coverage.md"
    monkeypatch.setattr(command, "PAGE", page)
    with pytest.raises(InputError, match="not found"):
        command.say_whether_stale()
    page.write_text(render(data, measured_with()), encoding="utf-8")
    assert "stale" not in page.read_text(encoding="utf-8")
    assert command.say_whether_stale() == 0
    assert capsys.readouterr().out == f"{page} was measured with this code.\n"
    data["measured_with"]["causes"] = "0123456789abcdef"
    page.write_text(render(data, measured_with()), encoding="utf-8")
    assert "**This page is stale: causes changed since it was measured." in page.read_text(encoding="utf-8")
    assert command.say_whether_stale() == 0
    assert capsys.readouterr().out.startswith(f"{page} is stale: causes changed since it was measured.")
