"""What a run expects and what it runs on: `run.json`."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from assay.record.model import VERSION, RecordModel
from assay.record.training import TrainingRecord


class Severity(StrEnum):
    """What a gate that does not pass does to the release. A property of the policy, never of the gate."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class Expected(RecordModel):
    """One gate that the policy expects of the candidate, or of one of its adapters."""

    gate: str
    """The gate's id, with the adapter's name in it where the id has one."""
    route: str
    """The family of gates it belongs to."""
    severity: Severity
    """Whether it blocks a release (`primary`) or is reported (`secondary`)."""
    candidate: str
    """Name of the candidate."""
    adapter: str | None
    """The adapter to judge; null for a gate that judges the run, the dataset or the base."""
    title: str = ""
    """What the gate claims, in one sentence; empty in records of version 1."""
    guide: str = ""
    """Why it matters and what to do when it fails; empty in records of version 1."""

    @property
    def key(self) -> tuple[str, str | None]:
        return self.gate, self.adapter


class CandidateRecord(RecordModel):
    """What was judged."""

    name: str
    """Name of the candidate."""
    base: str
    """The base model as it was given: a folder, a hub id, or the name of the embedded base."""
    revision: str | None
    """Revision of a base from the hub; null if none was given."""
    adapters: dict[str, str]
    """Name of an adapter to its folder or hub id. Without any, there is nothing to release."""
    digests: dict[str, str | None]
    """sha256 of the content of `base` and of each adapter by its name; null for what could not be read."""


class Machine(RecordModel):
    """The machine that the gates ran on."""

    system: str
    """Operating system and architecture."""
    python: str
    """Version of Python."""
    processor: str
    """Model of the processor."""
    cores: int | None
    """Number of cores of the machine; null if it is not known."""
    memory_bytes: int
    """Memory of the machine, in bytes."""
    gpus: tuple[str, ...]
    """Name, memory and driver of each NVIDIA GPU."""


class Environment(RecordModel):
    """What the gates ran with."""

    assay: str
    """Version of Assay."""
    machine: Machine
    """Processor, memory and GPUs."""
    packages: dict[str, str | None]
    """Name of a library to its installed version; null if it is not installed."""
    prompts: tuple[str, ...]
    """Names of the prompts that each generating gate asked."""


class Forecast(RecordModel):
    """What the shapes in the base's headers predict. The report compares measurements with it."""

    parameters: int
    """Number of parameters."""
    bytes_16bit: int
    """Size of the weights in 16 bits, in bytes."""
    bytes_nf4: int
    """Size of the weights in nf4 with double quantization, in bytes."""
    bytes_q4_k_m: int
    """Size of the weights as Q4_K_M, in bytes."""
    kv_bytes_per_token: int
    """Size of keys and values per token of context, in bytes."""


class DoctorFinding(RecordModel):
    """What one check of `assay doctor` found before the first gate."""

    check: str
    """Name of the check."""
    level: Literal["fine", "note", "fails", "stops"]
    """`note`: worth knowing. `fails`: a gate will not pass. `stops`: no step that holds a model may begin."""
    text: str
    """What was seen and what was expected."""
    fix: str
    """A command or a setting to paste; empty if there is none."""
    gate: str | None
    """Id of the gate that will not pass; null if the finding is not about one gate."""


class FieldDescription(RecordModel):
    """What one fact is."""

    description: str
    """What was measured, for people."""
    unit: str
    """Its unit; empty if it has none."""


class StageDescription(RecordModel):
    """What one stage measures."""

    title: str
    """What the stage does, for people."""
    fields: dict[str, FieldDescription]
    """Name of a fact to its description."""


class RunRecord(RecordModel):
    """What a run expects and what it runs on: `run.json`, written before the first gate."""

    version: Literal[2] = VERSION
    """Version of the record."""
    name: str
    """Name of the run's folder."""
    id: str
    """Name of the run that no other run has."""
    started_at: str
    """When it started: UTC, ISO 8601."""
    candidate: CandidateRecord
    """The base and the adapters that were judged."""
    environment: Environment
    """Versions, machine and prompts."""
    inconclusive_primary: Literal["hold", "warn"]
    """What the policy makes of a primary gate that is inconclusive."""
    expected: tuple[Expected, ...]
    """Each gate that the verdict judges, in the policy's order, whichever of them pytest was told to run."""
    stages: dict[str, StageDescription] = Field(default_factory=dict)
    """Id of a stage to what it measures: the labels and units of the facts in `gates.jsonl`."""
    forecast: Forecast | None = None
    """What the base's headers predict; null if they could not be read."""
    training: TrainingRecord | None = None
    """How the adapters were trained and evaluated; null if they were trained elsewhere."""
    doctor: tuple[DoctorFinding, ...] = ()
    """What `assay doctor` found before the first gate."""
