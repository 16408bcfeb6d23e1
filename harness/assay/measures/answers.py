"""Classifies the answer of a model. `Not empty` is not enough: garbage is not empty either."""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from itertools import groupby

_THINK = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Kind(StrEnum):
    """The kind of an answer, worst first."""

    EMPTY = "empty"
    """No token before the end token."""
    SPECIAL_ONLY = "special-only"
    WHITE_SPACE = "white-space"
    THINK_ONLY = "think-only"
    """Nothing after the `<think>` block, or the block never closed."""
    DEGENERATE = "degenerate"
    """A repeated token, word or phrase, or almost no letters."""
    TRUNCATED = "truncated"
    """Good text that the token limit cut off."""
    OK = "ok"

    @property
    def is_text(self) -> bool:
        return self in (Kind.TRUNCATED, Kind.OK)

    @property
    def says_something(self) -> bool:
        """Whether a reader sees anything, even garbage."""
        return self.is_text or self is Kind.DEGENERATE


def visible(text: str, *, thinking: bool = False) -> str:
    """The text without its `<think>` blocks.

    Args:
        thinking: whether the prompt already opened a `<think>` block.
    """
    return _THINK.sub("", f"<think>{text}" if thinking else text).strip()


def classify(
    text: str,
    *,
    finished: bool,
    raw: str | None = None,
    tokens: list[int] | None = None,
    thinking: bool = False,
) -> Kind:
    """The kind of an answer.

    Args:
        text: the answer without special tokens.
        finished: whether the model ended the answer (an end token), and not the token limit.
        raw: the answer with special tokens but without the end token; `text` if not known.
        tokens: the generated token ids without the end token, if known.
        thinking: whether the prompt already opened a `<think>` block.
    """
    raw = text if raw is None else raw
    if not raw:
        return Kind.EMPTY
    if not text:
        return Kind.SPECIAL_ONLY
    if not text.strip():
        return Kind.WHITE_SPACE
    shown = visible(text, thinking=thinking)
    if not shown:
        return Kind.THINK_ONLY
    if _is_degenerate(shown) or (tokens is not None and _repeats(tokens)):
        return Kind.DEGENERATE
    return Kind.OK if finished else Kind.TRUNCATED


def _is_degenerate(text: str) -> bool:
    chars = [char for char in text if not char.isspace()]
    if sum(char.isalpha() for char in chars) < 0.2 * len(chars):
        return True
    words = text.split()
    if len(words) >= 8 and Counter(words).most_common(1)[0][1] > len(words) / 2:
        return True
    return (len(chars) >= 16 and len(set(chars)) <= 3) or _loops(words, 4, 24) or _loops_in_cjk(chars)


def _loops_in_cjk(chars: list[str]) -> bool:
    """Chinese, Japanese and Korean write no spaces, so characters take the place of words."""
    return len(_CJK.findall("".join(chars))) > len(chars) / 3 and _loops(chars, 6, 60)


def _loops(units: list[str], length: int, least: int) -> bool:
    """Whether a few phrases repeat: fewer than three in ten phrases of `length` units are distinct."""
    if len(units) < least:
        return False
    phrases = [tuple(units[start : start + length]) for start in range(len(units) - length + 1)]
    return len(set(phrases)) < 0.3 * len(phrases)


def _repeats(tokens: list[int]) -> bool:
    """Whether one token comes eight times in a row, or at most four tokens make an answer of 32 or more."""
    longest = max((sum(1 for _ in run) for _, run in groupby(tokens)), default=0)
    return longest >= 8 or (len(tokens) >= 32 and len(set(tokens)) <= 4)
