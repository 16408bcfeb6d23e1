"""The token sequences that every form is fed: probes, and what the runtimes answered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from assay.measures.encoding import IGNORED, encode_sample

ANSWER = 48
"""Tokens of its own that the reference answers with where a probe has no reference answer."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A probe in tokens."""

    name: str
    kind: str
    ids: list[int]
    scored: list[int]
    """Positions whose next token is judged."""

    @property
    def following(self) -> list[int]:
        """The token that does come after each scored position."""
        return [self.ids[at + 1] for at in self.scored]


def completions(tokenizer: Any, answers: list[dict[str, str]]) -> dict[str, list[Sequence]]:
    """Each runtime's answers after their prompts, in tokens.

    Answers with a <think> block are left out: llama-cli spells such a block differently.
    """
    found: dict[str, list[Sequence]] = {}
    for one in answers:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": one["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer(one["answer"], add_special_tokens=False)["input_ids"]
        thinks = "<think>" in one["answer"] or tokenizer.decode(asked).rstrip().endswith("<think>")
        if answer and not thinks:
            scored = list(range(len(asked) - 1, len(asked) + len(answer) - 1))
            sequence = Sequence(name=one["name"], kind="answer", ids=[*asked, *answer], scored=scored)
            found.setdefault(one["runtime"], []).append(sequence)
    return found


def from_probes(
    model: Any, tokenizer: Any, device: str, probes: list[dict[str, str]], max_tokens: int, positions: int
) -> list[Sequence]:
    made = []
    for probe in probes:
        name = probe["name"]
        if "text" in probe:
            ids = tokenizer(probe["text"])["input_ids"][:max_tokens]
            made.append(Sequence(name=name, kind="text", ids=ids, scored=list(range(len(ids) - 1))))
            continue
        if "answer" in probe:
            encoded = encode_sample(tokenizer, probe["prompt"], probe["answer"])
            ids, labels = encoded.input_ids[:max_tokens], encoded.labels[:max_tokens]
        else:
            asked, ids = _answered(model, tokenizer, device, probe["prompt"])
            labels = [IGNORED] * asked + ids[asked:]
        scored = [at - 1 for at, label in enumerate(labels) if label != IGNORED]
        made.append(Sequence(name=name, kind="task", ids=ids, scored=scored))
    # Neighbours are padded to the longer one of them.
    return sorted(within([one for one in made if one.scored], positions), key=lambda one: len(one.ids))


def within(sequences: list[Sequence], positions: int) -> list[Sequence]:
    """All texts, plus an evenly spaced subset of the answers, so that at most `positions` tokens are scored."""
    texts = [one for one in sequences if one.kind == "text"]
    answers = [one for one in sequences if one.kind == "task"]
    room = max(1, positions - sum(len(one.scored) for one in texts))
    return texts + answers[:: math.ceil(sum(len(one.scored) for one in answers) / room) or 1]


def _answered(model: Any, tokenizer: Any, device: str, prompt: str) -> tuple[int, list[int]]:
    """The prompt's length, and its tokens with the reference's own greedy answer behind."""
    import torch

    asked = ask(tokenizer, prompt, device)
    with torch.inference_mode():
        output = model.generate(
            **asked, max_new_tokens=ANSWER, do_sample=False, temperature=None, top_p=None, top_k=None
        )
    return int(asked["input_ids"].shape[1]), output[0].tolist()


def ask(tokenizer: Any, prompt: str, device: str) -> Any:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(device)
