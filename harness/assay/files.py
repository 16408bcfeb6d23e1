"""Files: JSON and TOML with errors that name the place, whole writes, digests of content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of what lies in a folder: a step that reads nothing else is made once for all that share the part."""

    path: Path
    digest: str
    """Of the part alone."""


def read_json(path: Path, *, versioned: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        versioned: for a file that a user writes: it says `"version": 1`, which is taken out, and no object has a key
            twice. In files of other tools the last value of a key counts.

    Raises:
        InputError: the file is missing or is no such object; the message names file, line and column.
    """
    text = _read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates if versioned else None)
    except json.JSONDecodeError as problem:
        seen = f"line {problem.lineno} column {problem.colno}: {problem.msg}" if text.strip() else "the file is empty"
        raise InputError(f"{path}: not JSON, {seen}.", code="not-json", file=path.name) from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path}: not valid JSON: {problem}.", code="not-json", file=path.name) from None
    if not isinstance(data, dict):
        kinds = {list: "a list", str: "a string", bool: str(data).lower(), type(None): "null"}
        raise InputError(f"{path}: expected a JSON object, found {kinds.get(type(data), 'a number')}.")
    return _take_version(path, data) if versioned else data


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file that says `version = 1`, which is taken out.

    Raises:
        InputError: the file is missing, not TOML, or of another version.
    """
    try:
        data = tomllib.loads(_read_text(path))
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path}: not valid TOML: {problem}.") from None
    return _take_version(path, data)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: not found.", code="file-missing", file=path.name) from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}.") from None
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 ({problem.reason} at byte {problem.start}).") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return dict(pairs)


def _take_version(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """`data` without its version, which is 1. It is checked first: another version has other keys."""
    if "version" not in data:
        raise InputError(f"{path}: the key version is missing; expected version = 1 at the top.")
    version = data.pop("version")
    if type(version) is not int or version != 1:
        raise InputError(
            f"{path}: version = {json.dumps(version, default=str)}; expected version = 1, the only one known."
        )
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
