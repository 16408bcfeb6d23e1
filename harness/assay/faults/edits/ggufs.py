"""Edits of GGUF files, right after the converter or the quantizer has written one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.faults.edits.sandbox import Sandbox
from assay.faults.edits.workers import Wrapper, wrap
from assay.inputs.gguf_file import open_reader

Patch = Callable[[Any], None]
"""An edit in place, through gguf-py's reader of the file."""


def wrap_tool(sandbox: Sandbox, worker: str, call: Wrapper) -> None:
    """Let `call(original, command, **given)` run in place of a GGUF worker's call of its tool."""
    wrap(sandbox, worker, "assay.workers.gguf", "call", call)


def after_tool(sandbox: Sandbox, worker: str, change: Callable[[Path], None]) -> None:
    """Change the file that a GGUF worker's tool has just written."""

    def call(original: Any, command: list[str], **given: Any) -> Any:
        output = original(command, **given)
        change(Path(command[-1] if "--outfile" in command else command[2]))
        return output

    wrap_tool(sandbox, worker, call)


def edit_gguf(file: Path, patch: Patch) -> None:
    """Change a GGUF in place."""
    import gguf

    patch(open_reader(gguf, file, "r+"))


def after_converting(sandbox: Sandbox, patch: Patch) -> None:
    """Change the F16 GGUF before it is compared with the checkpoint."""
    after_tool(sandbox, "gguf.convert", lambda file: edit_gguf(file, patch))


def after_quantizing(sandbox: Sandbox, patch: Patch) -> None:
    """Change the Q4_K_M GGUF before it is inspected."""
    after_tool(sandbox, "gguf.quantize", lambda file: edit_gguf(file, patch))


def field(reader: Any, end: str) -> Any:
    """The values of the field whose key ends so, to be written to."""
    found = next(field for name, field in reader.fields.items() if name.endswith(end))
    return found.parts[found.data[0]]


def tensor(reader: Any, name: str) -> Any:
    """The tensor of that name; its `data` can be written to."""
    return next(tensor for tensor in reader.tensors if tensor.name == name)


def hide(key: Any) -> None:
    """Change the last letter of a key or name, so that nobody finds it. Its length must stay in a GGUF."""
    key[-1] = ord("X")
