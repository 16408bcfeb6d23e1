"""How a candidate's adapters were trained and evaluated, as `run.json` repeats it. It is shown and not judged."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from assay.record.model import RecordModel


class TrainedOn(RecordModel):
    """The dataset that the adapters were trained on."""

    name: str | None = None
    """Name of the dataset."""
    path: str
    """Its folder, relative to `candidate.json`."""
    digest: str
    """sha256 of its content."""


class AdapterTraining(RecordModel):
    """What was measured while one adapter was trained. What was not measured is null."""

    samples: int | None = None
    """Number of samples."""
    steps: int | None = None
    """Number of optimizer steps."""
    trainable_parameters: int | None = None
    """Number of parameters that were trained."""
    held_in: str | None = None
    """Number format of the base and the device that held it."""
    seconds: float | None = None
    """Wall time, in seconds."""
    tokens_per_second: float | None = None
    """Trained tokens per second."""
    first_loss: float | None = None
    """Mean cross-entropy per token at the first step, in nats; null if it was not finite."""
    last_loss: float | None = None
    """Mean cross-entropy per token at the last step, in nats; null if it was not finite."""
    peak_bytes_predicted: int | None = None
    """Predicted peak of memory, in bytes."""
    peak_host_bytes: int | None = None
    """Measured peak of the process's memory, in bytes."""
    peak_device_bytes: int | None = None
    """Measured peak of the GPU's memory, in bytes; null without a GPU."""


class Share(RecordModel):
    """The share of samples that met a metric."""

    successes: int
    """Number of samples that met it."""
    share: float
    """`successes` divided by the number of samples."""
    lower_bound: float
    """Exact one-sided lower bound of the share at 95 % confidence (Clopper-Pearson)."""
    threshold: float | None = None
    """The share that the dataset expects; null if it expects none."""
    judgement: str | None = None
    """Whether the lower bound shows that the threshold is met; null without a threshold."""


class TaskSummary(RecordModel):
    """The evaluation of one task."""

    n: int
    """Number of samples."""
    coverage: Share
    """Answers that contain each required key point."""
    format: Share
    """Answers with each heading of the task, once and in order."""
    refusal: Share
    """Answers that decline what should be declined and answer what should be answered."""


class FormEvaluation(RecordModel):
    """The evaluation of one adapter in one form."""

    language: str
    """Language of the samples."""
    summary: dict[str, TaskSummary]
    """Name of a task to its evaluation; `all` stands for all tasks together."""
    why_empty: str | None
    """Why answers are empty; null if none is."""
    seconds: float
    """Wall time, in seconds."""
    peak_host_bytes: int
    """Peak of the process's memory, in bytes."""
    peak_device_bytes: int | None
    """Peak of the GPU's memory, in bytes; null without a GPU."""


class Evaluation(RecordModel):
    """What `python -m train evaluate` measured of these adapters."""

    forms: dict[str, dict[str, FormEvaluation]]
    """Name of a form (`full`, `nf4`, `merged`, `q4_k_m`) to name of an adapter to its evaluation."""


class TrainingRecord(RecordModel):
    """How the adapters were trained and evaluated."""

    recipe: dict[str, Any] = Field(default_factory=dict)
    """The recipe, with the keys of `train/recipes/*.toml`."""
    dataset: TrainedOn | None = None
    """The dataset that the adapters were trained on."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Name of a library to the version that trained."""
    processes: int | None = None
    """Number of processes that trained together."""
    results: dict[str, AdapterTraining] = Field(default_factory=dict)
    """Name of an adapter to what was measured while it was trained."""
    curves: dict[str, tuple[tuple[int, float | None], ...]] = Field(default_factory=dict)
    """Name of an adapter to its loss: pairs of a step and the loss at that step, in nats; null where not finite."""
    evaluation: Evaluation | None = None
    """The evaluation of these adapters; null if there is none, or one of other adapters only."""
