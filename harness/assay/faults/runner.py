"""Takes cases through the gates: each in a process of its own, forked from one that has the libraries loaded.

A gate's steps are forked too, so that importing torch is paid for once and not a thousand times. All else is as in a
run of the gates: the same tests, workers, tools, record.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from assay import paths, process
from assay.errors import AssayError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.fault import Case, Fault, NotApplicable
from assay.faults.sandbox import Sandbox, around
from assay.files import digest_files, write_json
from assay.gating.causes import FILE as CAUSES
from assay.gating.causes import read_causes
from assay.gating.gate import Gate, read_gates
from assay.gating.policy import read_policy
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.toolchain import find_toolchain
from assay.machine import usable_cores
from assay.record.outcome import Status
from assay.record.reading import read_run
from assay.steps.runner import Executor, worker_env
from assay.steps.step import code_digest
from assay.validation import refuse_unknown_names
from assay.workers.__main__ import die_with

HEALTHY = "as_trained"
"""The variant that nothing is done to: what others are compared with."""
CATCHES = (Status.FAILED, Status.UNAVAILABLE)
"""What a gate says of what it caught. A harness that broke (`error`) caught nothing."""
ALARMS = (*CATCHES, Status.ERROR, Status.BLOCKED, Status.MISSING)
"""What no gate may say of a healthy variant."""
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors.torch", "gguf")
OWN = ("assay.gating.plugin", "assay.record.rendering")
"""Loaded here too, so that an hour's run is of one version of the code."""
DEADLINE_SECONDS = 4 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the gates made of one case."""

    name: str
    not_here: str | None = None
    """Why this candidate or machine cannot have it."""
    statuses: dict[str, str] = field(default_factory=dict)
    """Gate id, with `<adapter>`, to status."""
    reasons: dict[str, str] = field(default_factory=dict)
    """The first line of every gate that caught something."""
    causes: dict[str, list[str]] = field(default_factory=dict)
    """Gate to the causes named, the likeliest first."""
    fits: list[str] = field(default_factory=list)
    """Causes whose evidence is there in gates that passed: none should be."""
    seconds: float = 0.0

    def caught_by(self, healthy: Judged) -> list[str]:
        """The gates that caught something that is not there in the healthy candidate, in the policy's order."""
        return self._unlike(healthy, CATCHES)

    def alarms(self, healthy: Judged) -> list[str]:
        """The gates that say of a healthy variant what they do not say of the healthy candidate."""
        return self._unlike(healthy, ALARMS)

    def _unlike(self, healthy: Judged, statuses: tuple[Status, ...]) -> list[str]:
        return [gate for gate, one in self.statuses.items() if one in statuses and healthy.statuses.get(gate) != one]


class FaultRunner:
    """Runs cases on one candidate.

    Args:
        candidate: healthy; its first adapter is the one that is broken.
        folder: where the records of the cases go.
        quick: only gates that need no model, and only cases that those can judge.
    """

    def __init__(self, candidate: Candidate, folder: Path, *, quick: bool = False) -> None:
        self.candidate = candidate
        self.adapter: Adapter = candidate.adapters[0]
        self.folder = folder
        self.quick = quick
        self.faults, self.variants = FAULTS, HEALTHY_VARIANTS
        self.gates = {gate.id: gate for gate in read_gates(paths.GATES)}
        self.order = list(read_policy(paths.GATES / "policy.toml", list(self.gates)).severity)

    def cases(self, names: list[str] | None = None) -> list[Case]:
        """The healthy candidate, then every case (or those named), the variants last."""
        both: dict[str, Case] = {**self.faults, **self.variants}
        if names:
            refuse_unknown_names("assay faults", "fault", names, both)
            chosen = [both[name] for name in names]
        else:
            chosen = [one for one in both.values() if not self.quick or getattr(one, "quick", False)]
        return [both[HEALTHY], *(one for one in chosen if one.name != HEALTHY)]

    def run(self, cases: list[Case], jobs: int) -> Iterator[Judged]:
        """Each as it is judged; what was judged before in this folder is not judged again."""
        for name in set(os.environ) - set(worker_env()):
            del os.environ[name]
        # A process that has asked CUDA anything cannot fork: faults are judged on the processor.
        os.environ.update(worker_env() | {"CUDA_VISIBLE_DEVICES": ""})
        for module in (*HEAVY, *OWN):
            __import__(module)
        healthy, *others = cases
        yield self.judge(healthy)
        # A case holds functions, which no pool passes on: its processes know the runner, and are told a name.
        global _runner
        _runner = self
        cores = sorted(os.sched_getaffinity(0))
        jobs = min(jobs, len(cores))
        shares = get_context("fork").SimpleQueue()
        for job in range(jobs):
            shares.put(cores[job::jobs])
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("fork"), initializer=_take_share, initargs=(shares,)
        ) as pool:
            try:
                for done in as_completed([pool.submit(_judge, one.name) for one in others]):
                    yield done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def judge(self, case: Case) -> Judged:
        folder = self.folder / case.name
        digest = self._digest(case)
        try:
            kept = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            if kept.pop("digest") == digest:
                return self._named(folder, case, Judged(**kept))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-", dir=self._scratch()) as scratch:
            child = process.fork(
                partial(self._enact, case, Path(scratch) / case.name, folder, os.getpid()),
                cwd=paths.REPOSITORY,
                log=folder / "pytest.txt",
                deadline_seconds=DEADLINE_SECONDS,
            )
        seconds = round(time.monotonic() - started, 1)
        if child.timed_out or child.exit_code not in (0, 1):
            log = process.last_lines(folder / "pytest.txt", 20)
            raise AssayError(f"{folder}: the run of the gates broke off (exit code {child.exit_code}).\n{log}")
        not_here = folder / "not-here.txt"
        if not_here.exists():
            judged = Judged(name=case.name, not_here=not_here.read_text(encoding="utf-8"), seconds=seconds)
        else:
            judged = self._read(case, folder, seconds)
        write_json(folder / "case.json", {"digest": digest, **vars(judged)})
        return self._named(folder, case, judged)

    def _digest(self, case: Case) -> str:
        """What a case's outcome depends on, but for the machine: a folder is of one."""
        sources = hashlib.sha256(self._source(case).encode()).hexdigest()
        parts = [code_digest(), sources, self.candidate.base.digest, self.adapter.digest, _tools(), str(self.quick)]
        parts += [digest_files(paths.GATES, [*sorted(file.name for file in paths.GATES.glob("*.py")), "policy.toml"])]
        parts += [self.candidate.training.dataset.digest if self.candidate.trained_here else ""]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _source(self, case: Case) -> str:
        """The code that makes a case: its own function, its module's helpers, and the sandbox."""
        make = _function(case)
        others = {_function(one) for one in (*self.faults.values(), *self.variants.values())} - {make}
        module = sys.modules[make.__module__]
        helpers = [one for one in vars(module).values() if inspect.isfunction(one) and one not in others]
        texts = [inspect.getsource(one) for one in helpers if one.__module__ == module.__name__]
        given = re.sub(r" at 0x\w+", "", repr(getattr(case.make, "keywords", None)))
        sandbox = (Path(__file__).parent / "sandbox.py").read_text(encoding="utf-8")
        # What a decorator says of a fault does not change what it is.
        return "\n".join([*(re.sub(r"(?s)^@.*?(?=^def )", "", text, flags=re.M) for text in texts), given, sandbox])

    @staticmethod
    def _scratch() -> Path:
        """On the disk of the cache: candidates are large."""
        scratch = paths.cache() / "faults"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch

    def _enact(self, case: Case, scratch: Path, folder: Path, parent: int) -> int:
        """In a process of the case's own, which ends with the runner's: break what it breaks, then judge it."""
        import pytest
        import torch

        # A process whose torch has started threads cannot fork any more.
        torch.set_num_threads(1)
        die_with(parent)
        scratch.mkdir()
        is_healthy = case.name == HEALTHY
        store = paths.cache() / "store"
        store.mkdir(parents=True, exist_ok=True)
        sandbox = Sandbox(scratch, self.candidate, self.adapter, store)
        try:
            case.make(sandbox)
        except NotApplicable as reason:
            (folder / "not-here.txt").write_text(str(reason), encoding="utf-8")
            return 0
        if not is_healthy:
            os.environ["ASSAY_CACHE"] = str(sandbox.cache)
        if sandbox.asks_task:
            _ask_before_judging()
        arguments = [*self._chosen(case), "-q", "-p", "no:cacheprovider", "--run", str(folder / "run")]
        return int(pytest.main([*arguments, *sandbox.arguments()], plugins=[Executes(_forked(sandbox))]))

    def _chosen(self, case: Case) -> list[str]:
        """What pytest runs: all gates, or in the fast subset the one that should see it and what it needs."""
        if not self.quick:
            return [str(paths.GATES)]
        gates = [self.gates[case.first]] if isinstance(case, Fault) else list(self._quick_gates())
        return [f"{paths.GATES / gate.test}" for gate in gates]

    def _quick_gates(self) -> Iterator[Gate]:
        """Those that find quick faults, but for the one that also loads the base."""
        quick = {one.first for one in self.faults.values() if one.quick} - {"base_quant_load_ok"}
        return (gate for gate in self.gates.values() if gate.id in quick)

    def _read(self, case: Case, folder: Path, seconds: float) -> Judged:
        run = read_run(folder / "run")
        of = {one.expected.gate: one.outcome for one in run.gates}
        statuses, reasons = {}, {}
        for id in self.order:
            outcome = of.get(self.gates[id].name_for(self.adapter.name))
            if outcome is not None and not (self.quick and outcome.status is Status.MISSING):
                statuses[id] = outcome.status.value
                if outcome.status not in (Status.PASSED, Status.BLOCKED, Status.MISSING):
                    reasons[id] = outcome.reason.split("\n")[0][:300]
        return Judged(name=case.name, statuses=statuses, reasons=reasons, seconds=seconds)

    def _named(self, folder: Path, case: Case, judged: Judged) -> Judged:
        """With the causes as they are named now: they may have changed since the record was made."""
        if judged.not_here is not None:
            return judged
        run, known = read_run(folder / "run"), read_causes(paths.GATES / CAUSES, list(self.gates))
        ids = {gate.name_for(self.adapter.name): id for id, gate in self.gates.items()}
        causes: dict[str, list[str]] = {}
        fits: list[str] = []
        for one in run.gates:
            id = ids[one.expected.gate]
            if one.outcome.status in (Status.BLOCKED, Status.MISSING):
                continue
            found = [finding.id for finding in known.fitting(run.folder, id, one.outcome)]
            if one.outcome.status is Status.PASSED:
                fits += found
            else:
                causes[id] = found
        return Judged(**{**vars(judged), "causes": causes, "fits": fits})


def _tools() -> str:
    try:
        return find_toolchain().digest
    except AssayError:
        return "none"


def _function(case: Case) -> Any:
    return getattr(case.make, "func", case.make)


_runner: FaultRunner | None = None


def _take_share(shares: SimpleQueue[list[int]]) -> None:
    """Give this process and what it starts cores of its own: threads of two that wait for each other on the same cores
    take ten times as long."""
    os.sched_setaffinity(0, shares.get())


def _judge(name: str) -> Judged:
    assert _runner is not None
    return _runner.judge(_runner.faults.get(name) or _runner.variants[name])


def _ask_before_judging() -> None:
    """The task gates judge few answers only if they were asked before: so ask them."""
    task = import_module("test_task")

    def compare(original: Any, evidence: Any, samples: Any, *forms: Any) -> Any:
        for _, prompts in samples.blocks():
            for form in forms:
                step, stage = form(prompts)
                evidence.runner.make(step, until=stage)
        return original(evidence, samples, *forms)

    around(task, "compare", compare)


def _convert_in_a_fork() -> None:
    """The converter spends its time importing what is loaded here already."""
    from assay.workers import gguf

    def call(original: Any, command: list[str], **given: Any) -> Any:
        return _run_script(command[1:]) if command[0] == sys.executable else original(command, **given)

    around(gguf, "call", call)


def _run_script(command: list[str]) -> str:
    """What `python SCRIPT …` says, run in a fork.

    Raises:
        Problem: it ended with another exit code than 0.
    """
    from assay.workers import Problem

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
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        done = process.fork(script, cwd=Path.cwd(), log=log, deadline_seconds=3600)
        said, tail = log.read_text(encoding="utf-8", errors="replace"), process.last_lines(log, 6)
    print(said, flush=True)
    if done.exit_code:
        raise Problem(f"{Path(command[0]).name} ended with exit code {done.exit_code}:\n{tail}")
    return said


class Executes:
    """A pytest plugin that runs workers in another way than in processes of their own."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def pytest_assay_executor(self, config: Any) -> Executor:
        return self.executor


def _forked(sandbox: Sandbox) -> Executor:
    """Runs a worker in a fork, after what the case does to it."""

    def work(part: Path, deadline_seconds: float) -> process.Finished:
        parent = os.getpid()

        def child() -> int:
            import torch

            from assay.workers.__main__ import main

            torch.set_num_threads(usable_cores())
            _convert_in_a_fork()
            worker = json.loads((part / "step.json").read_text(encoding="utf-8"))["worker"]
            for name, do in sandbox.in_workers:
                if name == worker:
                    do()
            return main(part, parent)

        return process.fork(child, cwd=part, log=part / "log.txt", deadline_seconds=deadline_seconds)

    return work
