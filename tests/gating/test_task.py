"""Task gates: asked until it is clear, not asked where nothing could be shown, and judged with their errors bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import test_task
from assay.errors import Inconclusive
from assay.gating.evidence import Evidence
from assay.gating.task import COMPARED, FIRST, Form, TaskComparison, compare
from assay.gating.task import Task as Questions
from assay.inputs.dataset import Dataset, Sample, Task, read_dataset
from assay.inputs.prompts import Prompts
from assay.measures.statistics import Shown
from assay.paths import REPOSITORY
from assay.steps.answers import Generation
from assay.steps.runner import Attempt, Runner
from assay.steps.step import Stage, Step, StepUse
from assay.steps.store import Artifact

HEADING = "### Answer"


@dataclass(frozen=True, kw_only=True)
class Ask(Step):
    """A form that is asked: its name says which."""

    worker = "none"
    generated = Stage(Generation)

    form: str
    prompts: Prompts


@dataclass
class Asked:
    """A runner whose models answer as told."""

    answers: dict[str, dict[str, str]]
    """Form to sample to its answer; a right answer if not named."""
    made_before: bool = False
    asked: list[str] = field(default_factory=list)

    def has(self, step: Ask) -> bool:
        return self.made_before

    def attempt(self, step: Ask, until: Stage[Any] | None = None) -> Attempt:
        names = sorted(file.stem for file in step.prompts.path.glob("*.txt"))
        self.asked += [f"{step.form} {name}" for name in names]
        answers = {
            name: {"kind": "ok", "text": self.answers.get(step.form, {}).get(name, right(name))} for name in names
        }
        stages = {"generated": {"answers": answers, "load_seconds": 0.0, "peak_host_bytes": 0}}
        made = Artifact(path=Path(), digest="0", step="s", stages=stages, run="r", seconds=0.0, peak_rss_bytes=0)
        use = StepUse(step="s", digest=step.form, seconds=0.0, peak_rss_bytes=0, reused_from=None, log="l")
        return Attempt(artifact=made, use=use, problem=None)


def right(name: str) -> str:
    return f"{HEADING}\nThe answer is {name}."


def questions(folder: Path, count: int, **thresholds: float) -> Questions:
    """As many samples of one task; an answer is right if it names its sample under the heading."""
    task = Task(samples={"eval": count}, headings={"en": [HEADING]})
    dataset = Dataset(
        path=folder,
        name="d",
        languages=["en"],
        tasks={"style": task},
        decline={"en": ["I must decline"]},
        thresholds={"style": thresholds},
    )
    samples = [
        Sample(
            id=f"s{number:03}",
            origin="eval",
            task="style",
            language="en",
            difficulty="easy",
            prompt="?",
            answer=right(f"s{number:03}"),
            key_points=[[f"s{number:03}"]],
            should_refuse=False,
        )
        for number in range(count)
    ]
    return Questions(dataset=dataset, samples=samples, folder=folder)


def ask(runner: Asked, task: Questions) -> TaskComparison:
    evidence = Evidence(cast(Runner, runner))

    def form(name: str) -> Form:
        return lambda prompts: (Ask(form=name, prompts=prompts), Ask.generated)

    facts = compare(evidence, task, form("full"), form("q4"))
    assert evidence.seen[COMPARED.id] == facts, "the comparison goes on the gate's record"
    return facts


def lost(*numbers: int) -> dict[str, dict[str, str]]:
    return {"q4": {f"s{number:03}": f"{HEADING}\nNo idea." for number in numbers}}


def test_seventeen_of_seventeen_is_inconclusive_against_092(tmp_path: Path) -> None:
    runner = Asked({}, made_before=True)
    facts = ask(runner, questions(tmp_path, 17, format=0.92))
    assert (facts.asked, facts.lost, facts.gained, facts.p_value) == (17, [], [], 1.0)
    assert facts.unsettled == [
        "style format > 0.92: 17 of 17 samples, 36 needed",
        "fewer than 10% of the answers get worse: 17 of 17 samples, 29 needed",
    ]
    with pytest.raises(
        Inconclusive, match=r"style format > 0.92: 17 of 17 samples, 36 needed; .* Against full precision"
    ):
        test_task.keeps_the_task(facts, "as Q4_K_M")


def test_so_few_samples_that_nothing_could_pass_are_not_asked(tmp_path: Path) -> None:
    runner = Asked(lost(*range(17)))
    facts = ask(runner, questions(tmp_path, 17, format=0.92))
    assert runner.asked == []
    with pytest.raises(Inconclusive, match=r"0.92: 17 samples, 36 needed; .* Not asked, since flawless"):
        test_task.keeps_the_task(facts, "as Q4_K_M")


def test_what_an_evaluation_asked_is_judged_however_few_there_are(tmp_path: Path) -> None:
    facts = ask(Asked(lost(*range(9)), made_before=True), questions(tmp_path, 17))
    assert len(facts.lost) == 9
    assert facts.flips == {"coverage": [9, 0], "format": [0, 0], "refusal": [0, 0]}
    with pytest.raises(AssertionError, match=r"fewer than 10% .*: 8 of 17 samples. Against full precision 9 answers"):
        test_task.keeps_the_task(facts, "as Q4_K_M")


def test_enough_right_answers_pass(tmp_path: Path) -> None:
    runner = Asked({})
    facts = ask(runner, questions(tmp_path, 100, coverage=0.9, format=0.92))
    test_task.keeps_the_task(facts, "as Q4_K_M")
    assert facts.failures == facts.unsettled == []


def test_asking_ends_at_the_block_in_which_it_becomes_clear(tmp_path: Path) -> None:
    runner = Asked(lost(*range(300)))
    facts = ask(runner, questions(tmp_path, 300, coverage=0.9))
    assert facts.asked == len(runner.asked) / 2 == 2 * FIRST
    assert facts.claims["style coverage > 0.90"].shown is Shown.FAILED
    with pytest.raises(AssertionError, match=r"style coverage > 0.90: 0 of 64 samples"):
        test_task.keeps_the_task(facts, "as Q4_K_M")


def test_a_form_that_is_wrong_where_its_reference_is_wrong_too_loses_nothing(tmp_path: Path) -> None:
    wrong = lost(*range(40))
    facts = ask(Asked({"q4": wrong["q4"], "full": wrong["q4"]}), questions(tmp_path, 60))
    test_task.keeps_the_task(facts, "as Q4_K_M")


def test_the_blocks_hold_every_sample_once(tmp_path: Path) -> None:
    task = questions(tmp_path, 150)
    blocks = list(task.blocks())
    assert [len(block) for block, _ in blocks] == [32, 32, 64, 22]
    assert [sample for block, _ in blocks for sample in block] == task.samples
    assert sum(len(list(prompts.path.glob("*.txt"))) for _, prompts in blocks) == 150


def test_the_shipped_dataset_cannot_show_its_own_thresholds(tmp_path: Path) -> None:
    dataset = read_dataset(REPOSITORY / "train" / "data")
    samples = dataset.samples("eval", ["style", "writing"], "en")
    facts = ask(Asked({}), Questions(dataset=dataset, samples=samples, folder=tmp_path))
    needed = {name: claim.needed for name, claim in facts.claims.items()}
    assert needed["all format > 0.92"] == 36
    assert all(claim.samples < claim.needed for claim in facts.claims.values())
