"""The task's own questions, put to the reference and to a deployed form until it is clear what the answers show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.inputs.dataset import METRICS, Dataset, Sample
from assay.inputs.prompts import Prompts
from assay.measures.answers import Kind
from assay.measures.metrics import Score, by_task, score
from assay.measures.statistics import Shown, judge_exceeds, judge_pairs, lower_bound, paired_p, samples_needed
from assay.steps.runner import Bench
from assay.steps.step import Step

LIMIT = 384
"""Tokens after which an answer is cut off."""
FIRST = 32
"""Samples of the first block."""
MARGIN = 0.1
"""Share of the answers that a deployed form may make worse."""

_SETTLED = (Shown.PASSED, Shown.FAILED)

Form = Callable[[Prompts], Step]
"""A form of the candidate: prompts to the step that asks it, whose facts hold `answers`."""


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

    def score(self, block: list[Sample], answers: dict[str, dict[str, Any]]) -> list[Score]:
        """Each sample's answer, scored."""
        return [score(one, answers[one.id]["text"], Kind(answers[one.id]["kind"]), self.dataset) for one in block]


def compare(bench: Bench, task: Task, reference: Form, deployed: Form) -> dict[str, Any]:
    """Ask both, block by block, until every claim is settled or one has failed. Goes on the gate's record.

    So few samples that not even flawless answers could pass are not asked: minutes would buy nothing. What an
    evaluation asked before is judged all the same, for it may show a failure.

    Returns:
        What `judge` says of the answers so far.

    Raises:
        StepFailed: a form could not be asked.
    """
    expected: list[Score] = []
    given: list[Score] = []
    flawless = [_flawless(sample) for sample in task.samples]
    can_pass = not unsettled(judge(task, flawless, flawless))
    facts = judge(task, expected, given)
    for block, prompts in task.blocks():
        steps = (reference(prompts), deployed(prompts))
        if not can_pass and not all(bench.has(step) for step in steps):
            break
        for scores, step in zip((expected, given), steps, strict=True):
            scores += task.score(block, bench.make(step).facts["answers"])
        facts = judge(task, expected, given)
        if failures(facts) or not any(claim["shown"] is Shown.OPEN for claim in facts["claims"].values()):
            break
    bench.facts = facts
    return facts


def judge(task: Task, reference: list[Score], deployed: list[Score]) -> dict[str, Any]:
    """What the answers so far show: the deployed form loses little, and exceeds the dataset's thresholds.

    A sample is lost where the deployed form scores in fewer of Coverage, Format and Refusal than the reference.

    Returns:
        Samples lost and gained, by id; the exact two-sided p of McNemar's test on them; the most that may be lost at
        95 % confidence; flips of each metric, lost and gained; and each claim with what is shown of it, how many are
        right, asked and there, and how many samples it needs with no more misses.
    """
    samples, asked = len(task.samples), len(deployed)
    pairs = list(zip(reference, deployed, strict=True))
    lost = [after.id for before, after in pairs if _marks(after) < _marks(before)]
    gained = [after.id for before, after in pairs if _marks(after) > _marks(before)]
    there, scored = by_task(task.samples, task.dataset), by_task(deployed, task.dataset)
    wanted = [
        (group, metric, threshold)
        for group in there
        for metric, threshold in task.dataset.thresholds.get(group, {}).items()
    ]
    of = 1 + len(wanted)
    claims = {
        f"fewer than {MARGIN:.0%} of the answers get worse": _claim(
            judge_pairs(len(lost), len(gained), asked, samples, MARGIN, of),
            asked - len(lost),
            asked,
            samples,
            1 - MARGIN,
        )
    }
    for group, metric, threshold in wanted:
        right = sum(getattr(one, metric) for one in scored.get(group, []))
        counts = (right, len(scored.get(group, [])), len(there[group]))
        shown = judge_exceeds(*counts, threshold, of)
        claims[f"{group} {metric} > {threshold:.2f}"] = _claim(shown, *counts, threshold)
    return {
        "samples": samples,
        "asked": asked,
        "lost": lost,
        "gained": gained,
        "p_value": paired_p(len(lost), len(gained)),
        "lost_share_at_most": 1 - lower_bound(asked - len(lost), asked),
        "flips": {
            metric: [
                sum(getattr(before, metric) and not getattr(after, metric) for before, after in pairs),
                sum(getattr(after, metric) and not getattr(before, metric) for before, after in pairs),
            ]
            for metric in METRICS
        },
        "claims": claims,
    }


def failures(facts: dict[str, Any]) -> list[str]:
    """The claims that the answers refute, each with its figures."""
    return [_said(name, claim) for name, claim in facts["claims"].items() if claim["shown"] is Shown.FAILED]


def unsettled(facts: dict[str, Any]) -> list[str]:
    """The claims that the answers neither show nor refute, with figures and what it would take, the hardest first."""
    open_ = [(name, claim) for name, claim in facts["claims"].items() if claim["shown"] not in _SETTLED]
    open_.sort(key=lambda one: -one[1]["needed"] / max(1, one[1]["samples"]))
    return [f"{_said(name, claim)}, {claim['needed']} needed" for name, claim in open_]


def _claim(shown: Shown, right: int, asked: int, samples: int, threshold: float) -> dict[str, Any]:
    needed = samples_needed(threshold, asked - right)
    return {"shown": shown, "right": right, "asked": asked, "samples": samples, "needed": needed}


def _said(name: str, claim: dict[str, Any]) -> str:
    if not claim["asked"]:
        return f"{name}: {claim['samples']} samples"
    return f"{name}: {claim['right']} of {claim['asked']} samples"


def _marks(one: Score) -> int:
    return sum(getattr(one, metric) for metric in METRICS)


def _flawless(sample: Sample) -> Score:
    return Score(id=sample.id, task=sample.task, kind=Kind.OK, coverage=True, format=True, refusal=True, missing=())
