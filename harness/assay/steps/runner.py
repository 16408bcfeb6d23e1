"""The runner makes artifacts: it reuses what was made before and runs what was not, one process per step."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from assay import process
from assay.errors import FREE_SPACE, AssayError, Inconclusive, NoRoom, StepFailed, Unavailable, WorkerCrashed
from assay.files import write_json
from assay.steps.step import Stage, Step, StepUse
from assay.steps.store import Artifact, Store

Executor = Callable[[Path, float], process.Finished]
"""Runs the worker that `step.json` in a folder describes, until a deadline in seconds; the log goes to `log.txt`."""
_SIGNALS = {
    -9: ("killed", " (killed, most often for want of memory)"),
    -4: ("illegal-instruction", " (illegal instruction: built for another processor)"),
    -25: ("disk-full", " (a limit on the size of files)"),
}
"""Exit code to failure code and what it means."""


class Failure(BaseModel):
    """Why a step did not produce its artifact: `problem.json`, which a worker leaves or the runner writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["failed", "unavailable", "inconclusive", "error"]
    """`error` if the harness itself broke."""
    reason: str
    """For people."""
    code: str = ""
    """A stable word for the kind of problem."""
    details: dict[str, str | int | float] = {}
    """Values that a cause's text may name."""

    def exception(self, step: Step, log: str) -> AssayError:
        given = {"code": self.code, **self.details}
        if self.kind == "unavailable":
            return Unavailable(self.reason, **given)  # type: ignore[arg-type]
        if self.kind == "inconclusive":
            return Inconclusive(self.reason, **given)  # type: ignore[arg-type]
        kind = WorkerCrashed if self.kind == "error" else StepFailed
        return kind(self.reason, step=step.title, log=log, **given)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of a step."""

    artifact: Artifact
    """Of a step that failed: the folder of its log, with the facts of the stages that it reached."""
    use: StepUse
    problem: AssayError | None
    """Why the stages asked for were not reached."""


class Runner:
    """Makes steps for one run.

    Args:
        store: where finished steps live, shared by all runs.
        run: the run's folder; logs of its steps go to `steps/`, and what failed is remembered there.
        run_id: what artifacts made here are marked with, so that a later run knows that it reuses them.
        fresh: reuse nothing that another run made.
        say: called with one line of progress.
        deadline_seconds: caps every step's own deadline.
        execute: runs a step's worker; a process of its own by default.
    """

    def __init__(
        self,
        store: Store,
        run: Path,
        run_id: str,
        *,
        fresh: bool = False,
        say: Callable[[str], None] = print,
        deadline_seconds: float = float("inf"),
        execute: Executor | None = None,
    ) -> None:
        self.store = store
        self.run = run
        self.run_id = run_id
        self.fresh = fresh
        self.say = say
        self.deadline_seconds = deadline_seconds
        self.execute = execute or run_worker
        self.no_room = ""
        """Why no step that holds a model may begin on this machine, if so. What is already made is still reused."""

    def has(self, step: Step) -> bool:
        """Whether the step was made before, so that asking for it costs nothing."""
        return self._reusable(step) is not None

    def make(self, step: Step, until: Stage[Any] | None = None) -> Artifact:
        """The step's artifact, made now if nobody has.

        With `until`, a step that failed later than that stage still counts as made: its facts up to there stand. Not
        so where later steps need its files.

        Raises:
            StepFailed: the step did not get there. A failure is remembered for the rest of the run, not longer.
            Unavailable: this machine cannot run it.
            Inconclusive: the worker cannot tell.
            NoRoom: the step would begin now, and the machine has no room for a model.
        """
        attempt = self.attempt(step, until)
        if attempt.problem is not None:
            raise attempt.problem
        return attempt.artifact

    def attempt(self, step: Step, until: Stage[Any] | None = None) -> Attempt:
        """The same, with the problem as a value.

        Raises:
            NoRoom: as for `make`.
        """
        # Steps log under the run, so that the run's folder explains itself when the store is gone.
        logs = self.run / "steps" / self.store.slot(step).name
        with self.store.lock(step):
            artifact = self._reusable(step)
            failure = _read(logs / "failure.json")
            if artifact is None and failure is None:
                if self.no_room and step.holds_model:
                    raise NoRoom(self.no_room)
                with self.store.turn():
                    artifact = self._make(step, logs)
                failure = _read(logs / "failure.json")
        if artifact is None:
            assert failure is not None
            artifact = Artifact(path=logs, **failure.pop("artifact"))
        elif not logs.exists():
            logs.mkdir(parents=True)
            shutil.copyfile(artifact.file("log.txt"), logs / "log.txt")
        log = str((logs / "log.txt").relative_to(self.run))
        use = StepUse(
            step=step.title,
            digest=step.digest,
            seconds=round(artifact.seconds, 3),
            peak_rss_bytes=artifact.peak_rss_bytes,
            reused_from=artifact.run if artifact.run != self.run_id else None,
            log=log,
        )
        expected = step.stages[: step.stages.index(until) + 1] if until else step.stages
        problem = None
        stands = until is not None and not step.makes_model
        if failure is not None and not (stands and all(stage.name in artifact.stages for stage in expected)):
            problem = Failure.model_validate(failure).exception(step, log)
        return Attempt(artifact=artifact, use=use, problem=problem)

    def _reusable(self, step: Step) -> Artifact | None:
        artifact = self.store.get(step)
        if artifact is not None and self.fresh and artifact.run != self.run_id:
            return None
        return artifact

    def _make(self, step: Step, logs: Path) -> Artifact | None:
        """Run the step's worker. Leaves an artifact in the store, or `failure.json` in `logs`."""
        logs.mkdir(parents=True, exist_ok=True)
        part = self.store.new_folder(step)
        free = shutil.disk_usage(part).free
        if free < step.disk_bytes:
            free_gb, needed_gb = f"{free / 1e9:.1f}", f"{step.disk_bytes / 1e9:.1f}"
            reason = f"{self.store.folder}: {free_gb} GB free, {step.title} writes about {needed_gb} GB. {FREE_SPACE}"
            details: dict[str, str | int | float] = {"free_gb": free_gb, "needed_gb": needed_gb}
            self._fail(step, logs, part, Failure(kind="failed", reason=reason, code="disk-too-small", details=details))
            return None
        self.say(f"{step.title} …")
        started = time.monotonic()
        names = [stage.name for stage in step.stages]
        write_json(part / "step.json", {"worker": step.worker, "stages": names, "arguments": step.arguments()})
        deadline = min(step.deadline_seconds, self.deadline_seconds)
        finished = self.execute(part, deadline)
        self.say(f"{step.title}: {time.monotonic() - started:.1f} s")
        stages = _read(part / "stages.json") or {}
        made: dict[str, Any] = {
            "digest": step.digest,
            "step": step.title,
            "stages": stages,
            "run": self.run_id,
            "seconds": finished.seconds,
            "peak_rss_bytes": finished.peak_rss_bytes,
        }
        # Exit code 0 proves nothing: every promised stage must have left its facts.
        if finished.exit_code == 0 and set(stages) == set(names):
            return self._keep(step, logs, part, made)
        self._fail(step, logs, part, _why(step, part, finished, list(stages), deadline), made)
        return None

    def _keep(self, step: Step, logs: Path, part: Path, made: dict[str, Any]) -> Artifact | None:
        (part / "step.json").unlink()
        (part / "stages.json").unlink()
        try:
            artifact = self.store.put(Artifact(path=part, **made), step)
        except OSError as problem:
            reason = f"{part}: {step.title} was made but could not be kept ({problem.strerror}). {FREE_SPACE}"
            failure = Failure(kind="failed", reason=reason, code="disk-full")
            self._fail(step, logs, part, failure, {**made, "stages": {}})
            return None
        shutil.copyfile(artifact.file("log.txt"), logs / "log.txt")
        return artifact

    def _fail(self, step: Step, logs: Path, part: Path, failure: Failure, made: dict[str, Any] | None = None) -> None:
        """Remember the failure for this run, keep the log, and leave nothing half-made behind."""
        log = part / "log.txt"
        text = log.read_bytes() if log.exists() else failure.reason.encode()
        # First the half-made outputs go: they may be what filled the disk.
        shutil.rmtree(part, ignore_errors=True)
        (logs / "log.txt").write_bytes(text)
        nothing = {"digest": step.digest, "step": step.title, "stages": {}, "run": self.run_id}
        artifact = made or {**nothing, "seconds": 0.0, "peak_rss_bytes": 0}
        write_json(logs / "failure.json", {**failure.model_dump(), "artifact": artifact})


def _why(step: Step, part: Path, finished: process.Finished, reached: list[str], deadline: float) -> Failure:
    """What a worker that did not succeed says of itself, or what its end says of it."""
    where = f"after {reached[-1]!r}" if reached else "before its first stage"
    if finished.timed_out:
        reason = f"{step.title} hung {where}: killed after {deadline:.0f} s."
        return Failure(kind="failed", reason=reason, code="hung", details={"seconds": f"{deadline:.0f}"})
    told = _read(part / "problem.json")
    if told is not None:
        return Failure.model_validate(told)
    code, meaning = _SIGNALS.get(finished.exit_code, ("ended", ""))
    reason = f"{step.title} ended {where}, exit code {finished.exit_code}{meaning}."
    return Failure(kind="failed", reason=reason, code=code)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return data


def run_worker(part: Path, deadline_seconds: float) -> process.Finished:
    """The executor of a release: the worker runs in a process of its own."""
    return process.run(
        [sys.executable, "-m", "assay.workers", str(part), str(os.getpid())],
        cwd=part,
        log=part / "log.txt",
        deadline_seconds=deadline_seconds,
        env=worker_env(),
    )


def worker_env() -> dict[str, str]:
    """The user's environment, less what would make a step fetch, ask or phone home behind the record's back."""
    # LLAMA_ARG_* sets llama.cpp's options: it would change results that the digest knows nothing of.
    own = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    return {
        **own,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
