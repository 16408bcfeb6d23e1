"""The main job on the real model, in whole and in part: which gates pass, fail and wait, and what the verdict is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from assay import paths
from assay.inputs.bases import EMBEDDED, find_base
from assay.record.outcome import Status
from assay.record.reading import Run
from assay.record.verdict import Verdict

from tests.product.main_job import GATES, LOST, Workshop, assert_one_failure, by_name, of_route, statuses, verdict_code
from tests.samples import new_cache

pytestmark = [pytest.mark.slow(seconds=300), pytest.mark.needs_toolchain]


def test_a_healthy_candidate_passes_and_a_fine_tune_too_small_for_4_bits_is_told(healthy: Run) -> None:
    assert set(statuses(healthy)) == {gate.name_for("style") for gate in GATES}
    assert {gate for gate, status in statuses(healthy).items() if status is not Status.PASSED} == set(LOST)
    assert "The fine-tune is lost" in next(gate for gate in healthy.gates if not gate.passed).outcome.reason
    assert healthy.verdict is Verdict.RELEASE_WITH_WARNINGS
    assert verdict_code(healthy) == 0
    for name in ("report.html", "junit.xml", "summary.md", "pytest.html"):
        assert (healthy.folder / name).stat().st_size > 500, name


def test_every_generating_gate_tells_its_speed_and_memory(healthy: Run) -> None:
    of = {gate.expected.gate: by_name(gate.outcome) for gate in healthy.gates}
    generating = {gate: facts for gate, facts in of.items() if "answers" in facts}
    assert list(generating) == [
        "style_generate_non_empty",
        "llama_cli_smoke_ok",
        "llama_cpp_python_smoke_ok",
    ]
    for gate, facts in generating.items():
        for fact in ("prefill_tokens_per_second", "decode_tokens_per_second", "load_seconds", "peak_host_bytes"):
            assert facts[fact] > 0, (gate, fact)
        assert len(facts["answers"]) == 3


def test_unchanged_everything_is_reused(workshop: Workshop, healthy: Run) -> None:
    _, run = workshop.gates("again")
    uses = [use for gate in run.gates for use in gate.outcome.steps]
    assert len(uses) >= len(of_route("bnb", "gguf"))
    assert {str(use.reused_from).partition("#")[0] for use in uses} == {"healthy"}
    assert run.verdict is Verdict.RELEASE_WITH_WARNINGS


def test_the_forced_fallbacks_of_a_576_wide_model_are_listed(healthy: Run) -> None:
    facts = next(by_name(gate.outcome) for gate in healthy.gates if gate.expected.gate == "quantize_q4_ok")
    assert facts["fallbacks_unforced"] == []
    # 30 layers of 7 matrices and the embedding; only the 30 ffn_down have rows (1536) that 256 divides.
    assert len(facts["fallbacks_forced_by_shape"]) == 30 * 7 + 1 - 30
    assert facts["tensor_types"]["Q4_K"] + facts["tensor_types"]["Q6_K"] == 30


@pytest.fixture
def nan_adapter(workshop: Workshop, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(workshop.adapter, tmp_path / "nan"))
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32("nan").tobytes()
    weights.write_bytes(content)
    return folder


REVERSE = "def pytest_collection_modifyitems(items):\n    items.reverse()\n"


@pytest.mark.parametrize("order", ["as written", "reversed", "in two processes"])
def test_an_adapter_with_nan_fails_its_mount_and_holds(
    workshop: Workshop, healthy: Run, nan_adapter: Path, tmp_path: Path, order: str
) -> None:
    (tmp_path / "reverse.py").write_text(REVERSE)
    options = {"as written": [], "reversed": ["-p", "reverse"], "in two processes": ["-n", "2"]}[order]
    _, run = workshop.gates(f"nan {order}", *options, adapter=nan_adapter, env={"PYTHONPATH": str(tmp_path)})
    assert_one_failure(run, "adapter_files_ok", "1 of 120 tensors in ")
    assert run.verdict is Verdict.HOLD
    assert verdict_code(run) == 1


@pytest.mark.parametrize(
    ("how", "ran"),
    [
        (["-k", "bnb"], of_route("bnb")),
        (["-k", "llama_cli_smoke"], {"llama_cli_smoke_ok"}),
        ([str(paths.GATES / "test_bnb.py")], of_route("bnb")),
        (["--deselect", "test_bnb.py"], of_route("gguf", "fidelity", "parity")),
    ],
)
def test_a_part_of_the_gates_gives_the_same_record_and_never_a_release(
    workshop: Workshop, healthy: Run, how: list[str], ran: set[str]
) -> None:
    _, run = workshop.gates("part " + " ".join(how).replace("/", "_"), *how)
    assert statuses(run) == {
        gate: status if gate in ran else Status.MISSING for gate, status in statuses(healthy).items()
    }
    assert (run.verdict, verdict_code(run)) == (Verdict.HOLD, 1)
    for gate in run.gates:
        if gate.passed:
            twin = next(other for other in healthy.gates if other.expected == gate.expected)
            assert gate.outcome.facts == twin.outcome.facts


def test_stopping_at_the_first_failure_leaves_the_rest_missing(
    workshop: Workshop, healthy: Run, nan_adapter: Path
) -> None:
    _, run = workshop.gates("stop", "-x", adapter=nan_adapter)
    seen = statuses(run)
    assert seen["adapter_files_ok"] is Status.FAILED
    assert {status for gate, status in seen.items() if gate not in of_route("bnb") | {"adapter_files_ok"}} == {
        Status.MISSING
    }
    assert run.verdict is Verdict.HOLD


@pytest.mark.parametrize("order", ["reversed", "in two processes"])
def test_the_order_of_the_gates_does_not_matter(workshop: Workshop, healthy: Run, tmp_path: Path, order: str) -> None:
    (tmp_path / "reverse.py").write_text(REVERSE)
    options = ["-p", "reverse"] if order == "reversed" else ["-n", "2"]
    _, run = workshop.gates(f"order {order}", *options, env={"PYTHONPATH": str(tmp_path)})

    def facts(of: Run) -> list[object]:
        return [(gate.expected, gate.outcome.status, gate.outcome.facts) for gate in of.gates]

    assert facts(run) == facts(healthy)


def test_an_adapter_that_is_not_there_fails_its_own_gate(workshop: Workshop, healthy: Run, tmp_path: Path) -> None:
    _, run = workshop.gates("nowhere", adapter=tmp_path / "nowhere")
    assert_one_failure(run, "adapter_files_ok", "no such folder")
    assert verdict_code(run) == 1


def test_a_base_without_a_template_fails_its_own_gate(workshop: Workshop, healthy: Run, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in find_base(EMBEDDED).path.iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).symlink_to(file)
    _, run = workshop.gates("template", "--base", str(base))
    assert_one_failure(run, "base_quant_load_ok", "no chat template in chat_template.jinja")


def test_nothing_but_the_workers_imports_torch(healthy: Run, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command], env=env, cwd=paths.REPOSITORY, capture_output=True, text=True
        )

    assert run("torch").returncode != 0, "the trap works"
    given = ["--base", EMBEDDED, "--adapter", "style=x"]
    collected = run("pytest", "gates", "--collect-only", "-q", *given)
    assert (collected.returncode, collected.stdout.count("::test_")) == (0, 26), collected.stdout
    for command in (["list"], ["report", str(healthy.folder)], ["verdict", str(healthy.folder)]):
        done = run("assay", *command)
        assert done.returncode == 0, (command, done.stderr)
    assert "quantize_q4_ok" in run("assay", "list").stdout


def test_without_the_libraries_the_gates_are_unavailable_and_hold(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "bitsandbytes.py").write_text("raise ImportError('No module named bitsandbytes')\n")
    fresh = Workshop(folder=tmp_path / "fresh", adapter=workshop.adapter)
    new_cache(fresh.cache)
    _, run = fresh.gates("missing", "-k", "base_quant", env={"PYTHONPATH": str(tmp_path)})
    gate = next(gate for gate in run.gates if gate.expected.gate == "base_quant_load_ok")
    assert (gate.outcome.status, run.verdict) == (Status.UNAVAILABLE, Verdict.HOLD)
    assert "pip install" in gate.outcome.reason


def test_a_wrong_option_is_one_sentence_and_no_run(workshop: Workshop, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text((paths.GATES / "policy.toml").read_text().replace("merge_ok", "merge_okay"))
    where = tmp_path / "run"
    given = ["--base", EMBEDDED, "--adapter", "style=x", "--run", str(where), "--policy", str(policy)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "gates", *given], cwd=paths.REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 4
    assert "unknown gate 'merge_okay'. Did you mean 'merge_ok'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not where.exists()
    assert subprocess.run([sys.executable, "-m", "assay", "verdict", str(where)], capture_output=True).returncode == 2


def test_a_folder_with_an_old_record_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "gates.jsonl").write_text("an old record")
    given = ["--base", EMBEDDED, "--adapter", "style=x", "--run", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "gates", *given], cwd=paths.REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 4
    assert "not an empty folder" in done.stderr
    assert not (tmp_path / "run.json").exists()


def test_what_cannot_be_judged_is_exit_code_2(tmp_path: Path) -> None:
    for target in (tmp_path / "none", Path(__file__)):
        done = subprocess.run([sys.executable, "-m", "assay", "verdict", str(target)], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


def test_run_json_is_there_before_the_first_gate(healthy: Run) -> None:
    data = json.loads((healthy.folder / "run.json").read_text())
    assert {gate["gate"] for gate in data["expected"]} == {gate.name_for("style") for gate in GATES}
    assert data["candidate"]["digests"]["style"]
