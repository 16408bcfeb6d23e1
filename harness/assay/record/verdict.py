"""Decides whether a candidate is released: the verdict is a pure function of what was expected and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from assay.record.outcome import Outcome, Status
from assay.record.run import Expected, RunRecord, Severity


class Verdict(StrEnum):
    """The one word a run is made for."""

    RELEASE = "RELEASE"
    RELEASE_WITH_WARNINGS = "RELEASE WITH WARNINGS"
    HOLD = "HOLD"

    @property
    def exit_code(self) -> int:
        """0 release, 1 hold. (2, the harness cannot judge, is an error and not a verdict.)"""
        return 1 if self is Verdict.HOLD else 0


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """An expected gate and what became of it."""

    expected: Expected
    outcome: Outcome

    @property
    def passed(self) -> bool:
        return self.outcome.status is Status.PASSED


def results(record: RunRecord, outcomes: Sequence[Outcome]) -> tuple[GateResult, ...]:
    """Each expected gate with the worst of its outcomes; one that has none is `missing`."""
    return tuple(GateResult(expected=gate, outcome=_worst(gate, outcomes)) for gate in record.expected)


def decide(record: RunRecord, gates: Sequence[GateResult]) -> Verdict:
    """RELEASE if all gates passed, HOLD if one that did not pass holds or if there is no adapter to release."""
    if not record.candidate.adapters:
        return Verdict.HOLD
    not_passed = [gate for gate in gates if not gate.passed]
    if not not_passed:
        return Verdict.RELEASE
    held = any(_holds(gate, record.inconclusive_primary) for gate in not_passed)
    return Verdict.HOLD if held else Verdict.RELEASE_WITH_WARNINGS


def _holds(gate: GateResult, inconclusive_primary: str) -> bool:
    """Whether a gate that did not pass blocks the release."""
    if gate.outcome.status is Status.MISSING:
        # A partial run (-k, -x, a crash) never reads as a release, whatever the severity of what it left out.
        return True
    if gate.outcome.status is Status.INCONCLUSIVE and inconclusive_primary == "warn":
        return False
    return gate.expected.severity is Severity.PRIMARY


def _worst(gate: Expected, outcomes: Sequence[Outcome]) -> Outcome:
    of_gate = [outcome for outcome in outcomes if (outcome.gate, outcome.adapter) == gate.key]
    if not of_gate:
        reason = "not run: deselected, or the run ended before it"
        return Outcome(gate=gate.gate, adapter=gate.adapter, status=Status.MISSING, reason=reason)
    return max(of_gate, key=lambda outcome: list(Status).index(outcome.status))
