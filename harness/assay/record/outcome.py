"""What happened to a gate: one line of `gates.jsonl`."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator

from assay.record.model import VERSION, RecordModel
from assay.steps.step import StepUse


class Status(StrEnum):
    """What became of a gate, best first: of two records of one gate, the later in this list counts."""

    PASSED = "passed"
    INCONCLUSIVE = "inconclusive"
    UNAVAILABLE = "unavailable"
    BLOCKED = "blocked"
    FAILED = "failed"
    ERROR = "error"
    MISSING = "missing"


class Diagnosis(RecordModel):
    """A cause that the evidence names, from `gates/causes.toml`."""

    id: str
    """The cause's id in `gates/causes.toml`."""
    cause: str
    """What went wrong, for people."""
    fix: str
    """A command or a setting to paste."""
    link: str
    """Where to read more; empty if there is no such page."""
    affects: str
    """The versions of a tool or library in which it happens; empty if they are not known."""
    evidence: tuple[str, ...]
    """What was seen of it, one sentence per piece of evidence."""


class Outcome(RecordModel):
    """What happened to one gate: one line of `gates.jsonl`."""

    version: Literal[2] = VERSION
    """Version of the record."""
    gate: str
    """The gate's id, with the adapter's name in it where the id has one."""
    adapter: str | None
    """The adapter that was judged; null for a gate that judges the run, the dataset or the base."""
    status: Status
    """What became of the gate."""
    reason: str = ""
    """For the person who must act: what was seen, what was expected, what to do. Empty if the gate passed."""
    code: str = ""
    """Why it did not pass, as a stable word (`tensors-missing`); empty if it passed or if there is no such word."""
    details: dict[str, str | int | float] = Field(default_factory=dict)
    """Values that belong to the code and that a cause's text may name. A number that is not finite is text (`nan`)."""
    blocked_by: str | None = None
    """The gate that must pass first, or `doctor`; null unless the status is `blocked`."""
    causes: tuple[Diagnosis, ...] = ()
    """What may have caused it, the likeliest first; empty if it passed or if the cause is not known."""
    facts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Id of a stage (`Merge.compared`) to what it measured, in the order in which the gate asked. A number that is not
    finite is null. `stages` in `run.json` describes the fields. Facts that name no stage are under `unstaged`."""
    steps: tuple[StepUse, ...] = ()
    """The steps whose results the gate judged."""
    seconds: float = 0.0
    """Wall time of the gate and of the prerequisites that it was the first to ask for, in seconds."""

    @field_validator("details")
    @classmethod
    def _finite_or_text(cls, details: dict[str, str | int | float]) -> dict[str, str | int | float]:
        """JSON has no numbers that are not finite."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in details.items()
        }

    def to_json(self) -> str:
        """One line of JSON, without its newline."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """The reverse of `to_json`, for lines of the current version. `reading.py` reads older ones."""
        return cls.model_validate_json(text)


def unstaged(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Facts that name no stage, as in records of version 1, in the form of `Outcome.facts`."""
    return {"unstaged": facts} if facts else {}


def facts_by_name(outcome: Outcome) -> dict[str, Any]:
    """Every fact of an outcome by its name alone. Of two stages with a fact of one name, the later counts."""
    return {name: fact for facts in outcome.facts.values() for name, fact in facts.items()}
