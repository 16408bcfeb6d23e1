"""Steps of the BitsAndBytes route, and answers of any form in transformers."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Bytes, Facts, Seconds, TokensPerSecond
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.prompts import Prompts
from assay.measures.strength import AdapterStrength
from assay.steps.answers import Generation
from assay.steps.step import Stage, Step
from assay.steps.store import Artifact

TORCH = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers")
"""Distributions that a step with a model in transformers depends on."""


class Nf4Model(Facts):
    """How the base sits in memory in 4 bits."""

    device: str
    """Where the model lies: `cpu` or `cuda:N`."""
    load_seconds: Seconds
    """Time to load the model."""
    layers_in_4bit: int
    """Linear layers that are 4-bit."""
    layers_expected_in_4bit: int
    """Linear layers of the architecture, the head left out."""
    layers_wrongly_left: list[str]
    """Linear layers that should be 4-bit and are not."""
    matrices_left_in_16_bit: list[str]
    """Matrices beside embeddings and head that are not 4-bit, whatever module holds them."""
    matrices_left_bytes: Bytes
    """Size of these matrices."""
    quantization_types: list[str]
    """Kinds of 4-bit that the layers have; nf4 alone is expected."""
    double_quantization: bool
    """Whether the scales of every layer are quantized too."""
    compute_dtypes: list[str]
    """Dtypes that the layers compute in; bfloat16 alone is expected."""
    weight_bytes: Bytes
    """Weights, scales and tables as they are in memory."""
    weight_bytes_predicted: Bytes
    """The same, from the model's shapes."""
    peak_host_bytes: Bytes
    """Peak resident memory of the process so far."""
    peak_device_bytes: Bytes | None
    """Peak reserved memory on the GPU so far; None without one."""


class Forward(Facts):
    """One forward of the base."""

    logits: int
    """Logits of the last position."""
    logits_not_finite: int
    """Logits that are NaN or inf."""
    peak_host_bytes: Bytes
    """Peak resident memory of the process so far."""
    peak_device_bytes: Bytes | None
    """Peak reserved memory on the GPU so far; None without one."""


class Loading(Facts):
    """The base is loaded in 4 bits."""

    device: str
    """Where the model lies: `cpu` or `cuda:N`."""
    load_seconds: Seconds
    """Time to load the model."""


class Mounting(Facts):
    """What of the adapter arrived in the model, and what it changes. Lists hold names of tensors."""

    mount_seconds: Seconds
    """Time to mount the adapter."""
    tensors_in_file: int
    """Tensors in the adapter's file."""
    tensors_consumed: int
    """Tensors that arrived unchanged."""
    tensors_not_consumed: list[str]
    """Tensors that became no parameter of the model."""
    tensors_missing_in_file: list[str]
    """Parameters of the mounted adapter that the file lacks."""
    tensors_changed_on_the_way: list[str]
    """Tensors that arrived with other values than in the file."""
    logits_not_finite: int
    """Logits that are NaN or inf with the adapter mounted."""
    largest_logit_change: float | None
    """Largest absolute difference between logits with and without the adapter; None if not finite."""
    largest_logit_change_by_zero_adapter: float | None
    """The same for an adapter whose B is zero: the control. None if there is no such adapter."""
    cosine_of_base_before_and_after_mounting: float | None
    """Between the base's logits before mounting and with the adapter disabled; None if they cannot be compared."""


class BatchGeneration(Generation):
    """Answers to many prompts at once."""

    computed_in: str
    """The dtype of the computation."""
    tokens_per_second_in_batch: TokensPerSecond
    """Speed of generating many answers at once."""


@dataclass(frozen=True, kw_only=True)
class LoadNf4(Step):
    """Load the base in 4 bits as it will be deployed, and run one forward."""

    worker = "bnb.load"
    packages = TORCH
    on_device = True
    loaded = Stage(Nf4Model)
    forward = Stage(Forward)

    base: Base


@dataclass(frozen=True, kw_only=True)
class MountNf4(Step):
    """Mount the adapter on the 4-bit base before its first forward, then answer the prompts."""

    worker = "bnb.mount"
    packages = TORCH
    on_device = True
    loaded = Stage(Loading)
    mounted = Stage(Mounting)
    strength = Stage(AdapterStrength)
    generated = Stage(Generation)

    base: Base
    adapter: Adapter
    base_nf4: Artifact
    prompts: Prompts
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class AskTransformers(Step):
    """Ask a model in transformers every prompt, many at once."""

    worker = "ask.transformers"
    packages = TORCH
    on_device = True
    generated = Stage(BatchGeneration)

    model: Base
    """The base that the adapter is mounted on, or a merged checkpoint."""
    adapter: Adapter | None
    quantization: str
    """`nf4` or `none`."""
    prompts: Prompts
    max_new_tokens: int
