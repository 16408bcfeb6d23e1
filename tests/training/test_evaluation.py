"""Evaluation: the forms side by side, empty answers explained, and only of the adapters that were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from assay.errors import InputError
from assay.measures.answers import Kind
from assay.steps.answers import Answer

from train import evaluation
from train.__main__ import main
from train.evaluation import why_empty

SAID = Answer(kind=Kind.OK, text="x")


def empty(kind: str, **more: Any) -> dict[str, Answer]:
    return {"a": Answer(kind=Kind(kind), text="", **more), "b": SAID}


def test_each_cause_of_empty_answers_is_named() -> None:
    learned = {"first_loss": 4.0, "last_loss": 1.0}
    assert why_empty({"a": SAID}, learned) is None
    assert why_empty({"a": Answer(kind=Kind.DEGENERATE, text="x")}, learned) is None
    said = why_empty(empty("empty", p_end_at_first_position=0.98, text_when_forced="### Diagnosis"), learned)
    assert said is not None
    assert said.startswith("1 of 2 answers are empty (empty): the end token comes first (P(end) = 0.98)")
    assert "`data_labels_ok` names such samples. Without the end token the model answers '### Diagnosis'" in said
    diverged = why_empty(empty("white-space"), {"first_loss": 4.3, "last_loss": 7.7})
    assert diverged is not None
    assert "training diverged, the loss went from 4.30 to 7.70. Lower the learning rate." in diverged
    assert "diverged" in (why_empty(empty("empty"), {"first_loss": 4.3, "last_loss": float("nan")}) or "")
    assert "no text after <think>" in (why_empty(empty("think-only"), learned) or "")
    assert "the cause is not known" in (why_empty(empty("special-only"), None) or "")


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory, base: Any) -> Path:
    """Two adapters for the small Qwen3: one as trained, one that was taught to end at once."""
    import test_data  # noqa: F401  # the gates' folder is on the path
    from assay.files import digest_files
    from assay.inputs.dataset import read_dataset
    from assay.paths import REPOSITORY

    from tests.samples import write_adapter

    folder = tmp_path_factory.mktemp("candidate")
    shapes = {"model.layers.0.self_attn.q_proj": (256, 256), "model.layers.1.mlp.up_proj": (512, 256)}
    adapters = {}
    for name in ("style", "writing"):
        path = write_adapter(folder / f"adapter_{name}", shapes, base=str(base.path))
        digest = digest_files(path, ["adapter_config.json", "adapter_model.safetensors"])
        adapters[name] = {"path": path.name, "digest": digest}
    data = REPOSITORY / "train" / "data"
    training = {
        "recipe": {"adapters": {"style": ["style"], "writing": ["writing"]}, "language": "en", "max_tokens": 512},
        "dataset": {"name": "v3", "path": str(data), "digest": read_dataset(data).digest},
        "results": {},
    }
    base_record = {"id": str(base.path), "revision": None, "digest": base.digest}
    text = {"version": 1, "name": "tiny", "base": base_record, "adapters": adapters, "training": training}
    (folder / "candidate.json").write_text(json.dumps(text))
    return folder


@pytest.mark.slow(seconds=30)
def test_all_forms_are_asked_the_same_and_stand_side_by_side(
    candidate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = list(evaluation.FORMS)
    options = ["--adapters", "writing", "--max-new-tokens", "4"]
    assert main(["evaluate", str(candidate), "--forms", *forms, *options]) == 0
    said = capsys.readouterr().out
    for form in forms:
        assert f"{form}, writing, writing: coverage > 0.85: not met (0 of 6)" in said
    result = json.loads((candidate / "evaluation.json").read_text())
    assert list(result["forms"]) == forms
    for form in forms:
        one = result["forms"][form]["writing"]
        assert [sample["id"] for sample in one["samples"]] == [f"writing-eval-0{number}" for number in range(1, 7)]
        assert one["summary"]["writing"]["n"] == 6
        assert one["peak_host_bytes"] > 0
    full, merged = (result["forms"][form]["writing"]["samples"] for form in ("full", "merged"))
    assert len({sample["answer"] for sample in full}) > 1, "each question has its own answer"
    assert [sample["kind"] for sample in full] == [sample["kind"] for sample in merged]


@pytest.mark.slow(seconds=6)
def test_evaluating_one_more_adapter_keeps_what_was_measured(candidate: Path) -> None:
    assert main(["evaluate", str(candidate / "candidate.json"), "--adapters", "style", "--max-new-tokens", "2"]) == 0
    result = json.loads((candidate / "evaluation.json").read_text())
    assert {"writing", "style"} <= set(result["forms"]["full"])


def test_figures_of_an_earlier_training_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    assert evaluation._earlier(file, {"style": "a"}) is None
    file.write_text(json.dumps({"digests": {"style": "a"}, "forms": {}}))
    assert evaluation._earlier(file, {"style": "a"}) is not None
    assert evaluation._earlier(file, {"style": "b"}) is None


def test_what_cannot_be_evaluated_is_one_sentence(
    candidate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(candidate), "--adapters", "multitask"]) == 2
    assert "no adapter 'multitask'. It has style, writing" in capsys.readouterr().err
    data = json.loads((candidate / "candidate.json").read_text())
    del data["training"]
    (tmp_path / "candidate.json").write_text(json.dumps(data))
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "does not say which dataset the adapters were trained on" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nowhere.json")]) == 2
    assert "not found" in capsys.readouterr().err


@pytest.mark.slow(seconds=8)
@pytest.mark.needs_toolchain
def test_an_adapter_that_ends_at_once_is_classified_and_explained() -> None:
    """From the model's own logits on: batches on the left, the first token, the forced continuation."""
    import torch
    from assay.inputs.bases import EMBEDDED, find_base
    from assay.workers.ask import answer_all
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = find_base(EMBEDDED).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    questions = {"short": "Hi.", "long": "What is the capital of France? Answer in one word, please."}
    healthy = answer_all(model, tokenizer, "cpu", questions, 12)
    alone = answer_all(model, tokenizer, "cpu", {"long": questions["long"]}, 12)
    assert healthy["long"].text == alone["long"].text, "padding beside a longer question changes nothing"
    assert "Paris" in healthy["long"].text
    assert (healthy["long"].p_end_at_first_position or 0) < 0.01

    class EndsAtOnce(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, head: Any) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: Any) -> Any:
            logits = self.head(hidden)
            logits[..., tokenizer.eos_token_id] += 100.0
            return logits

    model.lm_head = EndsAtOnce(model.lm_head)
    ended = answer_all(model, tokenizer, "cpu", questions, 12)
    assert {answer.kind for answer in ended.values()} == {Kind.EMPTY}
    assert all((answer.p_end_at_first_position or 0) > 0.99 for answer in ended.values())
    assert ended["long"].text_when_forced, "what it says behind the end token is kept"
    assert "the end token comes first (P(end) = 1.00)" in (why_empty(ended, None) or "")


def test_a_sample_that_is_nobodys_is_refused(candidate: Path) -> None:
    from assay.inputs.candidate import read_candidate

    with pytest.raises(InputError, match="unknown language 'fr'"):
        evaluation.evaluate(
            read_candidate(candidate / "candidate.json"), forms=["full"], adapters=["style"], language="fr", limit=2
        )
