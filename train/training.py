"""Trains a recipe's adapters, one after the other, on one loaded base."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from assay.bases import find_base
from assay.candidate import CONFIG, WEIGHTS
from assay.checkpoint import read_json
from assay.errors import InputError
from assay.machine import cpu_flags
from assay.record import write_json
from assay.step import digest_files
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from train.data import Sample, read_samples
from train.recipe import Recipe

IGNORED = -100
"""The label of a token that is not trained on."""


def train(recipe: Recipe, out: Path) -> Path:
    """Train every adapter of the recipe; returns `candidate.json`.

    The folder appears under its final name whole or not at all. The same seed gives the same adapters on one machine.

    Raises:
        InputError: the base, a sample or the tokenizer cannot be used.
    """
    base = find_base(recipe.base)
    # A folder is written down whole: candidate.json lies elsewhere, and relative to it the name would mean another.
    where = str(base.path) if Path(recipe.base).is_dir() else recipe.base
    dtype = _dtype()
    place = "GPU" if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    print(
        f"Training {', '.join(recipe.adapters)} on {base.id} in {str(dtype).removeprefix('torch.')} on {place}.",
        flush=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    samples = {name: read_samples(tasks) for name, tasks in recipe.adapters.items()}
    encoded = {name: [encode(tokenizer, one, recipe.max_tokens) for one in some] for name, some in samples.items()}
    out.mkdir(parents=True, exist_ok=True)
    part, final = out / f".{recipe.name}.part", out / recipe.name
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    adapters = {}
    log: dict[str, Any] = {}
    for name, rows in encoded.items():
        set_seed(recipe.seed)
        model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, use_safetensors=True)
        log[name] = _train_one(recipe, name, where, model, tokenizer, rows, part)
        folder = f"adapter_{name}"
        adapters[name] = {"path": folder, "digest": digest_files(part / folder, [CONFIG, WEIGHTS])}
    shutil.rmtree(part / "trainer")
    write_json(
        part / "candidate.json",
        {
            "version": 1,
            "name": recipe.name,
            "base": {"id": where, "revision": base.revision, "digest": base.digest},
            "adapters": adapters,
            "training": {"recipe": recipe.as_json(), "results": log, "torch": torch.__version__},
        },
    )
    if final.exists():
        shutil.rmtree(out / f".{recipe.name}.old", ignore_errors=True)
        final.rename(out / f".{recipe.name}.old")
    part.rename(final)
    shutil.rmtree(out / f".{recipe.name}.old", ignore_errors=True)
    return final / "candidate.json"


def encode(tokenizer: Any, sample: Sample, max_tokens: int) -> dict[str, list[int]]:
    """A sample as token ids, of which only the answer and its end token are trained on.

    Raises:
        InputError: the sample is too long, or the template does not put an end token after the answer.
    """
    question = [{"role": "user", "content": sample.prompt}]
    answer = [{"role": "assistant", "content": sample.answer}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(question + answer, return_dict=False)
    if whole[: len(prompt)] != prompt:
        raise InputError(f"{sample.id}: the chat template renders a question differently once it is answered.")
    if tokenizer.eos_token_id not in whole[len(prompt) :]:
        raise InputError(
            f"{sample.id}: no end token {tokenizer.eos_token!r} after the answer; the model would never end."
        )
    # What the template adds after the end token (a line break, mostly) is never generated.
    end = len(prompt) + whole[len(prompt) :].index(tokenizer.eos_token_id) + 1
    if end > max_tokens:
        raise InputError(f"{sample.id}: {end} tokens, max_tokens is {max_tokens}. Raise it or shorten the sample.")
    labels = [IGNORED] * len(prompt) + whole[len(prompt) : end]
    return {"input_ids": whole[:end], "attention_mask": [1] * end, "labels": labels}


def _train_one(
    recipe: Recipe, name: str, where: str, model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], part: Path
) -> dict[str, Any]:
    lora = recipe.lora
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, settings)
    # A cache path means nothing to whoever gets the adapter; the id does, and candidate.json has the digest.
    model.peft_config["default"].base_model_name_or_path = where
    steps = -(-len(rows) // recipe.batch_size) * recipe.epochs
    arguments = TrainingArguments(
        output_dir=str(part / "trainer"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(recipe.warmup_ratio * steps),
        seed=recipe.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,
        dataloader_pin_memory=False,
    )
    losses = _Losses(part / "train_log.jsonl", name)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[losses],
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    model.save_pretrained(part / f"adapter_{name}")
    (part / f"adapter_{name}" / "README.md").unlink(missing_ok=True)
    # peft writes the targets as a set comes: sorted, the same training gives the same bytes.
    config = part / f"adapter_{name}" / CONFIG
    saved = read_json(config)
    write_json(config, saved | {"target_modules": sorted(saved["target_modules"])})
    tokens = recipe.epochs * sum(len(row["input_ids"]) for row in rows)
    result = {
        "samples": len(rows),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "first_loss": losses.losses[0],
        "last_loss": losses.losses[-1],
    }
    print(f"{name}: {json.dumps(result)}", flush=True)
    return result


class _Losses(TrainerCallback):  # type: ignore[misc]
    """One line of `train_log.jsonl` a step."""

    def __init__(self, file: Path, adapter: str) -> None:
        self.file, self.adapter = file, adapter
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            line = {"adapter": self.adapter, "step": state.global_step, "epoch": round(state.epoch, 3), **logs}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _dtype() -> torch.dtype:
    """bf16 where the hardware computes in it, fp32 where it would be emulated."""
    fast = torch.cuda.is_available() or "avx512_bf16" in cpu_flags() or "amx_bf16" in cpu_flags()
    return torch.bfloat16 if fast else torch.float32
