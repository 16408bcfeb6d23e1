"""The step that compares every form's next-token distributions with the reference's."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Bytes, Facts, Nats, Seconds, Tokens, TokensPerSecond
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.toolchain import Toolchain
from assay.measures.divergence import Distance, TaskShare
from assay.steps.nf4 import TORCH
from assay.steps.step import Stage, Step
from assay.steps.store import Artifact


class FormDistance(Facts):
    """How far a deployed form is from the reference, and what share of the fine-tune that costs."""

    measured: bool = True
    """Whether there is such a form; its own gates say why not."""
    distance: Distance | None = None
    """Distance from the reference; None if not measured."""
    task: TaskShare | None = None
    """What the distance costs on the task's own answers; None if there are none."""
    seconds: Seconds = 0.0
    """Time that the stage took."""


class Reference(Facts):
    """The adapter on the base in full precision."""

    computed_in: str
    """The dtype of the computation."""
    load_seconds: Seconds
    """Time to load the model and mount the adapter."""
    prefill_tokens_per_second: TokensPerSecond
    """Speed of reading a prompt."""
    decode_tokens_per_second: TokensPerSecond
    """Speed of generating, one answer at a time."""
    peak_host_bytes: Bytes
    """Peak resident memory of the process."""
    peak_device_bytes: Bytes | None
    """Peak reserved memory on the GPU; None without one."""
    sequences: int
    """Sequences that every form is fed."""
    tokens: Tokens
    """Tokens of all sequences."""
    longest_sequence_tokens: Tokens
    """Length of the longest sequence."""
    scored_tokens: Tokens
    """Positions compared."""
    base: Distance | None
    """How far the base without the adapter is from the reference; None if there are no answers."""
    seconds: Seconds
    """Time that the stage took."""


class RuntimeAnswers(Facts):
    """A runtime's greedy answers against what the file itself puts first."""

    answers: int
    answer_tokens: Tokens
    tokens_not_greedy: Tokens
    """Tokens that are not the file's first choice."""
    nats_from_greedy: Nats
    """By how much the file's first choice is likelier, averaged over all tokens."""
    nats_from_greedy_at_most: Nats


class Runtimes(Facts):
    """Every runtime's answers. Runtimes whose answers all hold <think> blocks are left out."""

    runtimes: dict[str, RuntimeAnswers]
    """Runtime to its answers."""


class Waterfall(Facts):
    """Where the distance from the reference enters."""

    waterfall: dict[str, float]
    """Stage to its distance from the reference, in nats per token."""
    loss_enters_at: str | None
    """The stage that adds most; None if none was measured."""


@dataclass(frozen=True, kw_only=True)
class MeasureDistribution(Step):
    """Feed the same tokens to the reference and to every form there is, and compare what each expects next."""

    worker = "distribution.measure"
    packages = TORCH
    on_device = True
    reference = Stage(Reference)
    of_merged = Stage(FormDistance)
    of_nf4 = Stage(FormDistance)
    of_f16 = Stage(FormDistance)
    of_q4 = Stage(FormDistance)
    of_runtimes = Stage(Runtimes)
    waterfall = Stage(Waterfall)

    base: Base
    adapter: Adapter
    probes: list[dict[str, str]]
    """Each has a name and either a `text`, or a `prompt` with its `answer` (without one the reference answers)."""
    answers: list[dict[str, str]]
    """What the runtimes answered: each has a `runtime`, a `name`, a `prompt` and an `answer`."""
    max_tokens: int
    """A longer probe is cut."""
    scored_tokens: int
    """All texts are scored, plus an evenly spaced subset of the answers, so that at most this many tokens are."""
    clearly_exact: float
    """Nats. A 16-bit form that is surely nearer to the reference after a part of the probes is not fed the rest."""
    nf4: bool
    merged: Artifact | None
    f16: Artifact | None
    q4: Artifact | None
    toolchain: Toolchain | None
