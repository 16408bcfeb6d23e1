"""The three metrics of the thesis (section 4.5.5), per sample and summarised: Coverage, Format, Refusal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from assay.inputs.dataset import METRICS, Dataset, Sample, headings, squeeze
from assay.measures.answers import Kind, visible
from assay.measures.statistics import judge_share, lower_bound


@dataclass(frozen=True, kw_only=True)
class Score:
    """The three metrics of one answer."""

    id: str
    task: str
    kind: str
    """A `Kind` of `assay.measures.answers`. An answer without visible text scores 0 in all three metrics."""
    coverage: bool
    """The answer has every required key point."""
    format: bool
    """The answer has every heading of the task, once, in order, and no other."""
    refusal: bool
    """The answer declines if and only if the sample expects it to."""
    missing: tuple[str, ...]
    """The key points that the answer lacks, by their first spelling."""


def score(sample: Sample, text: str, kind: Kind, dataset: Dataset) -> Score:
    """Score one answer against its sample; text in a `<think>` block does not count."""
    answer = visible(text) if kind.says_something else ""
    squeezed = squeeze(answer)
    missing = [point[0] for point in sample.key_points if not any(squeeze(way) in squeezed for way in point)]
    return Score(
        id=sample.id,
        task=sample.task,
        kind=kind.value,
        coverage=not missing,
        format=headings(answer) == dataset.tasks[sample.task].headings[sample.language],
        refusal=bool(answer) and dataset.declines(answer, sample.language) == sample.should_refuse,
        missing=tuple(missing),
    )


Scored = TypeVar("Scored", Sample, Score)


def summarise_scores(scores: Iterable[Score], dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Task to n and, per metric, successes, share, lower bound and judgement; `all` pools several tasks."""
    return {
        name: {
            "n": len(group),
            **{metric: _share(group, metric, dataset.thresholds.get(name, {})) for metric in METRICS},
        }
        for name, group in by_task(scores, dataset).items()
    }


def by_task(scored: Iterable[Scored], dataset: Dataset) -> dict[str, list[Scored]]:
    """Samples, or their scores, by task. If there are several tasks, `all` holds every sample."""
    scored = list(scored)
    groups = {task: [one for one in scored if one.task == task] for task in dataset.tasks}
    groups = {task: group for task, group in groups.items() if group}
    return groups | {"all": scored} if len(groups) > 1 else groups


def _share(group: list[Score], metric: str, thresholds: dict[str, float]) -> dict[str, Any]:
    successes, n = sum(getattr(one, metric) for one in group), len(group)
    share: dict[str, Any] = {"successes": successes, "share": successes / n, "lower_bound": lower_bound(successes, n)}
    if metric in thresholds:
        threshold = thresholds[metric]
        share |= {"threshold": threshold, "judgement": judge_share(successes, n, threshold)}
    return share
