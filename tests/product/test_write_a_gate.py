"""docs/write-a-gate.md is true: a gate added in its four places passes the unit tests, and in three it does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from assay.paths import REPOSITORY

pytestmark = pytest.mark.slow(seconds=90)
PLACES = {
    "1": ("gates/test_gguf.py", '\n\n@gate("llama_cli_smoke_ok"'),
    "2": ("gates/policy.toml", "llama_cli_smoke_ok ="),
    "3": ("tests/gates/test_gates_on_canned_facts.py", '\n    ("llama_cli_smoke_ok",'),
    "4 fault": ("harness/assay/faults/cases/quantizations.py", None),
    "4 cause": ("gates/causes.toml", None),
}
"""Where each snippet goes: the file, and the text that it is put in front of; at the end of the file if None."""


def snippets() -> dict[str, str]:
    """The code blocks of the page, by place."""
    text = (REPOSITORY / "docs" / "write-a-gate.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\d)\. .*?\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL))
    blocks = {number: re.findall(r"```\w+\n(.*?)```", section, re.DOTALL) for number, section in sections.items()}
    fault, cause = blocks.pop("4")
    return {**{number: block for number, (block,) in blocks.items()}, "4 fault": fault, "4 cause": cause}


def put(repository: Path, place: str, snippet: str) -> None:
    name, before = PLACES[place]
    file = repository / name
    text = file.read_text(encoding="utf-8")
    if before is None:
        file.write_text(f"{text.rstrip()}\n\n\n{snippet}", encoding="utf-8")
        return
    at = text.index(before)
    snippet = f"\n    {snippet.strip()}," if place == "3" else f"\n\n{snippet.rstrip()}\n" if place == "1" else snippet
    file.write_text(text[:at] + snippet + text[at:], encoding="utf-8")


def run(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # Beside one another, the copy's modules come before the installed ones.
    env = {**os.environ, "PYTHONPATH": f"{repository / 'harness'}:{repository}"}
    return subprocess.run([sys.executable, *command], cwd=repository, env=env, capture_output=True, text=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what is under version control or may be."""
    copy = tmp_path / "assay"
    for name in ("gates", "harness", "train", "tests", "docs", "tools", "benchmarks", "reports"):
        ignored = shutil.ignore_patterns("__pycache__", "out", "20*")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    for file in REPOSITORY.iterdir():
        if file.is_file():
            shutil.copyfile(file, copy / file.name)
    for name in (".github", ".ci"):
        shutil.copytree(REPOSITORY / name, copy / name)
    return copy


def test_the_gate_of_the_page_passes_the_unit_tests(repository: Path) -> None:
    for place, snippet in snippets().items():
        put(repository, place, snippet)
    made = run(repository, "-m", "docs.generate")
    assert made.returncode == 0, made.stderr
    unit = "not slow and not needs_toolchain"
    tested = run(repository, "-m", "pytest", "tests", "-q", "-m", unit, "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout[-4000:]


@pytest.mark.parametrize("left_out", list(PLACES))
def test_a_place_that_is_left_out_is_told(repository: Path, left_out: str) -> None:
    for place, snippet in snippets().items():
        if place != left_out:
            put(repository, place, snippet)
    files = ["tests/gates", "tests/gating/test_causes.py", "tests/gating/test_policy.py", "tests/faults"]
    tested = run(repository, "-m", "pytest", *files, "-q", "-m", "not slow and not needs_toolchain", "-x")
    assert tested.returncode != 0, f"nothing tells that place {left_out} is missing"
