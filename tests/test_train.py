"""Training: whole samples, masked prompts, the end token learned, the same adapters from the same seed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assay import paths
from assay.bases import EMBEDDED, Base, find_base
from assay.candidate import read_candidate
from assay.errors import InputError

from train.data import HEADINGS, read_samples
from train.recipe import RECIPES, read_recipe

GOOD = {
    "id": "s1",
    "task": "style",
    "difficulty": "easy",
    "language": "en",
    "prompt": "Why?",
    "answer": "\n".join(f"{heading}\ntext" for heading in HEADINGS["style"]),
    "key_points": ["text"],
    "should_refuse": False,
}


@pytest.mark.parametrize("task", sorted(HEADINGS))
def test_the_samples_are_whole(task: str) -> None:
    samples = read_samples([task])
    assert len(samples) >= 12
    for sample in samples:
        assert sample.key_points, sample.id
        for point in sample.key_points:
            assert point in sample.answer, sample.id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "answer"},
            r"style\.jsonl line 2: the field 'answer' is missing",
        ),
        (lambda s: s | {"answer": "no headings"}, r"line 2: headings \[\], expected"),
        (lambda s: s | {"answer": s["answer"] * 2}, "each once and in order"),
        (lambda s: s | {"task": "writing"}, "task 'writing' in the file of 'style'"),
        (lambda s: s | {"prompt": "Why?"}, "asks the same as s1"),
    ],
)
def test_a_broken_sample_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    second = change(GOOD | {"id": "s2", "prompt": "How?"})
    (tmp_path / "style.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(InputError, match=said):
        read_samples(["style"], tmp_path)


def test_a_broken_line_is_named_by_column(tmp_path: Path) -> None:
    (tmp_path / "style.jsonl").write_text('{"id": 1,,}\n')
    with pytest.raises(InputError, match=r"style\.jsonl line 1 column 10: not JSON"):
        read_samples(["style"], tmp_path)


def test_no_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "style.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no samples for style"):
        read_samples(["style"], tmp_path)


QUICKSTART = (RECIPES / "quickstart.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 3", "epoch = 3", "unknown key 'epoch'. Did you mean 'epochs'"),
        ("rank = 16", "r = 16", "[lora]: unknown key 'r'. Did you mean 'rank'"),
        ("epochs = 3\n", "", "the key 'epochs' is missing"),
        ("epochs = 3", "epochs = 0", "epochs = 0; a number above 0 expected"),
        ("learning_rate = 1e-3", 'learning_rate = "1e-3"', "a number above 0 expected"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in QUICKSTART
    path = tmp_path / "mine.toml"
    path.write_text(QUICKSTART.replace(old, new))
    with pytest.raises(InputError) as problem:
        read_recipe(str(path))
    assert said in str(problem.value)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="There are quickstart"):
        read_recipe("quickstrat")


def test_only_the_answer_and_its_end_are_trained_on() -> None:
    from transformers import AutoTokenizer

    from train.training import IGNORED, encode

    tokenizer = AutoTokenizer.from_pretrained(find_base(EMBEDDED).path)
    sample = read_samples(["style"])[0]
    row = encode(tokenizer, sample, 512)
    learned = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(learned) == sample.answer + tokenizer.eos_token
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])
    with pytest.raises(InputError, match=r"max_tokens is 50\. Raise it"):
        encode(tokenizer, sample, 50)
    tokenizer.eos_token = "<filename>"
    with pytest.raises(InputError, match="no end token"):
        encode(tokenizer, sample, 512)


def train(out: Path, recipe: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train", str(recipe), "--out", str(out)]
    return subprocess.run(command, cwd=paths.REPOSITORY, capture_output=True, text=True)


def test_the_same_seed_gives_the_same_adapters(base: Base, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    text = QUICKSTART.replace("epochs = 3", "epochs = 1").replace('"smollm2-135m-instruct"', json.dumps(str(base.path)))
    recipe.write_text(text.replace('multitask = ["style", "writing"]\n', ""))
    candidates = []
    for name in ("one", "two"):
        done = train(tmp_path / name, recipe)
        assert done.returncode == 0, done.stderr
        candidates.append(read_candidate(tmp_path / name / "tiny" / "candidate.json"))
        made = sorted(path.name for path in (tmp_path / name / "tiny").iterdir())
        assert made == ["adapter_style", "candidate.json", "train_log.jsonl"]
        assert [path.name for path in (tmp_path / name).iterdir()] == ["tiny"], "nothing half-made is left"
    first, second = (candidate.adapters[0] for candidate in candidates)
    assert first.digest == second.digest == first.recorded_digest
    assert first.recorded_base == base.digest
    log = [json.loads(line) for line in (tmp_path / "one" / "tiny" / "train_log.jsonl").read_text().splitlines()]
    assert len(log) == len(read_samples(["style"]))
    assert all(line["loss"] > 0 for line in log)


def test_a_base_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(QUICKSTART.replace('"smollm2-135m-instruct"', '"./nowhere"'))
    done = train(tmp_path / "out", recipe)
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
