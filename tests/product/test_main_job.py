"""The main job on the real model, whole and broken: which gate fails, what it blocks, and what the release is told.

One adapter with small random weights stands in for a trained one: the base still speaks, and nothing has to be trained.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assay import paths
from assay.gating.gate import read_gates
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.toolchain import find_toolchain
from assay.record.outcome import Outcome, Status
from assay.record.reading import Run, read_run
from assay.record.verdict import Verdict
from assay.workers.tensors import edit_checkpoint

from tests.samples import new_cache, write_adapter

pytestmark = [pytest.mark.slow(seconds=380), pytest.mark.needs_toolchain]

GATES = [gate for gate in read_gates(paths.GATES) if gate.per != "dataset" and "training" not in gate.needs]
"""The gates that judge an adapter of which no training is known."""
MAKES = {
    "base": "base_quant_load_ok",
    "base_nf4": "base_quant_load_ok",
    "sound_adapter": "adapter_files_ok",
    "mounted": "<adapter>_lora_mount_ok",
    "toolchain": "toolchain_ready",
    "merged": "merge_ok",
    "f16": "convert_f16_ok",
    "q4": "quantize_q4_ok",
    "llama_cli": "llama_cli_smoke_ok",
    "llama_cpp_python": "llama_cpp_python_smoke_ok",
}
"""Prerequisite to the gate that makes it."""
MEASURED_OF = ("base", "sound_adapter")
"""What the fixture `distribution` cannot do without; of the forms it measures those that there are."""


def of_route(*routes: str) -> set[str]:
    return {gate.name_for("style") for gate in GATES if gate.route in routes}


def behind(id: str) -> set[str]:
    """The gates that a failure of one blocks, directly or through another."""
    blocked: set[str] = {id}
    before: set[str] = set()
    while blocked != before:
        before = set(blocked)
        for gate in GATES:
            needs = [name for need in gate.needs for name in (MEASURED_OF if need == "distribution" else (need,))]
            if any(MAKES[need] in blocked for need in needs):
                blocked.add(gate.id)
    return {gate.name_for("style") for gate in GATES if gate.id in blocked - {id}}


LOST = ["nf4_survives_ok", "q4_survives_ok"]
"""The stand-in moves the base by next to nothing, so 4 bits move it further: these two say so, and rightly."""


@dataclass(frozen=True)
class Workshop:
    """A cache of this test session's own, with the user's base and toolchain in it, and something to judge."""

    folder: Path
    adapter: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def with_toolchain(self, name: str) -> Workshop:
        """The same with a copy of the toolchain, to be broken."""
        copy = Workshop(folder=self.folder / name, adapter=self.adapter)
        copy.cache.mkdir(parents=True)
        for shared in ("bases", "store"):
            (copy.cache / shared).symlink_to(self.cache / shared)
        toolchain = find_toolchain().path
        shutil.copytree(toolchain, copy.cache / "toolchains" / toolchain.name, symlinks=True)
        return copy

    def program(self, name: str) -> Path:
        return next(self.cache.glob(f"toolchains/*/bin/{name}"))

    def gates(
        self,
        run: str,
        *options: str,
        adapter: Path | None = None,
        env: dict[str, str] | None = None,
        file_bytes: int = resource.RLIM_INFINITY,
    ) -> tuple[int, Run]:
        """Run the gates in a process of their own, where no file may be larger; its exit code and the record."""

        def limited() -> None:
            if file_bytes != resource.RLIM_INFINITY:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        where = self.folder / "runs" / run
        given = ["--base", EMBEDDED, "--adapter", f"style={adapter or self.adapter}", "--run", str(where)]
        given += ["--probes", str(self.adapter.parent / "probes"), "--scored-tokens", "300"]
        chosen = [option for option in options if option.startswith(str(paths.GATES))] or [str(paths.GATES)]
        rest = [option for option in options if option not in chosen]
        command = [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider", *given, *rest]
        done = subprocess.run(
            command,
            cwd=paths.REPOSITORY,
            env={**os.environ, "ASSAY_CACHE": str(self.cache), **(env or {})},
            capture_output=True,
            text=True,
            timeout=900,
            preexec_fn=limited,
        )
        assert (where / "run.json").exists(), done.stdout + done.stderr
        return done.returncode, read_run(where)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    base = find_base(EMBEDDED)
    (new_cache(folder / "cache") / "store").mkdir()
    (folder / "probes").mkdir()
    # Named as a prompt is: a text and a question may be called the same.
    shutil.copyfile(paths.GATES / "probes" / "code.txt", folder / "probes" / "capacitor.txt")
    shapes = {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in base.tensors.items()
        if "q_proj" in name or "v_proj" in name
    }
    return Workshop(folder=folder, adapter=write_adapter(folder / "adapter", shapes, base=EMBEDDED, scale=0.02))


@pytest.fixture(scope="session")
def healthy(workshop: Workshop) -> Run:
    code, run = workshop.gates("healthy")
    assert code == 1, [(gate.outcome.gate, gate.outcome.reason) for gate in run.gates]
    return run


def by_name(outcome: Outcome) -> dict[str, Any]:
    return {name: fact for facts in outcome.facts.values() for name, fact in facts.items()}


def statuses(run: Run) -> dict[str, Status]:
    return {gate.expected.gate: gate.outcome.status for gate in run.gates}


def verdict_code(run: Run) -> int:
    """What `assay verdict` says, as CI asks it."""
    return subprocess.run([sys.executable, "-m", "assay", "verdict", str(run.folder)], capture_output=True).returncode


def assert_one_failure(run: Run, failed: str, reason: str) -> None:
    """Exactly one gate failed, the ones behind it are blocked by it by name, every other one passed."""
    seen, blocked = statuses(run), behind(failed)
    lost = set(LOST) - blocked
    assert {gate for gate, status in seen.items() if status is Status.FAILED} == {failed, *lost}
    assert {gate for gate, status in seen.items() if status is Status.BLOCKED} == blocked
    assert {gate for gate, status in seen.items() if status is Status.PASSED} == set(seen) - {failed, *lost, *blocked}
    for gate in run.gates:
        if gate.outcome.status is Status.BLOCKED:
            assert gate.outcome.blocked_by == failed
        if gate.outcome.gate == failed:
            assert reason in gate.outcome.reason


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


def test_a_llama_quantize_that_does_nothing_fails_the_toolchain_and_only_warns(
    workshop: Workshop, healthy: Run
) -> None:
    broken = workshop.with_toolchain("false")
    shutil.copyfile("/bin/false", broken.program("llama-quantize"))
    _, run = broken.gates("false")
    assert_one_failure(
        run,
        "toolchain_ready",
        "llama-quantize ended with exit code 1",
    )
    assert run.verdict is Verdict.RELEASE_WITH_WARNINGS
    assert verdict_code(run) == 0


def only_for_the_self_test(program: Path, otherwise: str) -> None:
    """A program that works on the self-test model and does something else on the real model."""
    real = program.with_name(f"real-{program.name}")
    program.rename(real)
    program.write_text(f'#!/bin/sh\ncase "$*" in *self-test*|--version) exec "{real}" "$@";; esac\n{otherwise}\n')
    program.chmod(0o755)


def test_the_three_failures_of_the_thesis_are_one_failure_and_two_blocked(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("partial")
    leaves_half = 'for file; do case "$file" in *q4_k_m.gguf) echo half > "$file";; esac; done\n'
    only_for_the_self_test(
        broken.program("llama-quantize"), f"{leaves_half}echo 'tensor x has invalid data' >&2; exit 1"
    )
    _, run = broken.gates("partial")
    assert_one_failure(run, "quantize_q4_ok", "tensor x has invalid data")
    assert not list(broken.cache.glob("store/gguf.quantize*.part"))


def assert_explained(run: Run, failed: str, cause: str, fix: str) -> None:
    """The report names the cause first, with a fix to paste, and says what waits behind it."""
    gate = next(gate for gate in run.gates if gate.expected.gate == failed)
    assert [finding.id for finding in gate.outcome.causes][:1] == [cause], gate.outcome.reason
    assert fix in gate.outcome.causes[0].fix
    html = (run.folder / "report.html").read_text()
    assert html.index("Not tested, because this gate blocks them") < html.index("<h2>Gates</h2>")
    said = subprocess.run([sys.executable, "-m", "assay", "explain", str(run.folder)], capture_output=True, text=True)
    assert gate.outcome.causes[0].fix in said.stdout


THESIS = ["quantize_q4_ok", "llama_cli_smoke_ok", "llama_cpp_python_smoke_ok"]
"""What failed in the thesis, and nobody found out why."""


def thesis(run: Run) -> list[Status]:
    return [statuses(run)[gate] for gate in THESIS]


def test_the_three_failures_from_a_program_that_does_not_run(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("libraries")
    for library in broken.program("llama-quantize").parent.glob("libllama*.so*"):
        library.unlink()
    _, run = broken.gates("libraries", "-k", "gguf")
    assert thesis(run) == [Status.BLOCKED] * 3
    assert_explained(run, "toolchain_ready", "tool-library-missing", "nox -s toolchain")
    assert thesis(healthy) == [Status.PASSED] * 3, "with the toolchain that the fix builds"


def test_the_three_failures_from_versions_that_differ(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("skew")
    binding = broken.program("llama-cli").parents[1] / "python" / "llama_cpp" / "__init__.py"
    binding.write_text(binding.read_text() + '\n__version__ = "0.2.90"\n')
    _, run = broken.gates("skew", "-k", "gguf")
    assert thesis(run) == [Status.BLOCKED] * 3
    assert_explained(run, "toolchain_ready", "tool-version-skew", "unset ASSAY_LLAMA_CPP && nox -s toolchain")


def test_the_three_failures_from_a_disk_that_is_full(workshop: Workshop, healthy: Run) -> None:
    """Merging and converting just fitted: what they made is there, and no larger file can be written."""
    full = Workshop(folder=workshop.folder / "full", adapter=workshop.adapter)
    (new_cache(full.cache) / "store").mkdir()
    behind = ("gguf.quantize", "smoke", "distribution")
    for slot in (workshop.cache / "store").iterdir():
        if slot.is_dir() and not slot.name.startswith(behind):
            (full.cache / "store" / slot.name).symlink_to(slot)
    limit = 20_000_000
    _, run = full.gates("full", "-k", "gguf", file_bytes=limit)
    assert thesis(run) == [Status.FAILED, Status.BLOCKED, Status.BLOCKED]
    assert_explained(run, "quantize_q4_ok", "disk-full", "ASSAY_CACHE=/larger/disk")
    assert not list(full.cache.glob("store/gguf.quantize*.part"))
    _, run = full.gates("roomy", "-k", "gguf")
    assert thesis(run) == [Status.PASSED] * 3, "on a disk with room for it, as the fix says"


def test_the_three_failures_from_a_value_beyond_f16_pass_in_bf16(
    workshop: Workshop, healthy: Run, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in find_base(EMBEDDED).path.iterdir():
        (base / file.name).symlink_to(file)

    def edit(tensors: dict[str, Any]) -> None:
        # A weight of a channel that is switched off: the model is the same but for one channel of 1536.
        tensors["model.layers.0.mlp.gate_proj.weight"][0] = 0
        tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e5

    edit_checkpoint(base, edit)
    given = ["--base", str(base), "--trained-on", EMBEDDED, "-k", "gguf"]
    _, run = workshop.gates("beyond", *given)
    assert thesis(run) == [Status.BLOCKED] * 3
    assert_explained(run, "merge_ok", "overflows-f16", "nox -s gates -- --gguf-dtype bf16")
    _, run = workshop.gates("in bf16", *given, "--gguf-dtype", "bf16")
    assert thesis(run) == [Status.PASSED] * 3


def test_a_quantizer_that_reports_success_and_writes_nothing_fails(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("nothing")
    only_for_the_self_test(broken.program("llama-quantize"), "exit 0")
    _, run = broken.gates("nothing")
    assert_one_failure(run, "quantize_q4_ok", "model-q4_k_m.gguf")


def test_a_quantizer_that_writes_another_type_fails(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("other")
    real = broken.program("llama-quantize").with_name("real-llama-quantize")
    only_for_the_self_test(broken.program("llama-quantize"), f'exec "{real}" "$1" "$2" Q8_0 "$4"')
    _, run = broken.gates("other")
    assert_one_failure(run, "quantize_q4_ok", "the file says MOSTLY_Q8_0")


def test_an_error_of_llama_cli_with_exit_code_0_fails_its_smoke_alone(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("cli")
    only_for_the_self_test(
        broken.program("llama-cli"), "echo 'Error: request (631 tokens) exceeds the available context size'"
    )
    _, run = broken.gates("cli")
    assert_one_failure(run, "llama_cli_smoke_ok", "Error: request (631 tokens) exceeds")


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
