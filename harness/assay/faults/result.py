"""What the gates say of one case."""

from __future__ import annotations

from dataclasses import dataclass, field

from assay.record.outcome import Status

CATCHES = (Status.FAILED, Status.UNAVAILABLE)
"""A gate with one of these caught the fault. A harness that broke (`error`) caught nothing."""
ALARMS = (*CATCHES, Status.ERROR, Status.BLOCKED, Status.MISSING)
"""No gate may have one of these on a healthy variant."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """The gates' outcomes on one case. A gate is named by its id, with `<adapter>` where the id has one."""

    name: str
    not_applicable: str | None = None
    """Why this candidate or machine cannot have the case, if so."""
    statuses: dict[str, str] = field(default_factory=dict)
    """Gate to status, in the policy's order."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Gate to the first line of its reason, of gates that did not pass and were not blocked."""
    causes: dict[str, list[str]] = field(default_factory=dict)
    """Gate to the ids of the causes of its failure, the likeliest first."""
    fits: list[str] = field(default_factory=list)
    """Causes that fit gates that passed. There must be none."""
    seconds: float = 0.0

    def caught_by(self, baseline: CaseResult) -> list[str]:
        """The gates that catch the case, in the policy's order: they do not say the same of the unaltered candidate."""
        return self._unlike(baseline, CATCHES)

    def alarms(self, baseline: CaseResult) -> list[str]:
        """The gates that do not pass a healthy variant, and do not say the same of the unaltered candidate."""
        return self._unlike(baseline, ALARMS)

    def _unlike(self, baseline: CaseResult, statuses: tuple[Status, ...]) -> list[str]:
        return [gate for gate, one in self.statuses.items() if one in statuses and baseline.statuses.get(gate) != one]
