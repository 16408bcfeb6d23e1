"""The command line itself: its help, its exit codes, and that the help imports next to nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from assay import __version__
from assay.cli.app import COMMANDS, main
from assay.errors import Inconclusive
from assay.gating.options import OPTIONS
from assay.inputs.candidate_options import CANDIDATE_OPTIONS
from assay.paths import PACKAGE


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_the_help_names_every_command_with_its_whole_summary(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(capsys).splitlines()
    for name, summary in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, summary] for line in lines), name


def test_every_command_is_a_module_of_its_own_and_every_module_with_a_command_is_listed() -> None:
    modules = {file.stem for file in (PACKAGE / "cli").glob("*.py") if "\ndef command(" in file.read_text()}
    assert modules == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_one_example_and_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, command)
    assert COMMANDS[command] in text
    assert len(re.findall(rf"^  Example:\n    assay {command}\b.*$", text, re.MULTILINE)) == 1
    codes = re.findall(r"^    (\d)  \S", text.partition("  Exit codes:\n")[2], re.MULTILINE)
    assert {"0", "2"} <= set(codes) <= {"0", "1", "2", "3"}


def test_the_help_imports_nothing_heavy_and_takes_at_most_0_3_seconds() -> None:
    heavy = ("rich", "pytest", "numpy", "pydantic", "jinja2", "huggingface_hub")
    code = (
        f"import sys\nfrom assay.cli.app import main\nmain(['--help'])\nprint([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    times = []
    for _ in range(5):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "assay", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - started)
    assert min(times) <= 0.3, times


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: assay"),
        (["verdit"], "No such command 'verdit'. Did you mean 'verdict'?"),
        (["verdict", "--loud"], "No such option: --loud"),
        (["plan"], "Missing argument 'BASE'"),
        (["plan", "BASE", "--batch", "many"], "--batch"),
        (["verdict", "a", "b"], "unexpected extra argument"),
    ],
)
def test_a_usage_error_is_exit_code_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_an_error_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", str(tmp_path)]) == 2
    assert re.fullmatch(r"assay: \S+run\.json: not found.*\n", capsys.readouterr().err)


def test_what_cannot_be_told_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from assay.cli import report

    def newest_run(reports: Path) -> Path:
        raise Inconclusive("a format that is not known")

    monkeypatch.setattr(report, "newest_run", newest_run)
    assert main(["report"]) == 3
    assert capsys.readouterr().err == "assay: a format that is not known\n"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"assay {__version__}\n"


@pytest.mark.parametrize("command", ["run", "doctor", "faults"])
def test_the_options_that_name_a_candidate_are_the_same_for_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = " ".join(help_of(capsys, command).split())
    for option in CANDIDATE_OPTIONS:
        assert f"{option.name} {option.metavar} {option.help}" in words


@pytest.mark.slow(seconds=3)
def test_pytest_has_assays_options_in_assays_own_runs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def pytest_help(*arguments: str) -> str:
        command = [sys.executable, "-m", "pytest", *arguments, "--help"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    def options_in(text: str) -> set[str]:
        return set(re.findall(r"^  (--[\w-]+)", text, re.MULTILINE))

    plain, own = pytest_help(), pytest_help("-p", "assay.gating.plugin")
    assert "assay" not in plain.lower()
    assert options_in(own) - options_in(plain) == {option.name for option in OPTIONS}
    assert {option.name for option in OPTIONS} <= options_in(help_of(capsys, "run"))


def test_training_without_its_libraries_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    command = [sys.executable, "-m", "assay", "train", "quickstart"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "assay: No module named 'torch'. Training needs what the workers import: pip install 'adapter-assay[all]'\n"
    )
