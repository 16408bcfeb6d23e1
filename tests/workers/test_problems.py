"""What a worker leaves when it cannot go on: the harness's own crash is an error, a library's refusal a failure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assay.errors import Inconclusive, InputError, Unavailable
from assay.steps.runner import Failure
from assay.workers import Problem, adapter
from assay.workers.__main__ import main


def library_refuses(*_: Any) -> None:
    from safetensors.numpy import load

    load(b"no safetensors")


def raises(problem: Exception) -> Callable[..., None]:
    def read(*_: Any) -> None:
        raise problem

    return read


@pytest.mark.parametrize(
    ("read", "kind", "code"),
    [
        (None, "error", "worker-crashed"),  # `None` is called in the worker's own line: a TypeError of ours
        (library_refuses, "failed", "library-raised"),
        (raises(OSError(28, "No space left on device")), "failed", "disk-full"),
        (raises(ModuleNotFoundError("No module named 'peft'", name="peft")), "unavailable", "library-missing"),
        (raises(InputError("x: truncated", code="file-truncated", file="x")), "failed", "file-truncated"),
        (raises(Unavailable("no GPU")), "unavailable", ""),
        (raises(Inconclusive("unknown layout")), "inconclusive", ""),
        (raises(Problem("llama-cli hung", code="hung", seconds="60")), "failed", "hung"),
    ],
    ids=["own", "library", "disk", "import", "input", "unavailable", "inconclusive", "tool"],
)
def test_a_problem_is_told_by_kind_and_code(
    read: Any, kind: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "read_folder", read)
    step = {"worker": "adapter.inspect", "arguments": {"adapter": str(tmp_path), "base": str(tmp_path)}}
    (tmp_path / "step.json").write_text(json.dumps(step))
    assert main(tmp_path, os.getppid()) == 1
    told = Failure.model_validate_json((tmp_path / "problem.json").read_text())
    assert (told.kind, told.code) == (kind, code)
    assert told.reason
