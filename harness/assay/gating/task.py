"""The task's own questions, put to the reference and to a deployed form until it is clear what the answers show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from assay.facts import Facts, Share
from assay.gating.evidence import Evidence
from assay.inputs.dataset import METRICS, Dataset, Sample
from assay.inputs.prompts import Prompts
from assay.measures.answers import Kind
from assay.measures.metrics import Score, by_task, score
from assay.measures.statistics import Shown, judge_exceeds, judge_pairs, lower_bound, paired_p, samples_needed
from assay.steps.answers import Answer, Generation
from assay.steps.step import Stage, Step

LIMIT = 384
"""Tokens after which an answer is cut off."""
FIRST = 32
"""Samples of the first block."""
MARGIN = 0.1
"""Share of the answers that a deployed form may make worse."""

_SETTLED = (Shown.PASSED, Shown.FAILED)

Form = Callable[[Prompts], tuple[Step, Stage[Generation]]]
"""A form of the candidate: prompts to the step that asks it, and the stage that holds the answers."""


class Claim(Facts):
    """One claim on the answers, and what is shown of it."""

    shown: Shown
    right: int
    """Samples that speak for the claim."""
    asked: int
    """Samples asked so far."""
    samples: int
    """Samples that there are."""
    needed: int
    """Samples that it takes to show the claim, with no more misses than so far."""


class TaskComparison(Facts):
    """What the answers so far show: the deployed form loses little, and exceeds the dataset's thresholds."""

    samples: int
    """Samples that there are."""
    asked: int
    """Samples asked so far."""
    lost: list[str]
    """Samples whose answer got worse, by id."""
    gained: list[str]
    """Samples whose answer got better, by id."""
    p_value: float
    """Exact two-sided p of McNemar's test on samples lost and gained."""
    lost_share_at_most: Share
    """Upper bound at 95 % confidence."""
    flips: dict[str, list[int]]
    """Metric to samples that it lost and samples that it gained."""
    claims: dict[str, Claim]
    """Claim to what is shown of it."""

    @property
    def failures(self) -> list[str]:
        """The claims that the answers refute, each with its figures."""
        return [_figures(name, claim) for name, claim in self.claims.items() if claim.shown is Shown.FAILED]

    @property
    def unsettled(self) -> list[str]:
        """The claims that the answers neither show nor refute, with figures and what it would take, hardest first."""
        unsettled = [(name, claim) for name, claim in self.claims.items() if claim.shown not in _SETTLED]
        unsettled.sort(key=lambda one: -one[1].needed / max(1, one[1].samples))
        return [f"{_figures(name, claim)}, {claim.needed} needed" for name, claim in unsettled]


COMPARED = Stage(TaskComparison, "Task", "compared")
"""Where a record keeps the comparison. No step measures it: it is a judgement over many steps."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an adapter was trained for, as questions."""

    dataset: Dataset
    samples: list[Sample]
    folder: Path
    """Where the questions are written for the steps to read."""

    def blocks(self) -> Iterator[tuple[list[Sample], Prompts]]:
        """First a few, then each time as many again: asking can end early, and a model is loaded only a few times."""
        start = 0
        while start < len(self.samples):
            end = max(FIRST, 2 * start)
            block = self.samples[start:end]
            folder = self.folder / str(start)
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.txt"):
                left.unlink()
            for sample in block:
                (folder / f"{sample.id}.txt").write_text(sample.prompt, encoding="utf-8")
            yield block, Prompts(path=folder)
            start = end

    def score(self, block: list[Sample], answers: Mapping[str, Answer]) -> list[Score]:
        """Each sample's answer, scored."""
        return [score(one, answers[one.id].text, answers[one.id].kind, self.dataset) for one in block]


def compare(evidence: Evidence, task: Task, reference: Form, deployed: Form) -> TaskComparison:
    """Ask both, block by block, until every claim is settled or one has failed. Goes on the gate's record.

    So few samples that not even flawless answers could pass are not asked: minutes would buy nothing. What an
    evaluation asked before is judged all the same, for it may show a failure.

    Raises:
        StepFailed: a form could not be asked.
    """
    expected: list[Score] = []
    given: list[Score] = []
    flawless = [_flawless(sample) for sample in task.samples]
    can_pass = not judge(task, flawless, flawless).unsettled
    asked = evidence.apart()
    facts = judge(task, expected, given)
    for block, prompts in task.blocks():
        forms = (reference(prompts), deployed(prompts))
        if not can_pass and not all(evidence.runner.has(step) for step, _ in forms):
            break
        for scores, (step, stage) in zip((expected, given), forms, strict=True):
            answers = asked.make(step, until=stage).facts(stage).answers
            evidence.uses |= asked.uses
            scores += task.score(block, answers)
        facts = judge(task, expected, given)
        if facts.failures or not any(claim.shown is Shown.OPEN for claim in facts.claims.values()):
            break
    return evidence.note(COMPARED.id, facts)


def judge(task: Task, reference: list[Score], deployed: list[Score]) -> TaskComparison:
    """What the answers so far show.

    A sample is lost where the deployed form scores in fewer of Coverage, Format and Refusal than the reference.
    """
    samples, asked = len(task.samples), len(deployed)
    pairs = list(zip(reference, deployed, strict=True))
    lost = [after.id for before, after in pairs if _marks(after) < _marks(before)]
    gained = [after.id for before, after in pairs if _marks(after) > _marks(before)]
    return TaskComparison(
        samples=samples,
        asked=asked,
        lost=lost,
        gained=gained,
        p_value=paired_p(len(lost), len(gained)),
        lost_share_at_most=1 - lower_bound(asked - len(lost), asked),
        flips={
            metric: [
                sum(getattr(before, metric) and not getattr(after, metric) for before, after in pairs),
                sum(getattr(after, metric) and not getattr(before, metric) for before, after in pairs),
            ]
            for metric in METRICS
        },
        claims=_claims(task, deployed, len(lost), len(gained)),
    )


def _claims(task: Task, deployed: list[Score], lost: int, gained: int) -> dict[str, Claim]:
    """That little is lost, and that each of the dataset's thresholds is exceeded: tested together (Bonferroni)."""
    samples, asked = len(task.samples), len(deployed)
    there, scored = by_task(task.samples, task.dataset), by_task(deployed, task.dataset)
    thresholds = [
        (group, metric, threshold)
        for group in there
        for metric, threshold in task.dataset.thresholds.get(group, {}).items()
    ]
    comparisons = 1 + len(thresholds)
    shown = judge_pairs(lost, gained, asked, samples, MARGIN, comparisons)
    name = f"fewer than {MARGIN:.0%} of the answers get worse"
    claims = {name: _claim(shown, asked - lost, asked, samples, 1 - MARGIN)}
    for group, metric, threshold in thresholds:
        right = sum(getattr(one, metric) for one in scored.get(group, []))
        counts = (right, len(scored.get(group, [])), len(there[group]))
        shown = judge_exceeds(*counts, threshold, comparisons)
        claims[f"{group} {metric} > {threshold:.2f}"] = _claim(shown, *counts, threshold)
    return claims


def _claim(shown: Shown, right: int, asked: int, samples: int, threshold: float) -> Claim:
    needed = samples_needed(threshold, asked - right)
    return Claim(shown=shown, right=right, asked=asked, samples=samples, needed=needed)


def _figures(name: str, claim: Claim) -> str:
    if not claim.asked:
        return f"{name}: {claim.samples} samples"
    return f"{name}: {claim.right} of {claim.asked} samples"


def _marks(one: Score) -> int:
    return sum(getattr(one, metric) for metric in METRICS)


def _flawless(sample: Sample) -> Score:
    return Score(id=sample.id, task=sample.task, kind=Kind.OK, coverage=True, format=True, refusal=True, missing=())
