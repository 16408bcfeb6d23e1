"""Steps that read files alone: an adapter against its base, a base's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from assay.facts import Bytes, Facts
from assay.files import digest_files
from assay.inputs.candidate import Adapter
from assay.steps.step import Input, Stage, Step


class AdapterFiles(Facts):
    """What an adapter's config and weights say, and whether they agree. Lists of modules and tensors hold names."""

    peft_type: str | None
    """The kind of adapter that adapter_config.json names; LORA for a LoRA."""
    rank: Any
    """`r` in adapter_config.json, as it is there."""
    alpha: Any
    """`lora_alpha` in adapter_config.json, as it is there."""
    target_modules: Any
    """`target_modules` in adapter_config.json, as it is there."""
    base_model_name_or_path: str | None
    """The base that adapter_config.json names."""
    tensors: int
    """Tensors in the file of weights."""
    adapted_modules: int
    """Modules with lora_A or lora_B."""
    saved_modules: list[str]
    """Tensors that training replaced whole (modules_to_save)."""
    adapter_bytes: Bytes
    """Size of all tensors."""
    scales: list[float]
    """Every scale that is applied to B·A, sorted."""
    unknown_tensors: list[str]
    """Tensors that are no part of a LoRA."""
    modules_with_one_half: list[str]
    """Modules with only one of lora_A and lora_B."""
    modules_not_in_base: list[str]
    """Adapted modules that the base does not have."""
    modules_that_misfit: list[str]
    """Modules whose shape is not the base's, with both shapes."""
    modules_without_effect: list[str]
    """Modules whose lora_A or lora_B is all zero."""
    tensors_not_finite: list[str]
    """Tensors that hold NaN or inf."""
    modules_of_another_rank: list[str]
    """Modules whose rank is not the one that the config gives them."""
    modules_where_dora_disagrees: list[str]
    """Modules with magnitudes and a config without use_dora, or the other way round."""
    modules_targeted_but_not_in_file: list[str]
    """Modules that target_modules asks for and the weights lack."""
    modules_in_file_but_not_targeted: list[str]
    """Modules of the weights that target_modules leaves out."""
    modules_to_save_not_in_file: list[str]
    """Modules that modules_to_save names and the weights lack."""


class ModelShapes(Facts):
    """A model's parameters without their values."""

    parameters: dict[str, list[int]]
    """Name to shape; a tied head is not listed."""
    linears: list[str]
    """Weights of linear layers, which become 4-bit; the head is none of them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A folder with a `config.json`, of which nothing else is read."""

    path: Path

    @cached_property
    def digest(self) -> str:
        return digest_files(self.path, ["config.json"])


@dataclass(frozen=True, kw_only=True)
class InspectAdapter(Step):
    """Read an adapter's files, and nothing else, against the base's headers."""

    worker = "adapter.inspect"
    holds_model = False
    deadline_seconds = 600.0
    inspected = Stage(AdapterFiles)

    adapter: Adapter
    base: Input
    """The base; its weights' headers are all that is read of it."""


@dataclass(frozen=True, kw_only=True)
class ReadShapes(Step):
    """Build the model without its weights, and list what it would hold."""

    worker = "shapes.read"
    holds_model = False
    packages = ("torch", "transformers")
    deadline_seconds = 600.0
    read = Stage(ModelShapes)

    config: Config
