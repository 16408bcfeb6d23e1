"""Trains a recipe's adapters, one after the other. A killed training resumes and ends in the same bytes."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from assay.errors import InputError
from assay.files import digest_files, read_json, write_json
from assay.gating.options import pytest_arguments
from assay.inputs.bases import Base, find_base
from assay.inputs.dataset import Dataset
from assay.inputs.lora import CONFIG, WEIGHTS
from assay.measures.encoding import IGNORED, encode_sample
from assay.workers import host_peak_bytes
from filelock import FileLock, Timeout
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from train.callbacks import Log, MarkCheckpoints, kept_lines, newest_checkpoint
from train.model import held_in, load_base, predicted_peak_bytes, with_lora
from train.recipe import Recipe

LOG = "train_log.jsonl"
CHECKPOINTS = 10
"""Checkpoints per adapter: a kill costs at most a tenth of the training. Steps and not time space them, so that all
processes agree."""


def train(recipe: Recipe, dataset: Dataset, out: Path) -> Path | None:
    """Train every adapter of the recipe; returns `candidate.json`, or None in all processes but the first.

    The folder appears under its final name whole or not at all. A killed training leaves its checkpoints, and the same
    command resumes from them. The same seed gives the same adapters on one machine, whether or not it was killed.

    Raises:
        InputError: the base, a sample or the tokenizer cannot be used, the data gates do not pass, or another process
            is training the same candidate.
    """
    base = find_base(recipe.base)
    out.mkdir(parents=True, exist_ok=True)
    # Without `cpu`, PartialState on a machine without a GPU does not see the other processes.
    state = PartialState(cpu=not torch.cuda.is_available())
    if not state.is_main_process:
        # `accelerate launch`: the first process prepares and writes, the others only compute.
        state.wait_for_everyone()
        part = out / f".{recipe.name}.part"
        for name in recipe.adapters:
            if not (part / f"adapter_{name}.json").exists():
                _train_one(recipe, name, base, dataset, part)
            state.wait_for_everyone()
        return None
    lock = FileLock(out / f".{recipe.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{out / recipe.name}: another process is training it. Wait for that process, or choose another --out."
        ) from None
    with lock:
        return _train_all(recipe, dataset, out, base, state)


def _train_all(recipe: Recipe, dataset: Dataset, out: Path, base: Base, state: PartialState) -> Path:
    part, final = out / f".{recipe.name}.part", out / recipe.name
    planned = {
        "version": 1,
        "name": recipe.name,
        "base": {"id": _base_name(recipe, base), "revision": base.revision, "digest": base.digest},
        "adapters": {},
        "training": {
            "recipe": recipe.as_json(),
            "dataset": {"name": dataset.name, "path": os.path.relpath(dataset.path, final), "digest": dataset.digest},
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
            "processes": state.num_processes,
        },
    }
    _prepare(part, planned)
    judge_data(part)
    print(f"Training {', '.join(recipe.adapters)} on {base.id}: {held_in(recipe)}.", flush=True)
    state.wait_for_everyone()
    adapters, results = {}, {}
    for name in recipe.adapters:
        done = part / f"adapter_{name}.json"
        if not done.exists():
            write_json(done, _train_one(recipe, name, base, dataset, part))
        state.wait_for_everyone()
        results[name] = read_json(done)
        adapters[name] = {
            "path": f"adapter_{name}",
            "digest": digest_files(part / f"adapter_{name}", [CONFIG, WEIGHTS]),
        }
        summary = (
            "{steps} steps, {seconds:.0f} s, {tokens_per_second:.0f} tokens/s, loss {first_loss:.2f} → {last_loss:.2f}"
        )
        print(f"{name}: {summary.format(**results[name])}", flush=True)
    for left in (*part.glob("adapter_*.json"), part / "planned.json"):
        left.unlink()
    shutil.rmtree(part / "data-gates")
    training = {**planned["training"], "results": results}  # type: ignore[dict-item]
    write_json(part / "candidate.json", {**planned, "adapters": adapters, "training": training})
    if final.exists():
        shutil.rmtree(out / f".{recipe.name}.old", ignore_errors=True)
        final.rename(out / f".{recipe.name}.old")
    part.rename(final)
    shutil.rmtree(out / f".{recipe.name}.old", ignore_errors=True)
    (out / f".{recipe.name}.lock").unlink(missing_ok=True)
    return final / "candidate.json"


def _base_name(recipe: Recipe, base: Base) -> str:
    """The name of the base for candidate.json: of a folder the whole path, since a relative one would mean another."""
    return str(base.path) if Path(recipe.base).is_dir() else recipe.base


def _prepare(part: Path, planned: dict[str, Any]) -> None:
    """Keep what a killed training of the same plan left in `part`; else make `part` an empty folder."""
    try:
        same = read_json(part / "planned.json") == json.loads(json.dumps(planned))
    except (InputError, FileNotFoundError):
        same = False
    if same:
        print(f"Resuming the training of {planned['name']}.", flush=True)
        return
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    write_json(part / "planned.json", planned)


def judge_data(part: Path) -> None:
    """Run the gates of route `data` on the dataset of the planned training.

    Args:
        part: the training's folder, with `planned.json` in it.

    Raises:
        InputError: a gate does not pass; the text names the first one.
    """
    from assay.record.reading import read_run

    run = part / "data-gates"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", *pytest_arguments(), "-q", "--no-header", "-p", "no:cacheprovider"]
    # pytest runs in one process; `accelerate launch` marks the environment of this process as one of several.
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*command, "--candidate", str(part / "planned.json"), "--run", str(run)],
        capture_output=True,
        text=True,
        env=own,
    )
    try:
        gates = read_run(run).gates
    except Exception:
        raise InputError(f"The data gates did not run:\n{(done.stdout + done.stderr)[-3000:]}") from None
    open_gates = [gate for gate in gates if not gate.passed]
    for gate in open_gates:
        print(f"{gate.outcome.status} {gate.expected.gate}: {gate.outcome.reason}", file=sys.stderr, flush=True)
    if open_gates:
        first = open_gates[0]
        raise InputError(
            f"{len(open_gates)} of {len(gates)} data gates do not pass, {first.expected.gate} first: "
            f"{first.outcome.reason} Nothing was trained."
        )
    print(f"Data: {len(gates)} of {len(gates)} gates passed.", flush=True)


def _train_one(recipe: Recipe, name: str, base: Base, dataset: Dataset, part: Path) -> dict[str, Any]:
    """Train one adapter into `part`; returns what was measured, or an empty dict in all processes but the first."""
    gc.collect()  # the trainer and the model of the adapter before refer to each other
    set_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    rows = encode_samples(recipe, name, dataset, tokenizer)
    model = load_base(recipe, base.path)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = with_lora(model, recipe.lora)
    epochs = recipe.epochs_for(name)
    steps = -(-len(rows) // recipe.batch_size) * epochs
    checkpoints = part / f"checkpoints-{name}"
    log = Log(part / LOG, name, sum(len(row["input_ids"]) for row in rows) * epochs, steps)
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, epochs, steps, checkpoints),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[log, MarkCheckpoints()],
    )
    # This callback prints each log line as a dict; the bar and train_log.jsonl say the same better.
    trainer.remove_callback(PrinterCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints))
    if not PartialState().is_main_process:
        return {}
    _save_adapter(trainer.accelerator.unwrap_model(trainer.model), part / f"adapter_{name}", _base_name(recipe, base))
    shutil.rmtree(checkpoints, ignore_errors=True)
    lines = [line for line in kept_lines(part / LOG) if line["adapter"] == name]
    tokens = _samples_per_process(recipe) * max(len(row["input_ids"]) for row in rows)
    return {
        "samples": len(rows),
        "steps": steps,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "held_in": held_in(recipe),
        "seconds": lines[-1]["seconds"],
        "tokens_per_second": round(log.tokens / lines[-1]["seconds"], 1),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "peak_bytes_predicted": predicted_peak_bytes(recipe, base, tokens),
        "peak_host_bytes": host_peak_bytes(),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def _samples_per_process(recipe: Recipe) -> int:
    """Samples that one process sees per step.

    Raises:
        InputError: the processes cannot share a batch evenly.
    """
    processes = int(PartialState().num_processes)
    if recipe.batch_size % processes:
        raise InputError(
            f"batch_size {recipe.batch_size} cannot be shared by {processes} processes. "
            f"Set one that can: --set batch_size={processes * max(1, recipe.batch_size // processes)}."
        )
    return recipe.batch_size // processes


def _arguments(recipe: Recipe, epochs: int, steps: int, checkpoints: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=epochs,
        per_device_train_batch_size=_samples_per_process(recipe),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(recipe.warmup_ratio * steps),
        seed=recipe.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=-(-steps // CHECKPOINTS),
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )


def _save_adapter(model: Any, folder: Path, base: str) -> None:
    """Save the adapter so that the same training gives the same bytes.

    Args:
        base: the name of the base that the adapter records.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # A path in a cache means nothing to the receiver of the adapter. The id does, and candidate.json has the digest.
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    # peft writes the targets in the order of a set, which differs between processes.
    saved = read_json(folder / CONFIG)
    write_json(folder / CONFIG, saved | {"target_modules": sorted(saved["target_modules"])})


def encode_samples(recipe: Recipe, name: str, dataset: Dataset, tokenizer: Any) -> list[dict[str, list[int]]]:
    """The training samples of one adapter as rows for the Trainer.

    Raises:
        InputError: a sample is longer than the recipe allows, or cannot be encoded.
    """
    rows = []
    for sample in dataset.samples("train", recipe.adapters[name], recipe.language):
        try:
            row = encode_sample(tokenizer, sample.prompt, sample.answer)
        except InputError as problem:
            raise InputError(f"{sample.id}: {problem}.") from None
        size = len(row.input_ids)
        if size > recipe.max_tokens:
            raise InputError(
                f"{sample.id}: {size} tokens, max_tokens is {recipe.max_tokens}. Raise it or shorten the sample."
            )
        rows.append({"input_ids": row.input_ids, "attention_mask": [1] * size, "labels": row.labels})
    return rows
