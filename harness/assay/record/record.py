"""The record of a run: `run.json` says what was expected, `gates.jsonl` what happened, and the verdict follows.

Everything else (HTML, JUnit, Markdown, the terminal) is a rendering of these two files.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from assay.errors import AssayError
from assay.steps.step import StepUse

VERSION = 2
"""Version of both files. 2 added each gate's title and guide to `run.json`."""
READABLE = (1, 2)
"""Versions that can be read. A reader refuses any other."""


class Severity(StrEnum):
    """What a gate that did not pass does to the release. A property of the policy, never of the gate."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class Status(StrEnum):
    """What became of a gate, best first: where two records of one gate disagree, the later in this list stands."""

    PASSED = "passed"
    INCONCLUSIVE = "inconclusive"
    UNAVAILABLE = "unavailable"
    BLOCKED = "blocked"
    FAILED = "failed"
    ERROR = "error"
    MISSING = "missing"


class Verdict(StrEnum):
    """The one word a run is made for."""

    RELEASE = "RELEASE"
    RELEASE_WITH_WARNINGS = "RELEASE WITH WARNINGS"
    HOLD = "HOLD"

    @property
    def exit_code(self) -> int:
        """0 release, 1 hold. (2, the harness could not judge, is an error and not a verdict.)"""
        return 1 if self is Verdict.HOLD else 0


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One gate that the policy wants of one candidate, or of one of its adapters."""

    gate: str
    route: str
    severity: Severity
    candidate: str
    adapter: str | None
    title: str = ""
    """What the gate claims, in one sentence; empty in records of version 1."""
    guide: str = ""
    """Why it matters, and what to do when it fails; empty in records of version 1."""

    @property
    def key(self) -> tuple[str, str | None]:
        return self.gate, self.adapter


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cause that the evidence names, from `gates/causes.toml`."""

    id: str
    cause: str
    fix: str
    """A command or a setting to paste."""
    link: str
    affects: str
    """The versions it happens in; empty if that is not known."""
    evidence: tuple[str, ...]
    """What was seen of it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to one gate: one line of `gates.jsonl`."""

    gate: str
    adapter: str | None
    status: Status
    reason: str = ""
    """For the person who must act: what was seen and expected, likely cause, fix. Empty if the gate passed."""
    code: str = ""
    """Why it did not pass, as a stable word; empty if it passed or nothing refers to the kind of problem."""
    details: dict[str, str | int | float] = field(default_factory=dict)
    """Values of the problem that a cause's text may name."""
    blocked_by: str | None = None
    causes: tuple[Finding, ...] = ()
    """What may have caused it, the likeliest first; empty if it passed, or if the cause is not known."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage to what it measured, for the stages that the gate looked at. Flat, fact by name, in version 1."""
    steps: tuple[StepUse, ...] = ()
    seconds: float = 0.0
    """Wall time of the gate and of the prerequisites it was the first to ask for."""
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        data = json.loads(text)
        _refuse_other_version(data.get("version"))
        data["status"] = Status(data["status"])
        data["steps"] = tuple(StepUse(**step) for step in data["steps"])
        found = data.get("causes", [])
        data["causes"] = tuple(Finding(**{**one, "evidence": tuple(one["evidence"])}) for one in found)
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An expected gate and what became of it."""

    expected: Expected
    outcome: Outcome

    @property
    def passed(self) -> bool:
        return self.outcome.status is Status.PASSED


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, as read."""

    folder: Path
    name: str
    started_at: str
    """UTC, ISO 8601."""
    candidate: dict[str, Any]
    environment: dict[str, Any]
    inconclusive_primary: str
    """What the policy makes of an inconclusive primary gate: `hold` or `warn`."""
    forecast: dict[str, int] | None
    """What the base's headers promise, in bytes: see `assay.plan.forecast`."""
    training: dict[str, Any] | None
    """How the adapters were trained and evaluated, if they were trained here."""
    doctor: tuple[dict[str, Any], ...]
    """What was found before the first gate: see `assay.doctor.Finding`."""
    gates: tuple[Judged, ...]
    """Every expected gate, in the policy's order; one that left no record is `missing`."""

    @property
    def verdict(self) -> Verdict:
        """RELEASE if every gate passed, HOLD if a primary one did not or any was never run, or there is no adapter."""
        if not self.candidate["adapters"]:
            return Verdict.HOLD
        open_gates = [gate for gate in self.gates if not gate.passed]
        if not open_gates:
            return Verdict.RELEASE
        return Verdict.HOLD if any(self._holds(gate) for gate in open_gates) else Verdict.RELEASE_WITH_WARNINGS

    def _holds(self, gate: Judged) -> bool:
        if gate.outcome.status is Status.MISSING:
            # A partial run (-k, -x, a crash) never reads as a release, whatever the severity of what it left out.
            return True
        if gate.outcome.status is Status.INCONCLUSIVE and self.inconclusive_primary == "warn":
            return False
        return gate.expected.severity is Severity.PRIMARY


def append_outcome(folder: Path, outcome: Outcome) -> None:
    """Add one line to `gates.jsonl`, on disk when this returns."""
    with (folder / "gates.jsonl").open("a", encoding="utf-8") as file:
        file.write(outcome.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        AssayError: there is no `run.json`, it expects nothing, or a record cannot be read. The harness cannot judge.
    """
    path = folder / "run.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_version(data["version"])
        expected = [Expected(**{**gate, "severity": Severity(gate["severity"])}) for gate in data["expected"]]
        if not expected:
            raise ValueError("no gate is expected, so nothing can be judged")
        outcomes = _read_outcomes(folder / "gates.jsonl")
        return Run(
            folder=folder,
            name=data["name"],
            started_at=data["started_at"],
            candidate=data["candidate"],
            environment=data["environment"],
            inconclusive_primary=data["inconclusive_primary"],
            forecast=data.get("forecast"),
            training=data.get("training"),
            doctor=tuple(data.get("doctor", [])),
            gates=tuple(Judged(expected=gate, outcome=_worst(gate, outcomes)) for gate in expected),
        )
    except FileNotFoundError:
        raise AssayError(f"{path}: not found, so there is no run to judge. Run `nox -s gates` first.") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise AssayError(f"{folder}: the record cannot be read ({problem}). Run the gates again.") from None


def _refuse_other_version(version: object) -> None:
    if version not in READABLE:
        raise ValueError(f"version {version!r}, this Assay reads {' and '.join(map(str, READABLE))}")


def _read_outcomes(path: Path) -> list[Outcome]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # A line without its newline was being written when the run was killed: what it would have said is missing.
    return [Outcome.from_json(line) for line in lines[:-1]]


def _worst(gate: Expected, outcomes: list[Outcome]) -> Outcome:
    of_gate = [outcome for outcome in outcomes if (outcome.gate, outcome.adapter) == gate.key]
    if not of_gate:
        reason = "not run: deselected, or the run ended before it"
        return Outcome(gate=gate.gate, adapter=gate.adapter, status=Status.MISSING, reason=reason)
    return max(of_gate, key=lambda outcome: list(Status).index(outcome.status))


def newest_run(reports: Path) -> Path:
    """The newest run's folder under `reports`, by its own start time. The checked-in example is not a run of yours."""
    started = {path.parent: _started_at(path) for path in reports.glob("*/run.json") if path.parent.name != "example"}
    if not started:
        raise AssayError(f"{reports}: no run in there. Run `nox -s gates` first, or name the run's folder.")
    return max(started, key=lambda folder: started[folder])


def _started_at(path: Path) -> str:
    """When a run started; one whose record is broken is taken for the newest, so that it is not passed over."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["started_at"])
    except (ValueError, KeyError, TypeError):
        return "~"
