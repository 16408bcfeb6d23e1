"""`python -m train select A B …`: picks the experiment to release, and lists what the figures do not prove."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from assay.errors import InputError
from assay.files import read_json, read_toml
from assay.inputs.candidate import read_candidate
from assay.inputs.dataset import METRICS, read_dataset
from assay.measures.statistics import CONFIDENCE, judge_share, lower_bound, paired_p
from assay.validation import FileModel, Text, validate
from pydantic import Field
from rich.console import Console
from rich.table import Table

from train.evaluation import FORMS, RESULT

WEIGHTS = {("coverage", "all"): 0.5, ("format", "all"): 0.3, ("coverage", "style"): 0.1, ("coverage", "writing"): 0.1}
"""The thesis's formula (section 4.5.5): metric and task to weight."""
ADAPTER = "multitask"
"""The adapter whose figures are compared."""


Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One trained candidate and its figures."""

    name: str
    n: dict[str, int]
    """Task to number of evaluation samples."""
    shares: dict[tuple[str, str], float]
    """Metric and task to the share of samples that passed. A share that was not recorded is left out."""
    seconds: float | None
    """Training time, all adapters together."""
    measured: bool
    """Whether `seconds` was measured; else somebody stated it."""
    started_at: datetime | None = None
    passed: dict[str, dict[str, bool]] | None = None
    """Metric to sample to whether the sample passed, if that is known per sample."""

    @property
    def missing(self) -> list[str]:
        return [f"{task} {metric}" for metric, task in WEIGHTS if (metric, task) not in self.shares]

    @property
    def score(self) -> float | None:
        """0.5×All_Coverage + 0.3×All_Format + 0.1×Style_Coverage + 0.1×Writing_Coverage; None if one is missing."""
        if self.missing:
            return None
        return round(sum(weight * self.shares[of] for of, weight in WEIGHTS.items()), 9)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The result of a selection."""

    experiments: list[Experiment]
    selected: Experiment
    reason: str
    doubts: list[str]
    """What the figures do not prove, one sentence each."""


def select(experiments: list[Experiment], thresholds: dict[str, dict[str, float]]) -> Selection:
    """The experiment with the highest score; among equal scores the one that took the least time to train.

    Raises:
        InputError: no experiment has all the figures that the score needs.
    """
    scored = [one for one in experiments if one.score is not None]
    if not scored:
        raise InputError(f"No experiment can be scored: {experiments[0].name} lacks {experiments[0].missing[0]}.")
    best = max(one.score for one in scored if one.score is not None)
    tied = [one for one in scored if one.score == best]
    selected = min(tied, key=lambda one: float("inf") if one.seconds is None else one.seconds)
    reason = f"score {best:.4f}"
    if len(tied) > 1:
        others = ", ".join(one.name for one in tied if one is not selected)
        reason += f", the same as {others}; it took the least time to train"
        if not all(one.measured for one in tied):
            reason += " (as stated, not as measured)"
    doubts = [
        *_unscored(experiments),
        *_times(experiments),
        *_noise(selected, [one for one in experiments if one is not selected]),
        *_unproved(selected, thresholds),
    ]
    return Selection(experiments=experiments, selected=selected, reason=reason, doubts=doubts)


def _unscored(experiments: list[Experiment]) -> Iterable[str]:
    for one in experiments:
        if one.missing:
            yield f"{one.name} has no score: {', '.join(one.missing)} not recorded."


def _times(experiments: list[Experiment]) -> Iterable[str]:
    started = sorted(((one.started_at, one) for one in experiments if one.started_at), key=lambda pair: pair[0])
    for (began, one), (next_began, following) in pairwise(started):
        gap = (next_began - began).total_seconds()
        if one.seconds is not None and one.seconds > gap:
            yield (
                f"{one.name} is stated to have taken {_minutes(one.seconds)}, but {following.name} began "
                f"{_minutes(gap)} after {one.name}."
            )


def _noise(selected: Experiment, others: list[Experiment]) -> Iterable[str]:
    """One line per other experiment: whether its figures differ from those of the selected one."""
    for other in others:
        tests = [_paired(selected, other, metric) for metric in ("coverage", "format")]
        known = [test for test in tests if test is not None]
        if not known:
            continue
        least = min(p for _, p in known)
        words = "; ".join(text for text, _ in known)
        verdict = "equal within noise" if least >= 1 - CONFIDENCE else "a real difference"
        yield f"{selected.name} against {other.name}: {verdict} ({words}; exact McNemar)."


def _paired(one: Experiment, other: Experiment, metric: str) -> tuple[str, float] | None:
    if one.passed and other.passed and one.passed[metric].keys() == other.passed[metric].keys():
        pairs = [(passed, other.passed[metric][id]) for id, passed in one.passed[metric].items()]
        p = paired_p(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
        return f"{metric} p = {p:.4f}", p
    key = (metric, "all")
    if key not in one.shares or key not in other.shares or one.n["all"] != other.n["all"]:
        return None
    # Only totals are known. The smallest possible p is that of nested results: one is right wherever the other is.
    gained = round(one.shares[key] * one.n["all"]) - round(other.shares[key] * other.n["all"])
    p = paired_p(max(gained, 0), max(-gained, 0))
    return f"{metric} p = {p:.4f} at best, only totals are known", p


def _unproved(selected: Experiment, thresholds: dict[str, dict[str, float]]) -> Iterable[str]:
    for task, of_task in thresholds.items():
        for metric, threshold in of_task.items():
            if (metric, task) not in selected.shares:
                continue
            n = selected.n[task]
            right = round(selected.shares[metric, task] * n)
            judgement = judge_share(right, n, threshold)
            if judgement != "met":
                bound = lower_bound(right, n)
                yield (
                    f"{selected.name}, {task} {metric} > {threshold:.2f}: {judgement}; "
                    f"{right} of {n} shows ≥ {bound:.3f}."
                )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def from_candidate(folder: Path, form: str) -> Experiment:
    """The experiment of a candidate that `python -m train` trained and `python -m train evaluate` measured.

    Raises:
        InputError: the candidate was not trained by `python -m train`, or the form was not evaluated.
    """
    candidate = read_candidate(folder / "candidate.json")
    result = read_json(folder / RESULT) if (folder / RESULT).exists() else {"forms": {}}
    one = result["forms"].get(form, {}).get(ADAPTER)
    if one is None or candidate.record is None:
        raise InputError(
            f"{folder / RESULT}: no figures of {ADAPTER} in the form {form}. "
            f"Measure them: python -m train evaluate {folder} --forms {form}"
        )
    return Experiment(
        name=candidate.name,
        n={task: row["n"] for task, row in one["summary"].items()},
        shares={(metric, task): row[metric]["share"] for task, row in one["summary"].items() for metric in METRICS},
        seconds=sum(trained["seconds"] for trained in candidate.record["results"].values()),
        measured=True,
        passed={metric: {s["id"]: s[metric] for s in one["samples"]} for metric in ("coverage", "format")},
    )


class ExperimentFigures(FileModel):
    """One `[[experiment]]`: totals that somebody states."""

    name: Text
    run: str = ""
    """Name of its run; a time stamp in it says when the run began."""
    stated_minutes: Annotated[float, Field(ge=0)] | None = None
    """How long training took."""
    n: dict[str, Annotated[int, Field(ge=1)]]
    """Task, or `all`, to number of samples."""
    coverage: dict[str, Share] = Field(default_factory=dict)
    """Task, or `all`, to the share of samples."""
    format: dict[str, Share] = Field(default_factory=dict)
    refusal: dict[str, Share] = Field(default_factory=dict)


class Figures(FileModel):
    """A file of figures."""

    experiment: Annotated[list[ExperimentFigures], Field(min_length=1)]


def from_figures(file: Path) -> list[Experiment]:
    """Experiments from a TOML file of totals, such as `train/figures/thesis-4.5.5.toml`.

    Raises:
        InputError: the file is no file of figures, or has no experiment.
    """
    found = []
    for entry in validate(Figures, read_toml(file), file).experiment:
        stamp = re.search(r"\d{8}_\d{6}", entry.run)
        shares = {(metric, task): share for metric in METRICS for task, share in getattr(entry, metric).items()}
        found.append(
            Experiment(
                name=entry.name,
                n=entry.n,
                shares=shares,
                seconds=None if entry.stated_minutes is None else 60.0 * entry.stated_minutes,
                measured=False,
                started_at=datetime.strptime(stamp[0], "%Y%m%d_%H%M%S").replace(tzinfo=UTC) if stamp else None,
            )
        )
    return found


def render(selection: Selection) -> Table:
    """One row per experiment; an arrow marks the selected one."""
    table = Table(box=None)
    table.add_column("experiment")
    names = [f"{task} {metric}" for metric, task in WEIGHTS]
    for name in (*names, "score", "training"):
        table.add_column(name, justify="right")
    for one in selection.experiments:
        shares = [f"{one.shares[of]:.2f}" if of in one.shares else "–" for of in WEIGHTS]
        score = "–" if one.score is None else f"{one.score:.4f}"
        cost = "–" if one.seconds is None else _minutes(one.seconds) + ("" if one.measured else " (stated)")
        mark = " ←" if one is selection.selected else ""
        table.add_row(one.name + mark, *shares, score, cost)
    return table


def main(argv: list[str], program: str) -> int:
    """The command `PROGRAM select`."""
    parser = argparse.ArgumentParser(prog=f"{program} select", description=__doc__)
    parser.add_argument("candidates", nargs="*", type=Path, help="folders of evaluated candidates")
    parser.add_argument("--figures", type=Path, help="totals from elsewhere: a TOML file as in train/figures/")
    parser.add_argument("--form", choices=list(FORMS), default="full", help="the deployed form to compare")
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).parent / "data", help="the dataset whose thresholds apply"
    )
    arguments = parser.parse_args(argv)
    experiments: list[Experiment] = [from_candidate(folder, arguments.form) for folder in arguments.candidates]
    experiments += from_figures(arguments.figures) if arguments.figures else []
    if not experiments:
        raise InputError("Nothing to select from: name folders of evaluated candidates, or --figures FILE.")
    names: list[Any] = [one.name for one in experiments]
    if len(set(names)) < len(names):
        raise InputError(f"Two experiments are called {max(names, key=names.count)!r}.")
    selection = select(experiments, read_dataset(arguments.data).thresholds)
    console = Console()
    console.print(render(selection))
    console.print(f"\nSelected: {selection.selected.name}, {selection.reason}.")
    if selection.doubts:
        console.print("\nWhat the figures do not show:")
        for doubt in selection.doubts:
            console.print(f"- {doubt}", highlight=False)
    return 0
