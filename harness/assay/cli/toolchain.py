"""`assay toolchain`: builds llama.cpp, with a progress bar."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from assay.inputs.toolchain import Toolchain, build_toolchain

EXAMPLE = "assay toolchain --no-cuda"
EXIT_CODES = {0: "built, or was there already", 2: "a tool is missing, or a step of the build failed"}


def command(
    cuda: Annotated[
        bool | None,
        typer.Option("--cuda/--no-cuda", help="build for NVIDIA GPUs, or for the processor only (default: as found)"),
    ] = None,
) -> int:
    """The build takes about 7 minutes on two cores and is kept in the cache (ASSAY_CACHE)."""
    toolchain = build(cuda=cuda)
    print(f"llama.cpp {toolchain.commit}: {toolchain.path}")
    return 0


def build(*, cuda: bool | None = None) -> Toolchain:
    """Build the toolchain unless it is there, and show the progress on stderr. Raises as `build_toolchain` does."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("toolchain", total=1.0)
        told = -1

        def show(done: float, doing: str) -> None:
            nonlocal told
            progress.update(task, completed=done, description=doing)
            # A log file has no bar: say so every tenth.
            if not console.is_terminal and int(done * 10) > told:
                told = int(done * 10)
                console.print(f"{doing}: {done:.0%}")

        toolchain = build_toolchain(cuda=cuda, show=show)
        progress.update(task, completed=1.0, description="toolchain ready")
    return toolchain
