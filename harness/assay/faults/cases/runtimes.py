"""Faults of the runtimes: a healthy model is asked otherwise than it was judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.faults.edits.models import set_template
from assay.faults.edits.sandbox import Sandbox
from assay.faults.edits.tools import ask_at_length, ask_task, wrap_program
from assay.faults.edits.workers import Wrapper, around, wrap
from assay.faults.fault import Area, fault


@fault(Area.LLAMA_CLI, first="llama_cli_smoke_ok", cause="llama-cli-error-exit-0")
def context_too_small_for_prompt(sandbox: Sandbox) -> None:
    """The context is smaller than the prompt: llama-cli prints an error on stdout and exits with 0."""
    ask_at_length(sandbox)
    wrap_program(sandbox, "llama-cli", 'exec "$real" "$@" --ctx-size 256')


@fault(Area.LLAMA_CLI, first="llama_cli_smoke_ok", cause="llama-cli-hangs", silent=False)
def waits_for_input_after_the_answer(sandbox: Sandbox) -> None:
    """llama-cli answers, then waits for the next turn and never ends."""
    wrap_program(sandbox, "llama-cli", '"$real" "$@"\nexec sleep 1000')

    def ask(original: Any, *args: Any, **given: Any) -> Any:
        return original(*args, **{**given, "deadline_seconds": 20})

    wrap(sandbox, "smoke.llama_cli", "assay.workers.smoke", "ask_llama_cli", ask)


@fault(Area.LLAMA_CLI, first="llama_cli_smoke_ok", cause="llama-cli-flag-removed", silent=False)
def flag_removed(sandbox: Sandbox) -> None:
    """A newer llama-cli has no longer one of the options."""
    wrap_program(sandbox, "llama-cli", 'echo "error: invalid argument: --single-turn" >&2\nexit 1')


@fault(Area.LLAMA_CLI, first="llama_cli_smoke_ok", cause="llama-cli-no-answer")
def only_its_banner(sandbox: Sandbox) -> None:
    """llama-cli prints its banner, no answer, and exits with 0."""
    wrap_program(sandbox, "llama-cli", 'echo "llama-cli: loaded"; exit 0')


@fault(Area.LLAMA_CLI, first="runtime_parity_ok", cause="runtime-not-greedy")
def sampler_left_on_in_llama_cli(sandbox: Sandbox) -> None:
    """A preset sets a temperature and a penalty: answers are fluent, and not those of the model that was judged."""
    wrap_program(sandbox, "llama-cli", 'exec "$real" "$@" --temp 1.2 --repeat-penalty 1.4 --seed 7')


@fault(Area.LLAMA_CLI, first="runtime_parity_ok", cause="runtime-not-greedy")
def another_template_in_llama_cli(sandbox: Sandbox) -> None:
    """llama-cli is started with a built-in template, which lacks the system prompt that the model was trained with."""
    wrap_program(sandbox, "llama-cli", 'exec "$real" "$@" --no-jinja --chat-template chatml')


def _binding(sandbox: Sandbox, change: Callable[[Any], None]) -> None:
    """Change llama-cpp-python once it is imported."""

    def load(original: Any, *args: Any) -> Any:
        module = original(*args)
        change(module)
        return module

    for owner in ("assay.workers.llama", "assay.workers.smoke"):
        wrap(sandbox, "smoke.llama_cpp_python", owner, "import_llama_cpp", load)


def _loaded_with(sandbox: Sandbox, **settings: Any) -> None:
    """Load a model in the binding with other settings than Assay's."""

    def create(original: Any, self: Any, *args: Any, **given: Any) -> None:
        original(self, *args, **{**given, **settings})

    _binding(sandbox, lambda module: around(module.Llama, "__init__", create))


def _completed_by(sandbox: Sandbox, complete: Wrapper) -> None:
    """Complete chats in the binding by `complete`."""
    _binding(sandbox, lambda module: around(module.Llama, "create_chat_completion", complete))


@fault(Area.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="binding-template-fallback")
def format_of_another_family(sandbox: Sandbox) -> None:
    """The binding falls back to llama-2's prompt: every answer is fluent."""
    _loaded_with(sandbox, chat_format="llama-2")


@fault(Area.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="binding-template-fallback")
def plain_chatml_guessed(sandbox: Sandbox) -> None:
    """The base's template is plain ChatML: the binding recognizes it and uses its own instead, which puts an empty
    system turn first. A fault of the binding itself."""
    template = (
        "{% for message in messages %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    set_template(sandbox.base, template)


@fault(Area.LLAMA_CPP_PYTHON, first="runtime_parity_ok", cause="runtime-not-greedy")
def penalty_left_on_in_the_binding(sandbox: Sandbox) -> None:
    """A server's preset penalizes repetition."""

    def complete(original: Any, self: Any, *args: Any, **given: Any) -> Any:
        return original(self, *args, **{**given, "repeat_penalty": 1.4})

    _completed_by(sandbox, complete)


@fault(Area.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="binding-cannot-load", silent=False)
def file_unknown_to_the_binding(sandbox: Sandbox) -> None:
    """The binding is older than the converter and does not know the architecture."""

    def create(original: Any, self: Any, model_path: str, *args: Any, **given: Any) -> Any:
        copy = shutil.copyfile(model_path, f"copy-of-{Path(model_path).name}")
        _name_another_architecture(Path(copy))
        return original(self, copy, *args, **given)

    _binding(sandbox, lambda module: around(module.Llama, "__init__", create))


def _name_another_architecture(file: Path) -> None:
    """Overwrite `general.architecture` by a name of the same length that nobody knows."""
    with file.open("r+b") as stream:
        start = stream.read(1 << 16)
        # Behind the key come its type (4 bytes), the length of its text (8) and the text.
        at = start.index(b"general.architecture") + len(b"general.architecture") + 4
        length = int.from_bytes(start[at : at + 8], "little")
        stream.seek(at + 8)
        stream.write(b"x" * length)


@fault(Area.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="context-too-small", silent=False)
def context_left_at_the_default(sandbox: Sandbox) -> None:
    """n_ctx is smaller than the prompt, as the default is for long prompts."""
    ask_at_length(sandbox)
    _loaded_with(sandbox, n_ctx=256)


@fault(Area.LLAMA_CPP_PYTHON, first="q4_task_ok", cause="task-worse-when-deployed")
def long_answers_cut(sandbox: Sandbox) -> None:
    """The server's token limit cuts long answers: short questions do not show it."""
    ask_task(sandbox)

    def complete(original: Any, self: Any, *args: Any, **given: Any) -> Any:
        return original(self, *args, **{**given, "max_tokens": min(56, given["max_tokens"])})

    _completed_by(sandbox, complete)


@fault(Area.BNB, first="nf4_task_ok", cause="task-worse-when-deployed")
def batch_padded_on_the_wrong_side(sandbox: Sandbox) -> None:
    """A server pads batches on the right: answers follow a row of padding. A single question is not affected."""
    ask_task(sandbox)

    def answer_all(original: Any, network: Any, *args: Any, **given: Any) -> Any:
        is_4bit = getattr(network.config, "quantization_config", None) is not None
        return original(network, *args, **{**given, **({"padding_side": "right"} if is_4bit else {})})

    wrap(sandbox, "ask.transformers", "assay.workers.ask", "answer_all", answer_all)
