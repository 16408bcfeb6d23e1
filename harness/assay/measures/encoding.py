"""A sample as the token ids that training sees. Training uses this code, and the data gates judge its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay.errors import InputError

IGNORED = -100
"""The label of a token that is not trained on; torch's `cross_entropy` skips this label."""
FLAWS = (
    "trained_on_more_or_less_than_the_answer",
    "without_end_token",
    "end_token_first",
    "asked_otherwise_when_served",
)
"""The facts that name what is wrong with an encoded sample."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    input_ids: list[int]
    labels: list[int]
    """One label per token of `input_ids`: the token itself where it is trained on, else `IGNORED`."""

    @property
    def trained(self) -> list[int]:
        """The tokens that are trained on."""
        return [token for token in self.labels if token != IGNORED]


def encode_sample(tokenizer: Any, prompt: str, answer: str) -> Encoded:
    """Encode one user turn and its answer; only the answer and its end token are trained on.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        InputError: the tokenizer has no end token, the template puts none after the answer, or the template renders a
            question differently once it is answered (deployment would ask differently from training).
    """
    question = [{"role": "user", "content": prompt}]
    whole_dialog = [*question, {"role": "assistant", "content": answer}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(whole_dialog, return_dict=False)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token; set eos_token in tokenizer_config.json")
    if whole[: len(asked)] != asked:
        raise InputError("the chat template renders a question differently once it is answered")
    answered = whole[len(asked) :]
    if tokenizer.eos_token_id not in answered:
        raise InputError(f"no end token {tokenizer.eos_token!r} after the answer, so the model would never end")
    # A model never generates what the template adds after the end token (a line break, mostly).
    answered = answered[: answered.index(tokenizer.eos_token_id) + 1]
    return Encoded(input_ids=asked + answered, labels=[IGNORED] * len(asked) + answered)


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a deployment renders the question and ends the answer: what an encoded sample is compared with."""

    prompt_ids: list[int]
    """The question as the base's own chat template renders it."""
    end_tokens: set[int]
    """The tokens that end an answer."""


def flaws(row: Encoded, is_whole: bool, served: Served) -> list[str]:
    """What is wrong with an encoded sample, in names of `FLAWS`.

    Args:
        row: the sample, encoded for training.
        is_whole: whether the trained tokens decode to the whole answer.
        served: how a deployment renders the sample's question.
    """
    first = next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
    # An end token before the last one is padding that is trained on, or was appended by the tokenizer.
    more = row.labels[first:] != row.input_ids[first:] or bool(served.end_tokens.intersection(row.trained[:-1]))
    is_wrong = (
        not is_whole or more,
        not row.trained or row.trained[-1] not in served.end_tokens,
        bool(row.trained) and row.trained[0] in served.end_tokens,
        row.input_ids[:first] != served.prompt_ids,
    )
    return [name for name, wrong in zip(FLAWS, is_wrong, strict=True) if wrong]


def render(template: str, prompt: str, special_tokens: dict[str, str]) -> str:
    """The prompt as a server renders it, from the template alone and without the tokenizer's own rendering.

    Raises:
        InputError: the template refuses the dialog or is broken.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    messages = [{"role": "user", "content": prompt}]
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **special_tokens)
    except TemplateError as problem:
        raise InputError(f"the chat template cannot be rendered: {problem}") from None
