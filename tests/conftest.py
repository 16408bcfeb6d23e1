"""What several test files need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from assay.inputs.bases import Base

from tests.samples import SMALL, new_cache, train, write_model


def pytest_configure() -> None:
    """Give each of xdist's processes, and whatever its tests start, cores that no other of them uses.

    Two jobs that share cores run ten times slower, because their threads busy-wait on each other.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0))
    if worker and count <= len(cores):
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count])


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests whose fixture `base` takes the embedded base's tokenizer, and put the slowest file first.

    The last files are then short, so no process of xdist waits long for another.
    """
    seconds: dict[Path, dict[object, float]] = {}
    for item in items:
        if "base" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_toolchain")
        of_file = seconds.setdefault(item.path, {})
        for node, mark in item.iter_markers_with_node("slow"):
            of_file[node] = mark.kwargs["seconds"]
    items.sort(key=lambda item: -sum(seconds[item.path].values()))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this session's own. The user's toolchain and embedded base are in it, results of other runs are not.

    Without it a test passes or fails by what the user ran before.
    """
    own = new_cache(tmp_path_factory.mktemp("own") / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSAY_CACHE", str(own))
        patch.setenv("HF_HOME", str(own / "huggingface"))
        yield own


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A small Qwen3 whose rows are multiples of 256: random weights, the embedded base's tokenizer and template."""
    from transformers import Qwen3Config

    return write_model(
        tmp_path_factory.mktemp("qwen3"), Qwen3Config(**SMALL, head_dim=64, tie_word_embeddings=True), seed=0
    )


@pytest.fixture(scope="session")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training of two adapters for the small Qwen3."""
    out = tmp_path_factory.mktemp("trained")
    train(base, out)
    return out
