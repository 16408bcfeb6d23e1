"""Asks the shipped Q4_K_M file the prompts, through llama-cli and through llama-cpp-python."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from assay.inputs.toolchain import Toolchain
from assay.machine import usable_cores
from assay.measures.answers import classify
from assay.steps.gguf import Q4
from assay.steps.runtimes import (
    BindingAnswer,
    BindingGeneration,
    BindingModel,
    CliAnswer,
    CliGeneration,
    RunLlamaCli,
    RunLlamaCppPython,
)
from assay.workers import Work, host_peak_bytes, read_prompts
from assay.workers.llama import ask_llama_cli, file_template, import_llama_cpp


def llama_cli(
    work: Work,
    *,
    adapter: str,
    q4: str,
    prompts: str,
    toolchain: str,
    max_new_tokens: int,
    tool_deadline_seconds: float,
) -> None:
    """One process and one turn per prompt.

    llama-cli does not tell what ended an answer, so no answer counts as truncated.
    """
    tools, model = Toolchain(path=Path(toolchain)), Path(q4) / Q4
    # llama-cli does not tell how long it loads: a turn of one token is start, load and next to nothing else.
    started = time.monotonic()
    ask_llama_cli(
        tools,
        model,
        "Hello",
        answer=work.folder / "answer-of-one-token.txt",
        max_new_tokens=1,
        deadline_seconds=tool_deadline_seconds,
    )
    load_seconds = time.monotonic() - started
    answers = {}
    for name, text in read_prompts(prompts).items():
        answer = ask_llama_cli(
            tools,
            model,
            text,
            answer=work.folder / f"answer-{name}.txt",
            max_new_tokens=max_new_tokens,
            deadline_seconds=tool_deadline_seconds,
        )
        answers[name] = CliAnswer(**answer, kind=classify(answer["text"], finished=True))
    facts = CliGeneration(
        answers=answers,
        load_seconds=round(load_seconds, 3),
        peak_host_bytes=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        prefill_tokens_per_second=_middle([answer.prefill_tokens_per_second for answer in answers.values()]),
        decode_tokens_per_second=_middle([answer.decode_tokens_per_second for answer in answers.values()]),
    )
    work.reached(RunLlamaCli.generated, facts)


def _middle(speeds: list[float | None]) -> float | None:
    known = sorted(speed for speed in speeds if speed is not None)
    return known[len(known) // 2] if known else None


def llama_cpp_python(work: Work, *, adapter: str, q4: str, prompts: str, toolchain: str, max_new_tokens: int) -> None:
    """`create_chat_completion`, with the prompt that it really evaluated beside the one the model's template gives."""
    llama = import_llama_cpp(Toolchain(path=Path(toolchain)))
    started = time.monotonic()
    # The binding's own defaults (512 tokens of context, half the cores, no log) are not how anybody deploys.
    model = llama.Llama(str(Path(q4) / Q4), n_ctx=4096, n_threads=usable_cores(), n_gpu_layers=-1, verbose=True)
    render = file_template(llama, model)
    loaded = BindingModel(
        load_seconds=round(time.monotonic() - started, 3),
        chat_format=model.chat_format,
        chat_template_present=render is not None,
    )
    work.reached(RunLlamaCppPython.loaded, loaded)
    evaluated = _watch_prompts(model)
    answers: dict[str, BindingAnswer] = {}
    decoded, prefill_tokens, prefill_seconds, decode_seconds = 0, 0, 0.0, 0.0
    for name, question in read_prompts(prompts).items():
        started = time.monotonic()
        text, times, ended = _stream(model, question, max_new_tokens)
        prompt = evaluated[-1]
        tokens = prompt if isinstance(prompt, list) else model.tokenize(str(prompt).encode(), special=True)
        expected, thinking = _expected_prompt(model, render, question)
        answers[name] = BindingAnswer(
            text=text,
            kind=classify(text, finished=ended, thinking=thinking),
            tokens=len(model.tokenize(text.encode(), add_bos=False)),
            ended_by="end token" if ended else "token limit",
            prompt_tokens=len(tokens),
            prompt_is_the_templates=expected is not None and tokens == expected,
        )
        if times:
            prefill_tokens += len(tokens)
            prefill_seconds += times[0] - started
            decoded += len(times) - 1
            decode_seconds += times[-1] - times[0]
        print(f"[{name}] {answers[name]}", flush=True)
    facts = BindingGeneration(
        answers=answers,
        load_seconds=loaded.load_seconds,
        prefill_tokens_per_second=round(prefill_tokens / prefill_seconds, 2) if prefill_seconds else None,
        decode_tokens_per_second=round(decoded / decode_seconds, 2) if decode_seconds else None,
        peak_host_bytes=host_peak_bytes(),
    )
    work.reached(RunLlamaCppPython.generated, facts)


def _watch_prompts(model: Any) -> list[Any]:
    """The prompts that the binding evaluates from now on, as text or as tokens."""
    evaluated: list[Any] = []
    create = model.create_completion

    def watched(*args: Any, **kwargs: Any) -> Any:
        evaluated.append(kwargs.get("prompt", args[0] if args else None))
        return create(*args, **kwargs)

    model.create_completion = watched
    return evaluated


def _stream(model: Any, question: str, limit: int) -> tuple[str, list[float], bool]:
    """A chat completion, the clock in seconds at each of its pieces, and whether the model ended it."""
    pieces, times, ended_by = [], [], None
    for chunk in model.create_chat_completion(
        messages=[{"role": "user", "content": question}], max_tokens=limit, temperature=0.0, stream=True
    ):
        choice = chunk["choices"][0]
        if "content" in choice["delta"]:
            times.append(time.monotonic())
            pieces.append(choice["delta"]["content"])
        ended_by = choice["finish_reason"] or ended_by
    return "".join(pieces), times, ended_by == "stop"


def _expected_prompt(model: Any, render: Any | None, question: str) -> tuple[list[int] | None, bool]:
    """The prompt that the file's own template gives, in tokens, and whether it opens a <think> block."""
    if render is None:
        return None, False
    rendered = render(messages=[{"role": "user", "content": question}])
    tokens = model.tokenize(rendered.prompt.encode(), add_bos=not rendered.added_special, special=True)
    return tokens, rendered.prompt.rstrip().endswith("<think>")
