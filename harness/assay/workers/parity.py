"""Prompts and tokens of transformers, llama.cpp and llama-cpp-python, on dialogs and strings that are hard to cut."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from assay.toolchain import Toolchain
from assay.workers import Work, call
from assay.workers.gguf import F16
from assay.workers.llama import import_llama_cpp

STRINGS = (
    "The capacitance is C = εA/d, about 8.85×10⁻¹² F.",
    "静电场中，高斯定理把通量与电荷联系起来。",
    "日本語と한국어 العربية עברית ไทย",
    "🙂👩‍🔬🏳️‍🌈 e\u0301 vs é",
    "def f(x):\n\treturn {'a': x**2}  # tab, then two spaces\n\n\n",
    "  leading and trailing  ",
    "1234567890 3.14159 1e-12 0xFF",
    "don't can't I'LL ﬁne \u00a0nbsp\u200bzero",
    "$\\nabla \\cdot \\vec{E} = \\frac{\\rho}{\\varepsilon_0}$",
    "<b>not a token</b> [INST] <s> </s> {{ x }}",
    "\n",
    " ",
)
"""Scripts, emoji, combining marks, code, white space, numbers, markup."""
SYSTEM = "You are brief."
_TOKEN = re.compile(rb"^\S+ I +(\d+) -> '", re.MULTILINE)


def prompts(work: Work, *, adapter: str, merged: str, f16: str, toolchain: str) -> None:
    """What each of them makes of the same text, where they disagree."""
    from transformers import AutoTokenizer

    tools, file = Toolchain(path=Path(toolchain)), Path(f16) / F16
    tokenizer: Any = AutoTokenizer.from_pretrained(Path(merged) / "checkpoint", trust_remote_code=False)
    llama = import_llama_cpp(tools)
    vocabulary = llama.Llama(str(file), vocab_only=True, verbose=False)
    added = [str(token) for token in tokenizer.get_added_vocab()]
    strings = [*STRINGS, *added, *(f"a{token}b" for token in added)]
    differ = []
    for text in strings:
        wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
        seen = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
        if seen != wanted:
            differ.append(f"{text!r}: transformers {wanted[:12]}, llama.cpp {seen[:12]}")
    work.stage("tokens", strings=len(strings), added_tokens=len(added), strings_tokenized_differently=differ)

    render = llama.llama_chat_format.Jinja2ChatFormatter(
        template=vocabulary.metadata["tokenizer.chat_template"],
        eos_token=_word(vocabulary, vocabulary.token_eos()),
        bos_token=_word(vocabulary, vocabulary.token_bos()),
    )
    rendered, tokens, starts = [], [], 0
    dialogs = _dialogs(added)
    for name, dialog in dialogs.items():
        text = tokenizer.apply_chat_template(dialog, add_generation_prompt=True, tokenize=False)
        wanted = tokenizer.apply_chat_template(dialog, add_generation_prompt=True, return_dict=False)
        theirs = render(messages=dialog)
        if theirs.prompt != text:
            rendered.append(f"{name}: transformers {text[-80:]!r}, llama-cpp-python {theirs.prompt[-80:]!r}")
        given = {
            "llama-cpp-python": vocabulary.tokenize(
                theirs.prompt.encode(), add_bos=not theirs.added_special, special=True
            )
        }
        # llama.cpp's own template engine, as far as one turn goes.
        if len([turn for turn in dialog if turn["role"] != "system"]) == 1 and dialog[-1]["content"].strip():
            given["llama.cpp"] = _asked_of_llama_cpp(tools, file, dialog, work.folder / "said.txt")
        for who, seen in given.items():
            starts = max(starts, _starts(seen, vocabulary.token_bos()))
            if seen != wanted:
                tokens.append(
                    f"{name}: transformers {wanted[:12]} … ({len(wanted)}), {who} {seen[:12]} … ({len(seen)})"
                )
    work.stage(
        "prompts",
        dialogs=len(dialogs),
        prompts_rendered_differently=rendered,
        prompts_tokenized_differently=tokens,
        start_tokens_at_most=starts,
    )


def _dialogs(added: list[str]) -> dict[str, list[dict[str, str]]]:
    found = {f"string {at}": [{"role": "user", "content": text}] for at, text in enumerate(STRINGS[:7])}
    with_system = {"role": "system", "content": SYSTEM}
    found["system turn"] = [with_system, {"role": "user", "content": "What is a capacitor?"}]
    found["every added token"] = [{"role": "user", "content": " ".join(added) + " end"}]
    found["empty content"] = [{"role": "user", "content": ""}]
    found["two turns"] = [
        with_system,
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello. 你好 🙂"},
        {"role": "user", "content": "Go on"},
    ]
    return found


def _asked_of_llama_cpp(tools: Toolchain, file: Path, dialog: list[dict[str, str]], said: Path) -> list[int]:
    """The prompt's tokens as llama-completion prints them before it answers."""
    command = [str(tools.bin / "llama-completion"), "--model", str(file), "--jinja", "--single-turn", "--no-escape"]
    command += ["--verbose-prompt", "--predict", "1", "--no-warmup", "--ctx-size", "2048", "--offline"]
    if dialog[0]["role"] == "system":
        command += ["--system-prompt", dialog[0]["content"]]
    printed = call([*command, "--prompt", dialog[-1]["content"]], deadline_seconds=120)
    return [int(token) for token in _TOKEN.findall(printed.encode())]


def _word(vocabulary: Any, token: int) -> str:
    return str(vocabulary._model.token_get_text(token)) if token >= 0 else ""


def _starts(tokens: list[int], start: int) -> int:
    """Start tokens in a row at the beginning."""
    return next((at for at, token in enumerate(tokens) if token != start), len(tokens))
