"""The bench makes artifacts: it reuses what was made before and runs what was not, one process a step."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay import process
from assay.errors import FREE_SPACE, NoRoom, StepFailed, Unavailable
from assay.files import write_json
from assay.steps.step import Step, StepUse
from assay.steps.store import Artifact, Store


class Bench:
    """Makes steps for one run.

    Args:
        store: where finished steps live, shared by all runs.
        run: the run's folder; logs of its steps go to `steps/`, and what failed is remembered there.
        run_id: what artifacts made here are marked with, so that a later run knows it reuses them.
        fresh: reuse nothing that another run made.
        say: called with one line of progress.
        deadline_seconds: caps every step's own deadline.
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
    ) -> None:
        self.store = store
        self.run = run
        self.run_id = run_id
        self.fresh = fresh
        self.say = say
        self.deadline_seconds = deadline_seconds
        self.no_room = ""
        """Why no step that holds a model may begin on this machine, if so. What is already made is still reused."""
        self.used: dict[str, StepUse] = {}
        """Steps asked for since `forget_used`, by digest."""
        self.facts: dict[str, Any] = {}
        """Facts of the stages asked for since `forget_used`."""

    def forget_used(self) -> None:
        self.used, self.facts = {}, {}

    def look(self, artifact: Artifact, stage: str, *names: str) -> dict[str, Any]:
        """A stage's facts of an artifact that a prerequisite made; the named ones go on this gate's record."""
        facts = artifact.stages[stage]
        self.facts |= {name: facts[name] for name in names if name in facts}
        return facts

    def has(self, step: Step) -> bool:
        """Whether the step was made before, so that asking for it costs nothing."""
        return self._reusable(step) is not None

    def make(self, step: Step, stage: str | None = None) -> Artifact:
        """The step's artifact, made now if nobody has.

        With `stage`, a step that failed later than that stage still counts as made: its facts up to there stand.

        Raises:
            StepFailed: it did not get there. A failure is remembered for the rest of the run, not longer.
            Unavailable: this machine cannot run it.
            NoRoom: the step would begin now, and the machine has no room for a model.
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
                    artifact = self._run(step, logs)
                failure = _read(logs / "failure.json")
        if artifact is None:
            assert failure is not None
            artifact = Artifact(path=logs, **failure["artifact"])
        elif not logs.exists():
            logs.mkdir(parents=True)
            shutil.copyfile(artifact.file("log.txt"), logs / "log.txt")
        log = str((logs / "log.txt").relative_to(self.run))
        self.used[step.digest] = StepUse(
            step=step.title,
            digest=step.digest,
            seconds=round(artifact.seconds, 3),
            peak_rss_bytes=artifact.peak_rss_bytes,
            reused_from=artifact.run if artifact.run != self.run_id else None,
            log=log,
        )
        wanted = step.stages[: step.stages.index(stage) + 1] if stage else step.stages
        self.facts |= artifact.stages.get(stage, {}) if stage else artifact.facts
        if failure is not None and not all(name in artifact.stages for name in wanted):
            if failure["kind"] == "unavailable":
                raise Unavailable(failure["reason"])
            raise StepFailed(failure["reason"], step=step.title, log=log)
        return artifact

    def _reusable(self, step: Step) -> Artifact | None:
        artifact = self.store.get(step)
        if artifact is not None and self.fresh and artifact.run != self.run_id:
            return None
        return artifact

    def _run(self, step: Step, logs: Path) -> Artifact | None:
        """Run the step's worker. Leaves an artifact in the store, or `failure.json` in `logs`."""
        logs.mkdir(parents=True, exist_ok=True)
        part = self.store.new_folder(step)
        free = shutil.disk_usage(part).free
        if free < step.disk_bytes:
            reason = (
                f"{self.store.folder}: {free / 1e9:.1f} GB free, {step.title} writes about {step.disk_bytes / 1e9:.1f} "
                f"GB. {FREE_SPACE}"
            )
            self._fail(step, logs, part, {"kind": "failed", "reason": reason})
            return None
        self.say(f"{step.title} …")
        started = time.monotonic()
        write_json(part / "step.json", {"worker": step.worker, "stages": step.stages, "arguments": step.arguments()})
        deadline = min(step.deadline_seconds, self.deadline_seconds)
        finished = self.work(part, deadline)
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
        if finished.exit_code == 0 and set(stages) == set(step.stages):
            (part / "step.json").unlink()
            (part / "stages.json").unlink()
            try:
                artifact = self.store.put(Artifact(path=part, **made), step)
            except OSError as problem:
                reason = f"{part}: {step.title} was made but could not be kept ({problem.strerror}). {FREE_SPACE}"
                self._fail(step, logs, part, {"kind": "failed", "reason": reason}, {**made, "stages": {}})
                return None
            shutil.copyfile(artifact.file("log.txt"), logs / "log.txt")
            return artifact
        reached = f"after {list(stages)[-1]!r}" if stages else "before its first stage"
        if finished.timed_out:
            told = {"kind": "failed", "reason": f"{step.title} hung {reached}: killed after {deadline:.0f} s."}
        else:
            told = _read(part / "problem.json") or {
                "kind": "failed",
                "reason": f"{step.title} ended {reached}, exit code {finished.exit_code}{_why(finished.exit_code)}.",
            }
        self._fail(step, logs, part, told, made)
        return None

    def work(self, part: Path, deadline_seconds: float) -> process.Finished:
        """Run the worker that `part/step.json` describes, in a process of its own."""
        return process.run(
            [sys.executable, "-m", "assay.workers", str(part), str(os.getpid())],
            cwd=part,
            log=part / "log.txt",
            deadline_seconds=deadline_seconds,
            env=worker_env(),
        )

    def _fail(
        self, step: Step, logs: Path, part: Path, told: dict[str, Any], made: dict[str, Any] | None = None
    ) -> None:
        """Remember the failure for this run, keep the log, and leave nothing half-made behind."""
        log = part / "log.txt"
        text = log.read_bytes() if log.exists() else told["reason"].encode()
        # First the half-made outputs go: they may be what filled the disk.
        shutil.rmtree(part, ignore_errors=True)
        (logs / "log.txt").write_bytes(text)
        nothing = {"digest": step.digest, "step": step.title, "stages": {}, "run": self.run_id}
        artifact = made or {**nothing, "seconds": 0.0, "peak_rss_bytes": 0}
        write_json(logs / "failure.json", {**told, "artifact": artifact})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return data


def _why(exit_code: int) -> str:
    known = {-9: " (killed, most often for want of memory)", -4: " (illegal instruction: built for another processor)"}
    return known.get(exit_code, "")


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
