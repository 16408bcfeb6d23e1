"""Classifies what a model said. `Not empty` is not enough: garbage is not empty either."""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from itertools import groupby

_THINK = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Kind(StrEnum):
    """What came out, worst first."""

    EMPTY = "empty"
    """No token at all before the end."""
    SPECIAL_ONLY = "special-only"
    WHITE_SPACE = "white-space"
    THINK_ONLY = "think-only"
    """Nothing after the `<think>` block, or the block never closed."""
    DEGENERATE = "degenerate"
    """A repeated token or word, or (almost) no letters."""
    TRUNCATED = "truncated"
    """Good text that the token limit cut off."""
    OK = "ok"

    @property
    def is_text(self) -> bool:
        return self in (Kind.TRUNCATED, Kind.OK)

    @property
    def says_something(self) -> bool:
        """Whether a reader sees anything at all, be it rubbish."""
        return self.is_text or self is Kind.DEGENERATE


def visible(text: str, *, thinking: bool = False) -> str:
    """A text without its `<think>` blocks; `thinking` if the prompt itself opened one."""
    return _THINK.sub("", f"<think>{text}" if thinking else text).strip()


def classify(
    text: str,
    *,
    finished: bool,
    raw: str | None = None,
    tokens: list[int] | None = None,
    thinking: bool = False,
) -> Kind:
    """What kind of answer this is.

    Args:
        text: the answer without special tokens.
        finished: whether the model ended it itself (an end token), rather than the token limit.
        raw: the same with its special tokens, the end token left out; `text` if not known.
        tokens: the generated token ids, the end token left out, if known.
        thinking: whether the prompt itself opened a `<think>` block.
    """
    raw = text if raw is None else raw
    if not raw:
        return Kind.EMPTY
    if not text:
        return Kind.SPECIAL_ONLY
    if not text.strip():
        return Kind.WHITE_SPACE
    said = visible(text, thinking=thinking)
    if not said:
        return Kind.THINK_ONLY
    if _is_degenerate(said) or (tokens is not None and _repeats(tokens)):
        return Kind.DEGENERATE
    return Kind.OK if finished else Kind.TRUNCATED


def _is_degenerate(text: str) -> bool:
    visible = [char for char in text if not char.isspace()]
    if sum(char.isalpha() for char in visible) < 0.2 * len(visible):
        return True
    words = text.split()
    if len(words) >= 8 and Counter(words).most_common(1)[0][1] > len(words) / 2:
        return True
    return (len(visible) >= 16 and len(set(visible)) <= 3) or _loops(words, 4, 24) or _loops_in_cjk(visible)


def _loops_in_cjk(visible: list[str]) -> bool:
    """Chinese, Japanese and Korean write no spaces: there the characters are the words."""
    return len(_CJK.findall("".join(visible))) > len(visible) / 3 and _loops(visible, 6, 60)


def _loops(units: list[str], length: int, least: int) -> bool:
    """The same few phrases over and over: of all phrases of this length, fewer than three in ten are different."""
    if len(units) < least:
        return False
    phrases = [tuple(units[start : start + length]) for start in range(len(units) - length + 1)]
    return len(set(phrases)) < 0.3 * len(phrases)


def _repeats(tokens: list[int]) -> bool:
    """One token at least eight times in a row, or a long answer from a handful of tokens."""
    longest = max((sum(1 for _ in run) for _, run in groupby(tokens)), default=0)
    return longest >= 8 or (len(tokens) >= 32 and len(set(tokens)) <= 4)
