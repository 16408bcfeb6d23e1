"""Safetensors files as torch tensors, for code that may not import torch.

An edit changes a dictionary of tensors by name, in place. It uses the methods of the tensors that it is given; a numpy
array that it adds is stored as a tensor of the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]
Edit = Callable[[Tensors], None]


def read_tensors(files: Iterable[Path]) -> Tensors:
    """All tensors of the files. A name that is in two files keeps the later one's tensor."""
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write_tensors(tensors: Tensors, file: Path) -> None:
    """Write a safetensors file; a link becomes a file of its own."""
    import torch
    from safetensors.torch import save_file

    file.unlink(missing_ok=True)
    whole = {name: torch.as_tensor(tensor).contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})


def edit_tensors(file: Path, edit: Edit) -> None:
    """Change the tensors of one file."""
    tensors = read_tensors([file])
    edit(tensors)
    write_tensors(tensors, file)


def edit_checkpoint(folder: Path, edit: Edit) -> None:
    """Change the tensors of a model's folder. Several shards become one file, and their index goes."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = read_tensors(files)
    edit(tensors)
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    write_tensors(tensors, folder / "model.safetensors")


def cast(tensor: Any, dtype: str) -> Any:
    """The tensor in another dtype, by torch's name of it (`bfloat16`)."""
    import torch

    return tensor.to(getattr(torch, dtype))


def use_threads(count: int) -> None:
    """How many threads torch computes with in this process. A process that is to fork uses one."""
    import torch

    torch.set_num_threads(count)
