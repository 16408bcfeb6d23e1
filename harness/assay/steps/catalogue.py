"""Every step there is. Adding work adds one class here and one worker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from assay.files import digest_files
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.dataset import Dataset
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain
from assay.steps.step import Step
from assay.steps.store import Artifact

_TORCH = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A folder with a `config.json`, of which nothing else is looked at."""

    path: Path

    @cached_property
    def digest(self) -> str:
        return digest_files(self.path, ["config.json"])


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an artifact, as its digest covers it: what looks at nothing else is made once for all that share it."""

    path: Path
    digest: str


@dataclass(frozen=True, kw_only=True)
class ReadShapes(Step):
    """Build the model without its weights, and list what it would hold."""

    worker = "shapes.read"
    stages = ("shapes",)
    holds_model = False
    packages = ("torch", "transformers")
    deadline_seconds = 600.0

    config: Config


@dataclass(frozen=True, kw_only=True)
class ReadDataset(Step):
    """Read a dataset line by line, and compare its samples with each other."""

    worker = "dataset.read"
    stages = ("read",)
    holds_model = False
    packages = ("jsonschema",)
    deadline_seconds = 600.0

    dataset: Dataset


@dataclass(frozen=True, kw_only=True)
class EncodeDataset(Step):
    """Encode every sample with the base's own tokenizer, as training does, and as deployment asks."""

    worker = "dataset.encode"
    stages = ("encode",)
    holds_model = False
    packages = ("transformers", "tokenizers", "jinja2")
    deadline_seconds = 600.0

    dataset: Dataset
    base: Base
    language: str
    tasks: list[str]


@dataclass(frozen=True, kw_only=True)
class InspectAdapter(Step):
    """Read an adapter's files, and nothing else, against the base's headers."""

    worker = "adapter.inspect"
    stages = ("inspect",)
    holds_model = False
    deadline_seconds = 600.0

    adapter: Adapter
    base: Base


@dataclass(frozen=True, kw_only=True)
class LoadNf4(Step):
    """Load the base in 4 bits as it will be deployed, and run one forward."""

    worker = "bnb.load"
    stages = ("load", "forward")
    packages = _TORCH
    on_device = True

    base: Base


@dataclass(frozen=True, kw_only=True)
class MountNf4(Step):
    """Mount the adapter on the 4-bit base before its first forward, then answer the prompts."""

    worker = "bnb.mount"
    stages = ("load", "mount", "generate")
    packages = _TORCH
    on_device = True

    base: Base
    adapter: Adapter
    base_nf4: Artifact
    prompts: Prompts
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class AskTransformers(Step):
    """Ask a model in transformers every prompt, many at once."""

    worker = "ask.transformers"
    stages = ("generate",)
    packages = _TORCH
    on_device = True

    model: Base
    """The base that the adapter is mounted on, or a merged checkpoint."""
    adapter: Adapter | None
    quantization: str
    """`nf4` or `none`."""
    prompts: Prompts
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class SelfTest(Step):
    """Quantize, load and run a model of one layer, made on the spot, with every tool of the toolchain."""

    worker = "self_test.run"
    stages = ("write", "quantize", "llama_cli", "llama_cpp_python")
    holds_model = False
    packages = ("numpy",)
    on_device = True
    deadline_seconds = 300.0

    toolchain: Toolchain
    tool_deadline_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Merge(Step):
    """Fold the adapter into bf16 weights and save them as a checkpoint of their own."""

    worker = "merge.fold"
    stages = ("merge", "compare")
    packages = _TORCH

    base: Base
    adapter: Adapter

    @property
    def disk_bytes(self) -> int:
        return 2 * self.base.parameters


@dataclass(frozen=True, kw_only=True)
class ConvertF16(Step):
    """Convert the merged checkpoint to a 16-bit GGUF (f16, or bf16 if asked for) and load it."""

    worker = "gguf.convert"
    stages = ("convert", "compare", "load")
    packages = (*_TORCH, "numpy", "sentencepiece")
    on_device = True

    adapter: Adapter
    base: Base
    merged: Artifact
    toolchain: Toolchain
    dtype: str = "f16"

    @property
    def disk_bytes(self) -> int:
        return 2 * self.base.parameters


@dataclass(frozen=True, kw_only=True)
class QuantizeQ4(Step):
    """Quantize the F16 GGUF to Q4_K_M."""

    worker = "gguf.quantize"
    stages = ("quantize", "inspect")
    packages = ("numpy",)

    adapter: Adapter
    base: Base
    f16: Artifact
    toolchain: Toolchain

    @property
    def disk_bytes(self) -> int:
        # Where the shapes force 8-bit fallbacks, 4.85 bits a weight become up to 8.5.
        return int(1.1 * self.base.parameters)


@dataclass(frozen=True, kw_only=True)
class MeasureDistribution(Step):
    """Feed the same tokens to the reference and to every form there is, and compare what each expects next."""

    worker = "distribution.measure"
    stages = ("reference", "merged", "nf4", "f16", "q4", "runtimes", "waterfall")
    packages = _TORCH
    on_device = True

    base: Base
    adapter: Adapter
    probes: list[dict[str, str]]
    """Each has a name and either a `text`, or a `prompt` with its `answer` (without one the reference answers)."""
    answers: list[dict[str, str]]
    """What the runtimes said: each has a `runtime`, a `name`, a `prompt` and an `answer`."""
    max_tokens: int
    """A longer probe is cut."""
    scored_tokens: int
    """Positions compared, at most: of the answers as many are drawn as the texts leave room for."""
    clearly_exact: float
    """Nats. A 16-bit form that is surely nearer to the reference after a part of the probes is not fed the rest."""
    nf4: bool
    merged: Artifact | None
    f16: Artifact | None
    q4: Artifact | None
    toolchain: Toolchain | None


@dataclass(frozen=True, kw_only=True)
class ComparePrompts(Step):
    """Render and tokenize the same dialogs and strings in transformers, llama.cpp and llama-cpp-python."""

    worker = "parity.prompts"
    stages = ("tokens", "prompts")
    packages = ("transformers", "tokenizers", "jinja2", "numpy", "diskcache")
    deadline_seconds = 600.0

    tokenizer: Part
    """The checkpoint's files beside its weights."""
    f16: Part
    """The F16 GGUF up to its weights."""
    toolchain: Toolchain


@dataclass(frozen=True, kw_only=True)
class RunLlamaCli(Step):
    """Ask llama-cli the prompts, one process and one turn each."""

    worker = "smoke.llama_cli"
    stages = ("generate",)
    on_device = True

    adapter: Adapter
    q4: Artifact
    prompts: Prompts
    toolchain: Toolchain
    max_new_tokens: int
    tool_deadline_seconds: float = 600.0


@dataclass(frozen=True, kw_only=True)
class RunLlamaCppPython(Step):
    """Ask llama-cpp-python the prompts through `create_chat_completion`."""

    worker = "smoke.llama_cpp_python"
    stages = ("load", "generate")
    packages = ("numpy", "jinja2", "diskcache")
    on_device = True

    adapter: Adapter
    q4: Artifact
    prompts: Prompts
    toolchain: Toolchain
    max_new_tokens: int
