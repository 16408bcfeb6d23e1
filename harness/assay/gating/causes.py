"""Why a gate failed: causes are data (`causes.toml` beside the gates), chosen by failure code, facts and tools' logs.

A cause never looks at a gate's sentence. It is named where all that it asks for is there; of several, the one that asks
for most comes first. None is an answer too: then the report says what to send.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from assay.errors import InputError
from assay.facts import Facts
from assay.files import read_toml
from assay.gating.task import COMPARED
from assay.paths import commands_here
from assay.record.outcome import Diagnosis, Outcome
from assay.steps.catalogue import stages
from assay.steps.step import Stage
from assay.validation import FileModel, Text, refuse_unknown_names, validate

FILE = "causes.toml"
PREDICATES = "predicates"
"""The module beside the gates whose functions a cause may name in `when`."""
LOG_BYTES = 4_000_000
"""Of a log that is read. Logs are capped at half of that."""

Predicate = Callable[..., bool]
"""Typed facts to whether the cause may be behind them. Its parameters' types say which facts it needs."""


class Cause(FileModel):
    """One way of failing that is known: an entry of `causes.toml`."""

    id: Text
    codes: tuple[str, ...] = Field((), strict=False)
    """Failure codes, any of which is there. Empty: any failure whose log matches."""
    gates: tuple[str, ...] = Field((), strict=False)
    """Ids of gates that it may be behind, with `<adapter>` where they have it. Empty: any gate."""
    when: str = ""
    """Name of a predicate on typed facts, in `predicates.py` beside the gates."""
    log: str = ""
    """A regular expression on the log of a third-party tool. Its named groups may be used in the texts."""
    cause: Text
    fix: Text
    """A command or a setting to paste."""
    link: str = ""
    affects: str = ""
    """The versions that it happens in, as far as known."""

    @field_validator("log")
    @classmethod
    def _is_an_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as problem:
            raise ValueError(f"a regular expression ({problem})") from None
        return pattern

    @model_validator(mode="after")
    def _asks_for_something(self) -> Cause:
        if not self.codes and not self.log:
            raise ValueError("failure codes, or a pattern of a tool's log")
        return self


@dataclass(frozen=True, kw_only=True)
class Causes:
    """Every cause that is known, the commoner ones of equal evidence first."""

    all: tuple[Cause, ...]
    predicates: dict[str, Predicate]

    def fitting(self, run: Path, gate: str, outcome: Outcome) -> list[Diagnosis]:
        """What may have caused this, the likeliest first.

        Args:
            run: the run's folder, where the logs are.
            gate: the gate's id, with `<adapter>` where it has one.
        """
        logs = "\n".join(_read_log(run / use.log) for use in outcome.steps)
        facts = typed_facts(outcome)
        found = [finding for cause in self.all if (finding := self._fits(cause, gate, outcome, facts, logs))]
        return sorted(found, key=lambda finding: -len(finding.evidence))

    def _fits(self, cause: Cause, gate: str, outcome: Outcome, facts: list[Facts], logs: str) -> Diagnosis | None:
        evidence: list[str] = []
        words: dict[str, str] = {}
        for one in facts:
            words |= {name: _first(value) for name, value in one}
        words |= {name: str(value) for name, value in outcome.details.items()}
        if cause.gates and gate not in cause.gates:
            return None
        if cause.codes:
            if outcome.code not in cause.codes:
                return None
            evidence.append(f"failure code: {outcome.code}")
        if cause.when:
            predicate = self.predicates[cause.when]
            if not holds(predicate, facts):
                return None
            evidence.append(f"facts: {(inspect.getdoc(predicate) or cause.when).partition(chr(10))[0]}")
        if cause.log:
            match = re.search(cause.log, logs, re.MULTILINE)
            if match is None:
                return None
            words |= {name: value for name, value in match.groupdict().items() if value is not None}
            evidence.append(f"log: {' '.join(match[0].split())[:160]}")
        words |= {"adapter": outcome.adapter or "NAME", "gate": outcome.gate}
        texts = {
            name: commands_here(Template(getattr(cause, name)).safe_substitute(words)) for name in ("cause", "fix")
        }
        return Diagnosis(id=cause.id, link=cause.link, affects=cause.affects, evidence=tuple(evidence), **texts)


def known_stages() -> dict[str, Stage[Any]]:
    """Every stage whose facts a record may hold, by id."""
    return {**stages(), COMPARED.id: COMPARED}


def typed_facts(outcome: Outcome) -> list[Facts]:
    """The facts of a record as what they were measured as. Those of another version of Assay are left out."""
    known, found = known_stages(), []
    for id, values in outcome.facts.items():
        if id in known:
            try:
                found.append(known[id].facts.model_validate(values))
            except ValidationError:
                continue
    return found


def holds(predicate: Predicate, facts: list[Facts]) -> bool:
    """Whether the facts that a predicate needs are there, and it holds of them."""
    hints = typing.get_type_hints(predicate)
    hints.pop("return", None)
    given = {}
    for name, kind in hints.items():
        one = next((one for one in facts if isinstance(one, kind)), None)
        if one is None:
            return False
        given[name] = one
    return predicate(**given)


def _first(fact: Any) -> str:
    """A fact as a text names it: of a list its first item."""
    if isinstance(fact, list | tuple):
        return str(fact[0]) if fact else "none"
    return f"{fact:.4g}" if isinstance(fact, float) else str(fact)


def _read_log(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""


def read_causes(file: Path, gates: list[str]) -> Causes:
    """Read `causes.toml`, and the predicates beside it.

    Args:
        gates: the ids of all gates.

    Raises:
        InputError: not there, not TOML, an unknown key, gate or predicate, a missing key, an id twice.
    """
    data = read_toml(file)
    refuse_unknown_names(file, "key", data, ["cause"])
    predicates = _predicates(file.parent)
    causes = tuple(_cause(file, entry, gates, predicates) for entry in data.get("cause", []))
    ids = [cause.id for cause in causes]
    if twice := [id for id in ids if ids.count(id) > 1]:
        raise InputError(f"{file}: the cause {twice[0]!r} is there twice.")
    return Causes(all=causes, predicates=predicates)


def _predicates(folder: Path) -> dict[str, Predicate]:
    """The public functions of `predicates.py`."""
    file = folder / f"{PREDICATES}.py"
    if not file.exists():
        return {}
    spec = importlib.util.spec_from_file_location(f"{PREDICATES}_of_{folder.name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == spec.name and not name.startswith("_")
    }


def _cause(file: Path, entry: dict[str, Any], gates: list[str], predicates: dict[str, Predicate]) -> Cause:
    where = f"{file} cause {entry.get('id')!r}"
    cause = validate(Cause, entry, where)
    refuse_unknown_names(where, "gate", cause.gates, gates)
    refuse_unknown_names(where, "predicate", [cause.when] if cause.when else [], predicates)
    return cause
