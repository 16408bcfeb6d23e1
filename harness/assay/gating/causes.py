"""Why a gate failed: causes are data (`gates/causes.toml`), judged by the evidence in a gate's facts, reason and logs.

A cause is named where all of its evidence is there. Of several, the one with the most evidence comes first. None is an
answer too: then the report says what to send.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from assay.errors import InputError
from assay.files import read_toml, refuse_unknown_keys
from assay.record.outcome import Diagnosis, Outcome, facts_by_name

FILE = "causes.toml"
_KEYS = ("id", "gates", "if", "also", "cause", "fix", "link", "affects")
_TESTS = ("matches", "above", "below", "equals", "empty")
LOG_BYTES = 4_000_000
"""Of a log that is read. Logs are capped at half of that."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that is there or not."""

    place: str
    """`reason`, `log`, or the name of a fact."""
    tests: dict[str, Any]
    """`matches` (a regular expression), `above`, `below`, `equals`, `empty` (true or false); all must hold."""

    def found(self, seen: Any) -> tuple[str, dict[str, str]] | None:
        """What of it was seen, in words, and the named groups of its expression; None if it is not there."""
        words: dict[str, str] = {}
        if seen is None:  # a fact that is not there is no evidence, not even of emptiness
            return None
        shown = str(seen)
        for test, wanted in self.tests.items():
            if test == "matches":
                texts = [str(item) for item in seen] if isinstance(seen, list | tuple) else [str(seen)]
                match = next((match for text in texts if (match := re.search(wanted, text, re.MULTILINE))), None)
                if match is None:
                    return None
                words |= {name: value for name, value in match.groupdict().items() if value is not None}
                shown = match[0]
            elif test in ("above", "below"):
                number = seen if isinstance(seen, int | float) and not isinstance(seen, bool) else None
                if number is None or not (number > wanted if test == "above" else number < wanted):
                    return None
            elif (test == "equals" and seen != wanted) or (test == "empty" and (not seen) != wanted):
                return None
        if isinstance(seen, list | tuple) and "matches" not in self.tests:
            shown = f"{len(seen)}, {seen[0]} first" if seen else "none"
        where = self.place if self.place in ("reason", "log") else f"fact {self.place}"
        return f"{where}: {' '.join(shown.split())[:160]}", words


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One way of failing that is known."""

    id: str
    gates: frozenset[str]
    """Where it shows, with `<adapter>` in the ids that have it."""
    needs: tuple[Evidence, ...]
    """All of it must be there."""
    also: tuple[Evidence, ...]
    """Each that is there as well makes it likelier."""
    cause: str
    fix: str
    """A command or a setting to paste."""
    link: str
    affects: str
    """The versions it happens in, as far as known."""

    def fits(self, outcome: Outcome, logs: str) -> Diagnosis | None:
        seen: list[str] = []
        words = {name: _first(fact) for name, fact in facts_by_name(outcome).items()}
        for needed, some in ((True, self.needs), (False, self.also)):
            for evidence in some:
                found = evidence.found(_look(evidence.place, outcome, logs))
                if found is not None:
                    seen.append(found[0])
                    words |= found[1]
                elif needed:
                    return None
        words |= {"adapter": outcome.adapter or "NAME", "gate": outcome.gate}
        texts = {name: Template(getattr(self, name)).safe_substitute(words) for name in ("cause", "fix")}
        return Diagnosis(id=self.id, link=self.link, affects=self.affects, evidence=tuple(seen), **texts)


def _look(place: str, outcome: Outcome, logs: str) -> Any:
    return {"reason": outcome.reason, "log": logs}.get(place, facts_by_name(outcome).get(place))


def _first(fact: Any) -> str:
    if isinstance(fact, list | tuple):
        return str(fact[0]) if fact else "none"
    return str(fact)


@dataclass(frozen=True, kw_only=True)
class Causes:
    """Every cause that is known, the commoner ones of equal evidence first."""

    all: tuple[Cause, ...]

    def fitting(self, run: Path, gate: str, outcome: Outcome) -> list[Diagnosis]:
        """What may have caused this, the likeliest first.

        Args:
            run: the run's folder, where the logs are.
            gate: the gate's id, with `<adapter>` where it has one.
        """
        logs = "\n".join(_read_log(run / use.log) for use in outcome.steps)
        found = [finding for cause in self.all if gate in cause.gates and (finding := cause.fits(outcome, logs))]
        return sorted(found, key=lambda finding: -len(finding.evidence))


def _read_log(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""


def read_causes(file: Path, gates: list[str]) -> Causes:
    """Read `causes.toml`.

    Args:
        gates: the ids of all gates.

    Raises:
        InputError: not there, not TOML, an unknown key, gate or test, a missing key, a broken expression, an id twice.
    """
    data = read_toml(file, {"cause"})
    causes = tuple(_cause(file, entry, gates) for entry in data.get("cause", []))
    ids = [cause.id for cause in causes]
    if twice := [id for id in ids if ids.count(id) > 1]:
        raise InputError(f"{file}: the cause {twice[0]!r} is there twice.")
    return Causes(all=causes)


def _cause(file: Path, entry: dict[str, Any], gates: list[str]) -> Cause:
    where = f"{file} cause {entry.get('id')!r}"
    refuse_unknown_keys(where, entry, _KEYS)
    if lacking := [key for key in ("id", "gates", "if", "cause", "fix") if not entry.get(key)]:
        raise InputError(f"{where}: the key {lacking[0]!r} is missing.")
    refuse_unknown_keys(f"{where} gates", entry["gates"], gates)
    needs, also = (tuple(_evidence(where, entry.get(key, []))) for key in ("if", "also"))
    return Cause(
        id=entry["id"],
        gates=frozenset(entry["gates"]),
        needs=needs,
        also=also,
        cause=entry["cause"],
        fix=entry["fix"],
        link=entry.get("link", ""),
        affects=entry.get("affects", ""),
    )


def _evidence(where: str, entries: list[dict[str, Any]]) -> Iterator[Evidence]:
    for entry in entries:
        refuse_unknown_keys(f"{where} evidence", entry, ["reason", "log", "fact", *_TESTS])
        places = [key for key in ("reason", "log", "fact") if key in entry]
        if len(places) != 1:
            raise InputError(f"{where}: each piece of evidence names one of reason, log and fact; {places} seen.")
        place, tests = places[0], {key: value for key, value in entry.items() if key in _TESTS}
        if place != "fact" and tests:
            raise InputError(f"{where}: {place} is an expression of its own; {', '.join(tests)} go with a fact.")
        if place != "fact":
            tests = {"matches": entry[place]}
        for test, kind in (("matches", str), ("above", int | float), ("below", int | float), ("empty", bool)):
            if test in tests and not isinstance(tests[test], kind):
                raise InputError(f"{where}: {test} = {tests[test]!r} is of another kind than expected.")
        for pattern in [tests["matches"]] if "matches" in tests else []:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise InputError(f"{where}: {pattern!r} is no regular expression ({problem}).") from None
        if not tests:
            raise InputError(f"{where}: the fact {entry['fact']!r} needs one of {', '.join(_TESTS)}.")
        yield Evidence(place=entry["fact"] if place == "fact" else place, tests=tests)
