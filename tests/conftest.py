"""What several test files need."""

from __future__ import annotations

import shutil

import pytest
from assay.bases import EMBEDDED, Base, find_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A small Qwen3 whose rows are multiples of 256: random weights, the embedded base's tokenizer and template."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, set_seed

    folder = tmp_path_factory.mktemp("qwen3")
    set_seed(0)
    config = Qwen3Config(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(find_base(EMBEDDED).path / name, folder / name)
    return find_base(str(folder))
