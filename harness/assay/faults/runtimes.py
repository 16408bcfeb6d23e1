"""Defects of the runtimes: a healthy Q4_K_M file, asked otherwise than it was judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay import paths
from assay.faults.fault import NotApplicable, Place, fault
from assay.faults.sandbox import Sandbox, around, edit_json, replace_text

CLI, PYTHON, PARITY = "llama_cli_smoke_ok", "llama_cpp_python_smoke_ok", "runtime_parity_ok"


def program(sandbox: Sandbox, name: str, otherwise: str) -> None:
    """Make a program of the toolchain one that works on the self-test model and does something else on a real model.

    `$real` in `otherwise` is the real one.
    """
    file = sandbox.toolchain.bin / name
    real = file.with_name(f"real-{name}")
    file.rename(real)
    text = f'#!/bin/sh\nreal="{real}"\ncase "$*" in *self-test*|--version) exec "$real" "$@";; esac\n{otherwise}\n'
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


def _ask_at_length(sandbox: Sandbox) -> None:
    """A prompt of several hundred tokens."""
    folder = sandbox.folder / "prompts"
    folder.mkdir()
    text = (paths.GATES / "probes" / "kitchen.txt").read_text(encoding="utf-8")
    (folder / "long.txt").write_text(f"{text}\n\nSummarize this text.", encoding="utf-8")
    sandbox.options += ["--prompts", str(folder)]


@fault(Place.LLAMA_CLI, first=CLI, cause="llama-cli-error-exit-0")
def context_too_small_for_prompt(sandbox: Sandbox) -> None:
    """The context is smaller than the prompt: llama-cli prints an error on stdout and exits with 0."""
    _ask_at_length(sandbox)
    program(sandbox, "llama-cli", 'exec "$real" "$@" --ctx-size 256')


@fault(Place.LLAMA_CLI, first=CLI, cause="llama-cli-hangs", silent=False)
def waits_for_input_after_the_answer(sandbox: Sandbox) -> None:
    """llama-cli answers, then waits for the next turn for ever."""
    program(sandbox, "llama-cli", '"$real" "$@"\nexec sleep 1000')

    def do() -> None:
        from assay.workers import smoke

        def ask(original: Any, *args: Any, **given: Any) -> Any:
            return original(*args, **{**given, "deadline_seconds": 20})

        around(smoke, "ask_llama_cli", ask)

    sandbox.in_worker("smoke.llama_cli", do)


@fault(Place.LLAMA_CLI, first=CLI, cause="llama-cli-flag-removed", silent=False)
def flag_removed(sandbox: Sandbox) -> None:
    """A newer llama-cli does not know a flag any more."""
    program(sandbox, "llama-cli", 'echo "error: invalid argument: --single-turn" >&2\nexit 1')


@fault(Place.LLAMA_CLI, first=CLI, cause="llama-cli-no-answer")
def only_its_banner(sandbox: Sandbox) -> None:
    """llama-cli prints its banner and the prompt, exits with 0, and the model said nothing."""
    program(sandbox, "llama-cli", 'echo "llama-cli: loaded"; exit 0')


@fault(Place.LLAMA_CLI, first=PARITY, cause="runtime-not-greedy")
def sampler_left_on_in_llama_cli(sandbox: Sandbox) -> None:
    """A temperature and a penalty from a preset are left on: fluent, and not the model that was judged."""
    program(sandbox, "llama-cli", 'exec "$real" "$@" --temp 1.2 --repeat-penalty 1.4 --seed 7')


@fault(Place.LLAMA_CLI, first=PARITY, cause="runtime-not-greedy")
def another_template_in_llama_cli(sandbox: Sandbox) -> None:
    """llama-cli is started with a built-in template, which leaves out the system prompt that was trained with."""
    program(sandbox, "llama-cli", 'exec "$real" "$@" --no-jinja --chat-template chatml')


def _binding(sandbox: Sandbox, change: Callable[[Any], None], worker: str = "smoke.llama_cpp_python") -> None:
    """Change llama-cpp-python once it is imported."""

    def do() -> None:
        from assay.workers import llama, smoke

        def load(original: Any, *args: Any) -> Any:
            module = original(*args)
            change(module)
            return module

        for where in (llama, smoke):
            around(where, "import_llama_cpp", load)

    sandbox.in_worker(worker, do)


@fault(Place.LLAMA_CPP_PYTHON, first=PYTHON, cause="binding-template-fallback")
def format_of_another_family(sandbox: Sandbox) -> None:
    """The binding falls back to llama-2's prompt: every answer is fluent."""

    def change(module: Any) -> None:
        def create(original: Any, self: Any, *args: Any, **given: Any) -> None:
            original(self, *args, **{**given, "chat_format": "llama-2"})

        around(module.Llama, "__init__", create)

    _binding(sandbox, change)


@fault(Place.LLAMA_CPP_PYTHON, first=PYTHON, cause="binding-template-fallback")
def plain_chatml_guessed(sandbox: Sandbox) -> None:
    """The base's template is plain ChatML: the binding recognizes it and takes its own instead, which puts an empty
    system turn first. A fault of the binding as it is."""
    template = (
        "{% for message in messages %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    edit_json(sandbox.base / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    replace_text(sandbox.base / "chat_template.jinja", template)


@fault(Place.LLAMA_CPP_PYTHON, first=PARITY, cause="runtime-not-greedy")
def penalty_left_on_in_the_binding(sandbox: Sandbox) -> None:
    """A server's preset penalizes repetition."""

    def change(module: Any) -> None:
        def create(original: Any, self: Any, *args: Any, **given: Any) -> Any:
            return original(self, *args, **{**given, "repeat_penalty": 1.4})

        around(module.Llama, "create_chat_completion", create)

    _binding(sandbox, change)


@fault(Place.LLAMA_CPP_PYTHON, first=PYTHON, cause="binding-cannot-load", silent=False)
def file_unknown_to_the_binding(sandbox: Sandbox) -> None:
    """The binding is older than the converter and does not know the architecture."""

    def change(module: Any) -> None:
        def create(original: Any, self: Any, *args: Any, **given: Any) -> None:
            print("error loading model: error loading model architecture: unknown model architecture: 'new'")
            raise ValueError("Failed to load model from file: model-q4_k_m.gguf")

        around(module.Llama, "__init__", create)

    _binding(sandbox, change)


@fault(Place.LLAMA_CPP_PYTHON, first=PYTHON, cause="context-too-small", silent=False)
def context_left_at_the_default(sandbox: Sandbox) -> None:
    """n_ctx is smaller than the prompt, as the default is for long ones."""
    _ask_at_length(sandbox)

    def change(module: Any) -> None:
        def create(original: Any, self: Any, *args: Any, **given: Any) -> None:
            original(self, *args, **{**given, "n_ctx": 256})

        around(module.Llama, "__init__", create)

    _binding(sandbox, change)


def ask_task(sandbox: Sandbox) -> None:
    """The evaluation samples are asked before the gates run, as `python -m train evaluate` does, of a candidate that
    can meet its thresholds: what a small model never reaches shows nothing of how it is deployed."""
    if not sandbox.candidate.trained_here:
        raise NotApplicable("the candidate does not say what it was trained on")
    file = sandbox.data / "dataset.toml"
    task = sandbox.candidate.evaluation_samples(sandbox.original)[0].task
    before, _, _ = file.read_text(encoding="utf-8").partition("[thresholds]")
    replace_text(file, f"{before}[thresholds]\n{task} = {{ format = 0.3 }}\n")
    sandbox.asks_task = True


@fault(Place.LLAMA_CPP_PYTHON, first="q4_task_ok", cause="task-worse-when-deployed")
def long_answers_cut(sandbox: Sandbox) -> None:
    """The server's token limit cuts long answers: short questions do not show it."""
    ask_task(sandbox)

    def change(module: Any) -> None:
        def create(original: Any, self: Any, *args: Any, **given: Any) -> Any:
            return original(self, *args, **{**given, "max_tokens": min(56, given["max_tokens"])})

        around(module.Llama, "create_chat_completion", create)

    _binding(sandbox, change)


@fault(Place.BNB, first="nf4_task_ok", cause="task-worse-when-deployed")
def batch_padded_on_the_wrong_side(sandbox: Sandbox) -> None:
    """A server pads batches on the right: the answer follows a row of padding. One question at a time is fine."""
    ask_task(sandbox)

    def do() -> None:
        from assay.workers import ask

        def answer_all(original: Any, network: Any, *args: Any, **given: Any) -> Any:
            is_4bit = getattr(network.config, "quantization_config", None) is not None
            return original(network, *args, **{**given, **({"padding_side": "right"} if is_4bit else {})})

        around(ask, "answer_all", answer_all)

    sandbox.in_worker("ask.transformers", do)
