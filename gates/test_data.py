"""Route data: the dataset that a candidate is trained on, judged before any training."""

from __future__ import annotations

from assay.gating.evidence import Evidence
from assay.gating.gate import GateFailed, gate, require, require_none
from assay.inputs.bases import Base
from assay.inputs.candidate import Candidate, Training
from assay.steps.catalogue import EncodeDataset, ReadDataset
from assay.steps.store import Artifact

NEAR_DUPLICATE = 0.5
"""Character 4-grams that two texts share, of all that either has. A slightly reworded question keeps far more."""


def training_is_known(candidate: Candidate) -> Training:
    """The dataset is there and is the one that the adapters were trained on."""
    return candidate.training


@gate("data_parse_ok", per="dataset")
def test_data_parse(evidence: Evidence, candidate: Candidate) -> Artifact:
    """Every line of the dataset is one JSON object.

    Why it matters: a reader that skips what it cannot parse trains on less than was counted, and nobody is told.

    When it fails: the line and column are named; one JSON object per line, in UTF-8.
    """
    dataset = training_is_known(candidate).dataset
    data_read = evidence.make(ReadDataset(dataset=dataset))
    facts = data_read.facts(ReadDataset.read)
    require_none(facts.lines_not_parsed, "line-not-parsed", "lines do not parse")
    require(facts.samples, "no-samples", f"{dataset.path}: no samples in it")
    return data_read


@gate("data_fields_ok", per="dataset")
def test_data_fields(evidence: Evidence, data_read: Artifact) -> None:
    """Every sample has every field of the schema, of the right kind, and lies in the file it belongs to.

    Why it matters: a sample without its key points or its `should_refuse` cannot be scored, and an evaluation sample
    in a training file is trained on.

    When it fails: the file, line and field are named; `train/data/sample.schema.json` says what a sample has.
    """
    wrong = evidence.facts(data_read, ReadDataset.read).lines_with_wrong_fields
    require_none(wrong, "wrong-fields", "samples are not as the schema says")


@gate("data_template_ok", per="dataset")
def test_data_template(evidence: Evidence, data_read: Artifact) -> None:
    """Every answer is made of its task's headings: each once, in order, first to last, with text below each.

    Why it matters: Format measures exactly this. An answer without its template teaches to leave it out.

    When it fails: the line and the headings seen and expected are named; `dataset.toml` has them.
    """
    off = evidence.facts(data_read, ReadDataset.read).lines_off_template
    require_none(off, "off-template", "answers miss their template")


@gate("data_counts_ok", per="dataset")
def test_data_counts(evidence: Evidence, data_read: Artifact) -> None:
    """There are as many samples of each task, origin and language as `dataset.toml` says, each in every language.

    Why it matters: a table in a report is about the dataset it names; a file that lost its last lines still parses.

    When it fails: add what is missing, or change `dataset.toml` in the same commit as the samples.
    """
    facts = evidence.facts(data_read, ReadDataset.read)
    for language, tasks in facts.counts.items():
        for task, counted in tasks.items():
            expected = facts.counts_expected[task]
            text = f"{task} in {language}: {counted} samples, dataset.toml says {expected}"
            require(counted == expected, "samples-lost", text)
    require_none(facts.without_counterpart, "samples-lost", "samples are not there in every language")


@gate("data_unique_ok", per="dataset")
def test_data_unique(evidence: Evidence, data_read: Artifact) -> None:
    """No question is there twice.

    Why it matters: a sample counted twice is trained on twice, and every share that counts it is too sure of itself.

    When it fails: remove one of the two named.
    """
    require_none(evidence.facts(data_read, ReadDataset.read).duplicates, "duplicate", "duplicates")


@gate("data_no_leak_ok", per="dataset")
def test_data_no_leak(evidence: Evidence, data_read: Artifact) -> None:
    """No training sample is nearly an evaluation sample.

    Why it matters: what was trained on cannot be measured. With a reworded question in training, Coverage tests memory.

    When it fails: rewrite or remove the training sample named.
    """
    pair = evidence.facts(data_read, ReadDataset.read).closest_pair_of_train_and_eval
    if pair is None:
        raise GateFailed("no-samples", "training and evaluation samples cannot be compared: one of the two is empty")
    require(
        pair.similarity < NEAR_DUPLICATE,
        "leak",
        f"{pair.train} ({pair.language}) is nearly {pair.eval}: similarity {pair.similarity:.2f}, expected below "
        f"{NEAR_DUPLICATE}",
    )


@gate("data_references_ok", per="dataset")
def test_data_references(evidence: Evidence, data_read: Artifact) -> None:
    """Every reference answer scores full marks in Coverage, Format and Refusal.

    Why it matters: a key point that not even the reference contains, or a decline that is not recognised, is a sample
    that no model can pass, and the metric then measures the dataset.

    When it fails: correct the key points or the answer of the sample named, or the `decline` phrases in `dataset.toml`.
    """
    short = evidence.facts(data_read, ReadDataset.read).references_not_scoring_full
    require_none(short, "reference-unscorable", "reference answers do not score in full")


def samples_encode(evidence: Evidence, training: Training, base: Base) -> Artifact:
    """The base's tokenizer encodes every sample."""
    encoded = evidence.make(
        EncodeDataset(dataset=training.dataset, base=base, language=training.language, tasks=training.tasks)
    )
    refused = encoded.facts(EncodeDataset.encoded).not_encodable
    require_none(refused, "not-encodable", "samples cannot be encoded")
    return encoded


@gate("data_length_ok", per="dataset")
def test_data_length(evidence: Evidence, encoded: Artifact, training: Training) -> None:
    """No sample is longer than the recipe's max_tokens, so none is cut.

    Why it matters: a cut answer has no end token: the model learns to stop in the middle, or never.

    When it fails: raise max_tokens in the recipe, or shorten the sample named.
    """
    facts = evidence.facts(encoded, EncodeDataset.encoded)
    longest, limit = facts.longest_sample_tokens, training.max_tokens
    text = f"{facts.longest_sample} has {longest} tokens, max_tokens is {limit}"
    require(longest <= limit, "too-long", text, tokens=longest, limit=limit)


@gate("data_labels_ok", per="dataset")
def test_data_labels(evidence: Evidence, training: Training, base: Base, data_read: Artifact) -> None:
    """Only the assistant's tokens are trained on: all of the answer, then the end token that deployment stops at.

    Why it matters: without the end token a model never stops. With the end token as the first one it learns to say
    nothing, which is how a single-task adapter goes empty (docs/evidence/empty-adapter.md).

    When it fails: mask by position and never by token value (a padding token that is also the end token would be masked
    with it), and see that the tokenizer's eos_token is among generation_config.json's eos_token_id.
    """
    facts = samples_encode(evidence, training, base).facts(EncodeDataset.encoded)
    teach_empty = "samples teach the end token as the first one, so answers come out empty"
    require_none(facts.end_token_first, "end-token-first", teach_empty)
    endless = f"samples do not end with a token that ends an answer ({facts.end_tokens_when_served})"
    require_none(facts.without_end_token, "no-end-token", endless)
    off = facts.trained_on_more_or_less_than_the_answer
    require_none(off, "labels-off-answer", "samples are trained on something other than their answer")


@gate("data_prompt_ok", per="dataset")
def test_data_prompt(evidence: Evidence, encoded: Artifact) -> None:
    """A question is rendered in training as the base's own chat template renders it when served, token for token.

    Why it matters: a prompt that was never trained (another template, no generation prompt, a thinking switch) is
    answered by the base, or with nothing.

    When it fails: train with the template that ships; do not set one of your own in the recipe's tokenizer.
    """
    other = evidence.facts(encoded, EncodeDataset.encoded).asked_otherwise_when_served
    require_none(other, "prompt-differs", "questions are rendered otherwise in training than when served")
