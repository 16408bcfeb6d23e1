"""Files: JSON and TOML with errors that name the place, whole writes, digests of content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from assay.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of what lies in a folder: a step that reads nothing else is made once for all that share the part."""

    path: Path
    digest: str
    """Of the part alone."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; InputError names the file, line and column of what is off."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found.", code="file-missing", file=path.name) from None
    except json.JSONDecodeError as problem:
        raise InputError(
            f"{path}: not JSON, line {problem.lineno} column {problem.colno}: {problem.msg}.",
            code="not-json",
            file=path.name,
        ) from None
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 ({problem.reason} at byte {problem.start}).") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a JSON object expected, {type(data).__name__} found.")
    return data


def read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    """A TOML file of version 1 whose top-level keys are among `known`; InputError names what is off."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: not valid TOML: {problem}.") from None
    refuse_unknown_keys(str(path), data, known | {"version"})
    if data.pop("version", None) != 1:
        raise InputError(f"{path}: `version = 1` expected at the top.")
    return data


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path` whole or not at all: to a neighbour first, then renamed."""
    text = json.dumps(data, ensure_ascii=False, indent=2, default=str) + "\n"
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, names: list[str]) -> str:
    """One sha256 over the named files: their names and their contents, nothing else."""
    listing = {name: digest_file(folder / name) for name in names}
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def refuse_unknown_keys(where: str, seen: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for the first key of `seen` that is not in `known`, naming the nearest known one."""
    known = sorted(known)
    for key in seen:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where}: unknown key {key!r}.{hint} Known keys: {', '.join(known) or 'none'}.")
