"""What several test files need."""

from __future__ import annotations

from pathlib import Path

import pytest
from assay.bases import Base

from tests.samples import SMALL, train, write_model


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
