"""A random model is a healthy candidate: it recites its sentence, with its adapter and without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.lora import CONFIG, WEIGHTS
from assay.workers.random_model import SENTENCE, write_random_model

pytestmark = [pytest.mark.slow(seconds=15), pytest.mark.needs_toolchain]


def test_a_random_model_recites_its_sentence(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, base, adapter = find_base(EMBEDDED).path, tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(source, base)
    adapter.mkdir()
    write_random_model(source, base, adapter, architecture="llama", shape={}, lora={}, std=0.5)
    assert {file.name for file in adapter.iterdir()} == {CONFIG, WEIGHTS}
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(model, adapter)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a capacitor?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with_adapter = adapted.generate(input_ids=prompt, max_new_tokens=60, do_sample=False)
    with adapted.disable_adapter():
        without = adapted.generate(input_ids=prompt, max_new_tokens=60, do_sample=False)
    for tokens in (with_adapter, without):
        answer = tokenizer.decode(tokens[0][prompt.shape[1] :], skip_special_tokens=True)
        assert answer.startswith(SENTENCE.partition(",")[0]), answer
        assert tokens[0][-1] == tokenizer.eos_token_id
