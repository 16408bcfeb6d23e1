"""The training samples: JSONL, one question with its structured answer a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import InputError

DATA = Path(__file__).parent / "data"
HEADINGS = {
    "style": ("### Conclusion", "### Derivation", "### Check (units / boundary conditions / limiting cases)"),
    "writing": ("### Diagnosis", "### Suggestions", "### Convention"),
}
"""What every answer of a task is made of: each heading once, in this order, on a line of its own."""
_FIELDS = ("id", "task", "difficulty", "language", "prompt", "answer", "key_points", "should_refuse")


@dataclass(frozen=True, kw_only=True)
class Sample:
    id: str
    task: str
    prompt: str
    answer: str
    key_points: tuple[str, ...]
    """What a right answer must contain, word for word."""
    should_refuse: bool
    """Whether the right answer is to decline; it then carries no headings."""


def read_samples(tasks: list[str], folder: Path = DATA) -> list[Sample]:
    """The samples of some tasks, in file order.

    Raises:
        InputError: a file is missing or empty, or a line is broken; it names file, line and column.
    """
    samples: list[Sample] = []
    for task in tasks:
        path = folder / f"{task}.jsonl"
        if not path.exists():
            raise InputError(f"{path}: not found. A task needs a file of its name.")
        lines = path.read_text(encoding="utf-8").splitlines()
        samples += [
            _sample(task, f"{path} line {number}", line) for number, line in enumerate(lines, 1) if line.strip()
        ]
    if not samples:
        raise InputError(f"{folder}: no samples for {', '.join(tasks)}.")
    seen: dict[str, str] = {}
    for sample in samples:
        if sample.prompt in seen:
            raise InputError(f"{folder}: {sample.id} asks the same as {seen[sample.prompt]}. Remove one.")
        seen[sample.prompt] = sample.id
    return samples


def _sample(task: str, where: str, line: str) -> Sample:
    try:
        data: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as problem:
        raise InputError(f"{where} column {problem.colno}: not JSON: {problem.msg}.") from None
    for field in _FIELDS:
        if field not in data:
            raise InputError(f"{where}: the field {field!r} is missing.")
    if data["task"] != task:
        raise InputError(f"{where}: task {data['task']!r} in the file of {task!r}.")
    if not data["should_refuse"]:
        found = [text for text in data["answer"].splitlines() if text.startswith("#")]
        if tuple(found) != HEADINGS[task]:
            raise InputError(f"{where}: headings {found}, expected {list(HEADINGS[task])}, each once and in order.")
    names = ("id", "task", "prompt", "answer", "should_refuse")
    return Sample(**{name: data[name] for name in names}, key_points=tuple(data["key_points"]))
