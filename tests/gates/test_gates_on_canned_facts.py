"""Every gate on canned facts: healthy facts pass, a broken fact fails with its code, and the cause follows the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_gguf
from assay.errors import Inconclusive
from assay.gating.causes import FILE, read_causes
from assay.gating.evidence import Evidence
from assay.gating.gate import GateFailed
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.paths import GATES
from assay.record.outcome import Outcome, Status
from assay.steps.catalogue import (
    ComparePrompts,
    ConvertF16,
    EncodeDataset,
    InspectAdapter,
    LoadNf4,
    MeasureDistribution,
    Merge,
    MountNf4,
    QuantizeQ4,
    ReadDataset,
    RunLlamaCli,
    RunLlamaCppPython,
    SelfTest,
)
from assay.steps.step import Stage

from tests.gates.healthy import FORM, GATES_BY_ID, HEALTHY, RECORD, RUNTIME, TOOLCHAIN, judge, with_facts

CAUSES = read_causes(GATES / FILE, list(GATES_BY_ID))


@pytest.fixture(autouse=True)
def inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inputs that exist by name only: canned facts do not look at them."""
    monkeypatch.setattr(test_gguf, "find_toolchain", lambda: TOOLCHAIN)
    monkeypatch.setattr(TOOLCHAIN.__class__, "_facts", {"bin": ".", "source": "."})
    monkeypatch.setattr(Adapter, "path", tmp_path)
    monkeypatch.setattr(Adapter, "digest", "digest")
    monkeypatch.setattr(Base, "headers", tmp_path)


@pytest.mark.parametrize("gate", [id for id, gate in GATES_BY_ID.items() if gate.route != "task"])
def test_healthy_facts_pass(gate: str) -> None:
    judge(gate)


def answered(stage: Stage[Any], **changed: Any) -> dict[str, Any]:
    """The healthy answers of a stage, with some fields of the only answer changed."""
    answers = HEALTHY[stage].model_dump()["answers"]
    return {"answers": {"p": {**answers["p"], **changed}}}


def distance(**changed: Any) -> dict[str, Any]:
    assert FORM.distance is not None
    return {"distance": {**FORM.distance.model_dump(), **changed}}


def task(**changed: Any) -> dict[str, Any]:
    assert FORM.task is not None
    return {"task": {**FORM.task.model_dump(), **changed}}


STRENGTHS: list[tuple[str, Stage[Any]]] = [
    ("merged_strength_ok", Merge.strength),
    ("f16_strength_ok", ConvertF16.strength),
    ("q4_strength_ok", QuantizeQ4.strength),
    ("nf4_strength_ok", MountNf4.strength),
]
CHATTY = {"dialog": "two turns", "runtime": "llama.cpp", "transformers": "a", "other": "b"}
BROKEN: list[tuple[str, Stage[Any], dict[str, Any], str]] = [
    ("data_parse_ok", ReadDataset.read, {"lines_not_parsed": ["line 3"]}, "line-not-parsed"),
    ("data_parse_ok", ReadDataset.read, {"samples": 0}, "no-samples"),
    ("data_fields_ok", ReadDataset.read, {"lines_with_wrong_fields": ["x"]}, "wrong-fields"),
    ("data_template_ok", ReadDataset.read, {"lines_off_template": ["x"]}, "off-template"),
    ("data_counts_ok", ReadDataset.read, {"counts": {"en": {"style": {"added": 23}}}}, "samples-lost"),
    ("data_counts_ok", ReadDataset.read, {"without_counterpart": ["x"]}, "samples-lost"),
    ("data_unique_ok", ReadDataset.read, {"duplicates": ["x repeats y"]}, "duplicate"),
    ("data_no_leak_ok", ReadDataset.read, {"closest_pair_of_train_and_eval": None}, "no-samples"),
    (
        "data_no_leak_ok",
        ReadDataset.read,
        {"closest_pair_of_train_and_eval": {"similarity": 0.5, "train": "t", "eval": "e", "language": "en"}},
        "leak",
    ),
    ("data_references_ok", ReadDataset.read, {"references_not_scoring_full": ["x"]}, "reference-unscorable"),
    ("data_length_ok", EncodeDataset.encoded, {"longest_sample_tokens": 513}, "too-long"),
    ("data_labels_ok", EncodeDataset.encoded, {"not_encodable": ["x: no"]}, "not-encodable"),
    ("data_labels_ok", EncodeDataset.encoded, {"trained_on_more_or_less_than_the_answer": ["x"]}, "labels-off-answer"),
    ("data_labels_ok", EncodeDataset.encoded, {"without_end_token": ["x"]}, "no-end-token"),
    ("data_labels_ok", EncodeDataset.encoded, {"end_token_first": ["x"]}, "end-token-first"),
    ("data_prompt_ok", EncodeDataset.encoded, {"asked_otherwise_when_served": ["x"]}, "prompt-differs"),
    ("adapter_files_ok", InspectAdapter.inspected, {"peft_type": "IA3"}, "no-lora"),
    ("adapter_files_ok", InspectAdapter.inspected, {"adapted_modules": 0}, "keys-foreign"),
    ("adapter_files_ok", InspectAdapter.inspected, {"tensors_not_finite": ["x"]}, "tensors-not-finite"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_with_one_half": ["x"]}, "half-missing"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_that_misfit": ["x: 3×4"]}, "misfits"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_not_in_base": ["x"]}, "keys-renamed"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_without_effect": ["x", "y"]}, "untrained"),
    ("adapter_files_ok", InspectAdapter.inspected, {"unknown_tensors": ["x"]}, "keys-foreign"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_of_another_rank": ["x"]}, "rank-differs"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_in_file_but_not_targeted": ["x"]}, "config-narrower"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_targeted_but_not_in_file": ["x"]}, "incomplete"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_where_dora_disagrees": ["x"]}, "dora-disagrees"),
    ("adapter_files_ok", InspectAdapter.inspected, {"modules_to_save_not_in_file": ["x"]}, "saved-module-missing"),
    ("base_quant_load_ok", LoadNf4.loaded, {"layers_wrongly_left": ["l.0"]}, "layers-not-4bit"),
    ("base_quant_load_ok", LoadNf4.loaded, {"layers_expected_in_4bit": 0}, "no-linear-layers"),
    ("base_quant_load_ok", LoadNf4.loaded, {"matrices_left_bytes": 90}, "matrices-not-4bit"),
    ("base_quant_load_ok", LoadNf4.loaded, {"quantization_types": ["fp4"]}, "not-nf4"),
    ("base_quant_load_ok", LoadNf4.loaded, {"double_quantization": False}, "no-double-quantization"),
    ("base_quant_load_ok", LoadNf4.loaded, {"compute_dtypes": ["float32"]}, "compute-dtype"),
    ("base_quant_load_ok", LoadNf4.loaded, {"weight_bytes": 102}, "more-bytes-than-predicted"),
    ("base_quant_load_ok", LoadNf4.forward, {"logits_not_finite": 1}, "logits-not-finite"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"tensors_not_consumed": ["x"]}, "tensors-dropped"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"tensors_missing_in_file": ["x"]}, "tensors-missing"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"tensors_changed_on_the_way": ["x"]}, "tensors-changed"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"logits_not_finite": 3}, "logits-not-finite"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"largest_logit_change": 0.0}, "no-effect"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"largest_logit_change": None}, "no-effect"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"largest_logit_change_by_zero_adapter": 0.1}, "zero-adapter-moves"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"cosine_of_base_before_and_after_mounting": 0.9}, "base-changed"),
    ("<adapter>_lora_mount_ok", MountNf4.mounted, {"cosine_of_base_before_and_after_mounting": None}, "base-changed"),
    *[
        (gate, stage, answered(stage, kind=kind), f"answer-{kind}")
        for gate, stage in (
            ("<adapter>_generate_non_empty", MountNf4.generated),
            ("llama_cli_smoke_ok", RunLlamaCli.generated),
            ("llama_cpp_python_smoke_ok", RunLlamaCppPython.generated),
        )
        for kind in ("empty", "special-only", "white-space", "degenerate")
    ],
    ("<adapter>_generate_non_empty", MountNf4.generated, {"answers": {}}, "not-answered"),
    ("toolchain_ready", SelfTest.written, {"converter_present": False}, "converter-missing"),
    ("toolchain_ready", SelfTest.quantized, {"quantized_types": {"F16": 9}}, "no-q4-k"),
    ("toolchain_ready", SelfTest.llama_cli, {"llama_cli_answer": ""}, "computes-wrongly"),
    ("toolchain_ready", SelfTest.llama_cpp_python, {"llama_cpp_python_answer": "b"}, "computes-wrongly"),
    ("toolchain_ready", SelfTest.llama_cpp_python, {"same_libraries": False}, "other-libraries"),
    ("toolchain_ready", SelfTest.llama_cpp_python, {"library_commit": "abc"}, "version-skew"),
    ("toolchain_ready", SelfTest.written, {"converter_commit": "abc"}, "version-skew"),
    ("toolchain_ready", SelfTest.written, {"expected_commit": "abc"}, "version-skew"),
    ("toolchain_ready", SelfTest.llama_cpp_python, {"llama_cpp_python_release": "0.3.1"}, "version-skew"),
    ("merge_ok", Merge.compared, {"tensors_missing": ["x"]}, "tensors-missing"),
    ("merge_ok", Merge.compared, {"tensors_extra": ["x"]}, "tensors-extra"),
    ("merge_ok", Merge.compared, {"dtypes": ["F16"]}, "dtype"),
    ("merge_ok", Merge.compared, {"tensors_not_finite": ["x"]}, "tensors-not-finite"),
    ("merge_ok", Merge.compared, {"targeted_unchanged": ["x"]}, "targets-unchanged"),
    ("merge_ok", Merge.compared, {"others_changed": ["x"]}, "others-changed"),
    ("merge_ok", Merge.compared, {"largest_absolute_value": 7e4}, "overflows-f16"),
    (
        "merge_exact_ok",
        Merge.replayed,
        {"defects": [{"kind": "another adapter", "where": "w", "detail": "d"}]},
        "merge-another-adapter",
    ),
    ("merge_exact_ok", Merge.replayed, {"recipe": None}, "procedure-unknown"),
    *[
        (gate, stage, {"strength": g}, f"adapter-{kind}")
        for gate, stage in STRENGTHS
        for g, kind in ((0.0, "absent"), (2.0, "scaled"), (-1.0, "flipped"), (0.5, "scaled"))
    ],
    *[(gate, stage, {"strength_of_random_adapter": 0.2}, "control-failed") for gate, stage in STRENGTHS],
    ("convert_f16_ok", ConvertF16.compared, {"tensors_missing": ["x"]}, "tensors-missing"),
    ("convert_f16_ok", ConvertF16.compared, {"parameters": 999}, "parameters-differ"),
    ("convert_f16_ok", ConvertF16.compared, {"parameters_computed": 1}, "parameters-differ"),
    ("convert_f16_ok", ConvertF16.compared, {"tensors_not_finite": ["x"]}, "tensors-not-finite"),
    ("convert_f16_ok", ConvertF16.compared, {"file_type": "ALL_F32"}, "file-type"),
    ("convert_f16_ok", ConvertF16.compared, {"chat_template_present": False}, "no-chat-template"),
    ("convert_f16_ok", ConvertF16.compared, {"chat_template_equal": False}, "chat-template-differs"),
    ("convert_f16_ok", ConvertF16.compared, {"eos_token_id": 0}, "end-token-differs"),
    ("convert_f16_ok", ConvertF16.loaded, {"logits_not_finite": 1}, "logits-not-finite"),
    ("quantize_q4_ok", QuantizeQ4.inspected, {"file_type": "MOSTLY_Q4_0"}, "file-type"),
    ("quantize_q4_ok", QuantizeQ4.inspected, {"tensors_missing": ["x"]}, "tensors-differ"),
    ("quantize_q4_ok", QuantizeQ4.inspected, {"tensors_extra": ["x"]}, "tensors-differ"),
    ("quantize_q4_ok", QuantizeQ4.inspected, {"tensors_with_another_shape": ["x"]}, "tensors-differ"),
    ("quantize_q4_ok", QuantizeQ4.inspected, {"unforced_share_of_weights": 0.06}, "fallback-unforced"),
    ("quantize_q4_ok", QuantizeQ4.inspected, {"file_bytes": 30}, "not-smaller"),
    ("llama_cli_smoke_ok", RunLlamaCli.generated, answered(RunLlamaCli.generated, errors=["Error: x"]), "error-exit-0"),
    ("llama_cli_smoke_ok", RunLlamaCli.generated, answered(RunLlamaCli.generated, answer_found=False), "no-answer"),
    ("llama_cli_smoke_ok", RunLlamaCli.generated, {"answers": {}}, "not-answered"),
    ("llama_cpp_python_smoke_ok", RunLlamaCppPython.loaded, {"chat_template_present": False}, "no-chat-template"),
    (
        "llama_cpp_python_smoke_ok",
        RunLlamaCppPython.generated,
        answered(RunLlamaCppPython.generated, prompt_is_the_templates=False),
        "prompt-differs",
    ),
    ("gguf_parity_ok", ConvertF16.parity, {"metadata_that_differs": ["rope.freq_base"]}, "metadata-differs"),
    ("gguf_parity_ok", ConvertF16.parity, {"tensors_with_other_values": ["x"]}, "values-differ"),
    ("token_parity_ok", ComparePrompts.tokens, {"strings_tokenized_differently": ["'é'"]}, "tokens-differ"),
    ("prompt_parity_ok", ComparePrompts.prompts, {"prompts_rendered_differently": [CHATTY]}, "prompts-differ"),
    ("prompt_parity_ok", ComparePrompts.prompts, {"prompts_tokenized_differently": ["x"]}, "tokens-differ"),
    ("prompt_parity_ok", ComparePrompts.prompts, {"dialogs": 0}, "template-refuses"),
    ("prompt_parity_ok", ComparePrompts.prompts, {"start_tokens_at_most": 2}, "two-start-tokens"),
    ("q4_parity_ok", QuantizeQ4.noise, {"tensors_beyond_noise": ["x Q4_K by 90%"]}, "beyond-noise"),
    (
        "runtime_parity_ok",
        MeasureDistribution.of_runtimes,
        {
            "runtimes": {
                "llama_cpp_python": RUNTIME.model_dump(),
                "llama_cli": {**RUNTIME.model_dump(), "tokens_not_greedy": 90, "nats_from_greedy": 0.4},
            }
        },
        "not-greedy",
    ),
    ("merged_distribution_ok", MeasureDistribution.of_merged, distance(kl_mean=0.002), "not-exact"),
    ("f16_distribution_ok", MeasureDistribution.of_f16, distance(kl_mean=0.2), "not-exact"),
    *[
        (f"{form}_{what}_ok", stage, changed, code)
        for form, stage in {"nf4": MeasureDistribution.of_nf4, "q4": MeasureDistribution.of_q4}.items()
        for what, changed, code in (
            ("distribution", distance(perplexity_ratio_interval=[2.1, 3.0]), "another-model"),
            ("survives", task(share_lost_interval=[0.6, 1.4]), "fine-tune-lost"),
            ("survives", task(share_lost=None), "nothing-trained"),
        )
    ],
]
ASKED = {
    "nf4_task_ok": "task gates compare answers and read no facts of their own: tests/gating/test_task.py",
    "q4_task_ok": "the same",
}


def fails(gate: str, stage: Stage[Any], changed: dict[str, Any]) -> GateFailed:
    with pytest.raises(GateFailed) as raised:
        judge(gate, with_facts(stage, **changed))
    return raised.value


@pytest.mark.parametrize(
    ("gate", "stage", "changed", "code"), BROKEN, ids=[f"{one[0]}-{one[3]}-{at}" for at, one in enumerate(BROKEN)]
)
def test_a_broken_fact_fails_its_gate_with_its_code(
    gate: str, stage: Stage[Any], changed: dict[str, Any], code: str
) -> None:
    assert fails(gate, stage, changed).code == code


def test_every_gate_has_a_broken_fact() -> None:
    assert {one[0] for one in BROKEN} | set(ASKED) == set(GATES_BY_ID)


def named(gate: str, problem: GateFailed, evidence: Evidence, sentence: str) -> list[str]:
    outcome = Outcome(
        gate=gate,
        adapter="style",
        status=Status.FAILED,
        reason=sentence,
        code=problem.code,
        details=problem.details,
        facts=evidence.to_json(),
    )
    return [finding.id for finding in CAUSES.fitting(Path(), gate, outcome)]


@pytest.mark.parametrize(
    ("gate", "stage", "changed", "code"), BROKEN, ids=[f"{one[0]}-{one[3]}-{at}" for at, one in enumerate(BROKEN)]
)
def test_no_cause_depends_on_a_sentence(
    gate: str, stage: Stage[Any], changed: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sentence of every gate may be replaced by `x`, and the same causes are named."""
    looked: list[Evidence] = []
    note = Evidence.note

    def keep(self: Evidence, id: str, facts: Any) -> Any:
        looked.append(self)
        return note(self, id, facts)

    monkeypatch.setattr(Evidence, "note", keep)
    problem = fails(gate, stage, changed)
    evidence = looked[-1] if looked else Evidence(None)  # type: ignore[arg-type]
    assert named(gate, problem, evidence, str(problem)) == named(gate, problem, evidence, "x")


def test_what_is_inf_in_f16_may_be_converted_to_bf16_and_then_has_to_be() -> None:
    judge("merge_ok", with_facts(Merge.compared, largest_absolute_value=7e4), gguf_dtype="bf16")
    judge("convert_f16_ok", with_facts(ConvertF16.compared, file_type="MOSTLY_BF16"), gguf_dtype="bf16")
    with pytest.raises(GateFailed, match="expected MOSTLY_BF16"):
        judge("convert_f16_ok", gguf_dtype="bf16")


def test_thoughts_alone_fail_if_the_model_ended_there_and_cannot_be_judged_if_it_was_cut_off() -> None:
    cut = answered(MountNf4.generated, kind="think-only")
    with pytest.raises(Inconclusive, match="--max-new-tokens 1024"):
        judge("<adapter>_generate_non_empty", with_facts(MountNf4.generated, **cut))
    ended = answered(MountNf4.generated, kind="think-only", ended_by="end token")
    assert fails("<adapter>_generate_non_empty", MountNf4.generated, ended).code == "answer-think-only"


@pytest.mark.parametrize(
    ("gate", "stage", "changed", "sentence"),
    [
        ("q4_survives_ok", MeasureDistribution.of_q4, task(share_lost_interval=[0.4, 0.6]), "17 answers"),
        ("q4_distribution_ok", MeasureDistribution.of_q4, distance(perplexity_ratio_interval=[1.5, 2.5]), "20 seq"),
        ("q4_survives_ok", MeasureDistribution.of_q4, {"task": None}, "no answer was compared"),
        ("q4_strength_ok", QuantizeQ4.strength, {"adapter_relative_size": 0.0}, "no plain LoRA"),
        ("q4_strength_ok", QuantizeQ4.strength, {"measured": False}, "is not known here"),
        ("gguf_parity_ok", ConvertF16.parity, {"layout_is_modelled": False}, "is not known here"),
        ("runtime_parity_ok", MeasureDistribution.of_runtimes, {"runtimes": {}}, "contains a <think> block"),
    ],
)
def test_what_cannot_be_decided_is_inconclusive(
    gate: str, stage: Stage[Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Inconclusive, match=sentence):
        judge(gate, with_facts(stage, **changed))


@pytest.mark.parametrize("gate", list(ASKED))
def test_too_few_samples_for_a_task_are_inconclusive_and_empty_answers_fail(gate: str, tmp_path: Path) -> None:
    with pytest.raises((Inconclusive, GateFailed)) as raised:
        judge(gate, run=tmp_path) if gate == "nf4_task_ok" else judge(
            gate, with_facts(RunLlamaCppPython.generated, answers=_empty_answers()), run=tmp_path
        )
    assert isinstance(raised.value, Inconclusive if gate == "nf4_task_ok" else GateFailed)


def _empty_answers() -> dict[str, Any]:
    from tests.gates.healthy import TRAINING

    samples = TRAINING.dataset.samples("eval", ["style"], "en")
    return {one.id: {"text": "", "kind": "empty", "prompt_is_the_templates": True} for one in samples}


def test_an_adapter_trained_on_another_name_is_inconclusive_until_the_user_confirms_it() -> None:
    facts = with_facts(InspectAdapter.inspected, base_model_name_or_path="unsloth/other-8b")
    with pytest.raises(Inconclusive, match="--trained-on 'unsloth/other-8b'"):
        judge("adapter_files_ok", facts)
    confirmed = Adapter(name="style", source="a", trained_on="unsloth/other-8b")
    judge("adapter_files_ok", facts, adapter=confirmed)


def test_a_recorded_base_is_compared_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base, "digest", "f00")
    with pytest.raises(GateFailed, match="was trained on a base with digest bad") as raised:
        judge("adapter_files_ok", adapter=Adapter(name="style", source="a", recorded_base="bad"))
    assert raised.value.code == "base-changed"


def test_an_adapter_that_changed_since_training_is_refused() -> None:
    with pytest.raises(GateFailed, match="not the adapter that candidate") as raised:
        judge("adapter_files_ok", adapter=Adapter(name="style", source="a", recorded_digest="other"))
    assert raised.value.code == "changed-since-training"


def test_a_dataset_that_changed_since_training_is_inconclusive() -> None:
    changed = {**RECORD, "dataset": {**RECORD["dataset"], "digest": "other"}}  # type: ignore[dict-item]
    with pytest.raises(Inconclusive, match="changed since c was trained on it"):
        judge("data_parse_ok", record=changed)
