"""A candidate: a base model plus one or more adapters, described by `candidate.json` or on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from assay import paths
from assay.errors import AssayError, Inconclusive, InputError, Unavailable
from assay.files import digest_files, read_json, refuse_unknown_keys
from assay.inputs.bases import Base, find_base, from_hub
from assay.inputs.dataset import Dataset, Sample, read_dataset
from assay.inputs.lora import CONFIG, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter by name. Its folder is looked at only when a gate asks, so that a bad one fails its own gates."""

    name: str
    source: str
    """A folder or a hub id."""
    recorded_digest: str | None = None
    """Its digest as `candidate.json` has it, if it does."""
    recorded_base: str | None = None
    """The digest of the base it was trained on, if `candidate.json` has it."""
    trained_on: str | None = None
    """The user's word that the base named here is the one given (`--trained-on`)."""

    @cached_property
    def path(self) -> Path:
        """Its folder.

        Raises:
            InputError: no folder, no config, no weights, or weights as a pickle.
        """
        folder = Path(self.source)
        if not folder.is_dir():
            looks_local = self.source.startswith((".", "/", "~"))
            if looks_local or not re.fullmatch(r"[\w.-]+/[\w.-]+", self.source):
                raise InputError(f"{folder}: no such folder. An adapter is a folder with {CONFIG} and {WEIGHTS}.")
            folder = from_hub(self.source, None, ["adapter_*"])
        if not (folder / CONFIG).exists():
            raise InputError(
                f"{folder}: {CONFIG} is missing, so this is not an adapter. Save it with save_pretrained().",
                code="file-missing",
                file=CONFIG,
            )
        if not (folder / WEIGHTS).exists():
            pickle = "; adapter_model.bin is a pickle and is never loaded" if list(folder.glob("*.bin")) else ""
            raise InputError(
                f"{folder}: {WEIGHTS} is missing{pickle}. Save it with save_pretrained().",
                code="adapter-pickle" if pickle else "file-missing",
                file=WEIGHTS,
            )
        return folder.resolve()

    @cached_property
    def digest(self) -> str:
        return digest_files(self.path, [CONFIG, WEIGHTS])


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a candidate's adapters were trained on, as far as judging the data needs it."""

    dataset: Dataset
    language: str
    tasks: list[str]
    max_tokens: int
    """A longer sample is refused by training."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    name: str
    base_spec: str
    revision: str | None
    adapters: tuple[Adapter, ...]
    folder: Path
    """What relative paths are relative to."""
    record: dict[str, Any] | None = None
    """`training` of `candidate.json`: recipe, dataset, results. None for adapters that were trained elsewhere."""

    @cached_property
    def _base(self) -> Base | AssayError:
        """A base that cannot be had is remembered too: nine gates need not wait nine times for a hub that is down."""
        try:
            return find_base(self.base_spec, self.revision, self.folder)
        except AssayError as problem:
            return problem

    @property
    def base(self) -> Base:
        """The base model, found when first asked for.

        Raises:
            InputError: it cannot be used.
            Unavailable: the embedded base cannot be made on this machine.
        """
        if isinstance(self._base, AssayError):
            raise self._base
        return self._base

    @property
    def trained_here(self) -> bool:
        return self.record is not None and "dataset" in self.record

    @property
    def training(self) -> Training:
        """What the adapters were trained on.

        Raises:
            Unavailable: the dataset is not on this machine.
            Inconclusive: it was changed since.
        """
        assert self.record is not None  # trained_here says so; whoever asks looks there first
        recorded, recipe = self.record["dataset"], self.record["recipe"]
        folder = self.folder / recorded["path"]
        if not folder.is_dir():
            raise Unavailable(
                f"{folder}: not found. The dataset that {self.name} was trained on is not on this machine, so it is "
                "not judged here. Copy it there, or judge the candidate where it was trained."
            )
        dataset = read_dataset(folder)
        if dataset.digest != recorded["digest"]:
            raise Inconclusive(
                f"{folder}: changed since {self.name} was trained on it ({dataset.digest[:12]}, then "
                f"{recorded['digest'][:12]}). Train again, or check out the dataset of that time."
            )
        tasks = [task for task in dataset.tasks if any(task in some for some in recipe["adapters"].values())]
        return Training(dataset=dataset, language=recipe["language"], tasks=tasks, max_tokens=recipe["max_tokens"])

    def evaluation_samples(self, adapter: Adapter) -> list[Sample]:
        """The samples, never trained on, of the tasks that an adapter was trained for. Raises as `training` does."""
        training = self.training
        assert self.record is not None
        tasks = self.record["recipe"]["adapters"].get(adapter.name)
        if tasks is None:
            raise InputError(f"{self.folder / 'candidate.json'} training.recipe.adapters: {adapter.name} is missing.")
        return training.dataset.samples("eval", tasks, training.language)


def read_candidate(file: Path) -> Candidate:
    """Read a `candidate.json`, as `python -m train` writes it.

    Raises:
        InputError: not there, not JSON, an unknown or a missing key.
    """
    data = read_json(file)
    refuse_unknown_keys(str(file), data, ["version", "name", "base", "adapters", "training"])
    try:
        if data["version"] != 1:
            raise InputError(f"{file}: version {data['version']!r}, this Assay reads 1.")
        base = data["base"]
        refuse_unknown_keys(f"{file} base", base, ["id", "revision", "digest"])
        adapters = []
        has_dataset = _names_its_dataset(data)
        for name, entry in data["adapters"].items():
            refuse_unknown_keys(f"{file} adapters.{name}", entry, ["path", "digest"])
            adapters.append(
                Adapter(
                    name=_adapter_name(name),
                    source=str(file.parent.resolve() / entry["path"]),
                    recorded_digest=entry.get("digest"),
                    recorded_base=base.get("digest"),
                )
            )
        return Candidate(
            name=data["name"],
            base_spec=base["id"],
            revision=base.get("revision"),
            # Before training there is a dataset and no adapter yet.
            adapters=() if has_dataset and not adapters else _some(adapters),
            folder=file.parent.resolve(),
            record=data.get("training"),
        )
    except KeyError as missing:
        raise InputError(f"{file}: the key {missing} is missing. `python -m train` writes whole ones.") from None
    except (AttributeError, TypeError) as problem:
        raise InputError(f"{file}: not a candidate ({problem}). `python -m train` writes whole ones.") from None


def given_candidate(base: str, adapters: list[str], revision: str | None, trained_on: str | None) -> Candidate:
    """A candidate from `--base BASE --adapter NAME=DIR_OR_HUB_ID …`.

    Raises:
        InputError: an adapter that is not NAME=SOURCE, a name given twice, or none at all.
    """
    parsed = []
    for text in adapters:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise InputError(
                f"--adapter {text!r}: NAME=FOLDER_OR_HUB_ID expected, as in --adapter style=./adapter_style."
            )
        folder = Path(source).expanduser()
        source = str(folder.resolve()) if folder.is_dir() else source
        parsed.append(Adapter(name=_adapter_name(name), source=source, trained_on=trained_on))
    name = Path(base).name or base
    return Candidate(name=name, base_spec=base, revision=revision, adapters=_some(parsed), folder=Path.cwd())


def chosen_candidate(
    file: str | Path | None, base: str | None, adapters: list[str], revision: str | None, trained_on: str | None
) -> Candidate | None:
    """The candidate that the options name, else the quickstart's; None if neither is there.

    Raises:
        InputError: options that contradict each other, or a candidate that cannot be read.
    """
    if file and (base or adapters):
        raise InputError("Give either --candidate FILE or --base BASE with --adapter NAME=WHERE, not both.")
    if base:
        return given_candidate(base, adapters, revision, trained_on)
    if adapters:
        raise InputError("--adapter needs --base BASE: which model was it trained on?")
    if revision or trained_on:
        raise InputError("--revision and --trained-on go with --base; a candidate file says both itself.")
    if file or paths.QUICKSTART.exists():
        return read_candidate(Path(file or paths.QUICKSTART))
    return None


def _adapter_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
        raise InputError(f"adapter name {name!r}: lower-case letters, digits and _ expected, since gate ids carry it.")
    return name


def _names_its_dataset(data: dict[str, Any]) -> bool:
    """Whether `training` says what was trained on; raises KeyError, TypeError or AttributeError if only half of it."""
    training = data.get("training", {})
    if "dataset" not in training:
        return False
    _ = training["dataset"]["path"], training["dataset"]["digest"]
    _ = training["recipe"]["language"], training["recipe"]["max_tokens"], training["recipe"]["adapters"].values()
    return True


def _some(adapters: list[Adapter]) -> tuple[Adapter, ...]:
    names = [adapter.name for adapter in adapters]
    if not names:
        raise InputError("A candidate needs at least one adapter: --adapter NAME=FOLDER_OR_HUB_ID.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"adapter name {twice[0]!r} is given twice.")
    return tuple(adapters)
