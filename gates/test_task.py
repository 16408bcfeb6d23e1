"""Route task: does each deployed form still do the task that the adapter was trained for?"""

from __future__ import annotations

from assay.errors import Inconclusive
from assay.gating.evidence import Evidence
from assay.gating.gate import gate, require
from assay.gating.task import LIMIT, Form, Task, TaskComparison, compare
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate, Training
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain
from assay.steps.answers import Generation
from assay.steps.catalogue import AskTransformers, RunLlamaCppPython
from assay.steps.step import Stage, Step
from assay.steps.store import Artifact


@gate("nf4_task_ok", per="adapter")
def test_nf4_task(
    evidence: Evidence, candidate: Candidate, base: Base, adapter: Adapter, training: Training, mounted: Artifact
) -> None:
    """In 4 bits with the adapter mounted the task is done as well as in full precision, and as well as it must be.

    Why it matters: distances say how far a model moved, answers say whether that matters to the task. Pairs of answers
    to one question show it with the fewest questions, and a share without its bound shows nothing.

    When it fails: the samples lost are named; compare their answers. Deploy in more bits, or train longer. A threshold
    that full precision misses too is training's matter. Inconclusive: add evaluation samples, as many as it says.
    """

    nf4 = in_transformers(base, adapter, "nf4")
    task = task_of(evidence, candidate, adapter, training)
    compared = compare(evidence, task, in_transformers(base, adapter, "none"), nf4)
    keeps_the_task(compared, "in 4 bits with the adapter mounted")


@gate("q4_task_ok", per="adapter")
def test_q4_task(
    evidence: Evidence,
    candidate: Candidate,
    base: Base,
    adapter: Adapter,
    training: Training,
    sound_adapter: Adapter,
    q4: Artifact,
    toolchain: Toolchain,
) -> None:
    """The Q4_K_M file in llama-cpp-python does the task as well as full precision, and as well as it must.

    Why it matters: see `nf4_task_ok`; this is the file that ships.

    When it fails: the samples lost are named; compare their answers. Use Q5_K_M or Q8_0. A threshold that full
    precision misses too is training's matter. Inconclusive: add evaluation samples, as many as it says.
    """

    def shipped(prompts: Prompts) -> tuple[Step, Stage[Generation]]:
        step = RunLlamaCppPython(adapter=adapter, q4=q4, prompts=prompts, toolchain=toolchain, max_new_tokens=LIMIT)
        return step, RunLlamaCppPython.generated

    task = task_of(evidence, candidate, adapter, training)
    compared = compare(evidence, task, in_transformers(base, adapter, "none"), shipped)
    keeps_the_task(compared, "as Q4_K_M in llama-cpp-python")


def task_of(evidence: Evidence, candidate: Candidate, adapter: Adapter, training: Training) -> Task:
    samples = candidate.evaluation_samples(adapter)
    return Task(dataset=training.dataset, samples=samples, folder=evidence.runner.run / "questions" / adapter.name)


def in_transformers(base: Base, adapter: Adapter, quantization: str) -> Form:
    """The adapter on the base: the reference where `quantization` is `none`."""

    def ask(prompts: Prompts) -> tuple[Step, Stage[Generation]]:
        step = AskTransformers(
            model=base, adapter=adapter, quantization=quantization, prompts=prompts, max_new_tokens=LIMIT
        )
        return step, AskTransformers.generated

    return ask


def keeps_the_task(facts: TaskComparison, where: str) -> None:
    failed, unsettled, lost = facts.failures, facts.unsettled, facts.lost
    pairs = f"{len(lost)} answers got worse ({', '.join(lost[:3]) or 'none'}), {len(facts.gained)} better"
    text = f"{where}: {'; '.join(failed)}. Against full precision {pairs}"
    require(not failed, "claim-refuted", text)
    if unsettled:
        more = f"; and {len(unsettled) - 2} more" if len(unsettled) > 2 else ""
        claims = f"{where}: {'; '.join(unsettled[:2])}{more}"
        if facts.asked:
            raise Inconclusive(f"{claims}. Against full precision {pairs}. Add evaluation samples.")
        raise Inconclusive(
            f"{claims}. Not asked, since flawless answers could not show it either: add evaluation samples. A clear "
            "failure shows with fewer: `python -m train evaluate` asks these, and they are then judged here."
        )
