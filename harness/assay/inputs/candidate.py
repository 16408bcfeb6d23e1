"""A candidate: a base model plus one or more adapters, described by `candidate.json` or on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from assay import paths
from assay.errors import AssayError, Inconclusive, InputError, Unavailable
from assay.files import digest_files, read_json
from assay.inputs.bases import Base, find_base, from_hub
from assay.inputs.candidate_file import ADAPTER_NAME, ADAPTER_NAME_IN_WORDS, CandidateFile
from assay.inputs.dataset import Dataset, Sample, read_dataset
from assay.inputs.lora import CONFIG, WEIGHTS
from assay.validation import validate


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter by name. Its folder is read only when a gate asks, so that a bad adapter fails its own gates."""

    name: str
    source: str
    """A folder or a hub id."""
    recorded_digest: str | None = None
    """Its digest in `candidate.json`, if the file says it."""
    recorded_base: str | None = None
    """The digest of the base that it was trained on, if `candidate.json` says it."""
    trained_on: str | None = None
    """The base name in the adapter's config which, as the user confirms (`--trained-on`), is the base given."""

    @cached_property
    def path(self) -> Path:
        """Its folder.

        Raises:
            InputError: the folder, its config or its weights are missing, or the weights are a pickle.
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
        """sha256 over its config and its weights."""
        return digest_files(self.path, [CONFIG, WEIGHTS])


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a candidate's adapters were trained on, as far as the gates on data and tasks need it."""

    dataset: Dataset
    language: str
    tasks: list[str]
    max_tokens: int
    """Tokens per sample; training refuses a longer one."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is judged. Its base and its adapters are looked for when a gate first asks for them."""

    name: str
    base_spec: str
    revision: str | None
    adapters: tuple[Adapter, ...]
    folder: Path
    """Relative paths start here."""
    record: dict[str, Any] | None = None
    """`training` of `candidate.json` as it is written there. None for adapters that were trained elsewhere."""

    @cached_property
    def _base(self) -> Base | AssayError:
        """The base, or why there is none. The error is kept too: else nine gates would wait for a hub that is down."""
        try:
            return find_base(self.base_spec, self.revision, self.folder)
        except AssayError as problem:
            return problem

    @property
    def base(self) -> Base:
        """The base model, found when first asked for.

        Raises:
            InputError: the base cannot be used.
            Unavailable: the embedded base cannot be made on this machine.
        """
        if isinstance(self._base, AssayError):
            raise self._base
        return self._base

    @property
    def trained_here(self) -> bool:
        """Whether `candidate.json` says what the adapters were trained on."""
        return self.record is not None

    @property
    def training(self) -> Training:
        """What the adapters were trained on.

        Raises:
            Unavailable: the dataset is not on this machine.
            Inconclusive: the dataset was changed since.
        """
        assert self.record is not None, "callers check trained_here first"
        recorded, recipe = self.record["dataset"], self.record["recipe"]
        folder = self.folder / recorded["path"]
        if not folder.is_dir():
            raise Unavailable(
                f"{folder}: not found. The dataset that {self.name} was trained on is not on this machine, so it is "
                "not judged here. Copy the dataset there, or judge the candidate where it was trained."
            )
        dataset = read_dataset(folder)
        if dataset.digest != recorded["digest"]:
            raise Inconclusive(
                f"{folder}: changed since {self.name} was trained on it ({dataset.digest[:12]}, then "
                f"{recorded['digest'][:12]}). Train again, or check out the dataset that it was trained on."
            )
        tasks = [task for task in dataset.tasks if any(task in some for some in recipe["adapters"].values())]
        return Training(dataset=dataset, language=recipe["language"], tasks=tasks, max_tokens=recipe["max_tokens"])

    def evaluation_samples(self, adapter: Adapter) -> list[Sample]:
        """The samples of split `eval` of the tasks that an adapter was trained on. Raises what `training` raises."""
        training = self.training
        assert self.record is not None
        tasks = self.record["recipe"]["adapters"].get(adapter.name)
        if tasks is None:
            raise InputError(f"{self.folder / 'candidate.json'} training.recipe.adapters: {adapter.name} is missing.")
        return training.dataset.samples("eval", tasks, training.language)


def read_candidate(file: Path) -> Candidate:
    """Read a `candidate.json`, as `python -m train` writes it.

    Raises:
        InputError: the file is missing, not JSON, or not as `CandidateFile` expects.
    """
    data = read_json(file, versioned=True)
    content = validate(CandidateFile, data, file)
    folder = file.parent.resolve()
    # Before training there is a dataset and no adapter yet.
    if not content.adapters and content.training is None:
        raise InputError(f"{file}: adapters = {{}}; expected at least one adapter, since there is no training either.")
    return Candidate(
        name=content.name,
        base_spec=content.base.id,
        revision=content.base.revision,
        adapters=tuple(
            Adapter(
                name=name,
                source=str(folder / entry.path),
                recorded_digest=entry.digest,
                recorded_base=content.base.digest,
            )
            for name, entry in content.adapters.items()
        ),
        folder=folder,
        record=data.get("training"),
    )


def given_candidate(base: str, adapters: list[str], revision: str | None, trained_on: str | None) -> Candidate:
    """A candidate from `--base BASE --adapter NAME=DIR_OR_HUB_ID …`.

    Raises:
        InputError: an adapter is not NAME=SOURCE, a name is given twice, or there is no adapter.
    """
    if not adapters:
        raise InputError("A candidate needs at least one adapter: --adapter NAME=FOLDER_OR_HUB_ID.")
    parsed: dict[str, Adapter] = {}
    for text in adapters:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise InputError(
                f"--adapter {text!r}: expected NAME=FOLDER_OR_HUB_ID, as in --adapter style=./adapter_style."
            )
        if not re.fullmatch(ADAPTER_NAME, name):
            raise InputError(f"--adapter {text!r}: the name is {name!r}; expected {ADAPTER_NAME_IN_WORDS}.")
        if name in parsed:
            raise InputError(f"--adapter {text!r}: the name {name!r} is given twice; expected another name.")
        folder = Path(source).expanduser()
        source = str(folder.resolve()) if folder.is_dir() else source
        parsed[name] = Adapter(name=name, source=source, trained_on=trained_on)
    return Candidate(
        name=Path(base).name or base,
        base_spec=base,
        revision=revision,
        adapters=tuple(parsed.values()),
        folder=Path.cwd(),
    )


def chosen_candidate(
    file: str | Path | None, base: str | None, adapters: list[str], revision: str | None, trained_on: str | None
) -> Candidate | None:
    """The candidate that the options name, else the quickstart's; None if neither is there.

    Raises:
        InputError: the options contradict each other, or the candidate cannot be read.
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
