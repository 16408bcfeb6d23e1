"""`gates/policy.toml`: what blocks a release and what is only reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assay.errors import InputError
from assay.files import read_toml, refuse_unknown_keys
from assay.record.run import Severity


@dataclass(frozen=True, kw_only=True)
class Policy:
    severity: dict[str, Severity]
    """Gate id, with `<adapter>` where it has one, to severity. Its order is the report's order."""
    inconclusive_primary: Literal["hold", "warn"]
    """`hold` or `warn`."""


def read_policy(path: Path, known_gates: list[str], secondary: Sequence[str] = ()) -> Policy:
    """Read the policy. It must name every gate there is and no other.

    Args:
        known_gates: ids of the gates that need a line.
        secondary: ids of the gates that may have one, and are secondary without it.

    Raises:
        InputError: an unknown key, gate or severity, or a gate without one.
    """
    data = read_toml(path, {"severity", "inconclusive"})
    severity = data.get("severity", {})
    refuse_unknown_keys(f"{path} [severity]", severity, [*known_gates, *secondary])
    for gate in known_gates:
        if gate not in severity:
            raise InputError(f'{path} [severity]: no line for the gate {gate!r}. Add `"{gate}" = "secondary"`.')
    severity = {**severity, **{gate: "secondary" for gate in secondary if gate not in severity}}
    words = [word.value for word in Severity]
    for gate, word in severity.items():
        if word not in words:
            raise InputError(f"{path} [severity]: {gate} = {word!r}; expected one of {', '.join(words)}.")
    inconclusive = data.get("inconclusive", {})
    if not isinstance(severity, dict) or not isinstance(inconclusive, dict):
        raise InputError(f"{path}: [severity] and [inconclusive] are tables.")
    refuse_unknown_keys(f"{path} [inconclusive]", inconclusive, ["primary"])
    primary = inconclusive.get("primary", "hold")
    if primary not in ("hold", "warn"):
        raise InputError(f"{path} [inconclusive]: primary = {primary!r}; expected hold or warn.")
    return Policy(severity={gate: Severity(word) for gate, word in severity.items()}, inconclusive_primary=primary)
