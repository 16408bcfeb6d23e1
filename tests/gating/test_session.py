"""What a run's record says of the training: only of the adapters judged, and nothing that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from assay.gating.session import GatesSession
from assay.inputs.candidate import Candidate, read_candidate

from tests.samples import write_adapter


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    write_adapter(tmp_path / "adapter_style", {"l.q_proj": (4, 4)}, base="b")
    training = {
        "recipe": {"language": "en", "max_tokens": 9, "adapters": {"style": ["style"]}},
        "dataset": {"path": "d", "digest": "0"},
        "results": {},
    }
    adapters = {"style": {"path": "adapter_style"}}
    text = {"version": 1, "name": "c", "base": {"id": "b"}, "adapters": adapters, "training": training}
    (tmp_path / "candidate.json").write_text(json.dumps(text))
    log = [{"adapter": "style", "step": step, "loss": 1 / step} for step in (1, 2)]
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return read_candidate(tmp_path / "candidate.json")


def training_of(candidate: Candidate) -> dict[str, Any]:
    found = GatesSession._training(cast(GatesSession, SimpleNamespace(candidate=candidate)))
    assert found is not None
    return found


def write_evaluation(candidate: Candidate, digest: str) -> None:
    one = dict.fromkeys(("language", "summary", "why_empty", "seconds", "peak_host_bytes", "peak_device_bytes"), 1)
    forms = {"full": {"style": {**one, "samples": ["long"]}}}
    text = {"version": 1, "digests": {"style": digest}, "forms": forms}
    (candidate.folder / "evaluation.json").write_text(json.dumps(text))


def test_curves_and_figures_are_in_the_record(candidate: Candidate) -> None:
    write_evaluation(candidate, candidate.adapters[0].digest)
    found = training_of(candidate)
    assert found["curves"] == {"style": [[1, 1.0], [2, 0.5]]}
    assert "samples" not in found["evaluation"]["forms"]["full"]["style"], "answers stay in evaluation.json"


def test_figures_of_another_adapter_are_not_shown(candidate: Candidate) -> None:
    write_evaluation(candidate, "of another training")
    assert training_of(candidate)["evaluation"] is None


@pytest.mark.parametrize("text", ["{", "[]", '{"forms": 3}'])
def test_what_cannot_be_read_is_not_shown(candidate: Candidate, text: str) -> None:
    (candidate.folder / "evaluation.json").write_text(text)
    assert training_of(candidate)["evaluation"] is None
    (candidate.folder / "train_log.jsonl").write_text('{"adapter": "sty')
    assert training_of(candidate)["curves"] == {}
