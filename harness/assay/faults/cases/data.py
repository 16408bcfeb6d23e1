"""Faults of the dataset, and of how its samples are encoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.faults.edits.files import edit_json, replace_text
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.edits.workers import Wrapper, wrap
from assay.faults.fault import Area, fault

Samples = list[dict[str, Any]]
Relabel = Callable[[list[int], list[int], int], tuple[list[int], list[int]]]
"""From token ids, labels and the end token's id to the ids and labels that are trained on."""


def _file(sandbox: Sandbox) -> Path:
    """The training samples of the adapter's first task, in its language."""
    training = sandbox.candidate.training
    task = sandbox.candidate.evaluation_samples(sandbox.original)[0].task
    return sandbox.data / "train" / f"{task}.{training.language}.jsonl"


def _edit(sandbox: Sandbox, edit: Callable[[Samples], object]) -> None:
    """Change the training samples in place."""
    file = _file(sandbox)
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    edit(samples)
    replace_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in samples))


def _wrap_encode(sandbox: Sandbox, encode: Wrapper) -> None:
    """Encode samples for training otherwise than Assay does.

    Raises:
        NotApplicable: the candidate was trained elsewhere.
    """
    _ = sandbox.data
    wrap(sandbox, "dataset.encode", "assay.measures.encoding", "encode_sample", encode)


def _relabel(sandbox: Sandbox, relabel: Relabel) -> None:
    """Train on other labels."""

    def encode(original: Any, tokenizer: Any, *args: Any) -> Any:
        row = original(tokenizer, *args)
        ids, labels = relabel(row.input_ids, row.labels, tokenizer.eos_token_id)
        return replace(row, input_ids=ids, labels=labels)

    _wrap_encode(sandbox, encode)


@fault(Area.DATA, first="data_parse_ok", cause="data-line-not-json", quick=True)
def data_line_cut(sandbox: Sandbox) -> None:
    """A line of the training data was cut in the middle, and a lenient reader skips it."""
    file = _file(sandbox)
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][: len(lines[2]) // 2]
    replace_text(file, "\n".join(lines) + "\n")


@fault(Area.DATA, first="data_fields_ok", cause="data-field-missing", quick=True)
def data_field_missing(sandbox: Sandbox) -> None:
    """A sample has no key points, so its Coverage cannot be scored."""
    _edit(sandbox, lambda samples: samples[1].pop("key_points"))


@fault(Area.DATA, first="data_template_ok", cause="data-off-template", quick=True)
def data_heading_missing(sandbox: Sandbox) -> None:
    """An answer lacks its first heading: the model learns to leave the template out."""

    def edit(samples: Samples) -> None:
        samples[0]["answer"] = samples[0]["answer"].split("\n", 1)[1].lstrip()

    _edit(sandbox, edit)


@fault(Area.DATA, first="data_counts_ok", cause="data-samples-lost", quick=True)
def data_last_samples_lost(sandbox: Sandbox) -> None:
    """A file lost its last three lines and still parses."""

    def edit(samples: Samples) -> None:
        del samples[-3:]

    _edit(sandbox, edit)


@fault(Area.DATA, first="data_unique_ok", cause="data-duplicate", quick=True)
def data_question_twice(sandbox: Sandbox) -> None:
    """Two samples with different ids have the same question."""

    def edit(samples: Samples) -> None:
        samples[3]["prompt"] = samples[2]["prompt"]

    _edit(sandbox, edit)


@fault(Area.DATA, first="data_no_leak_ok", cause="data-leak", quick=True)
def data_eval_question_in_training(sandbox: Sandbox) -> None:
    """A training sample has the question of an evaluation sample, slightly reworded."""
    asked = sandbox.candidate.evaluation_samples(sandbox.original)[0].prompt

    def edit(samples: Samples) -> None:
        samples[0]["prompt"] = f"Please: {asked}"

    _edit(sandbox, edit)


@fault(Area.DATA, first="data_references_ok", cause="data-reference-unscorable", quick=True)
def data_key_point_nobody_can_make(sandbox: Sandbox) -> None:
    """A key point is not in its own reference answer, so the metric measures the dataset and not the model."""

    def edit(samples: Samples) -> None:
        samples[0]["key_points"] = [["a phrase that is nowhere"]]

    _edit(sandbox, edit)


@fault(Area.DATA, first="data_length_ok", cause="data-too-long", quick=True)
def data_sample_longer_than_cut(sandbox: Sandbox) -> None:
    """A sample is longer than max_tokens: a trainer that cuts it teaches the model to stop in the middle."""

    def edit(samples: Samples) -> None:
        head, _, rest = samples[0]["answer"].partition("\n")
        samples[0]["answer"] = f"{head}\n{'It follows from the same law as before. ' * 120}{rest}"

    _edit(sandbox, edit)


@fault(Area.DATA, first="data_labels_ok", cause="labels-without-end", quick=True)
def end_token_masked(sandbox: Sandbox) -> None:
    """The end token is the padding token and labels are masked by value: the model never learns to end."""
    _relabel(sandbox, lambda ids, labels, end: (ids, [-100 if label == end else label for label in labels]))


@fault(Area.DATA, first="data_labels_ok", cause="labels-end-first", quick=True)
def end_token_first(sandbox: Sandbox) -> None:
    """An end token follows the prompt at once: the model learns empty answers."""

    def labels(ids: list[int], labels: list[int], end: int) -> tuple[list[int], list[int]]:
        first = next(at for at, label in enumerate(labels) if label != -100)
        return [*ids[:first], end], [*labels[:first], end]

    _relabel(sandbox, labels)


@fault(Area.DATA, first="data_labels_ok", cause="labels-on-prompt", quick=True)
def prompt_trained_on(sandbox: Sandbox) -> None:
    """The loss covers the prompt too: the model learns to write questions."""
    _relabel(sandbox, lambda ids, labels, end: (ids, list(ids)))


@fault(Area.DATA, first="data_prompt_ok", cause="data-prompt-rendered-otherwise", quick=True)
def trained_with_another_template(sandbox: Sandbox) -> None:
    """Training renders prompts with a template of its own, deployment with the base's."""

    def encode(original: Any, tokenizer: Any, prompt: str, answer: str) -> Any:
        return original(tokenizer, f"[INST] {prompt} [/INST]", answer)

    _wrap_encode(sandbox, encode)


@fault(Area.DATA, first="data_labels_ok", cause="labels-without-end", quick=True)
def served_with_another_end(sandbox: Sandbox) -> None:
    """generation_config.json ends answers at a token that training never showed: answers run to the token limit."""
    if not sandbox.candidate.trained_here:
        raise NotApplicable("the candidate does not say what it was trained on")
    edit_json(sandbox.base / "generation_config.json", lambda config: config.update(eos_token_id=0))
