"""Steps that read a dataset: line by line, and in the tokens of a base."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Facts, Share, Tokens
from assay.inputs.bases import Base
from assay.inputs.dataset import Dataset
from assay.steps.step import Stage, Step


class ClosestPair(Facts):
    """The training sample that is most like an evaluation sample."""

    similarity: Share
    """Character 4-grams that both texts have, of all that either has."""
    train: str
    eval: str
    language: str


class DatasetFiles(Facts):
    """What the files of a dataset hold. Every text names its file and line, or its sample."""

    samples: int
    """Samples that are sound, over all files."""
    lines_not_parsed: list[str]
    """Lines that are no JSON."""
    lines_with_wrong_fields: list[str]
    """Lines that the schema refuses, and samples in the wrong file."""
    lines_off_template: list[str]
    """Answers that are not made of their task's headings."""
    counts: dict[str, dict[str, dict[str, int]]]
    """Language to task to origin to number of samples."""
    counts_expected: dict[str, dict[str, int]]
    """Task to origin to number of samples, as `dataset.toml` says."""
    without_counterpart: list[str]
    """Samples that are not there in every language."""
    duplicates: list[str]
    """Samples with an id or a question that an earlier sample has."""
    closest_pair_of_train_and_eval: ClosestPair | None
    """None if there are no training samples or no evaluation samples."""
    references_not_scoring_full: list[str]
    """Reference answers that do not get full marks in their own metrics."""


class EncodedSamples(Facts):
    """Every sample in tokens: what training gets, against what deployment asks. Lists hold ids of samples."""

    longest_sample: str | None
    """Id of the longest sample."""
    longest_sample_tokens: Tokens
    """Length of the longest sample."""
    mean_sample_tokens: float
    """Mean length of a sample, in tokens."""
    trained_tokens: Tokens
    """Tokens that the loss covers, over all samples."""
    end_tokens_when_served: list[int]
    """Ids of the tokens that end an answer in deployment."""
    not_encodable: list[str]
    """Samples that the tokenizer or the template refuses, with the reason."""
    trained_on_more_or_less_than_the_answer: list[str]
    """Samples whose labels cover more or less than the answer and its end."""
    without_end_token: list[str]
    """Samples whose labels do not end with a token that ends an answer in deployment."""
    end_token_first: list[str]
    """Samples whose first trained token is an end token."""
    asked_otherwise_when_served: list[str]
    """Samples whose prompt differs between training and deployment."""


@dataclass(frozen=True, kw_only=True)
class ReadDataset(Step):
    """Read a dataset line by line, and compare its samples with each other."""

    worker = "dataset.read"
    holds_model = False
    packages = ("jsonschema",)
    deadline_seconds = 600.0
    read = Stage(DatasetFiles)

    dataset: Dataset


@dataclass(frozen=True, kw_only=True)
class EncodeDataset(Step):
    """Encode every sample with the base's own tokenizer, as training does, and as deployment asks."""

    worker = "dataset.encode"
    holds_model = False
    packages = ("transformers", "tokenizers", "jinja2")
    deadline_seconds = 600.0
    encoded = Stage(EncodedSamples)

    dataset: Dataset
    base: Base
    language: str
    tasks: list[str]
