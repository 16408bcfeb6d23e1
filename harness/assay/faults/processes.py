"""How the processes of fault injection differ from those of a run of the gates: they are forks.

Importing torch takes seconds, and two hundred cases have thousands of steps. So one process imports the libraries once,
and forks for each case and for each step. All else is as in a run of the gates: tests, workers, tools, record.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from assay import process
from assay.faults.edits.sandbox import Sandbox
from assay.faults.edits.workers import around
from assay.machine import usable_cores
from assay.steps.runner import Executor, worker_env
from assay.workers.tensors import use_threads

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors.torch", "gguf")
OWN = ("assay.gating.plugin", "assay.record.rendering")
"""Imported here too, so that a run of hours judges with one version of the code."""


def prepare() -> None:
    """Make this process the one that is forked: a worker's environment, no GPU, all libraries imported."""
    for name in set(os.environ) - set(worker_env()):
        del os.environ[name]
    # A process that has asked CUDA anything cannot fork: cases are judged on the processor.
    os.environ.update(worker_env() | {"CUDA_VISIBLE_DEVICES": ""})
    for module in (*HEAVY, *OWN):
        import_module(module)


class Forks:
    """A pytest plugin: the gates of this process run their workers as forks, after what the case does in them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        if sandbox.asks_task:
            _ask_before_judging()

    def pytest_assay_executor(self, config: Any) -> Executor:
        return self.execute

    def execute(self, part: Path, deadline_seconds: float) -> process.Finished:
        """Run the worker that `part/step.json` describes."""
        parent = os.getpid()

        def child() -> int:
            from assay.workers.__main__ import main

            use_threads(usable_cores())
            _convert_in_a_fork()
            worker = json.loads((part / "step.json").read_text(encoding="utf-8"))["worker"]
            for name, do in self.sandbox.in_workers:
                if name == worker:
                    do()
            return main(part, parent)

        return process.fork(child, cwd=part, log=part / "log.txt", deadline_seconds=deadline_seconds)


def _ask_before_judging() -> None:
    """The task gates judge few answers only if they were asked before, so ask them first."""
    task = import_module("test_task")

    def compare(original: Any, evidence: Any, samples: Any, *forms: Any) -> Any:
        for _, prompts in samples.blocks():
            for form in forms:
                step, stage = form(prompts)
                evidence.runner.make(step, until=stage)
        return original(evidence, samples, *forms)

    around(task, "compare", compare)


def _convert_in_a_fork() -> None:
    """Run the converter in a fork too: it would spend its time on importing what is imported here."""
    from assay.workers import gguf

    def call(original: Any, command: list[str], **given: Any) -> Any:
        return _run_script(command[1:]) if command[0] == sys.executable else original(command, **given)

    around(gguf, "call", call)


def _run_script(command: list[str]) -> str:
    """What `python SCRIPT …` prints, run in a fork.

    Raises:
        Problem: it ended with another exit code than 0.
    """
    from assay.workers import refuse_failure

    def script() -> int:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        # The converter has a gguf of its own, beside it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
            del sys.modules[name]
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return 0

    print("$ python " + " ".join(command), flush=True)
    deadline_seconds = 3600.0
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        done = process.fork(script, cwd=Path.cwd(), log=log, deadline_seconds=deadline_seconds)
        output, tail = log.read_text(encoding="utf-8", errors="replace"), process.last_lines(log, 6)
    print(output, flush=True)
    refuse_failure(Path(command[0]).name, done, tail or "It printed nothing.", deadline_seconds)
    return output
