"""The wheel alone: what is installed from it, in an empty directory, works without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from assay import __version__, paths
from assay.inputs.bases import Base
from assay.record.outcome import Status
from assay.record.reading import read_run
from assay.record.verdict import Verdict

from tests.samples import TINY, write_adapter, write_run


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed into, without its dependencies: those are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=paths.REPOSITORY, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


class Empty:
    """An empty directory, and the installed command in it."""

    def __init__(self, folder: Path, installed: Path) -> None:
        self.folder, self.installed = folder, installed

    def assay(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(str(self.installed / "bin" / "assay"), *arguments)

    def python(self, code: str) -> str:
        return self._run("-c", code).stdout.strip()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # PYTHONPATH comes before this environment's own installation of the checkout.
        env = {**os.environ, "PYTHONPATH": str(self.installed), "COLUMNS": "200"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def empty(installed: Path, tmp_path: Path) -> Empty:
    folder = tmp_path / "empty"
    folder.mkdir()
    return Empty(folder, installed)


@pytest.mark.slow(seconds=5)
def test_a_wheel_without_a_checkout_lists_judges_and_renders(empty: Empty, tmp_path: Path) -> None:
    found = empty.python("import assay, assay.paths as p; print(assay.__file__, p.GATES, p.REPORTS, p.QUICKSTART)")
    package, here = empty.installed / "assay", empty.folder
    quickstart = here / "train" / "out" / "quickstart" / "candidate.json"
    assert found == f"{package / '__init__.py'} {package / '_data' / 'gates'} {here / 'reports'} {quickstart}"
    assert empty.assay("--version").stdout == f"assay {__version__}\n"
    nothing = empty.assay("verdict")
    assert (nothing.returncode, "Run `assay run` first" in nothing.stderr) == (2, True), nothing.stderr
    fix = "unset ASSAY_LLAMA_CPP && nox -s toolchain; nox -s gates -- --gguf-dtype bf16"
    typed = empty.python(f"from assay.paths import commands_here; print(commands_here({fix!r}))")
    assert typed == "unset ASSAY_LLAMA_CPP && assay toolchain; assay run --gguf-dtype bf16"
    listed = empty.assay("list")
    assert (listed.returncode, "quantize_q4_ok" in listed.stdout) == (0, True), listed.stderr
    write_run(empty.folder / "reports" / "good", {"merge_ok": ("primary", Status.PASSED)})
    write_run(tmp_path / "bad", {"merge_ok": ("primary", Status.FAILED)})
    assert empty.assay("verdict").returncode == 0
    assert empty.assay("verdict", str(tmp_path / "bad")).returncode == 1
    assert empty.assay("verdict", str(tmp_path / "none")).returncode == 2
    assert empty.assay("report").returncode == 0
    assert (empty.folder / "reports" / "good" / "report.html").exists()
    assert empty.assay("toolchain").returncode == 0, "the pin is there, and what it names is built"
    assert "no such recipe" in empty.assay("train", "nothing").stderr
    assert {file.name for file in empty.folder.iterdir()} == {"reports"}


@pytest.mark.slow(seconds=5)
def test_the_wheel_has_what_the_repository_has_and_nothing_that_was_made(installed: Path) -> None:
    data = installed / "assay" / "_data"
    kept = {file.relative_to(data) for file in data.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    listing = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "gates",
        "tools",
        "train",
        "constraints.txt",
    ]
    listed = subprocess.run(listing, cwd=paths.REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert kept == {Path(line) for line in listed.splitlines() if (paths.REPOSITORY / line).exists()}


@pytest.mark.slow(seconds=60)
def test_a_wheel_without_a_checkout_gates_an_adapter_from_elsewhere(empty: Empty, base: Base, tmp_path: Path) -> None:
    shapes = {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in base.tensors.items()
        if "q_proj" in name or "v_proj" in name
    }
    adapter = write_adapter(tmp_path / "adapter", shapes, base=str(base.path), scale=0.02)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "text.txt").write_text("The tide is the rise and fall of the sea, twice a day.\n" * 5)
    short = ["--probes", str(tmp_path / "short"), "--scored-tokens", "200", "--max-new-tokens", "16"]
    done = empty.assay("run", "--base", str(base.path), "--adapter", f"x={adapter}", *short)
    [folder] = (empty.folder / "reports").iterdir()
    run = read_run(folder)
    statuses = {gate.expected.gate: gate.outcome.status for gate in run.gates}
    # A model of random weights answers with garbage, which the gates that read its answers say.
    read_answers = {"x_generate_non_empty", "llama_cli_smoke_ok", "llama_cpp_python_smoke_ok", "runtime_parity_ok"}
    assert {gate for gate, status in statuses.items() if status is not Status.PASSED} <= read_answers
    assert len(statuses) == 26
    assert done.returncode == (1 if run.verdict is Verdict.HOLD else 0), done.stdout + done.stderr
    assert (folder / "report.html").exists()


@pytest.mark.slow(seconds=30)
def test_a_wheel_without_a_checkout_trains_the_quickstart_and_judges_it(empty: Empty, base: Base) -> None:
    one = ["--set=epochs=1", '--set=adapters={writing=["writing"]}']
    done = empty.assay("train", "quickstart", "--base", str(base.path), *TINY, *one)
    assert done.returncode == 0, done.stdout + done.stderr
    done = empty.assay("run", "-k", "data or adapter_files", "--run", "judged")
    run = read_run(empty.folder / "judged")
    judged = [gate for gate in run.gates if gate.outcome.status is not Status.MISSING]
    assert {gate.outcome.status for gate in judged} == {Status.PASSED}
    assert {gate.expected.route for gate in judged} == {"data", "fidelity"}
    assert (done.returncode, run.record.candidate.name) == (1, "quickstart"), done.stdout + done.stderr
