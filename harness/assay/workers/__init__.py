"""The code that steps run, each in a process of its own: the only code that imports torch and its like.

A worker is a function `name(work, *, …)` whose arguments are the step's fields. It leaves facts through
`work.reached(...)` and judges nothing.
"""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path
from typing import Any

from assay import process
from assay.errors import AssayError
from assay.steps.step import F, Stage

_SIGNALS = {4: "illegal-instruction", 9: "killed", 25: "disk-full"}
"""A signal that ends a tool, to the failure code that it means."""


class Problem(AssayError):
    """The work cannot go on, for a reason that a person can act on."""


class Work:
    """What a worker is given beside its arguments: a folder for its outputs, and somewhere to leave facts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages: dict[str, dict[str, Any]] = {}
        """Stage to its facts as JSON, so far."""

    def reached(self, stage: Stage[F], facts: F) -> None:
        """A milestone is reached: its facts are on disk when this returns."""
        self.stages[stage.name] = facts.model_dump(mode="json")
        part = self.folder / ".stages.part"
        # Inf and NaN are not JSON, and a reader that stumbles over them loses the record.
        part.write_text(json.dumps(self.stages, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        part.replace(self.folder / "stages.json")
        print(f"[stage] {stage.name}", flush=True)


def host_peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_prompts(folder: Path | str) -> dict[str, str]:
    """The prompts by name: every `*.txt` of the folder, one user turn each."""
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in sorted(Path(folder).glob("*.txt"))}


def call(command: list[str], *, env: dict[str, str] | None = None, deadline_seconds: float = 3600.0) -> str:
    """Run a tool to its end and return what it wrote (capped, stdout and stderr together); the step's log gets it too.

    The tool stays in the worker's process group, so that killing the step kills it.

    Raises:
        Problem: it cannot be started, it hung, or it ended with an exit code other than 0.
    """
    name = Path(command[0]).name if not command[0].endswith("python") else Path(command[1]).name
    print("$ " + " ".join(command), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        try:
            done = process.run(
                command, cwd=Path.cwd(), log=log, deadline_seconds=deadline_seconds, env=env, own_group=False
            )
        except OSError as problem:
            raise Problem(
                f"{name} does not start ({problem}). Build the toolchain again: `nox -s toolchain`.",
                code="tool-not-executable" if isinstance(problem, PermissionError) else "tool-missing",
                tool=name,
            ) from None
        output = log.read_bytes().decode(errors="replace")
        print(output, f"[{name}: exit code {done.exit_code}, {done.seconds:.2f} s]", flush=True)
        tail = process.last_lines(log, 6) or "It printed nothing."
    refuse_failure(name, done, tail, deadline_seconds)
    return output


def refuse_failure(tool: str, done: process.Finished, tail: str, deadline_seconds: float) -> None:
    """Say how a tool ended that did not end well.

    Args:
        tail: its last lines.

    Raises:
        Problem: it hung, or it ended with an exit code other than 0.
    """
    if done.timed_out:
        raise Problem(
            f"{tool} hung: killed after {deadline_seconds:.0f} s. It last printed:\n{tail}",
            code="hung",
            tool=tool,
            seconds=f"{deadline_seconds:.0f}",
        )
    if done.exit_code != 0:
        # A shell that starts the tool says 128 + the signal.
        signal = -done.exit_code if done.exit_code < 0 else done.exit_code - 128
        code = _SIGNALS.get(signal, "tool-failed")
        raise Problem(f"{tool} ended with exit code {done.exit_code}:\n{tail}", code=code, tool=tool)
