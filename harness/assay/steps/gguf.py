"""Steps of the GGUF route: convert, quantize, and compare each file with its source."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Bytes, Facts, Seconds, Share
from assay.files import Part
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.toolchain import Toolchain
from assay.measures.strength import AdapterStrength
from assay.steps.nf4 import TORCH
from assay.steps.step import Stage, Step
from assay.steps.store import Artifact

F16, Q4 = "model-f16.gguf", "model-q4_k_m.gguf"
"""Names of the files in the artifacts of `ConvertF16` and `QuantizeQ4`."""


class Converting(Facts):
    """The converter ended."""

    convert_seconds: Seconds
    """Time that the converter took."""


class GgufFile(Facts):
    """What a GGUF says of itself."""

    file_bytes: Bytes
    """Size of the file."""
    header_sha256: str
    """Of the file up to its weights."""
    tensors: int
    """Tensors in the file."""
    parameters: int
    """Weights in the file."""
    bits_per_weight: float
    """Mean over all tensors."""
    tensor_types: dict[str, int]
    """ggml type to number of tensors."""
    architecture: str
    """`general.architecture`."""
    file_type: str
    """`general.file_type`, as gguf-py names it."""
    pre_tokenizer: str | None
    """How the file says that text is cut into words before it is tokenized."""
    eos_token_id: int | None
    """Id of the token that ends an answer."""


class F16File(GgufFile):
    """The 16-bit GGUF against the checkpoint that it was made from. Lists hold names of tensors."""

    source_parameters: int
    """Parameters of the checkpoint."""
    tensors_missing: list[str]
    """Tensors of the checkpoint that the GGUF holds with another number of weights."""
    tensors_unmapped: list[str]
    """Tensors of the checkpoint that no tensor of the GGUF is matched with by name."""
    tensors_extra: list[str]
    """Tensors of the GGUF that no tensor of the checkpoint is matched with."""
    parameters_computed: int
    """Parameters in tensors that the converter computes from the config."""
    tensors_not_finite: list[str]
    """Tensors that hold NaN or inf."""
    layout_is_modelled: bool
    """Whether it is known here how this architecture is laid out in a GGUF."""
    chat_template_present: bool
    """Whether the file has a chat template."""
    chat_template_equal: bool
    """Whether the chat template is the checkpoint's."""
    source_eos_token_id: int | None
    """The end token of the checkpoint's tokenizer."""


class SourceParity(Facts):
    """Whether every tensor and all metadata of the 16-bit GGUF are the checkpoint's."""

    architecture: str
    """`general.architecture`."""
    layout_is_modelled: bool
    """Whether it is known here how this architecture is laid out in a GGUF."""
    tensors_with_other_values: list[str]
    """Tensors that are not the checkpoint's, rounded once."""
    metadata_that_differs: list[str]
    """Each key that changes the computation, with both values."""
    compare_seconds: Seconds
    """Time that the comparison took."""


class F16Load(Facts):
    """The 16-bit GGUF in llama.cpp."""

    load_seconds: Seconds
    """Time to load and to evaluate a few tokens."""
    logits_not_finite: int
    """Logits that are NaN or inf."""


class Quantizing(Facts):
    """llama-quantize ended."""

    quantize_seconds: Seconds
    """Time that llama-quantize took."""


class Q4File(GgufFile):
    """The quantized file against the F16 file. Lists hold names of tensors."""

    source_bytes: Bytes
    """Size of the F16 file."""
    tensors_missing: list[str]
    """Tensors of the F16 file that the quantized file lacks."""
    tensors_extra: list[str]
    """Tensors that the F16 file lacks."""
    tensors_with_another_shape: list[str]
    """Tensors whose shape differs from the F16 file's."""
    fallbacks_forced_by_shape: list[str]
    """Tensors of a larger type because their rows are no multiple of 256."""
    fallbacks_unforced: list[str]
    """Tensors of a larger type though their rows are multiples of 256."""
    unforced_share_of_weights: Share
    """Weights in unforced fallbacks, of all weights in rows that are multiples of 256."""


class QuantizationNoise(Facts):
    """How far quantization moved each tensor."""

    noise_by_type: dict[str, float]
    """ggml type to the largest relative distance of any of its tensors from the F16 file."""
    tensors_beyond_noise: list[str]
    """Tensors that moved further than the rounding of their type explains, with how far."""
    compare_seconds: Seconds
    """Time that the comparison took."""


class TokenParity(Facts):
    """The same strings in tokens, in transformers and in llama.cpp."""

    strings: int
    """Strings compared."""
    added_tokens: int
    """Added tokens of the tokenizer, each compared alone and inside a word."""
    strings_tokenized_differently: list[str]
    """Strings whose tokens differ, with both."""


class PromptDifference(Facts):
    """One dialog that a runtime renders differently from transformers."""

    dialog: str
    runtime: str
    transformers: str
    """The end of the prompt in transformers."""
    other: str
    """The end of the prompt in the runtime."""

    def __str__(self) -> str:
        return f"{self.dialog}: transformers {self.transformers!r}, {self.runtime} {self.other!r}"


class PromptParity(Facts):
    """The same dialogs as prompts, in transformers, llama.cpp and llama-cpp-python."""

    dialogs: int
    """Dialogs that the template accepts."""
    dialogs_refused_by_template: list[str]
    """Dialogs that the template refuses, with its reason."""
    prompts_rendered_differently: list[PromptDifference]
    """Dialogs whose text differs."""
    prompts_tokenized_differently: list[str]
    """Dialogs whose tokens differ, with both."""
    start_tokens_at_most: int
    """Most start tokens that any prompt begins with."""


@dataclass(frozen=True, kw_only=True)
class ConvertF16(Step):
    """Convert the merged checkpoint to a 16-bit GGUF (f16, or bf16 if asked for) and load it."""

    worker = "gguf.convert"
    packages = (*TORCH, "numpy", "sentencepiece")
    on_device = True
    makes_model = True
    converted = Stage(Converting)
    compared = Stage(F16File)
    parity = Stage(SourceParity)
    strength = Stage(AdapterStrength)
    loaded = Stage(F16Load)

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
    packages = ("numpy",)
    makes_model = True
    quantized = Stage(Quantizing)
    inspected = Stage(Q4File)
    noise = Stage(QuantizationNoise)
    strength = Stage(AdapterStrength)

    adapter: Adapter
    base: Base
    f16: Artifact
    toolchain: Toolchain

    @property
    def disk_bytes(self) -> int:
        # Where the shapes force 8-bit fallbacks, 4.85 bits per weight become up to 8.5.
        return int(1.1 * self.base.parameters)


@dataclass(frozen=True, kw_only=True)
class ComparePrompts(Step):
    """Render and tokenize the same dialogs and strings in transformers, llama.cpp and llama-cpp-python."""

    worker = "parity.prompts"
    packages = ("transformers", "tokenizers", "jinja2", "numpy", "diskcache")
    deadline_seconds = 600.0
    tokens = Stage(TokenParity)
    prompts = Stage(PromptParity)

    tokenizer: Part
    """The checkpoint's files beside its weights."""
    f16: Part
    """The F16 GGUF up to its weights."""
    toolchain: Toolchain
