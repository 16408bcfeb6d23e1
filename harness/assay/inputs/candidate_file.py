"""The format of `candidate.json`, version 1."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from assay.validation import FileModel, Text, matching

ADAPTER_NAME = r"(?!base$)[a-z0-9][a-z0-9_]{0,63}"
ADAPTER_NAME_IN_WORDS = (
    "a name of at most 64 lower-case letters, digits and _, and not `base`, since gate ids contain it"
)
AdapterName = Annotated[str, matching(ADAPTER_NAME, ADAPTER_NAME_IN_WORDS)]


class BaseEntry(FileModel):
    """`base` of `candidate.json`."""

    id: Text
    """`smollm2-135m-instruct`, a folder or a hub id."""
    revision: Text | None = None
    """Of a hub id: a branch, tag or commit."""
    digest: Text | None = None
    """`Base.digest` at the time of training."""


class AdapterEntry(FileModel):
    """One of `adapters` of `candidate.json`."""

    path: Text
    """Its folder, relative to the file."""
    digest: Text | None = None
    """`Adapter.digest` at the time of training."""


class DatasetEntry(FileModel, extra="ignore"):
    """`training.dataset` of `candidate.json`."""

    path: Text
    """Its folder, relative to the file."""
    digest: Text
    """`Dataset.digest` at the time of training."""


class RecipeEntry(FileModel, extra="ignore"):
    """`training.recipe` of `candidate.json`."""

    language: Text
    max_tokens: Annotated[int, Field(gt=0)]
    adapters: dict[AdapterName, list[Text]]
    """Adapter name to the tasks it was trained on."""


class TrainingEntry(FileModel, extra="ignore"):
    """`training` of `candidate.json`: what the gates read of it.

    `python -m train` writes it, no user, and another version of Assay writes more: other keys are no errors here.
    """

    recipe: RecipeEntry
    dataset: DatasetEntry
    results: dict[AdapterName, dict[str, Any]] = Field(default_factory=dict)
    """Adapter name to what was measured while it was trained."""


class CandidateFile(FileModel):
    """`candidate.json`, version 1."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    base: BaseEntry
    adapters: dict[AdapterName, AdapterEntry]
    training: TrainingEntry | None = None
    """None for adapters that were trained elsewhere."""
