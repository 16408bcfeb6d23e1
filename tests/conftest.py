"""What several test files need."""

from __future__ import annotations

import pytest
from assay.bases import Base

from tests.samples import SMALL, write_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A small Qwen3 whose rows are multiples of 256: random weights, the embedded base's tokenizer and template."""
    from transformers import Qwen3Config

    return write_model(
        tmp_path_factory.mktemp("qwen3"), Qwen3Config(**SMALL, head_dim=64, tie_word_embeddings=True), seed=0
    )
