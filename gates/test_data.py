"""Route data: the dataset that a candidate is trained on, judged before any training."""

from __future__ import annotations

from assay.gating.gate import gate
from assay.inputs.bases import Base
from assay.inputs.candidate import Candidate, Training
from assay.steps.catalogue import EncodeDataset, ReadDataset
from assay.steps.runner import Bench
from assay.steps.store import Artifact

NEAR_DUPLICATE = 0.5
"""Character 4-grams shared by two texts, of all that either has. Rewording a question slightly keeps far more."""


def training_is_known(candidate: Candidate) -> Training:
    """The dataset is there and is the one that the adapters were trained on."""
    return candidate.training


@gate("data_parse_ok", per="dataset")
def test_data_parse(bench: Bench, candidate: Candidate) -> Artifact:
    """Every line of the dataset is one JSON object.

    Why it matters: a reader that skips what it cannot parse trains on less than was counted, and nobody is told.

    When it fails: the line and column are named; one JSON object a line, in UTF-8.
    """
    dataset = training_is_known(candidate).dataset
    data_read = bench.make(ReadDataset(dataset=dataset))
    broken = data_read.facts["lines_not_parsed"]
    assert not broken, f"{len(broken)} lines do not parse. {broken[0]}"
    assert data_read.facts["samples"], f"{dataset.path}: no samples in it"
    return data_read


@gate("data_fields_ok", per="dataset")
def test_data_fields(data_read: Artifact) -> None:
    """Every sample has every field of the schema, of the right kind, and lies in the file it belongs to.

    Why it matters: a sample without its key points or its `should_refuse` cannot be scored, and an evaluation sample
    in a training file is trained on.

    When it fails: the file, line and field are named; `train/data/sample.schema.json` says what a sample has.
    """
    wrong = data_read.facts["lines_with_wrong_fields"]
    assert not wrong, f"{len(wrong)} samples are not as the schema says. {wrong[0]}"


@gate("data_template_ok", per="dataset")
def test_data_template(data_read: Artifact) -> None:
    """Every answer is made of its task's headings: each once, in order, first to last, with text below each.

    Why it matters: Format measures exactly this. An answer without its template teaches to leave it out.

    When it fails: the line and the headings seen and expected are named; `dataset.toml` has them.
    """
    off = data_read.facts["lines_off_template"]
    assert not off, f"{len(off)} answers miss their template. {off[0]}"


@gate("data_counts_ok", per="dataset")
def test_data_counts(data_read: Artifact) -> None:
    """There are as many samples of each task, origin and language as `dataset.toml` says, each in every language.

    Why it matters: a table in a report is about the dataset it names; a file that lost its last lines still parses.

    When it fails: add what is missing, or change `dataset.toml` in the same commit as the samples.
    """
    facts = data_read.facts
    for language, tasks in facts["counts"].items():
        for task, counted in tasks.items():
            expected = facts["counts_expected"][task]
            assert counted == expected, f"{task} in {language}: {counted} samples, dataset.toml says {expected}"
    alone = facts["without_counterpart"]
    assert not alone, f"{len(alone)} samples are not there in every language, {alone[0]} first"


@gate("data_unique_ok", per="dataset")
def test_data_unique(data_read: Artifact) -> None:
    """No question is there twice.

    Why it matters: a sample counted twice is trained on twice, and every share that counts it is too sure of itself.

    When it fails: remove one of the two named.
    """
    twice = data_read.facts["duplicates"]
    assert not twice, f"{len(twice)} duplicates. {twice[0]}"


@gate("data_no_leak_ok", per="dataset")
def test_data_no_leak(data_read: Artifact) -> None:
    """No training sample is nearly an evaluation sample.

    Why it matters: what was trained on cannot be measured. With a reworded question in training, Coverage tests memory.

    When it fails: rewrite or remove the training sample named.
    """
    closest = data_read.facts["closest_pair_of_train_and_eval"]
    assert closest, "training and evaluation samples cannot be compared: one of the two is empty"
    assert closest["similarity"] < NEAR_DUPLICATE, (
        f"{closest['train']} ({closest['language']}) is nearly {closest['eval']}: "
        f"similarity {closest['similarity']:.2f}, below {NEAR_DUPLICATE} wanted"
    )


@gate("data_references_ok", per="dataset")
def test_data_references(data_read: Artifact) -> None:
    """Every reference answer scores full marks in Coverage, Format and Refusal.

    Why it matters: a key point that not even the reference contains, or a decline that is not recognised, is a sample
    that no model can pass, and the metric then measures the dataset.

    When it fails: correct the key points or the answer of the sample named, or the `decline` phrases in `dataset.toml`.
    """
    short = data_read.facts["references_not_scoring_full"]
    assert not short, f"{len(short)} reference answers do not score in full. {short[0]}"


def samples_encode(bench: Bench, training: Training, base: Base) -> Artifact:
    """The base's tokenizer encodes every sample."""
    encoded = bench.make(
        EncodeDataset(dataset=training.dataset, base=base, language=training.language, tasks=training.tasks)
    )
    refused = encoded.facts["not_encodable"]
    assert not refused, f"{len(refused)} samples cannot be encoded. {refused[0]}"
    return encoded


@gate("data_length_ok", per="dataset")
def test_data_length(encoded: Artifact, training: Training) -> None:
    """No sample is longer than the recipe's max_tokens, so none is cut.

    Why it matters: a cut answer has no end token: the model learns to stop in the middle, or never.

    When it fails: raise max_tokens in the recipe, or shorten the sample named.
    """
    facts = encoded.facts
    longest = facts["longest_sample_tokens"]
    assert longest <= training.max_tokens, (
        f"{facts['longest_sample']} has {longest} tokens, max_tokens is {training.max_tokens}"
    )


@gate("data_labels_ok", per="dataset")
def test_data_labels(bench: Bench, training: Training, base: Base, data_read: Artifact) -> None:
    """Only the assistant's tokens are trained on: all of the answer, then the end token that deployment stops at.

    Why it matters: without the end token a model never stops. With the end token as the first one it learns to say
    nothing, which is how a single-task adapter goes empty (docs/evidence/empty-adapter.md).

    When it fails: mask by position and never by token value (a padding token that is also the end token would be masked
    with it), and see that the tokenizer's eos_token is among generation_config.json's eos_token_id.
    """
    facts = samples_encode(bench, training, base).facts
    off = facts["trained_on_more_or_less_than_the_answer"]
    assert not off, f"{len(off)} samples are trained on something other than their answer, {off[0]} first"
    ends = facts["end_tokens_when_served"]
    endless = facts["without_end_token"]
    assert not endless, (
        f"{len(endless)} samples do not end with a token that ends an answer ({ends}), {endless[0]} first"
    )
    empty = facts["end_token_first"]
    assert not empty, f"{len(empty)} samples teach the end token as the first one, {empty[0]} first: empty answers"


@gate("data_prompt_ok", per="dataset")
def test_data_prompt(encoded: Artifact) -> None:
    """A question is rendered in training as the base's own chat template renders it when served, token for token.

    Why it matters: a prompt that was never trained (another template, no generation prompt, a thinking switch) is
    answered by the base, or with nothing.

    When it fails: train with the template that ships; do not set one of your own in the recipe's tokenizer.
    """
    other = encoded.facts["asked_otherwise_when_served"]
    assert not other, f"{len(other)} questions are rendered otherwise in training than when served, {other[0]} first"
