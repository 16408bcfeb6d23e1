"""`gates/policy.toml`: which gates block a release and which are only reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from assay.errors import InputError
from assay.files import read_toml
from assay.record.run import Severity
from assay.validation import FileModel, refuse_unknown_names, validate


class InconclusivePolicy(FileModel):
    """`[inconclusive]`: what an inconclusive gate does to the verdict."""

    primary: Literal["hold", "warn"] = "hold"


class Policy(FileModel):
    """A policy file, version 1."""

    severity: dict[str, Annotated[Severity, Field(strict=False)]]  # Not strict: the file has the word, not the enum.
    """Gate id, with `<adapter>` where it has one, to severity. Reports list the gates in this order."""
    inconclusive: InconclusivePolicy = InconclusivePolicy()

    @property
    def inconclusive_primary(self) -> Literal["hold", "warn"]:
        """What an inconclusive primary gate does to the verdict."""
        return self.inconclusive.primary


def read_policy(path: Path, known_gates: list[str], secondary: Sequence[str] = ()) -> Policy:
    """Read a policy. It names every known gate and no other.

    Args:
        known_gates: ids of the gates that need a line.
        secondary: ids of the gates that may have one, and are secondary without it.

    Raises:
        InputError: the file is missing, not as `Policy` expects, names an unknown gate or leaves one out.
    """
    policy = validate(Policy, read_toml(path), path)
    refuse_unknown_names(f"{path}, severity", "gate", policy.severity, [*known_gates, *secondary])
    for gate in known_gates:
        if gate not in policy.severity:
            raise InputError(f'{path}, severity: no line for the gate {gate!r}. Add `"{gate}" = "secondary"`.')
    added = {gate: Severity.SECONDARY for gate in secondary if gate not in policy.severity}
    return policy.model_copy(update={"severity": {**policy.severity, **added}})
