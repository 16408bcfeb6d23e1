"""`python -m train evaluate CANDIDATE`: Coverage, Format and Refusal of the candidate's adapters, per deployed form."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assay import paths
from assay.errors import InputError, StepFailed
from assay.files import read_json, write_json
from assay.gating.task import LIMIT, Task
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate, read_candidate
from assay.inputs.dataset import METRICS, Dataset
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import find_toolchain
from assay.measures.answers import Kind
from assay.measures.metrics import Score, summarise_scores
from assay.steps.answers import Answer, Generation
from assay.steps.catalogue import AskTransformers, ConvertF16, Merge, QuantizeQ4, RunLlamaCppPython
from assay.steps.runner import Runner
from assay.steps.store import Artifact, Store
from rich.console import Console
from rich.table import Table

RESULT = "evaluation.json"
Answers = tuple[Artifact, Generation]
"""The step that asked a form, and the answers."""


def ask_full(runner: Runner, candidate: Candidate, adapter: Adapter, prompts: Prompts, limit: int) -> Answers:
    """The adapter on the unquantized base: the reference for all other forms."""
    return _ask(runner, candidate.base, adapter, prompts, limit)


def ask_nf4(runner: Runner, candidate: Candidate, adapter: Adapter, prompts: Prompts, limit: int) -> Answers:
    """The adapter on the base in BitsAndBytes 4-bit."""
    return _ask(runner, candidate.base, adapter, prompts, limit, quantization="nf4")


def ask_merged(runner: Runner, candidate: Candidate, adapter: Adapter, prompts: Prompts, limit: int) -> Answers:
    """The merged bf16 checkpoint."""
    merged = runner.make(Merge(base=candidate.base, adapter=adapter))
    return _ask(runner, Base(id="merged", revision=None, path=merged.file("checkpoint")), None, prompts, limit)


def ask_q4_k_m(runner: Runner, candidate: Candidate, adapter: Adapter, prompts: Prompts, limit: int) -> Answers:
    """The shipped Q4_K_M GGUF, in llama-cpp-python."""
    base, toolchain = candidate.base, find_toolchain()
    merged = runner.make(Merge(base=base, adapter=adapter))
    f16 = runner.make(ConvertF16(adapter=adapter, base=base, merged=merged, toolchain=toolchain))
    q4 = runner.make(QuantizeQ4(adapter=adapter, base=base, f16=f16, toolchain=toolchain))
    step = RunLlamaCppPython(adapter=adapter, q4=q4, prompts=prompts, toolchain=toolchain, max_new_tokens=limit)
    artifact = runner.make(step)
    return artifact, artifact.facts(RunLlamaCppPython.generated)


def _ask(
    runner: Runner, model: Base, adapter: Adapter | None, prompts: Prompts, limit: int, quantization: str = "none"
) -> Answers:
    step = AskTransformers(
        model=model, adapter=adapter, quantization=quantization, prompts=prompts, max_new_tokens=limit
    )
    artifact = runner.make(step)
    return artifact, artifact.facts(AskTransformers.generated)


FORMS: dict[str, Callable[[Runner, Candidate, Adapter, Prompts, int], Answers]] = {
    "full": ask_full,
    "nf4": ask_nf4,
    "merged": ask_merged,
    "q4_k_m": ask_q4_k_m,
}
"""Form, as the command line names it, to the function that asks it."""


def evaluate(
    candidate: Candidate, *, forms: list[str], adapters: list[str], language: str | None, limit: int, say: Any = print
) -> dict[str, Any]:
    """Ask every form of every adapter, score the answers, and add the scores to the candidate's `evaluation.json`.

    Args:
        forms: names in `FORMS`.
        adapters: names. Each adapter is asked the evaluation samples of the tasks that it was trained on.
        language: of the samples; None for the language of the training.
        limit: tokens after which an answer is cut off.

    Returns:
        All of `evaluation.json`: form to adapter to summary and scores.

    Raises:
        InputError: the candidate lacks the adapter, or the dataset is missing.
        StepFailed: a form could not be made or asked.
    """
    training = candidate.training
    dataset, language = training.dataset, language or training.language
    assert candidate.record is not None
    tasks_of: dict[str, list[str]] = candidate.record["recipe"]["adapters"]
    known = {adapter.name: adapter for adapter in candidate.adapters}
    for name in adapters:
        if name not in known:
            raise InputError(f"{candidate.name}: no adapter {name!r}. It has {', '.join(known)}.")
    folder = candidate.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    # Failed steps are remembered per run, and each evaluation is a run of its own.
    shutil.rmtree(folder / "steps", ignore_errors=True)
    runner = Runner(Store(paths.cache() / "store"), folder, f"evaluation of {candidate.name}", say=say)
    file = candidate.folder / RESULT
    digests = {name: known[name].digest for name in known}
    result = _earlier(file, digests) or {"version": 1, "candidate": candidate.name, "digests": digests, "forms": {}}
    for form in forms:
        for name in adapters:
            samples = dataset.samples("eval", tasks_of[name], language)
            task = Task(dataset=dataset, samples=samples, folder=folder / f"{'-'.join(tasks_of[name])}.{language}")
            answers: dict[str, Answer] = {}
            asked: list[Answers] = []
            scores: list[Score] = []
            for block, prompts in task.blocks():
                asked.append(FORMS[form](runner, candidate, known[name], prompts, limit))
                answers |= asked[-1][1].answers
                scores += task.score(block, answers)
            measured = _result(scores, answers, dataset, asked, language, limit)
            measured["why_empty"] = why_empty(answers, candidate.record.get("results", {}).get(name))
            result["forms"].setdefault(form, {})[name] = measured
            write_json(file, result)
    return result


def _earlier(file: Path, digests: dict[str, str]) -> dict[str, Any] | None:
    """The content of `evaluation.json`, if it is of the same adapters."""
    data = read_json(file) if file.exists() else None
    return data if data is not None and data.get("digests") == digests else None


def _result(
    scores: list[Score],
    answers: dict[str, Answer],
    dataset: Dataset,
    asked: list[Answers],
    language: str,
    limit: int,
) -> dict[str, Any]:
    return {
        "language": language,
        "max_new_tokens": limit,
        "summary": summarise_scores(scores, dataset),
        "seconds": round(sum(artifact.seconds for artifact, _ in asked), 1),
        "peak_host_bytes": max(facts.peak_host_bytes for _, facts in asked),
        "peak_device_bytes": max(facts.peak_device_bytes or 0 for _, facts in asked) or None,
        "samples": [asdict(one) | {"answer": answers[one.id].text} for one in scores],
    }


def why_empty(answers: dict[str, Answer], trained: dict[str, Any] | None) -> str | None:
    """Why answers are empty, by the causes in docs/evidence/empty-adapter.md; None if no answer is empty.

    Args:
        answers: of one form, by sample.
        trained: the adapter's entry in `training.results`, if `python -m train` trained it.
    """
    kinds = {name: answer.kind for name, answer in answers.items()}
    empty = [name for name, kind in kinds.items() if not kind.says_something]
    if not empty:
        return None
    first, losses = answers[empty[0]], trained or {}
    count = f"{len(empty)} of {len(answers)} answers are empty ({kinds[empty[0]].value})"
    if losses and not losses["last_loss"] < losses["first_loss"]:
        return (
            f"{count}: training diverged, the loss went from {losses['first_loss']:.2f} to {losses['last_loss']:.2f}. "
            "Lower the learning rate."
        )
    if kinds[empty[0]] is Kind.EMPTY:
        chance, forced = first.p_end_at_first_position, first.text_when_forced
        known = f" (P(end) = {chance:.2f})" if chance is not None else ""
        behind = f" Without the end token the model answers {forced[:60]!r}." if forced else ""
        return (
            f"{count}: the end token comes first{known}. Training taught it as the first token of an answer: by "
            "samples with an empty or cut answer, by an end token after the prompt, or by a mask that hides all but "
            f"the end token. `data_labels_ok` names such samples.{behind}"
        )
    if kinds[empty[0]] is Kind.THINK_ONLY:
        return (
            f"{count}: no text after <think>. Allow more tokens, or train with the thinking switch of the deployment."
        )
    return f"{count}: the cause is not known. Keep the answers and train_log.jsonl."


def render(result: dict[str, Any]) -> Table:
    """One row per form, adapter and task; a share is followed by its exact lower bound."""
    table = Table(box=None, title=f"{result['candidate']}: share, and its exact one-sided 95 % lower bound")
    for name in ("form", "adapter", "task", "n", "coverage", "format", "refusal"):
        table.add_column(name, no_wrap=True, justify="right" if name == "n" else "left")
    for form, adapters in result["forms"].items():
        for adapter, one in adapters.items():
            for task, row in one["summary"].items():
                shares = [f"{row[m]['share']:.2f} ≥ {row[m]['lower_bound']:.2f}" for m in METRICS]
                table.add_row(form, adapter, task, str(row["n"]), *shares)
    return table


def judgements(result: dict[str, Any]) -> list[str]:
    """One line per threshold (met, not met, cannot be shown), and one per adapter with empty answers."""
    lines = []
    for form, adapters in result["forms"].items():
        for adapter, one in adapters.items():
            for task, row in one["summary"].items():
                for metric in METRICS:
                    if "threshold" in row[metric]:
                        share = f"{row[metric]['successes']} of {row['n']}"
                        claim = f"{metric} > {row[metric]['threshold']:.2f}: {row[metric]['judgement']}"
                        lines.append(f"{form}, {adapter}, {task}: {claim} ({share})")
            if one["why_empty"]:
                lines.append(f"{form}, {adapter}: {one['why_empty']}")
    return lines


def main(argv: list[str], program: str) -> int:
    """The command `PROGRAM evaluate`."""
    parser = argparse.ArgumentParser(prog=f"{program} evaluate", description=__doc__)
    parser.add_argument("candidate", type=Path, help="candidate.json, or its folder")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=["full"], help="default: full")
    parser.add_argument("--adapters", nargs="+", help="default: all")
    parser.add_argument("--language", help="default: the language of the training")
    parser.add_argument("--max-new-tokens", type=int, default=LIMIT)
    arguments = parser.parse_args(argv)
    file = arguments.candidate / "candidate.json" if arguments.candidate.is_dir() else arguments.candidate
    candidate = read_candidate(file)
    if not candidate.trained_here:
        raise InputError(
            f"{file}: does not say which dataset the adapters were trained on, so no answer can be scored."
        )
    names = [adapter.name for adapter in candidate.adapters]
    try:
        result = evaluate(
            candidate,
            forms=arguments.forms,
            adapters=arguments.adapters or names,
            language=arguments.language,
            limit=arguments.max_new_tokens,
        )
    except StepFailed as problem:
        raise InputError(f"{problem} Log: {candidate.folder / 'evaluation' / problem.log}") from None
    console = Console()
    console.print(render(result))
    console.print()
    for line in judgements(result):
        console.print(f"- {line}", highlight=False)
    print(f"Written: {candidate.folder / RESULT}")
    return 0
