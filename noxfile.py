"""The project's commands: `nox -s gates` is the main job. All sessions share one virtual environment."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

HERE = Path(__file__).parent
QUICKSTART = HERE / "train" / "out" / "quickstart" / "candidate.json"


TWO_AT_A_TIME = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
"""Two processes of pytest, each with whole files; `tests/conftest.py` gives each its own cores."""
UNIT = "not slow and not needs_toolchain"


def environment(session: nox.Session) -> Path:
    """The environment with everything but the toolchain, installed once for what these two files say."""
    files = [HERE / "pyproject.toml", HERE / "constraints.txt"]
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files) + str(HERE).encode()).hexdigest()
    folder = HERE / ".nox" / "assay"
    stamp = folder / "installed"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != expected:
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        session.run(*install, "-e", f"{HERE}[all]", "-c", str(HERE / "constraints.txt"), external=True)
        stamp.write_text(expected)
    return python


def run(session: nox.Session, *command: object) -> None:
    session.run(*(str(part) for part in command), external=True)


@nox.session
def gates(session: nox.Session) -> None:
    """Judge a candidate on every route. Arguments go to `assay run`: `-- --base BASE --adapter NAME=WHERE`."""
    code = subprocess.call([environment(session), "-m", "assay", "run", *session.posargs])
    if code:
        # nox knows one exit code for every failure; a release has two: 1 hold, 2 could not judge.
        sys.exit(code)


@nox.session
def tests(session: nox.Session) -> None:
    """The product's own tests, with the toolchain they need. `-- -m "not slow"` takes a minute."""
    python = environment(session)
    run(session, python, "-m", "assay", "toolchain")
    run(session, python, "-m", "pytest", "tests", *TWO_AT_A_TIME, *session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """The tests that need neither a toolchain nor a model: at most a minute."""
    run(session, environment(session), "-m", "pytest", "tests", "-m", UNIT, *TWO_AT_A_TIME, *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Measure which gate catches which fault, and write docs/coverage.md (hours). Arguments go to `assay faults`."""
    python = environment(session)
    run(session, python, "-m", "assay", "toolchain")
    if not QUICKSTART.exists():
        run(session, python, "-m", "train", "quickstart")
    run(session, python, "-m", "assay", "faults", *(session.posargs or ["--jobs", "2", "--publish"]))


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, strict mypy, and which room may import which."""
    python = environment(session)
    run(session, python, "-m", "ruff", "check", ".")
    run(session, python, "-m", "ruff", "format", "--check", ".")
    run(session, python, "-m", "mypy")
    run(session, python.with_name("lint-imports"), "--no-cache")


@nox.session
def train(session: nox.Session) -> None:
    """Train a candidate: `nox -s train -- quickstart`."""
    run(session, environment(session), "-m", "train", *session.posargs)


@nox.session
def toolchain(session: nox.Session) -> None:
    """Build llama.cpp from the pinned source, once for this machine."""
    run(session, environment(session), "-m", "assay", "toolchain", *session.posargs)
