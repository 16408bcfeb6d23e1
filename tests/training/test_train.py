"""Training: the same adapters from the same seed, killed or not, and nothing trained on bad data."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from assay import paths
from assay.errors import InputError
from assay.inputs.bases import Base
from assay.inputs.candidate import read_candidate
from assay.inputs.dataset import read_dataset

from tests.samples import TINY, start_training, train
from train.recipe import Recipe, read_recipe

DATA = paths.REPOSITORY / "train" / "data"


@pytest.mark.needs_toolchain
def test_a_sample_that_is_too_long_is_refused_and_never_cut() -> None:
    from assay.inputs.bases import EMBEDDED, find_base
    from transformers import AutoTokenizer

    from train.training import encode_samples

    tokenizer = AutoTokenizer.from_pretrained(find_base(EMBEDDED).path)
    recipe = read_recipe("quickstart", ["max_tokens=150"])
    with pytest.raises(InputError, match=r"style-\d+: \d+ tokens, max_tokens is 150. Raise it"):
        encode_samples(recipe, "style", read_dataset(DATA), tokenizer)


def adapters(out: Path) -> dict[str, bytes]:
    folder = out / "quickstart"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("adapter_*/*"))}


@pytest.mark.slow(seconds=35)
def test_what_training_leaves(trained: Path, base: Base) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["quickstart"], "nothing half-made is left"
    folder = trained / "quickstart"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_style",
        "adapter_writing",
        "candidate.json",
        "train_log.jsonl",
    ]
    candidate = read_candidate(folder / "candidate.json")
    assert {one.name: one.digest for one in candidate.adapters} == {
        one.name: one.recorded_digest for one in candidate.adapters
    }
    assert candidate.adapters[0].recorded_base == base.digest
    assert candidate.training.dataset.digest == read_dataset(DATA).digest
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [*range(1, 71), *range(1, 49)]
    assert all(line["loss"] > 0 for line in log)
    assert candidate.record is not None
    result = candidate.record["results"]["style"]
    assert result["trainable_parameters"] == sum(16 * (tensor["in"] + tensor["out"]) for tensor in linears_of(base)), (
        "as `assay plan` counts"
    )
    assert result["last_loss"] < result["first_loss"]
    assert result["peak_bytes_predicted"] > 0


def linears_of(base: Base) -> list[dict[str, int]]:
    from assay.files import read_json
    from assay.measures.sizing import adapted, shapes_from_headers

    shapes = shapes_from_headers(base.tensors, read_json(base.path / "config.json"))
    found = adapted(shapes, read_recipe("quickstart").lora.targets)
    return [{"out": rows, "in": columns} for rows, columns in found.values()]


KILLS = int(os.environ.get("ASSAY_TEST_KILLS", "3"))
"""docs/evidence/quickstart-on-two-cores.md tells of ten."""


@pytest.mark.slow(seconds=60)
def test_a_training_killed_at_random_points_ends_in_the_same_bytes(trained: Path, base: Base, tmp_path: Path) -> None:
    chance = random.Random(20260209)
    points = sorted(chance.sample(range(5, 110), KILLS))
    """Steps, over both adapters, after which the process and all its children are killed."""
    log = tmp_path / ".quickstart.part" / "train_log.jsonl"
    for point in points:
        process = start_training(base, tmp_path)
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < point):
            time.sleep(0.005)
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "quickstart").exists(), "nothing stands under its final name before it is whole"
    said = train(base, tmp_path)
    assert "Resuming the training of quickstart." in said
    assert adapters(tmp_path) == adapters(trained)
    lines = [json.loads(line) for line in (tmp_path / "quickstart" / "train_log.jsonl").read_text().splitlines()]
    uninterrupted = (trained / "quickstart" / "train_log.jsonl").read_text().splitlines()
    assert [(line["adapter"], line["step"], line["loss"]) for line in lines] == [
        (line["adapter"], line["step"], line["loss"]) for line in map(json.loads, uninterrupted)
    ], "the log has each step once, as if nothing had happened"


def test_half_a_checkpoint_and_half_a_line_are_passed_over(tmp_path: Path) -> None:
    from train.callbacks import kept_lines, newest_checkpoint

    assert newest_checkpoint(tmp_path) is None
    for step, whole in ((7, True), (14, True), (21, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "whole").touch()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-14")
    (tmp_path / "log").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert kept_lines(tmp_path / "log") == [{"step": 1}, {"step": 2}]


@pytest.mark.slow(seconds=15)
def test_another_recipe_does_not_go_on_from_a_killed_one(base: Base, tmp_path: Path) -> None:
    part = tmp_path / ".quickstart.part"
    part.mkdir()
    (part / "planned.json").write_text("{}")
    (part / "adapter_style.json").write_text("{}")
    said = train(base, tmp_path, "--seed", "7", '--set=adapters={writing=["writing"]}', "--set=epochs=1")
    assert "Resuming" not in said
    assert [one.name for one in read_candidate(tmp_path / "quickstart" / "candidate.json").adapters] == ["writing"]


@pytest.mark.slow(seconds=30)
def test_two_processes_train_one_adapter_together(base: Base, tmp_path: Path) -> None:
    """Two processes of the CPU, as `accelerate launch` starts them for two GPUs (for a CPU it would need MPI)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "train", "quickstart"]
    command += ["--base", str(base.path), "--out", str(tmp_path), *TINY, "--set=batch_size=2", "--set=epochs=1"]
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, cwd=paths.REPOSITORY, capture_output=True, text=True, env={**os.environ, **own}, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    candidate = read_candidate(tmp_path / "quickstart" / "candidate.json")
    assert candidate.record is not None
    assert candidate.record["processes"] == 2
    assert candidate.record["results"]["style"]["steps"] == 18, "35 samples, two a step, one on each process"
    assert {one.name: one.digest for one in candidate.adapters} == {
        one.name: one.recorded_digest for one in candidate.adapters
    }
    assert done.stdout.count("Candidate:") == 1


def refused(base: Base, out: Path, *more: str) -> str:
    process = start_training(base, out, *more)
    said, _ = process.communicate()
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert not (out / "quickstart").exists()
    return said


@pytest.mark.slow(seconds=12)
def test_nothing_is_trained_on_data_that_fails_a_gate(base: Base, tmp_path: Path) -> None:
    data = Path(shutil.copytree(DATA, tmp_path / "data"))
    held_out = json.loads((data / "eval" / "style.en.jsonl").read_text().splitlines()[0])
    lines = (data / "train" / "style.en.jsonl").read_text().splitlines()
    reworded = {"id": "style-35", "origin": "added", "prompt": "Tell me: " + held_out["prompt"]}
    lines[-1] = json.dumps(held_out | reworded)
    (data / "train" / "style.en.jsonl").write_text("\n".join(lines) + "\n")
    said = refused(base, tmp_path / "out", "--data", str(data))
    assert "data_no_leak_ok first: style-35 (en) is nearly style-eval-01" in said
    assert "Nothing was trained." in said
    (data / "train" / "style.en.jsonl").write_text("{\n")
    assert "style.en.jsonl line 1 column 2: not JSON" in refused(base, tmp_path / "out", "--data", str(data))


@pytest.mark.slow(seconds=6)
def test_a_base_that_is_not_there_is_one_sentence(base: Base, tmp_path: Path) -> None:
    assert "no such folder" in refused(base, tmp_path / "out", "--base", "./nowhere")


@pytest.mark.slow(seconds=6)
def test_a_second_training_of_the_same_candidate_is_refused(base: Base, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".quickstart.lock"):
        assert "another process is training it" in refused(base, tmp_path)


@pytest.mark.slow(seconds=40)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_under_the_final_name(base: Base, tmp_path: Path) -> None:
    """A file of the size of a weight file cannot be written: as when the disk is full."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    limited += "import runpy; sys.argv[0] = 'train'; runpy.run_module('train', run_name='__main__')"
    command = [sys.executable, "-c", limited, "quickstart", "--base", str(base.path), "--out", str(tmp_path), *TINY]
    done = subprocess.run(command, cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert done.returncode != 0
    assert not (tmp_path / "quickstart").exists()
    assert "Free some space" in done.stderr, done.stderr[-2000:]
    said = train(base, tmp_path)
    assert "Resuming the training of quickstart" in said


def linear_4bit(backward: bool = True) -> Any:
    """A 4-bit layer whose backward pass is right, or missing as on some processors."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    packed, state = quantize_4bit(torch.randn(256, 512, dtype=torch.bfloat16), quant_type="nf4")

    class Linear4bit(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(packed, requires_grad=False)
            self.weight.quant_state = state

        def forward(self, inputs: Any) -> Any:
            weight = dequantize_4bit(self.weight.data, state).to(inputs.dtype)
            if backward:
                return inputs @ weight.T
            return (inputs.detach() @ weight.T) + 0 * inputs.sum()

    return Linear4bit()


def test_training_in_4_bits_is_refused_where_its_gradient_is_wrong() -> None:
    import torch

    from train.gradients import check_4bit_gradients

    healthy, broken = (torch.nn.Sequential(torch.nn.Sequential(linear_4bit(backward))) for backward in (True, False))
    assert check_4bit_gradients(healthy) < 0.01
    with pytest.raises(InputError, match="the gradient through this 4-bit layer is off by 100%"):
        check_4bit_gradients(broken)
    with pytest.raises(InputError, match="no 4-bit layer"):
        check_4bit_gradients(torch.nn.Linear(2, 2))


def test_a_cpu_trains_over_16_or_32_bits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from train import model

    recipe: Recipe = read_recipe("v3b")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not model.in_4bit(recipe)
    assert "instead of nf4 (4-bit gradients need CUDA)" in model.held_in(recipe)
