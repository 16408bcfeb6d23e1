"""Prompts and tokens of transformers, llama.cpp and llama-cpp-python, on dialogs and strings that are hard to cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assay.inputs.toolchain import Toolchain
from assay.steps.gguf import F16, ComparePrompts, PromptDifference, PromptParity, TokenParity
from assay.workers import Work
from assay.workers.llama import file_template, import_llama_cpp, llama_server

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


def prompts(work: Work, *, tokenizer: str, f16: str, toolchain: str) -> None:
    """What each of them makes of the same text, where they disagree."""
    from jinja2.exceptions import TemplateError
    from transformers import AutoTokenizer

    tools, file = Toolchain(path=Path(toolchain)), Path(f16) / F16
    encoder: Any = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    llama = import_llama_cpp(tools)
    vocabulary = llama.Llama(str(file), vocab_only=True, verbose=False)
    added = [str(token) for token in encoder.get_added_vocab()]
    work.reached(ComparePrompts.tokens, _compare_tokens(encoder, vocabulary, added))

    render = file_template(llama, vocabulary)
    assert render is not None  # `convert_f16_ok` has compared it with the checkpoint's
    refused, tokens, starts = [], [], 0
    rendered: list[PromptDifference] = []
    # Some leave the start token to the tokenizer: whether there is one is seen in the ids.
    start = encoder.bos_token or ""
    dialogs = _dialogs(added, thinks="enable_thinking" in vocabulary.metadata["tokenizer.chat_template"])
    with llama_server(tools, file, log=work.folder / "server.txt") as server:
        for name, (dialog, switches) in dialogs.items():
            try:
                text = encoder.apply_chat_template(dialog, add_generation_prompt=True, tokenize=False, **switches)
            except TemplateError as problem:  # as some do of a system turn
                refused.append(f"{name}: {problem}")
                continue
            expected = encoder.apply_chat_template(dialog, add_generation_prompt=True, return_dict=False, **switches)
            theirs = render(messages=dialog, **switches)
            asked = {"messages": dialog, "chat_template_kwargs": switches}
            ours = server.post("/apply-template", asked)["prompt"]
            given = {
                "llama-cpp-python": (
                    theirs.prompt,
                    vocabulary.tokenize(theirs.prompt.encode(), add_bos=not theirs.added_special, special=True),
                ),
                "llama.cpp": (
                    ours,
                    server.post("/tokenize", {"content": ours, "add_special": True})["tokens"],
                ),
            }
            for who, (prompt, seen) in given.items():
                starts = max(starts, _starts(seen, vocabulary.token_bos()))
                if prompt.removeprefix(start) != text.removeprefix(start):
                    rendered.append(
                        PromptDifference(dialog=name, runtime=who, transformers=text[-80:], other=prompt[-80:])
                    )
                if seen != expected:
                    tokens.append(
                        f"{name}: transformers {expected[:12]} … ({len(expected)}), {who} {seen[:12]} … ({len(seen)})"
                    )
    compared = PromptParity(
        dialogs=len(dialogs) - len(refused),
        dialogs_refused_by_template=refused,
        prompts_rendered_differently=rendered,
        prompts_tokenized_differently=tokens,
        start_tokens_at_most=starts,
    )
    work.reached(ComparePrompts.prompts, compared)


def _compare_tokens(encoder: Any, vocabulary: Any, added: list[str]) -> TokenParity:
    """Strings in the tokens of transformers and of llama.cpp; each added token alone and inside a word, too."""
    strings = [*STRINGS, *added, *(f"a{token}b" for token in added)]
    differ = []
    for text in strings:
        expected = encoder(text, add_special_tokens=False)["input_ids"]
        seen = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
        if seen != expected:
            differ.append(f"{text!r}: transformers {expected[:12]}, llama.cpp {seen[:12]}")
    return TokenParity(strings=len(strings), added_tokens=len(added), strings_tokenized_differently=differ)


def _dialogs(added: list[str], *, thinks: bool) -> dict[str, tuple[list[dict[str, str]], dict[str, bool]]]:
    """Name to a dialog and the switches that its template is given."""
    asked = {"role": "user", "content": "What is a capacitor?"}
    with_system = [{"role": "system", "content": "You are brief."}, asked]
    two_turns = [
        *with_system,
        {"role": "assistant", "content": "It stores charge. 你好 🙂"},
        {"role": "user", "content": "Go on"},
    ]
    found = {f"string {at}": [{"role": "user", "content": text}] for at, text in enumerate(STRINGS[:7])}
    found |= {
        "system turn": with_system,
        "every added token": [{"role": "user", "content": " ".join(added) + " end"}],
        "empty content": [{"role": "user", "content": ""}],
        "two turns": two_turns,
    }
    dialogs: dict[str, tuple[list[dict[str, str]], dict[str, bool]]] = {name: (one, {}) for name, one in found.items()}
    if thinks:
        thought = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIt stores charge."}
        for switch in (True, False):
            state = "on" if switch else "off"
            dialogs[f"thinking {state}"] = ([asked], {"enable_thinking": switch})
            dialogs[f"two turns, thinking {state}"] = ([asked, thought, two_turns[-1]], {"enable_thinking": switch})
    return dialogs


def _starts(tokens: list[int], start: int) -> int:
    """Start tokens in a row at the beginning."""
    return next((at for at, token in enumerate(tokens) if token != start), len(tokens))
