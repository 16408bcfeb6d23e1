"""A dataset: samples as JSONL, a `dataset.toml` that says what they should be, and a JSON Schema of one sample.

`train/data/` is one, and any folder built like it is another.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from assay.errors import InputError
from assay.files import digest_files, read_json, read_toml
from assay.validation import FileModel, Text, matching, refuse_unknown_names, validate

SPLITS = ("train", "eval")
ORIGINS = ("original", "added", "eval")
METRICS = ("coverage", "format", "refusal")
_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "eta": "η", "theta": "θ",
    "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Lambda": "Λ",
    "Phi": "Φ", "Psi": "Ψ", "Sigma": "Σ", "Omega": "Ω", "nabla": "∇", "partial": "∂",
}  # fmt: skip
"""LaTeX's names, as models write them."""

FileName = Annotated[str, matching(r"[^/\0]+", "a name without /, since a file is named after it")]
Heading = Annotated[str, matching(r"#(.*\S)?", "one line that begins with # and does not end with a space")]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Sample:
    id: str
    origin: str
    """`original`, `added` or `eval`."""
    task: str
    language: str
    difficulty: str
    prompt: str
    answer: str
    key_points: list[list[str]]
    """What a right answer must contain: for each point, the spellings that count."""
    should_refuse: bool
    """Whether the right answer declines."""
    chapter: str | None = None
    scenario: str | None = None


class Task(FileModel):
    """`tasks.NAME` of `dataset.toml`."""

    samples: dict[str, Annotated[int, Field(ge=0)]]
    """Origin to the number of samples expected, per language."""
    headings: dict[str, list[Heading]]
    """Language to the headings of every answer, each once and in this order."""


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """One thing that is wrong with one sample."""

    kind: str
    """`parse`, `fields` or `template`."""
    text: str
    """File, line (and column), what was seen, what was expected."""


class Dataset(FileModel):
    """A dataset's folder and what its `dataset.toml` says, version 1. The samples are read when asked for."""

    path: Path
    """The folder, which the file does not say."""
    name: Text
    languages: Annotated[list[FileName], Field(min_length=1)]
    tasks: Annotated[dict[FileName, Task], Field(min_length=1)]
    decline: dict[str, list[Text]]
    """Language to the phrases that mark an answer as declining."""
    thresholds: dict[str, dict[str, Share]]
    """Task (or `all`) to metric to the share of answers that must be exceeded."""

    @cached_property
    def digest(self) -> str:
        """sha256 over the samples, their schema and `dataset.toml`."""
        files = [self.path / "dataset.toml", self.path / "sample.schema.json", *self.path.glob("*/*.jsonl")]
        return digest_files(self.path, sorted(str(file.relative_to(self.path)) for file in files))

    def file(self, split: str, task: str, language: str) -> Path:
        return self.path / split / f"{task}.{language}.jsonl"

    def samples(self, split: str, tasks: Iterable[str], language: str) -> list[Sample]:
        """The samples of some tasks, in file order.

        Raises:
            InputError: a file is missing or empty, or a sample has a flaw; the message names file, line and column.
        """
        found: list[Sample] = []
        for task in tasks:
            samples, flaws = self.scan(split, task, language)
            if flaws:
                raise InputError(flaws[0].text)
            if not samples:
                raise InputError(f"{self.file(split, task, language)}: no samples in it.")
            found += samples
        return found

    def scan(self, split: str, task: str, language: str) -> tuple[list[Sample], list[Flaw]]:
        """The samples of one file that have no flaw, and the flaws of the others.

        Raises:
            InputError: the file is missing, or the dataset has no such task or language.
        """
        refuse_unknown_names(self.path / "dataset.toml", "task", [task], self.tasks)
        refuse_unknown_names(self.path / "dataset.toml", "language", [language], self.languages)
        path = self.file(split, task, language)
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            raise InputError(f"{path}: not found. Each task has one file per language and split.") from None
        samples: list[Sample] = []
        flaws: list[Flaw] = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                found = self._sample(line, f"{path} line {number}", task, language)
                if isinstance(found, Flaw):
                    flaws.append(found)
                else:
                    samples.append(found)
        return samples, flaws

    def _sample(self, line: bytes, where: str, task: str, language: str) -> Sample | Flaw:
        try:
            data = json.loads(line.decode("utf-8"))
        except json.JSONDecodeError as problem:
            return Flaw(kind="parse", text=f"{where} column {problem.colno}: not JSON: {problem.msg}.")
        except UnicodeDecodeError as problem:
            return Flaw(kind="parse", text=f"{where} byte {problem.start}: not UTF-8: {problem.reason}.")
        if wrong := next(self._validator.iter_errors(data), None):
            at = "".join(f"[{part!r}]" for part in wrong.absolute_path)
            return Flaw(kind="fields", text=f"{where}{at and f' at {at}'}: {_told(wrong)} (sample.schema.json).")
        if (data["task"], data["language"]) != (task, language):
            seen = f"task {data['task']!r} in language {data['language']!r}"
            return Flaw(kind="fields", text=f"{where}: {seen} in the file of {task!r} in {language!r}.")
        sample = Sample(**data)
        expected = self.tasks[task].headings[language]
        if headings(sample.answer) != expected or not all(part.strip() for part in sections(sample.answer)):
            seen = f"headings {headings(sample.answer)}"
            return Flaw(
                kind="template",
                text=f"{where}: {seen}; expected {expected}, each once, in order, first to last, with text below each.",
            )
        return sample

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator

        schema = read_json(self.path / "sample.schema.json")
        Draft202012Validator.check_schema(schema)
        return Draft202012Validator(schema)

    def declines(self, text: str, language: str) -> bool:
        """Whether a text contains one of the language's declining phrases."""
        squeezed = squeeze(text)
        return any(squeeze(phrase) in squeezed for phrase in self.decline[language])


def read_dataset(folder: Path) -> Dataset:
    """Read `dataset.toml`; the samples are read later.

    Raises:
        InputError: the file is missing, not as `Dataset` expects, or names an origin, language, task or metric that
            there is not.
    """
    file = folder / "dataset.toml"
    dataset = validate(Dataset, read_toml(file), file, path=folder.resolve())
    by_language: dict[str, Iterable[str]] = {"decline": dataset.decline}
    for name, task in dataset.tasks.items():
        refuse_unknown_names(f"{file}, tasks.{name}.samples", "origin", task.samples, ORIGINS)
        by_language[f"tasks.{name}.headings"] = task.headings
    for key, seen in by_language.items():
        refuse_unknown_names(f"{file}, {key}", "language", seen, dataset.languages)
        if lacking := [language for language in dataset.languages if language not in seen]:
            raise InputError(f"{file}: the key {key}.{lacking[0]} is missing; expected one per language.")
    refuse_unknown_names(f"{file}, thresholds", "task", dataset.thresholds, [*dataset.tasks, "all"])
    for name, shares in dataset.thresholds.items():
        refuse_unknown_names(f"{file}, thresholds.{name}", "metric", shares, METRICS)
    return dataset


def headings(text: str) -> list[str]:
    """The lines of a text that begin with `#`."""
    return [line.rstrip() for line in text.splitlines() if line.startswith("#")]


def sections(text: str) -> list[str]:
    """The text under each heading; text before the first heading, if there is any, comes first."""
    before, *below = re.split(r"^#.*$", text, flags=re.MULTILINE)
    return below if not before.strip() else ["", *below]


def squeeze(text: str) -> str:
    r"""A text without case, spaces and markup, for comparing key points: `\varepsilon_0` is `ε₀` is `ε0`."""
    text = re.sub(r"\\([A-Za-z]+)", lambda name: _GREEK.get(name[1], name[0]), text)
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return re.sub(r"[\s$\\{}*_^·⋅×`]", "", text)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of two texts' character 4-grams: 1 for the same text, near 0 for unrelated ones."""
    a, b = _grams(one), _grams(other)
    return len(a & b) / len(a | b)


@cache  # Every training sample is compared with every evaluation sample.
def _grams(text: str, length: int = 4) -> frozenset[str]:
    text = squeeze(re.sub(r"^#.*$", "", text, flags=re.MULTILINE))
    return frozenset(text[at : at + length] for at in range(max(1, len(text) - length + 1)))


def _told(wrong: Any) -> str:
    """jsonschema's message, in plain English where its own does not say what to do."""
    if wrong.validator == "required":
        missing = next(name for name in wrong.validator_value if name not in wrong.instance)
        return f"the field {missing!r} is missing"
    if wrong.validator == "oneOf":
        return "a style sample has a chapter and no scenario, a writing sample a scenario and no chapter"
    return str(wrong.message)
