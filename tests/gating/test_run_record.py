"""What `run.json` says of a run before its first gate: the expected gates, and what is known of the candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from assay.gating.gate import read_gates
from assay.gating.policy import Policy, read_policy
from assay.gating.run_record import describe_candidate, expected_gates, forecast_of, training_of
from assay.inputs.candidate import Candidate, given_candidate, read_candidate
from assay.paths import GATES
from assay.record.run import Severity
from assay.record.training import TrainingRecord

from tests.samples import write_adapter


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    write_adapter(tmp_path / "adapter_style", {"l.q_proj": (4, 4)}, base="b")
    training = {
        "recipe": {"language": "en", "max_tokens": 9, "adapters": {"style": ["style"]}},
        "dataset": {"path": "d", "digest": "0", "added": "by a later trainer"},
        "results": {"style": {"seconds": 2.0, "added": "by a later trainer"}},
    }
    adapters = {"style": {"path": "adapter_style"}}
    text = {"version": 1, "name": "c", "base": {"id": "./nowhere"}, "adapters": adapters, "training": training}
    (tmp_path / "candidate.json").write_text(json.dumps(text))
    log = [{"adapter": "style", "step": step, "loss": 1 / step} for step in (1, 2)]
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return read_candidate(tmp_path / "candidate.json")


def training(candidate: Candidate) -> TrainingRecord:
    found = training_of(candidate)
    assert found is not None
    return found


def write_evaluation(candidate: Candidate, digest: str, **changes: Any) -> None:
    share = {"successes": 1, "share": 1.0, "lower_bound": 0.05}
    one = {
        "language": "en",
        "summary": {"style": {"n": 1, "coverage": share, "format": share, "refusal": share}},
        "why_empty": None,
        "seconds": 1.0,
        "peak_host_bytes": 1,
        "peak_device_bytes": None,
        "samples": ["long"],
    }
    forms = {"full": {"style": {**one, **changes}}}
    text = {"version": 1, "digests": {"style": digest}, "forms": forms}
    (candidate.folder / "evaluation.json").write_text(json.dumps(text))


def test_curves_figures_and_results_are_in_the_record(candidate: Candidate) -> None:
    write_evaluation(candidate, candidate.adapters[0].digest)
    found = training(candidate)
    assert found.curves == {"style": ((1, 1.0), (2, 0.5))}
    assert found.results["style"].seconds == 2.0
    assert found.evaluation is not None
    assert found.evaluation.forms["full"]["style"].summary["style"].n == 1


def test_figures_of_another_adapter_are_not_shown(candidate: Candidate) -> None:
    write_evaluation(candidate, "of another training")
    assert training(candidate).evaluation is None


def test_figures_of_another_type_are_not_shown(candidate: Candidate) -> None:
    write_evaluation(candidate, candidate.adapters[0].digest, summary=3)
    assert training(candidate).evaluation is None


@pytest.mark.parametrize("text", ["{", "[]", '{"forms": 3}'])
def test_what_cannot_be_read_is_not_shown(candidate: Candidate, text: str) -> None:
    (candidate.folder / "evaluation.json").write_text(text)
    assert training(candidate).evaluation is None
    (candidate.folder / "train_log.jsonl").write_text('{"adapter": "sty')
    assert training(candidate).curves == {}


@pytest.mark.parametrize("results", [3, {"style": 3}, {"style": {"seconds": "long"}}])
def test_a_training_that_cannot_be_read_is_not_shown(candidate: Candidate, results: object) -> None:
    assert candidate.record is not None
    candidate.record["results"] = results
    assert training_of(candidate) is None


def test_adapters_that_were_trained_elsewhere_have_no_training() -> None:
    assert training_of(given_candidate("./nowhere", ["style=./none"], None, None)) is None


def test_what_cannot_be_read_of_a_candidate_is_null(candidate: Candidate) -> None:
    described = describe_candidate(candidate)
    assert described.adapters == {"style": "adapter_style"}, "no path of the machine that judged"
    assert described.digests == {"base": None, "style": candidate.adapters[0].digest}
    assert forecast_of(candidate) is None


def expected(candidate: Candidate) -> list[tuple[str, str | None]]:
    gates = read_gates(GATES)
    policy = read_policy(GATES / "policy.toml", [gate.id for gate in gates])
    return [gate.key for gate in expected_gates(candidate, policy, gates)]


def test_every_gate_is_expected_of_a_candidate_that_was_trained_here(candidate: Candidate) -> None:
    names = {gate.name_for("style") for gate in read_gates(GATES)}
    assert {gate for gate, _ in expected(candidate)} == names


def test_gates_without_anything_to_judge_are_not_expected(candidate: Candidate) -> None:
    elsewhere = expected(given_candidate("./nowhere", ["one=./none", "two=./none"], None, None))
    assert [key for key in elsewhere if key[0] == "merge_ok"] == [("merge_ok", "one"), ("merge_ok", "two")]
    assert [adapter for gate, adapter in elsewhere if gate == "toolchain_ready"] == [None]
    needs_data = {gate.id for gate in read_gates(GATES) if gate.per == "dataset" or "training" in gate.needs}
    assert needs_data
    assert not needs_data & {gate for gate, _ in elsewhere}


def test_the_order_and_the_severity_are_the_policys(candidate: Candidate) -> None:
    severity = {"<adapter>_lora_mount_ok": Severity.SECONDARY, "base_quant_load_ok": Severity.PRIMARY}
    found = expected_gates(candidate, Policy(severity=severity), read_gates(GATES))
    assert [(gate.gate, gate.adapter, gate.severity.value) for gate in found] == [
        ("style_lora_mount_ok", "style", "secondary"),
        ("base_quant_load_ok", None, "primary"),
    ]
    assert all(gate.title and gate.guide for gate in found), "the record explains itself"
