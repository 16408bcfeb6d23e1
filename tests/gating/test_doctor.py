"""The doctor foretells what a gate will say, from files alone, and stops a run in which nothing could pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from assay import paths
from assay.gating import checks, resources
from assay.gating.doctor import examine
from assay.gating.examination import Examination, Finding, Level
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.candidate import Candidate, given_candidate
from assay.record.outcome import Status
from assay.record.reading import Run, read_run
from assay.record.verdict import Verdict
from assay.steps.runner import Runner
from assay.steps.store import Store

from tests.samples import new_cache, write_adapter

pytestmark = pytest.mark.needs_toolchain

SHAPES = {f"model.layers.{block}.self_attn.q_proj": (576, 576) for block in range(30)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base of links and an adapter, to be broken."""
    base = tmp_path / "base"
    base.mkdir()
    for file in find_base(EMBEDDED).path.iterdir():
        (base / file.name).symlink_to(file)
    write_adapter(tmp_path / "adapter", SHAPES, base=str(base))
    return tmp_path


def candidate(folder: Path) -> Candidate:
    return given_candidate(str(folder / "base"), [f"style={folder / 'adapter'}"], None, None)


def edit(file: Path, **changes: object) -> None:
    data = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps({**data, **changes}))


def found(folder: Path, check: str) -> list[Finding]:
    (folder / "run").mkdir(exist_ok=True)
    bench = Runner(Store(folder / "store"), folder / "run", "run#1", say=lambda line: None)
    findings = {name: some for name, some, _ in examine(Examination(candidate(folder), bench))}
    return findings[check]


def worst(folder: Path, check: str) -> Finding:
    return max(found(folder, check), key=lambda finding: list(Level).index(finding.level))


def test_a_healthy_candidate_has_nothing_that_fails(folder: Path) -> None:
    (folder / "run").mkdir()
    bench = Runner(Store(folder / "store"), folder / "run", "run#1", say=lambda line: None)
    every = [one for _, some, _ in examine(Examination(candidate(folder), bench)) for one in some]
    assert {one.check for one in every} == {check.__name__ for check in checks.CHECKS}
    assert {one.level for one in every} <= {Level.FINE, Level.NOTE}, every


def test_a_base_that_cannot_be_used_is_told_in_its_gates_words_with_the_fix(folder: Path) -> None:
    (folder / "base" / "chat_template.jinja").unlink()
    one = worst(folder, "base")
    assert (one.level, one.gate) == (Level.FAILS, "base_quant_load_ok")
    assert "no chat template" in one.text
    assert "chat_template.jinja" in one.fix


def test_an_adapter_with_nan_is_told_before_anything_is_loaded(folder: Path) -> None:
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + np.float32("nan").tobytes())
    one = worst(folder, "adapters")
    assert (one.level, one.gate) == (Level.FAILS, "adapter_files_ok")
    assert "style: " in one.text
    assert "learning_rate" in one.fix


def test_an_end_token_that_nobody_serves_is_noted_and_none_at_all_fails(folder: Path) -> None:
    edit(folder / "base" / "generation_config.json", eos_token_id=0)
    assert worst(folder, "ends").level is Level.NOTE
    assert '"eos_token_id": 2' in worst(folder, "ends").fix
    edit(folder / "base" / "generation_config.json", eos_token_id=None)
    edit(folder / "base" / "config.json", eos_token_id=None)
    assert worst(folder, "ends").level is Level.FAILS


def test_forced_fallbacks_are_foreseen_with_their_price(folder: Path) -> None:
    text = worst(folder, "fallbacks").text
    # 30 layers of 7 matrices and the embedding; only the 30 ffn_down have rows (1536) that 256 divides.
    assert text.startswith(f"{30 * 7 + 1 - 30} of {30 * 7 + 1} matrices")
    assert "6.17 bits a weight" in text


def test_memory_that_holds_some_forms_fails_those_and_one_that_holds_none_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "card_bytes", lambda: None)
    monkeypatch.setattr(resources, "available_bytes", lambda: 1_900_000_000)
    seen = found(folder, "memory")
    assert [(one.level, one.gate) for one in seen] == [(Level.FAILS, "merged_distribution_ok")]
    monkeypatch.setattr(resources, "available_bytes", lambda: 100_000_000)
    assert worst(folder, "memory").level is Level.STOPS


def test_a_disk_that_takes_one_adapter_and_not_two_fails_and_a_full_one_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 300_000_000))
    assert worst(folder, "disk").gate == "merge_ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    assert worst(folder, "disk").level is Level.STOPS


def test_another_version_is_noted_and_a_missing_library_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: "0.1" if name == "peft" else version(name))
    one = worst(folder, "versions")
    assert (one.level, "peft 0.1 (verified: " in one.text) == (Level.NOTE, True)

    def missing(name: str) -> str:
        if name == "bitsandbytes":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(checks, "version", missing)
    assert worst(folder, "versions").level is Level.FAILS


def test_a_tokenizer_that_the_converter_cannot_read_is_foreseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: "4.57.6" if name == "transformers" else version(name))
    assert worst(folder, "converter").gate == "convert_f16_ok"


def test_without_a_toolchain_its_gate_is_foretold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(folder / "cache"))
    one = worst(folder, "toolchain")
    assert (one.level, one.gate) == (Level.FAILS, "toolchain_ready")
    assert "nox -s toolchain" in one.fix


def test_a_hub_base_that_is_not_here_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    bench = Runner(Store(tmp_path / "store"), tmp_path / "run", "run#1", say=lambda line: None)
    away = given_candidate("nobody/nothing", ["style=x/y"], None, None)
    findings = {name: some for name, some, _ in examine(Examination(away, bench))}
    assert "is not on this machine yet" in findings["base"][0].text
    assert findings["adapters"] == []


def assay(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", *arguments]
    return subprocess.run(
        command, cwd=paths.REPOSITORY, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_the_command_prints_every_finding_with_its_fix_and_needs_no_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("raise ImportError('no torch here')\n")
    given = ["--base", str(folder / "base"), "--adapter", f"style={folder / 'adapter'}"]
    done = assay("doctor", *given, PYTHONPATH=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[1] for line in done.stdout.splitlines() if line[0] in "✓!✗"} == {
        check.__name__ for check in checks.CHECKS
    }
    (folder / "base" / "chat_template.jinja").unlink()
    done = assay("doctor", *given)
    assert done.returncode == 1
    assert "✗ base" in done.stdout
    assert "fix: Put the chat_template.jinja" in " ".join(done.stdout.split())


def test_json_is_the_findings_and_nothing_else(folder: Path) -> None:
    given = ["--base", str(folder / "base"), "--adapter", f"style={folder / 'adapter'}"]
    findings = json.loads(assay("doctor", *given, "--json").stdout)
    assert {"check", "level", "text", "fix", "gate"} == set(findings[0])


def no_room(folder: Path) -> dict[str, str]:
    """The variables of a process that sees a machine with 0.1 GB of free memory and no GPU."""
    (folder / "tiny.py").write_text(
        "from assay.gating import resources\n"
        "resources.available_bytes = lambda: 10**8\n"
        "resources.card_bytes = lambda: None\n"
    )
    return {"PYTHONPATH": str(folder), "PYTEST_PLUGINS": "tiny"}


def gates(folder: Path, run: str, *options: str, **env: str) -> Run:
    """A run of the gates on the folder's candidate, in a process of its own."""
    given = ["--base", str(folder / "base"), "--adapter", f"style={folder / 'adapter'}", "--run", str(folder / run)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "gates", "-q", "-p", "no:cacheprovider", *given, *options],
        cwd=paths.REPOSITORY,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (folder / run / "run.json").exists(), done.stdout + done.stderr
    return read_run(folder / run)


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["alone", "in two processes"])
def test_a_run_in_which_nothing_can_pass_ends_before_its_first_step(folder: Path, processes: list[str]) -> None:
    run = gates(folder, "out", *processes, **no_room(folder), ASSAY_CACHE=str(new_cache(folder / "cache")))
    need_no_model = {"adapter_files_ok", "toolchain_ready"}
    blocked = [gate.outcome for gate in run.gates if gate.expected.gate not in need_no_model]
    assert {outcome.status for outcome in blocked} == {Status.BLOCKED}, [outcome.reason for outcome in blocked]
    assert {outcome.blocked_by for outcome in blocked} == {"doctor"}
    assert "of memory" in blocked[0].reason
    assert run.verdict is Verdict.HOLD
    steps = {path.name.partition("-")[0] for path in (folder / "out" / "steps").glob("*")}
    assert steps <= {"self_test.run", "adapter.inspect"}, "nothing that loads a model"
    said = assay("explain", str(folder / "out")).stdout
    assert "of memory" in said
    assert "assay plan" in said
    assert any(one.level == "stops" for one in run.record.doctor)
    assert "Seen before the first step" in (folder / "out" / "report.html").read_text()


@pytest.mark.slow(seconds=15)
def test_what_is_made_is_judged_where_nothing_new_can_be_made(folder: Path) -> None:
    here = {"ASSAY_CACHE": str(new_cache(folder / "cache"))}
    gates(folder, "roomy", "-k", "base_quant", **here)
    run = gates(folder, "full", **no_room(folder), **here)
    assert any(one.level == "stops" for one in run.record.doctor), "the finding does not depend on what is made"
    by_gate = {gate.expected.gate: gate.outcome for gate in run.gates}
    made = by_gate["base_quant_load_ok"]
    assert (made.status, str(made.steps[0].reused_from).partition("#")[0]) == (Status.PASSED, "roomy")
    assert by_gate["style_lora_mount_ok"].blocked_by == "doctor"
    fresh = gates(folder, "fresh", "-k", "base_quant", "--fresh", **no_room(folder), **here)
    assert {gate.outcome.status for gate in fresh.gates} == {Status.BLOCKED, Status.MISSING}
