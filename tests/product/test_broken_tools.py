"""The main job with one broken thing: which gate fails, what it blocks, and what the release is told.

Broken are the toolchain, the disk and a value beyond f16.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from assay.inputs.bases import EMBEDDED, find_base
from assay.record.outcome import Status
from assay.record.reading import Run
from assay.record.verdict import Verdict
from assay.workers.tensors import edit_checkpoint

from tests.product.main_job import Workshop, assert_one_failure, statuses, verdict_code
from tests.samples import new_cache

pytestmark = [pytest.mark.slow(seconds=150), pytest.mark.needs_toolchain]


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


@pytest.mark.parametrize(
    ("does", "reason"),
    [("exit 0", "wrote no model-q4_k_m.gguf"), ('exec "$real" "$1" "$2" Q8_0 "$4"', "the file says MOSTLY_Q8_0")],
    ids=["nothing", "another type"],
)
def test_a_quantizer_that_reports_success_is_judged_by_what_it_wrote(
    workshop: Workshop, healthy: Run, request: pytest.FixtureRequest, does: str, reason: str
) -> None:
    broken = workshop.with_toolchain(request.node.callspec.id)
    real = broken.program("llama-quantize").with_name("real-llama-quantize")
    only_for_the_self_test(broken.program("llama-quantize"), f'real="{real}"; {does}')
    _, run = broken.gates(request.node.callspec.id, "-k", "gguf")
    assert_one_failure(run, "quantize_q4_ok", reason, "gguf")


def test_an_error_of_llama_cli_with_exit_code_0_fails_its_smoke_alone(workshop: Workshop, healthy: Run) -> None:
    broken = workshop.with_toolchain("cli")
    only_for_the_self_test(
        broken.program("llama-cli"), "echo 'Error: request (631 tokens) exceeds the available context size'"
    )
    _, run = broken.gates("cli")
    assert_one_failure(run, "llama_cli_smoke_ok", "Error: request (631 tokens) exceeds")
