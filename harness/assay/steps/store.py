"""Where finished steps live: one folder per step, named by its digest, whole or not there at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from assay.files import digest_file, write_json
from assay.steps.step import F, Stage, Step


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a finished step leaves: a folder and its facts."""

    path: Path
    digest: str
    step: str
    stages: dict[str, dict[str, Any]]
    """Stage to its facts as JSON, for the stages that the step reached."""
    run: str
    """The run that made it."""
    seconds: float
    peak_rss_bytes: int

    def facts(self, stage: Stage[F]) -> F:
        """What a stage measured.

        Raises:
            KeyError: the step did not reach it.
        """
        return stage.facts.model_validate(self.stages[stage.name])

    def file(self, name: str) -> Path:
        return self.path / name


class Store:
    """A folder of slots. Several processes may share it; a slot is written under its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def slot(self, step: Step) -> Path:
        return self.folder / f"{step.worker}-{step.digest[:20]}"

    def lock(self, step: Step) -> FileLock:
        """Held while a step is looked up or made, so that two processes never make the same one."""
        return FileLock(f"{self.slot(step)}.lock")

    def turn(self) -> FileLock:
        """Held while any step runs: two at once would spoil each other's speed and could exhaust the memory."""
        return FileLock(self.folder / "turn.lock")

    def new_folder(self, step: Step) -> Path:
        """An empty folder to work in, beside the slot, so that the final rename stays on one disk. Needs the lock."""
        slot = self.slot(step)
        for left in self.folder.glob(f"{slot.name}.*.part"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{slot.name}.", suffix=".part", dir=self.folder))

    def get(self, step: Step) -> Artifact | None:
        """The step's artifact if it is there and its files are still the ones that were written."""
        slot = self.slot(step)
        try:
            data = json.loads((slot / "artifact.json").read_text(encoding="utf-8"))
            if not all(_unchanged(slot / name, mark) for name, mark in data.pop("files").items()):
                return None
            return Artifact(path=slot, **data)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, artifact: Artifact, step: Step) -> Artifact:
        """Take a finished working folder in. `artifact.json` is written last, then the folder is renamed."""
        part, slot = artifact.path, self.slot(step)
        files = {str(path.relative_to(part)): _mark(path) for path in sorted(part.rglob("*")) if path.is_file()}
        data = {**vars(artifact), "files": files}
        del data["path"]
        write_json(part / "artifact.json", data)
        shutil.rmtree(slot, ignore_errors=True)
        part.rename(slot)
        return Artifact(**{**vars(artifact), "path": slot})


def _mark(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest_file(path)}


def _unchanged(path: Path, mark: dict[str, Any]) -> bool:
    """Size and time as written; if only the time moved (a copy, a restore), the content decides."""
    stat = path.stat()
    if stat.st_size != mark["bytes"]:
        return False
    return bool(stat.st_mtime_ns == mark["mtime_ns"] or digest_file(path) == mark["sha256"])
