"""Callbacks of a training: the log, the progress bar, the checkpoints."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

_WHOLE = "whole"
"""The file that marks a checkpoint as whole, because a killed training may leave half a checkpoint."""


class Log(TrainerCallback):  # type: ignore[misc]
    """Writes one line of `train_log.jsonl` per step, and shows a bar with loss, tokens/s and time left."""

    def __init__(self, file: Path, adapter: str, tokens: int, steps: int) -> None:
        self.file, self.adapter, self.tokens, self.steps = file, adapter, tokens, steps
        self.seconds_before = 0.0
        """Training time up to the checkpoint from which this process resumes."""
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        # Lines after the checkpoint, and half a line, belong to steps that this process repeats.
        lines = kept_lines(self.file)
        kept = [one for one in lines if one["adapter"] != self.adapter or one["step"] <= state.global_step]
        part = self.file.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self.file)
        self.seconds_before = max((one["seconds"] for one in kept if one["adapter"] == self.adapter), default=0.0)
        self.started = time.monotonic()
        console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}, {task.fields[speed]:.0f} tokens/s, left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task(
            self.adapter, total=self.steps, completed=state.global_step, loss=float("nan"), speed=0.0
        )
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.progress is None or not logs or "loss" not in logs:
            return
        seconds = round(self.seconds_before + time.monotonic() - self.started, 3)
        numbers: dict[str, float] = {
            name: float(logs[name]) for name in ("loss", "grad_norm", "learning_rate") if name in logs
        }
        epoch = round(state.epoch, 3)
        done: dict[str, Any] = {"adapter": self.adapter, "step": state.global_step, "epoch": epoch, "seconds": seconds}
        line = done | numbers
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        speed = self.tokens * state.global_step / self.steps / seconds
        self.progress.update(self.bar, completed=state.global_step, loss=numbers["loss"], speed=speed)
        tenth = -(-self.steps // 10)
        if self.progress.disable and state.global_step % tenth == 0:
            left = seconds / state.global_step * (self.steps - state.global_step)
            print(
                f"{self.adapter}: step {state.global_step} of {self.steps}, loss {numbers['loss']:.3f}, "
                f"{speed:.0f} tokens/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()


class MarkCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once it is written whole."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a folder; None without one."""
    whole = [mark.parent for mark in folder.glob(f"checkpoint-*/{_WHOLE}")]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def kept_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a `train_log.jsonl`."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
