"""What the doctor examines before the first expensive step, and what its checks find."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from assay import paths
from assay.errors import AssayError
from assay.files import read_json
from assay.gating.causes import FILE as CAUSES
from assay.gating.causes import read_causes
from assay.gating.evidence import Evidence
from assay.gating.gate import read_gates
from assay.inputs.bases import EMBEDDED, Base, embedded_home, find_base
from assay.inputs.candidate import Adapter, Candidate
from assay.measures.sizing import Shapes, shapes_from_headers
from assay.record.outcome import Outcome, Status
from assay.steps.runner import Runner
from assay.steps.step import Step

HASHED_AT_ONCE_BYTES = 3_000_000_000
"""A base of more is not hashed here: sha256 takes a second for two gigabytes."""


class Level(StrEnum):
    """What a finding means for the gates."""

    FINE = "fine"
    NOTE = "note"
    """Worth knowing; nothing fails for it."""
    FAILS = "fails"
    """A gate will not pass."""
    STOPS = "stops"
    """No step that holds a model may begin: a gate is judged on what earlier runs made, or blocked."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    level: Level
    text: str
    """What was seen, and what was expected."""
    fix: str = ""
    gate: str | None = None
    """The gate that it foretells."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Examination:
    """What is examined: a candidate (None for the machine alone), with a runner that can make the self-test.

    Args:
        in_run: the gates follow at once: what they need anyway may be fetched and hashed now.
    """

    def __init__(self, candidate: Candidate | None, runner: Runner, *, in_run: bool = False) -> None:
        self.candidate = candidate
        self.runner = runner
        self.in_run = in_run

    @cached_property
    def found_base(self) -> Base | AssayError | None:
        """The base, or why it cannot be used; None if it is not on this machine and is not to be fetched now."""
        candidate = self.candidate
        if candidate is None or (candidate.base_spec == EMBEDDED and not embedded_home().exists() and not self.in_run):
            return None
        try:
            if self.in_run:
                return candidate.base
            return find_base(candidate.base_spec, candidate.revision, candidate.folder, offline=True)
        except AssayError as problem:
            return None if problem.code == "not-on-hub" and not self.in_run else problem

    @property
    def base(self) -> Base | None:
        """The base, if it is here and usable."""
        return self.found_base if isinstance(self.found_base, Base) else None

    @cached_property
    def shapes(self) -> Shapes | None:
        if self.base is None:
            return None
        try:
            return shapes_from_headers(self.base.tensors, read_json(self.base.path / "config.json"))
        except (AssayError, OSError):
            return None

    @cached_property
    def may_hash(self) -> bool:
        """Whether the base's digest, which names every step, is to be had in a second or two."""
        size = sum(tensor.nbytes for tensor in self.base.tensors.values()) if self.base else 0
        return self.in_run or size <= HASHED_AT_ONCE_BYTES

    def has(self, step: Callable[[], Step]) -> bool:
        """Whether a step was made before, so that it costs nothing any more."""
        try:
            return self.may_hash and self.runner.has(step())
        except (AssayError, OSError):
            return False


def judged(examination: Examination, check: str, id: str, given: dict[str, Any]) -> Iterator[Finding]:
    """What a gate says already: nothing if it holds."""
    gates = {gate.id: gate for gate in read_gates(paths.GATES)}
    evidence = Evidence(examination.runner)
    given |= {"evidence": evidence}
    try:
        gates[id].body(**{name: given[name] for name in inspect.signature(gates[id].body).parameters})
    except Exception as problem:  # whatever it is, the gate will meet it too
        yield told(check, evidence, id, given.get("adapter"), problem)


def told(check: str, evidence: Evidence, gate: str, adapter: Adapter | None, problem: Exception) -> Finding:
    """A gate's problem as a finding, with the fix of its likeliest cause."""
    reason = str(problem)
    if not isinstance(problem, AssertionError | AssayError | OSError):
        reason = f"{type(problem).__name__}: {reason}"
    name = adapter.name if adapter is not None else None
    outcome = Outcome(
        gate=gate,
        adapter=name,
        status=Status.FAILED,
        reason=reason,
        code=getattr(problem, "code", ""),
        details=getattr(problem, "details", {}),
        facts=evidence.to_json(),
        steps=tuple(evidence.uses.values()),
    )
    known = read_causes(paths.GATES / CAUSES, [one.id for one in read_gates(paths.GATES)])
    causes = known.fitting(evidence.runner.run, gate, outcome)
    text = f"{name}: {reason}" if name else reason
    return Finding(check=check, level=Level.FAILS, text=text, fix=causes[0].fix if causes else "", gate=gate)
