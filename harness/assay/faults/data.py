"""Defects of what a candidate is trained on, and of how it is encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from assay.faults.fault import NotApplicable, Place, fault
from assay.faults.sandbox import Sandbox, around, edit_json, replace_text


def _file(sandbox: Sandbox, split: str = "train") -> Path:
    """The JSONL of the first task that the adapter was trained on, in its language."""
    training = sandbox.candidate.training
    samples = sandbox.candidate.evaluation_samples(sandbox.original)
    return sandbox.data / split / f"{samples[0].task}.{training.language}.jsonl"


def _edit(file: Path, edit: Any) -> None:
    """Change the samples of a file, as a list of dictionaries."""
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    edit(samples)
    replace_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in samples))


@fault(Place.DATA, first="data_parse_ok", cause="data-line-not-json", quick=True)
def data_line_cut(sandbox: Sandbox) -> None:
    """A line of the training data was cut in the middle, and a forgiving reader skips it."""
    file = _file(sandbox)
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][: len(lines[2]) // 2]
    replace_text(file, "\n".join(lines) + "\n")


@fault(Place.DATA, first="data_fields_ok", cause="data-field-missing", quick=True)
def data_field_missing(sandbox: Sandbox) -> None:
    """A sample lost its key points, so its Coverage cannot be scored."""
    _edit(_file(sandbox), lambda samples: samples[1].pop("key_points"))


@fault(Place.DATA, first="data_template_ok", cause="data-off-template", quick=True)
def data_heading_missing(sandbox: Sandbox) -> None:
    """An answer lacks its first heading: it teaches to leave the template out."""

    def edit(samples: list[dict[str, Any]]) -> None:
        samples[0]["answer"] = samples[0]["answer"].split("\n", 1)[1].lstrip()

    _edit(_file(sandbox), edit)


@fault(Place.DATA, first="data_counts_ok", cause="data-samples-lost", quick=True)
def data_last_samples_lost(sandbox: Sandbox) -> None:
    """A file lost its last three lines, and still parses."""

    def edit(samples: list[dict[str, Any]]) -> None:
        del samples[-3:]

    _edit(_file(sandbox), edit)


@fault(Place.DATA, first="data_unique_ok", cause="data-duplicate", quick=True)
def data_question_twice(sandbox: Sandbox) -> None:
    """A question is asked twice, with the sample's number changed."""

    def edit(samples: list[dict[str, Any]]) -> None:
        samples[3]["prompt"] = samples[2]["prompt"]

    _edit(_file(sandbox), edit)


@fault(Place.DATA, first="data_no_leak_ok", cause="data-leak", quick=True)
def data_eval_question_in_training(sandbox: Sandbox) -> None:
    """An evaluation question, slightly reworded, is trained on."""
    asked = sandbox.candidate.evaluation_samples(sandbox.original)[0].prompt

    def edit(samples: list[dict[str, Any]]) -> None:
        samples[0]["prompt"] = f"Please: {asked}"

    _edit(_file(sandbox), edit)


@fault(Place.DATA, first="data_references_ok", cause="data-reference-unscorable", quick=True)
def data_key_point_nobody_can_make(sandbox: Sandbox) -> None:
    """A key point is not even in its own reference answer, so the metric measures the dataset."""

    def edit(samples: list[dict[str, Any]]) -> None:
        samples[0]["key_points"] = [["a phrase that is nowhere"]]

    _edit(_file(sandbox), edit)


@fault(Place.DATA, first="data_length_ok", cause="data-too-long", quick=True)
def data_sample_longer_than_cut(sandbox: Sandbox) -> None:
    """A sample is longer than max_tokens: a trainer that cuts it teaches to stop in the middle."""

    def edit(samples: list[dict[str, Any]]) -> None:
        head, _, rest = samples[0]["answer"].partition("\n")
        samples[0]["answer"] = f"{head}\n{'It follows from the same law as before. ' * 120}{rest}"

    _edit(_file(sandbox), edit)


@fault(Place.DATA, first="data_labels_ok", cause="labels-without-end", quick=True)
def end_token_masked(sandbox: Sandbox) -> None:
    """Padding is the end token, and labels are masked by value: no answer ever ends."""
    _mislabel(sandbox, lambda ids, labels, end: (ids, [-100 if label == end else label for label in labels]))


@fault(Place.DATA, first="data_labels_ok", cause="labels-end-first", quick=True)
def end_token_first(sandbox: Sandbox) -> None:
    """An end token follows the prompt at once: empty answers are learned, as the thesis's writing adapter did."""

    def labels(ids: list[int], labels: list[int], end: int) -> tuple[list[int], list[int]]:
        first = next(at for at, label in enumerate(labels) if label != -100)
        return [*ids[:first], end], [*labels[:first], end]

    _mislabel(sandbox, labels)


@fault(Place.DATA, first="data_labels_ok", cause="labels-on-prompt", quick=True)
def prompt_trained_on(sandbox: Sandbox) -> None:
    """The loss covers the prompt too: the model learns to ask."""
    _mislabel(sandbox, lambda ids, labels, end: (ids, list(ids)))


def _mislabel(sandbox: Sandbox, change: Any) -> None:
    def do() -> None:
        from assay.measures import encoding

        def encode_sample(original: Any, tokenizer: Any, *args: Any) -> Any:
            row = original(tokenizer, *args)
            ids, labels = change(row.input_ids, row.labels, tokenizer.eos_token_id)
            return encoding.Encoded(input_ids=ids, labels=labels)

        around(encoding, "encode_sample", encode_sample)

    _ = sandbox.data
    sandbox.in_worker("dataset.encode", do)


@fault(Place.DATA, first="data_prompt_ok", cause="data-prompt-rendered-otherwise", quick=True)
def trained_with_another_template(sandbox: Sandbox) -> None:
    """Training renders questions through a template of its own, deployment through the base's."""

    def do() -> None:
        from assay.measures import encoding

        def encode_sample(original: Any, tokenizer: Any, prompt: str, answer: str) -> Any:
            return original(tokenizer, f"[INST] {prompt} [/INST]", answer)

        around(encoding, "encode_sample", encode_sample)

    _ = sandbox.data
    sandbox.in_worker("dataset.encode", do)


@fault(Place.DATA, first="data_labels_ok", cause="labels-without-end", quick=True)
def served_with_another_end(sandbox: Sandbox) -> None:
    """generation_config.json ends answers at a token that training never showed: they run to the limit."""
    if not sandbox.candidate.trained_here:
        raise NotApplicable("the candidate does not say what it was trained on")
    edit_json(sandbox.base / "generation_config.json", lambda config: config.update(eos_token_id=0))
