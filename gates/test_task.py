"""Route task: does each deployed form still do the task that the adapter was trained for?"""

from __future__ import annotations

from typing import Any

from assay.errors import Inconclusive
from assay.gating.gate import gate
from assay.gating.task import LIMIT, Form, Task, compare, failures, unsettled
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate, Training
from assay.inputs.toolchain import Toolchain
from assay.steps.catalogue import AskTransformers, RunLlamaCppPython
from assay.steps.runner import Bench
from assay.steps.store import Artifact


@gate("nf4_task_ok", per="adapter")
def test_nf4_task(
    bench: Bench, candidate: Candidate, base: Base, adapter: Adapter, training: Training, mounted: Artifact
) -> None:
    """In 4 bits with the adapter mounted the task is done as well as in full precision, and as well as it must be.

    Why it matters: distances say how far a model moved, answers say whether that matters to the task. Pairs of answers
    to one question show it with the fewest questions, and a share without its bound shows nothing.

    When it fails: the samples lost are named; compare their answers. Deploy in more bits, or train longer. A threshold
    that full precision misses too is training's matter. Inconclusive: add evaluation samples, as many as it says.
    """

    def nf4(prompts: Any) -> AskTransformers:
        return AskTransformers(model=base, adapter=adapter, quantization="nf4", prompts=prompts, max_new_tokens=LIMIT)

    task = task_of(bench, candidate, adapter, training)
    keeps_the_task(compare(bench, task, in_full_precision(base, adapter), nf4), "in 4 bits with the adapter mounted")


@gate("q4_task_ok", per="adapter")
def test_q4_task(
    bench: Bench,
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

    def shipped(prompts: Any) -> RunLlamaCppPython:
        return RunLlamaCppPython(adapter=adapter, q4=q4, prompts=prompts, toolchain=toolchain, max_new_tokens=LIMIT)

    task = task_of(bench, candidate, adapter, training)
    keeps_the_task(compare(bench, task, in_full_precision(base, adapter), shipped), "as Q4_K_M in llama-cpp-python")


def task_of(bench: Bench, candidate: Candidate, adapter: Adapter, training: Training) -> Task:
    samples = candidate.evaluation_samples(adapter)
    return Task(dataset=training.dataset, samples=samples, folder=bench.run / "questions" / adapter.name)


def in_full_precision(base: Base, adapter: Adapter) -> Form:
    """The reference."""
    return lambda prompts: AskTransformers(
        model=base, adapter=adapter, quantization="none", prompts=prompts, max_new_tokens=LIMIT
    )


def keeps_the_task(facts: dict[str, Any], where: str) -> None:
    failed, open_ = failures(facts), unsettled(facts)
    lost, gained = facts["lost"], facts["gained"]
    pairs = f"{len(lost)} answers got worse ({', '.join(lost[:3]) or 'none'}), {len(gained)} better"
    assert not failed, f"{where}: {'; '.join(failed)}. Against full precision {pairs}"
    if open_:
        more = f"; and {len(open_) - 2} more" if len(open_) > 2 else ""
        said = f"{where}: {'; '.join(open_[:2])}{more}"
        if facts["asked"]:
            raise Inconclusive(f"{said}. Against full precision {pairs}. Add evaluation samples.")
        raise Inconclusive(
            f"{said}. Not asked, since flawless answers could not show it either: add evaluation samples. A clear "
            "failure shows with fewer: `python -m train evaluate` asks these, and they are then judged here."
        )
