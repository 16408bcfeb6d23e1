"""What a deployed form answers: the facts that every generating step shares."""

from __future__ import annotations

from typing import Literal

from assay.facts import Bytes, Facts, Seconds, Share, Tokens, TokensPerSecond
from assay.measures.answers import Kind


class Answer(Facts):
    """One greedy answer to one prompt."""

    text: str
    """The answer without special tokens."""
    kind: Kind
    """What kind of answer it is, from `empty` to `ok`."""
    ended_by: Literal["end token", "token limit"] | None = None
    """What ended the answer; llama-cli does not tell."""
    tokens: Tokens | None = None
    """Tokens generated, the end token among them."""
    prompt_tokens: Tokens | None = None
    """Tokens of the prompt."""
    p_end_at_first_position: Share | None = None
    """Probability of an end token as the very first token; None if the runtime does not tell or it is not finite."""
    text_when_forced: str | None = None
    """What an empty answer goes on with if the end token may not come first."""


class Generation(Facts):
    """Answers to all prompts, with the speed and memory that they took."""

    answers: dict[str, Answer]
    """Prompt to answer."""
    load_seconds: Seconds
    """Time to load the model."""
    prefill_tokens_per_second: TokensPerSecond | None = None
    """Speed of reading prompts."""
    decode_tokens_per_second: TokensPerSecond | None = None
    """Speed of generating, one answer at a time."""
    peak_host_bytes: Bytes
    """Peak resident memory of the process that answers."""
    peak_device_bytes: Bytes | None = None
    """Peak reserved memory on the GPU; None without one."""
