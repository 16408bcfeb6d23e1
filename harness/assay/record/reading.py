"""Reads a run's record, of this version or an older one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from assay.errors import AssayError
from assay.record.model import VERSION, RecordModel
from assay.record.outcome import Outcome, unstaged
from assay.record.run import RunRecord
from assay.record.verdict import GateResult, Verdict, decide, results

READABLE = (1, VERSION)
"""Versions that can be read. A reader refuses any other."""
Model = TypeVar("Model", bound=RecordModel)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, as read."""

    folder: Path
    record: RunRecord
    """The content of `run.json`."""
    gates: tuple[GateResult, ...]
    """Each expected gate, in the policy's order; one that left no outcome is `missing`."""

    @property
    def verdict(self) -> Verdict:
        return decide(self.record, self.gates)


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        AssayError: there is no `run.json`, it expects nothing, or a record cannot be read. The harness cannot judge.
    """
    path = folder / "run.json"
    try:
        record = _parsed(RunRecord, path.read_bytes(), upgraded_run, str(path))
    except FileNotFoundError:
        raise AssayError(f"{path}: not found, so there is no run to judge. Run `nox -s gates` first.") from None
    if not record.expected:
        raise AssayError(f"{path}: no gate is expected, so nothing can be judged. Check the policy and the candidate.")
    return Run(folder=folder, record=record, gates=results(record, _read_outcomes(folder / "gates.jsonl")))


def _read_outcomes(path: Path) -> list[Outcome]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # A line without its newline was being written when the run was killed: its gate is missing.
    return [
        _parsed(Outcome, line, upgraded_outcome, f"{path} line {number}") for number, line in enumerate(lines[:-1], 1)
    ]


def _parsed(model: type[Model], text: bytes, upgraded: Callable[[dict[str, Any]], dict[str, Any]], where: str) -> Model:
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"a JSON object expected, {type(data).__name__} seen")
        if data.get("version") not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise ValueError(f"version {data.get('version')!r} seen, this Assay reads {readable}")
        return model.model_validate(upgraded(data))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        told = f"{key}: {first['msg']}" + ("" if first["type"] == "missing" else f", {first['input']!r:.80} seen")
    except ValueError as problem:
        told = str(problem)
    raise AssayError(f"{where}: the record cannot be read ({told}). Run the gates again.")


def upgraded_run(data: dict[str, Any]) -> dict[str, Any]:
    """`run.json` of a readable version in the form of the current one."""
    if data["version"] == VERSION:
        return data
    training = data.get("training")
    if isinstance(training, dict) and "torch" in training:
        rest = {key: value for key, value in training.items() if key != "torch"}
        training = {**rest, "versions": {"torch": training["torch"]}}
    return {**data, "version": VERSION, "training": training}


def upgraded_outcome(data: dict[str, Any]) -> dict[str, Any]:
    """A line of `gates.jsonl` of a readable version in the form of the current one. Version 1 had facts by name."""
    if data["version"] == VERSION:
        return data
    return {**data, "version": VERSION, "facts": unstaged(data.get("facts", {}))}


def newest_run(reports: Path) -> Path:
    """The newest run's folder under `reports`, by its own start time. The checked-in example is not a run of yours.

    Raises:
        AssayError: there is none.
    """
    started = {path.parent: _started_at(path) for path in reports.glob("*/run.json") if path.parent.name != "example"}
    if not started:
        raise AssayError(f"{reports}: no run found. Run `nox -s gates` first, or name the run's folder.")
    return max(started, key=lambda folder: started[folder])


def _started_at(path: Path) -> str:
    """When a run started; one whose record is broken counts as the newest, so that it is not passed over."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["started_at"])
    except (ValueError, KeyError, TypeError):
        return "~"
