"""A folder of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from assay.errors import InputError
from assay.files import digest_files


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A folder of `*.txt` files, one user turn each: what every generating gate asks."""

    path: Path

    @cached_property
    def digest(self) -> str:
        names = sorted(file.name for file in self.path.glob("*.txt"))
        if not names:
            raise InputError(f"{self.path}: no *.txt in there; one file with one user turn each is expected.")
        return digest_files(self.path, names)
