"""A sample as the token ids that training sees. The data gates judge what comes out of here, and training uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay.errors import InputError

IGNORED = -100
"""The label of a token that is not trained on (torch's `cross_entropy` skips it)."""
FLAWS = (
    "trained_on_more_or_less_than_the_answer",
    "without_end_token",
    "end_token_first",
    "asked_otherwise_when_served",
)
"""What can be wrong with an encoded sample."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    input_ids: list[int]
    labels: list[int]
    """One a token of `input_ids`: the token itself where it is trained on, `IGNORED` where it is not."""

    @property
    def trained(self) -> list[int]:
        """The tokens that are trained on."""
        return [token for token in self.labels if token != IGNORED]


def encode(tokenizer: Any, prompt: str, answer: str) -> Encoded:
    """One user turn and its answer, of which only the answer and its end token are trained on.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        InputError: the tokenizer has no end token, the template puts none after the answer, or it renders a question
            differently once it is answered (the model would be asked otherwise than it was trained).
    """
    question = [{"role": "user", "content": prompt}]
    whole_dialog = [*question, {"role": "assistant", "content": answer}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(whole_dialog, return_dict=False)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token; set eos_token in tokenizer_config.json")
    if whole[: len(asked)] != asked:
        raise InputError("the chat template renders a question differently once it is answered")
    said = whole[len(asked) :]
    if tokenizer.eos_token_id not in said:
        raise InputError(f"no end token {tokenizer.eos_token!r} after the answer, so the model would never end")
    # What the template adds after the end token (a line break, mostly) is never generated.
    said = said[: said.index(tokenizer.eos_token_id) + 1]
    return Encoded(input_ids=asked + said, labels=[IGNORED] * len(asked) + said)


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a deployment asks and ends: what an encoded sample is held against."""

    prompt_ids: list[int]
    """The question as the base's own template renders it."""
    end_tokens: set[int]
    """The tokens that end an answer."""


def flaws(row: Encoded, answer_said: bool, served: Served) -> list[str]:
    """What is wrong with an encoded sample, by the names of the facts that the data gates judge.

    Args:
        row: the sample, encoded for training.
        answer_said: whether the trained tokens decode to the whole answer.
        served: how the sample's question is asked in deployment.
    """
    first = next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
    # An end token before the last one is padding that is trained on, or the tokenizer's own.
    more = row.labels[first:] != row.input_ids[first:] or bool(served.end_tokens.intersection(row.trained[:-1]))
    is_wrong = (
        not answer_said or more,
        not row.trained or row.trained[-1] not in served.end_tokens,
        bool(row.trained) and row.trained[0] in served.end_tokens,
        row.input_ids[:first] != served.prompt_ids,
    )
    return [name for name, wrong in zip(FLAWS, is_wrong, strict=True) if wrong]


def render(template: str, prompt: str, special_tokens: dict[str, str]) -> str:
    """The prompt as a server renders it, from the template alone: independent of any tokenizer's own rendering.

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
