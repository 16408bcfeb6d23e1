"""The toolchain is found or its absence explained; a build of the user's is taken as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import test_gguf
from assay import paths
from assay.errors import AssayError, InputError, StepFailed, Unavailable
from assay.gating.evidence import Evidence
from assay.inputs import toolchain
from assay.steps.catalogue import SelfTest
from assay.steps.runner import Runner
from assay.steps.store import Store

from tests.gates.healthy import GATES_BY_ID


def test_a_toolchain_that_is_not_built_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    monkeypatch.delenv("ASSAY_LLAMA_CPP", raising=False)
    with pytest.raises(Unavailable, match="nox -s toolchain"):
        toolchain.find_toolchain()


def test_no_compiler_is_one_sentence_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    shown: list[str] = []
    with pytest.raises(AssayError, match=r"No C\+\+ compiler found"):
        toolchain.build_toolchain(cuda=False, show=lambda done, doing: shown.append(doing))
    assert shown == []
    assert [path.name for path in (tmp_path / "toolchains").iterdir() if path.suffix != ".lock"] == []


def test_the_build_is_named_by_pin_flags_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = toolchain.home(toolchain._flags(cuda=False))
    assert toolchain.home(toolchain._flags(cuda=True)) != here
    monkeypatch.setattr("assay.machine.cpu_flags", lambda: ["sse2"])
    assert toolchain.home(toolchain._flags(cuda=False)) != here


@pytest.mark.parametrize("there", [[], ["build/bin/llama-quantize"]])
def test_a_folder_without_a_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("ASSAY_LLAMA_CPP", str(tmp_path))
    with pytest.raises(InputError, match=r"no convert_hf_to_gguf\.py" if there else "no llama-quantize"):
        toolchain.find_toolchain()


@pytest.mark.slow(seconds=20)
@pytest.mark.needs_toolchain
def test_a_build_of_the_users_is_used_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_LLAMA_CPP", raising=False)
    own = toolchain.find_toolchain()
    checkout = tmp_path / "llama.cpp"
    shutil.copytree(own.bin, checkout / "build" / "bin", symlinks=True)
    for path in own.source.iterdir():
        (checkout / path.name).symlink_to(path)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ASSAY_LLAMA_CPP", str(checkout))
    adopted = toolchain.find_toolchain()
    assert (adopted.bin, adopted.source, adopted.commit) == (checkout / "build" / "bin", checkout, None)
    assert (adopted.binding / "llama_cpp" / "__init__.py").exists()


@pytest.mark.needs_toolchain
def test_a_checkout_that_was_pulled_and_not_rebuilt_is_version_skew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASSAY_LLAMA_CPP", raising=False)
    own = toolchain.find_toolchain()
    checkout = Path(shutil.copytree(own.source, tmp_path / "repository" / "llama.cpp"))
    (tmp_path / "toolchain").mkdir()
    facts = {"bin": str(own.bin), "source": str(checkout), "commit": None, "release": own.release}
    (tmp_path / "toolchain" / "toolchain.json").write_text(json.dumps(facts))
    (tmp_path / "toolchain" / "python").symlink_to(own.binding)
    monkeypatch.setattr(test_gguf, "find_toolchain", lambda: toolchain.Toolchain(path=tmp_path / "toolchain"))

    def judge(run: str) -> object:
        (tmp_path / run).mkdir()
        store = Store(tmp_path / "store")
        runner = Runner(store, tmp_path / run, run, fresh=True, say=lambda line: None)
        return GATES_BY_ID["toolchain_ready"].body(evidence=Evidence(runner))

    _commit_everything(tmp_path / "repository")
    judge("not a checkout of its own, so nothing is known of its commit")
    _commit_everything(checkout)
    with pytest.raises(AssertionError, match="version skew: llama-cli is 0c1e57098, the converter is"):
        judge("a checkout")


def _commit_everything(folder: Path) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "moved on"], check=True)


@pytest.mark.slow(seconds=4)
@pytest.mark.needs_toolchain
def test_a_program_that_hangs_is_killed_and_named(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toolchain.find_toolchain().path, tmp_path / "copy", symlinks=True))
    (copy / "bin" / "llama-cli").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "run").mkdir()
    bench = Runner(Store(tmp_path / "store"), tmp_path / "run", "run#1", say=lambda line: None)
    with pytest.raises(StepFailed, match="llama-cli hung: killed after 3 s"):
        bench.make(SelfTest(toolchain=toolchain.Toolchain(path=copy), tool_deadline_seconds=3.0))


@pytest.mark.needs_toolchain
def test_a_changed_program_changes_the_digest(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toolchain.find_toolchain().path, tmp_path / "copy", symlinks=True))
    before = toolchain.Toolchain(path=copy).digest
    assert before == toolchain.find_toolchain().digest
    shutil.copyfile("/bin/false", copy / "bin" / "llama-quantize")
    assert toolchain.Toolchain(path=copy).digest != before


def test_the_pin_is_whole() -> None:
    pin = toolchain.pin()
    assert len(pin["sha256"]) == 64
    assert (pin["package"], pin["release"]) == ("llama-cpp-python", "0.3.36")
    assert paths.PIN.exists()
