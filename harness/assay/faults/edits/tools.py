"""Edits of the toolchain's programs, and of what the gates ask a model."""

from __future__ import annotations

from pathlib import Path

from assay import paths
from assay.faults.edits.files import replace_text
from assay.faults.edits.sandbox import Sandbox


def write_program(file: Path, script: str) -> None:
    """Write a shell script as a program of the toolchain."""
    replace_text(file, f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def wrap_program(sandbox: Sandbox, name: str, script: str) -> None:
    """Let `script` run in place of a program of the toolchain, except on the self-test's model.

    `$real` in the script is the program itself.
    """
    file = sandbox.toolchain.bin / name
    real = file.with_name(f"real-{name}")
    file.rename(real)
    write_program(file, f'real="{real}"\ncase "$*" in *self-test*|--version) exec "$real" "$@";; esac\n{script}')


def ask(sandbox: Sandbox, prompts: dict[str, str]) -> None:
    """Let the gates ask these prompts, by name, in place of their own."""
    folder = sandbox.folder / "prompts"
    folder.mkdir()
    for name, text in prompts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    sandbox.options += ["--prompts", str(folder)]


def ask_at_length(sandbox: Sandbox) -> None:
    """Let the gates ask one prompt of several hundred tokens."""
    text = (paths.GATES / "probes" / "kitchen.txt").read_text(encoding="utf-8")
    ask(sandbox, {"long": f"{text}\n\nSummarize this text."})


def ask_task(sandbox: Sandbox) -> None:
    """Ask the evaluation samples before the gates run, as `python -m train evaluate` does.

    The thresholds are lowered: a small model never reaches its own, which shows nothing of how it is deployed.

    Raises:
        NotApplicable: the candidate was trained elsewhere.
    """
    file = sandbox.data / "dataset.toml"
    task = sandbox.candidate.evaluation_samples(sandbox.original)[0].task
    before, _, _ = file.read_text(encoding="utf-8").partition("[thresholds]")
    replace_text(file, f"{before}[thresholds]\n{task} = {{ format = 0.3 }}\n")
    sandbox.asks_task = True
