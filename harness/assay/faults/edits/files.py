"""Edits of any file. A link is replaced by a file, so that an edit never reaches what the link names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_json(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON object in place."""
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    replace_text(file, json.dumps(data, ensure_ascii=False, indent=2))


def replace_text(file: Path, text: str) -> None:
    """Write `text` as the whole file, which may not exist yet."""
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")


def truncate(file: Path, share: float) -> None:
    """Keep the first `share` of a file's bytes, between 0 and 1."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: int(share * len(content))])


def replace_by_lfs_pointer(file: Path) -> None:
    """Write what a clone without Git LFS holds in place of a large file."""
    replace_text(file, f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n")
