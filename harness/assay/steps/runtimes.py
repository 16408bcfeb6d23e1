"""Steps that ask the quantized file in each runtime, and the toolchain's self-test."""

from __future__ import annotations

from dataclasses import dataclass

from assay.facts import Bytes, Facts, Seconds, TokensPerSecond
from assay.inputs.candidate import Adapter
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain
from assay.steps.answers import Answer, Generation
from assay.steps.step import Stage, Step
from assay.steps.store import Artifact


class SelfTestModel(Facts):
    """The model of one layer that the self-test uses, and what its tools should be."""

    model_bytes: Bytes
    """Size of the self-test model."""
    expected_answer: str
    """What the self-test model answers if every tool computes rightly."""
    expected_commit: str | None
    """The pinned commit; None for a build of the user's."""
    converter_commit: str | None
    """Commit of the converter's source; None if not known."""
    converter_present: bool
    """Whether convert_hf_to_gguf.py is there."""


class SelfTestQuantization(Facts):
    """llama-quantize on the self-test model."""

    quantized_types: dict[str, int]
    """ggml type to number of tensors."""


class SelfTestCli(Facts):
    """llama-cli on the quantized self-test model."""

    llama_cli_answer: str
    """What llama-cli answers."""
    llama_cli_commit: str | None
    """Commit that llama-cli reports."""


class SelfTestBinding(Facts):
    """llama-cpp-python on the quantized self-test model."""

    llama_cpp_python_answer: str
    """What llama-cpp-python answers."""
    llama_cpp_python_release: str
    """Release that llama-cpp-python reports."""
    expected_release: str | None
    """The pinned release; None for a build of the user's."""
    same_libraries: bool
    """Whether the binding loads the libraries beside llama-cli."""
    library_commit: str | None
    """Commit that the library reports; None if it does not tell."""


class CliAnswer(Answer):
    """One turn of llama-cli."""

    answer_found: bool
    """Whether the output holds an answer after the prompt."""
    errors: list[str]
    """Lines of the output that begin with `Error:`."""
    prefill_tokens_per_second: TokensPerSecond | None
    decode_tokens_per_second: TokensPerSecond | None


class CliGeneration(Generation):
    answers: dict[str, CliAnswer]  # type: ignore[assignment]  # a dict is invariant; these facts are frozen
    """Prompt to answer."""


class BindingModel(Facts):
    """The quantized file in llama-cpp-python."""

    load_seconds: Seconds
    """Time to load the file."""
    chat_format: str
    """The chat format that the binding chose."""
    chat_template_present: bool
    """Whether the file has a chat template."""


class BindingAnswer(Answer):
    """One chat completion of llama-cpp-python."""

    prompt_is_the_templates: bool
    """Whether the prompt that was evaluated is the one that the file's own template gives."""


class BindingGeneration(Generation):
    answers: dict[str, BindingAnswer]  # type: ignore[assignment]  # a dict is invariant; these facts are frozen
    """Prompt to answer."""


@dataclass(frozen=True, kw_only=True)
class SelfTest(Step):
    """Quantize, load and run a model of one layer, made on the spot, with every tool of the toolchain."""

    worker = "self_test.run"
    holds_model = False
    packages = ("numpy",)
    on_device = True
    deadline_seconds = 300.0
    written = Stage(SelfTestModel)
    quantized = Stage(SelfTestQuantization)
    llama_cli = Stage(SelfTestCli)
    llama_cpp_python = Stage(SelfTestBinding)

    toolchain: Toolchain
    tool_deadline_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class RunLlamaCli(Step):
    """Ask llama-cli the prompts, one process and one turn per prompt."""

    worker = "smoke.llama_cli"
    on_device = True
    generated = Stage(CliGeneration)

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
    packages = ("numpy", "jinja2", "diskcache")
    on_device = True
    loaded = Stage(BindingModel)
    generated = Stage(BindingGeneration)

    adapter: Adapter
    q4: Artifact
    prompts: Prompts
    toolchain: Toolchain
    max_new_tokens: int
