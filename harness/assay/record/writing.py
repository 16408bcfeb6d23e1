"""Writes a run's record."""

from __future__ import annotations

import os
from pathlib import Path

from assay.files import write_json
from assay.record.outcome import Outcome
from assay.record.run import RunRecord


def write_record(folder: Path, record: RunRecord) -> None:
    """Write `run.json`, whole or not at all."""
    write_json(folder / "run.json", record.model_dump(mode="json"))


def append_outcome(folder: Path, outcome: Outcome) -> None:
    """Add one line to `gates.jsonl`, on disk when this returns."""
    with (folder / "gates.jsonl").open("a", encoding="utf-8") as file:
        file.write(outcome.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())
