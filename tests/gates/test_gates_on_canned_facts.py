"""Each gate, as the pure function of facts that it is: healthy facts pass, and every way of being broken fails it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import test_bnb
import test_data
import test_fidelity
import test_gguf
import test_parity
from assay.errors import Inconclusive, Unavailable
from assay.gating.gate import gate_of
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate, Training
from assay.inputs.dataset import read_dataset
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain
from assay.measures.encoding import FLAWS
from assay.paths import REPOSITORY
from assay.steps.catalogue import EncodeDataset, MeasureDistribution, ReadDataset
from assay.steps.runner import Bench
from assay.steps.step import Step
from assay.steps.store import Artifact

ANSWERS = {
    "p": {
        "text": "C = εA/d",
        "kind": "ok",
        "errors": [],
        "answer_found": True,
        "prompt_is_the_templates": True,
        "p_end_at_first_position": 0.5,
    }
}
STRENGTH = {
    "strength": 0.99,
    "strength_standard_error": 0.001,
    "strength_of_random_adapter": 0.001,
    "strength_furthest_layers": ["w 0.90"],
    "adapter_relative_size": 0.02,
}
DISTANCE = {
    "kl_mean": 1e-4,
    "kl_mean_interval": [9e-5, 2e-4],
    "kl_max": 0.01,
    "scored_tokens": 4000,
    "sequences": 20,
    "perplexity_ratio": 1.1,
    "perplexity_ratio_interval": [1.0, 1.2],
    "kl_on_task": 0.1,
    "kl_of_base_on_task": 2.0,
    "share_lost": 0.05,
    "share_lost_interval": [0.04, 0.06],
    "task_sequences": 17,
}
RUNTIME = {"answer_tokens": 200, "tokens_not_greedy": 1, "nats_from_greedy": 1e-4}
HEALTHY: dict[str, dict[str, dict[str, Any]]] = {
    "dataset.read": {
        "read": {
            "samples": 152,
            "lines_not_parsed": [],
            "lines_with_wrong_fields": [],
            "lines_off_template": [],
            "counts": {"en": {"style": {"added": 24}}},
            "counts_expected": {"style": {"added": 24}},
            "without_counterpart": [],
            "duplicates": [],
            "closest_pair_of_train_and_eval": {"similarity": 0.2, "train": "t", "eval": "e", "language": "en"},
            "references_not_scoring_full": [],
        }
    },
    "dataset.encode": {
        "encode": {
            "longest_sample": "style-01",
            "longest_sample_tokens": 230,
            "end_tokens_when_served": [2],
            "not_encodable": [],
            **{name: [] for name in FLAWS},
        }
    },
    "bnb.load": {
        "load": {
            "layers_wrongly_left": [],
            "layers_expected_in_4bit": 210,
            "matrices_left_in_16_bit": [],
            "matrices_left_bytes": 0,
            "quantization_types": ["nf4"],
            "double_quantization": True,
            "compute_dtypes": ["bfloat16"],
            "weight_bytes": 100,
            "weight_bytes_predicted": 99,
        },
        "forward": {"logits": 10, "logits_not_finite": 0},
    },
    "adapter.inspect": {
        "inspect": {
            "peft_type": "LORA",
            "adapted_modules": 2,
            "saved_modules": [],
            "tensors": 4,
            "tensors_not_finite": [],
            "modules_with_one_half": [],
            "modules_that_misfit": [],
            "modules_not_in_base": [],
            "modules_without_effect": [],
            "unknown_tensors": [],
            "modules_of_another_rank": [],
            "modules_in_file_but_not_targeted": [],
            "modules_targeted_but_not_in_file": [],
            "modules_where_dora_disagrees": [],
            "modules_to_save_not_in_file": [],
            "base_model_name_or_path": "mirror/tiny",
        }
    },
    "bnb.mount": {
        "load": {},
        "mount": {
            "tensors_in_file": 4,
            "tensors_not_consumed": [],
            "tensors_missing_in_file": [],
            "tensors_changed_on_the_way": [],
            "logits_not_finite": 0,
            "largest_logit_change": 1.5,
            "largest_logit_change_by_zero_adapter": 0.0,
            "cosine_of_base_before_and_after_mounting": 1.0,
            **STRENGTH,
        },
        "generate": {"answers": ANSWERS},
    },
    "self_test.run": {
        "all": {
            "converter_present": True,
            "converter_commit": "0c1e57098",
            "quantized_types": {"Q4_K": 3},
            "expected_answer": "aaaa",
            "llama_cli_answer": "aaaa",
            "llama_cpp_python_answer": "aaaa",
            "same_libraries": True,
            "llama_cli_commit": "0c1e570",
            "library_commit": "0c1e570",
            "expected_commit": "0c1e570",
            "llama_cpp_python_release": "0.3.36",
            "expected_release": "0.3.36",
        }
    },
    "merge.fold": {
        "compare": {
            "tensors_missing": [],
            "tensors_extra": [],
            "dtypes": ["BF16"],
            "tensors_not_finite": [],
            "targeted_unchanged": [],
            "others_changed": [],
            "tensors_targeted": 2,
            "largest_absolute_value": 9.0,
            "largest_absolute_value_in": "w",
            "defects": [],
            "recipe": "rounded once",
            **STRENGTH,
        }
    },
    "gguf.convert": {
        "compare": {
            "header_sha256": "0",
            "architecture": "llama",
            "layout_is_modelled": True,
            "tensors_with_other_values": [],
            "metadata_that_differs": [],
            **STRENGTH,
            "tensors_missing": [],
            "tensors_extra": [],
            "tensors_unmapped": [],
            "parameters": 1000,
            "parameters_computed": 0,
            "source_parameters": 1000,
            "tensors_not_finite": [],
            "file_type": "MOSTLY_F16",
            "chat_template_present": True,
            "chat_template_equal": True,
            "eos_token_id": 2,
            "source_eos_token_id": 2,
            "logits_not_finite": 0,
        }
    },
    "gguf.quantize": {
        "inspect": {
            "tensors_beyond_noise": [],
            **STRENGTH,
            "file_type": "MOSTLY_Q4_K_M",
            "tensors_missing": [],
            "tensors_extra": [],
            "tensors_with_another_shape": [],
            "fallbacks_unforced": [],
            "unforced_share_of_weights": 0.0,
            "fallbacks_forced_by_shape": ["blk.0 Q5_0 (row of 576)"],
            "file_bytes": 10,
            "source_bytes": 30,
        }
    },
    "parity.prompts": {
        "tokens": {"strings": 20, "strings_tokenized_differently": []},
        "prompts": {
            "dialogs": 9,
            "dialogs_refused_by_template": [],
            "prompts_rendered_differently": [],
            "prompts_tokenized_differently": [],
            "start_tokens_at_most": 1,
        },
    },
    "distribution.measure": {
        "reference": {},
        **dict.fromkeys(("merged", "nf4", "f16", "q4"), DISTANCE),
        "runtimes": {"runtimes": {"llama_cli": RUNTIME, "llama_cpp_python": RUNTIME}},
        "waterfall": {"loss_enters_at": "q4"},
    },
    "smoke.llama_cli": {"generate": {"answers": ANSWERS}},
    "smoke.llama_cpp_python": {
        "load": {"chat_template_present": True, "chat_format": "chat_template.default"},
        "generate": {"answers": ANSWERS},
    },
}

BASE = Base(id="mirror/tiny", revision=None, path=Path("base"))
ADAPTER = Adapter(name="style", source="adapter")
ARTIFACT = Artifact(path=Path("a"), digest="0", step="s", stages={}, run="r", seconds=0.0, peak_rss_bytes=0)
DATA = REPOSITORY / "train" / "data"
TRAINING = Training(dataset=read_dataset(DATA), language="en", tasks=["style"], max_tokens=512)
RECORD = {
    "dataset": {"path": str(DATA), "digest": TRAINING.dataset.digest},
    "recipe": {"adapters": {"style": ["style"]}, "language": "en", "max_tokens": 512},
}
TOOLCHAIN = Toolchain(path=Path("toolchain"))

DISTRIBUTION = MeasureDistribution(
    base=BASE,
    adapter=ADAPTER,
    probes=[],
    answers=[],
    max_tokens=9,
    scored_tokens=9,
    clearly_exact=1e-4,
    nf4=True,
    merged=None,
    f16=None,
    q4=None,
    toolchain=None,
)


class CannedBench:
    """Has every artifact already, with the facts given."""

    def __init__(self, facts: dict[str, dict[str, dict[str, Any]]]) -> None:
        self.canned = facts

    def look(self, artifact: Artifact, stage: str, *names: str) -> dict[str, Any]:
        return artifact.stages[stage]

    def make(self, step: Step, stage: str | None = None) -> Artifact:
        return Artifact(**{**vars(ARTIFACT), "stages": self.canned[step.worker]})


@pytest.fixture(autouse=True)
def inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inputs that exist by name only: a canned bench does not look at them."""
    monkeypatch.setattr(test_gguf, "find_toolchain", lambda: TOOLCHAIN)
    monkeypatch.setattr(TOOLCHAIN.__class__, "_facts", {"bin": ".", "source": "."})
    monkeypatch.setattr(Adapter, "path", tmp_path)
    monkeypatch.setattr(Adapter, "digest", "digest")


def judge(gate: Callable[..., Any], facts: dict[str, dict[str, dict[str, Any]]], gguf_dtype: str = "f16") -> None:
    candidate = Candidate(
        name="c", base_spec="mirror/tiny", revision=None, adapters=(ADAPTER,), folder=Path(), record=RECORD
    )
    candidate.__dict__["_base"] = BASE
    given = {
        "bench": cast(Bench, CannedBench(facts)),
        "candidate": candidate,
        "base": BASE,
        "training": TRAINING,
        "data_read": CannedBench(facts).make(ReadDataset(dataset=TRAINING.dataset)),
        "encoded": CannedBench(facts).make(
            EncodeDataset(dataset=TRAINING.dataset, base=BASE, language="en", tasks=["style"])
        ),
        "adapter": ADAPTER,
        "sound_adapter": ADAPTER,
        "base_nf4": ARTIFACT,
        "distribution": DISTRIBUTION,
        "prompts": Prompts(path=Path("prompts")),
        "max_new_tokens": 64,
        "gguf_dtype": gguf_dtype,
        "toolchain": TOOLCHAIN,
    }
    made = CannedBench(facts).canned
    for name, worker in {
        "mounted": "bnb.mount",
        "merged": "merge.fold",
        "f16": "gguf.convert",
        "q4": "gguf.quantize",
        "llama_cli": "smoke.llama_cli",
        "llama_cpp_python": "smoke.llama_cpp_python",
    }.items():
        given[name] = Artifact(**{**vars(ARTIFACT), "stages": made[worker]})
    wanted = gate.__code__.co_varnames[: gate.__code__.co_argcount]
    gate(**{name: given[name] for name in wanted})


def broken(worker: str, fact: str, value: object) -> dict[str, dict[str, dict[str, Any]]]:
    facts: dict[str, dict[str, dict[str, Any]]] = json.loads(json.dumps(HEALTHY))
    worker, _, only = worker.partition(" ")
    stages = {only: facts[worker][only]} if only else facts[worker]
    home = next((stage for stage in stages.values() if fact in stage), None)
    if home is None:
        home = next(stage for stage in stages.values() if "answers" in stage)["answers"]["p"]
    assert fact in home, fact
    home[fact] = value
    return facts


ALL = [
    function
    for module in (test_data, test_fidelity, test_bnb, test_gguf, test_parity)
    for function in vars(module).values()
    if gate_of(function) is not None
]


@pytest.mark.parametrize("gate", ALL, ids=lambda gate: gate.__name__)
def test_healthy_facts_pass(gate: Callable[..., Any]) -> None:
    judge(gate, HEALTHY)


CASES: list[tuple[Callable[..., Any], str, str, object, str]] = [
    (test_data.test_data_parse, "dataset.read", "lines_not_parsed", ["a line 3"], "1 lines do not parse. a line 3"),
    (test_data.test_data_parse, "dataset.read", "samples", 0, "no samples in it"),
    (test_data.test_data_fields, "dataset.read", "lines_with_wrong_fields", ["x"], "not as the schema says. x"),
    (test_data.test_data_template, "dataset.read", "lines_off_template", ["x"], "miss their template. x"),
    (test_data.test_data_counts, "dataset.read", "counts", {"en": {"style": {"added": 23}}}, "style in en"),
    (test_data.test_data_counts, "dataset.read", "without_counterpart", ["x"], "not there in every language, x"),
    (test_data.test_data_unique, "dataset.read", "duplicates", ["x repeats y"], "x repeats y"),
    (test_data.test_data_no_leak, "dataset.read", "closest_pair_of_train_and_eval", None, "cannot be compared"),
    (
        test_data.test_data_no_leak,
        "dataset.read",
        "closest_pair_of_train_and_eval",
        {"similarity": 0.5, "train": "t", "eval": "e", "language": "en"},
        "is nearly e: similarity 0.50",
    ),
    (test_data.test_data_references, "dataset.read", "references_not_scoring_full", ["x: format"], "x: format"),
    (test_data.test_data_length, "dataset.encode", "longest_sample_tokens", 513, "has 513 tokens, max_tokens is 512"),
    (test_data.test_data_labels, "dataset.encode", "not_encodable", ["x: no"], "cannot be encoded. x: no"),
    (test_data.test_data_labels, "dataset.encode", FLAWS[0], ["x"], "something other than their answer, x"),
    (test_data.test_data_labels, "dataset.encode", FLAWS[1], ["x"], "do not end with a token"),
    (test_data.test_data_labels, "dataset.encode", FLAWS[2], ["x"], "empty answers"),
    (test_data.test_data_prompt, "dataset.encode", FLAWS[3], ["x"], "otherwise in training than when served"),
    (test_bnb.test_base_quant_load, "bnb.load", "layers_wrongly_left", ["l.0"], "1 of 210 linear layers are not 4-bit"),
    (test_bnb.test_base_quant_load, "bnb.load", "layers_expected_in_4bit", 0, "not 4-bit at all"),
    (test_bnb.test_base_quant_load, "bnb.load", "matrices_left_bytes", 90, "0 matrices are not 4-bit"),
    (test_bnb.test_base_quant_load, "bnb.load", "quantization_types", ["fp4"], "nf4 wanted"),
    (test_bnb.test_base_quant_load, "bnb.load", "double_quantization", False, "lack double quantization"),
    (test_bnb.test_base_quant_load, "bnb.load", "compute_dtypes", ["float32"], "bfloat16 wanted"),
    (test_bnb.test_base_quant_load, "bnb.load", "weight_bytes", 102, "the shapes predict 99"),
    (test_bnb.test_base_quant_load, "bnb.load", "logits_not_finite", 1, "NaN or inf"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "peft_type", "IA3", "Assay judges LoRA"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "adapted_modules", 0, "no lora_A"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "tensors_not_finite", ["x"], "hold NaN or inf"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_with_one_half", ["x"], "only one of"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_that_misfit", ["x: 3×4"], "made for another base"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_not_in_base", ["x"], "are not in mirror/tiny"),
    (
        test_fidelity.test_adapter_files,
        "adapter.inspect",
        "modules_without_effect",
        ["x", "y"],
        "all zero in 2 of 2 modules",
    ),
    (test_fidelity.test_adapter_files, "adapter.inspect", "unknown_tensors", ["x"], "no part of a LoRA"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_of_another_rank", ["x: rank 4"], "x: rank 4"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_in_file_but_not_targeted", ["x"], "leaves out 1"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_targeted_but_not_in_file", ["x"], "asks for 1"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_where_dora_disagrees", ["x"], "use_dora"),
    (test_fidelity.test_adapter_files, "adapter.inspect", "modules_to_save_not_in_file", ["lm_head"], "lm_head"),
    (
        test_fidelity.test_merge_exact,
        "merge.fold",
        "defects",
        ["scaled: x: 2"],
        "1 defects in the merged .* scaled: x: 2",
    ),
    (test_fidelity.test_merge_exact, "merge.fold", "recipe", None, "no way of rounding"),
    *[
        (gate, worker, fact, value, said)
        for gate, worker in (
            (test_fidelity.test_merged_strength, "merge.fold"),
            (test_fidelity.test_f16_strength, "gguf.convert"),
            (test_fidelity.test_q4_strength, "gguf.quantize"),
            (test_fidelity.test_nf4_strength, "bnb.mount"),
        )
        for fact, value, said in (
            ("strength", 0.0, "at strength 0.000"),
            ("strength", 2.0, "at strength 2.000"),
            ("strength", -1.0, "at strength -1.000"),
            ("strength", 0.5, "at strength 0.500"),
            ("strength_of_random_adapter", 0.2, "the control failed"),
        )
    ],
    (test_fidelity.test_merged_distribution, "distribution.measure merged", "kl_mean", 0.002, "mean KL 0.002"),
    (test_fidelity.test_f16_distribution, "distribution.measure f16", "kl_mean", 0.2, "mean KL 0.2"),
    *[
        (gate, f"distribution.measure {form}", fact, value, said)
        for form, gates in {
            "nf4": (test_fidelity.test_nf4_distribution, test_fidelity.test_nf4_survives),
            "q4": (test_fidelity.test_q4_distribution, test_fidelity.test_q4_survives),
        }.items()
        for gate, fact, value, said in (
            (gates[0], "perplexity_ratio_interval", [2.1, 3.0], "below 2.0 wanted"),
            (gates[1], "share_lost_interval", [0.6, 1.4], "The fine-tune is lost"),
            (gates[1], "share_lost", None, "training moved the base by nothing"),
        )
    ],
    (test_parity.test_gguf_parity, "gguf.convert", "metadata_that_differs", ["rope.freq_base"], "rope.freq_base"),
    (test_parity.test_gguf_parity, "gguf.convert", "tensors_with_other_values", ["x"], "other values"),
    (test_parity.test_token_parity, "parity.prompts", "strings_tokenized_differently", ["'é'"], "1 of 20 strings"),
    (test_parity.test_prompt_parity, "parity.prompts", "prompts_rendered_differently", ["x"], "rendered otherwise"),
    (test_parity.test_prompt_parity, "parity.prompts", "prompts_tokenized_differently", ["x"], "other tokens"),
    (test_parity.test_prompt_parity, "parity.prompts", "dialogs", 0, "the template refuses every dialog"),
    (test_parity.test_prompt_parity, "parity.prompts", "start_tokens_at_most", 2, "begins with 2 start tokens"),
    (
        test_parity.test_runtime_parity,
        "distribution.measure",
        "runtimes",
        {"llama_cpp_python": RUNTIME, "llama_cli": RUNTIME | {"tokens_not_greedy": 90, "nats_from_greedy": 0.4}},
        "llama_cli: 90 of 200 tokens are not the file's first choice, which is 0.4 nats a token likelier",
    ),
    (test_parity.test_q4_parity, "gguf.quantize", "tensors_beyond_noise", ["x Q4_K by 90%"], "x Q4_K by 90%"),
    (test_bnb.test_lora_mount, "bnb.mount", "tensors_not_consumed", ["x"], "dropped in silence"),
    (test_bnb.test_lora_mount, "bnb.mount", "tensors_missing_in_file", ["x"], "not in the file"),
    (test_bnb.test_lora_mount, "bnb.mount", "tensors_changed_on_the_way", ["x"], "other values"),
    (test_bnb.test_lora_mount, "bnb.mount", "logits_not_finite", 3, "NaN or inf with the adapter"),
    (test_bnb.test_lora_mount, "bnb.mount", "largest_logit_change", 0.0, "changes no logit"),
    (test_bnb.test_lora_mount, "bnb.mount", "largest_logit_change", None, "changes no logit"),
    (test_bnb.test_lora_mount, "bnb.mount", "largest_logit_change_by_zero_adapter", 0.1, "zero adapter moves"),
    (test_bnb.test_lora_mount, "bnb.mount", "cosine_of_base_before_and_after_mounting", 0.9, "is not the base"),
    (test_bnb.test_lora_mount, "bnb.mount", "cosine_of_base_before_and_after_mounting", None, "cannot be compared"),
    *[
        (test_bnb.test_generate_non_empty, "bnb.mount", "kind", kind, f"the answer is {kind}")
        for kind in ("empty", "special-only", "white-space", "degenerate")
    ],
    (test_bnb.test_generate_non_empty, "bnb.mount", "answers", {}, "no prompt was answered"),
    (test_gguf.test_toolchain_ready, "self_test.run", "converter_present", False, "is missing"),
    (test_gguf.test_toolchain_ready, "self_test.run", "quantized_types", {"F16": 9}, "no Q4_K tensor"),
    (test_gguf.test_toolchain_ready, "self_test.run", "llama_cli_answer", "", "llama_cli computes wrongly"),
    (
        test_gguf.test_toolchain_ready,
        "self_test.run",
        "llama_cpp_python_answer",
        "b",
        "llama_cpp_python computes wrongly",
    ),
    (test_gguf.test_toolchain_ready, "self_test.run", "same_libraries", False, "other libraries"),
    (test_gguf.test_toolchain_ready, "self_test.run", "library_commit", "abc", "version skew"),
    (test_gguf.test_toolchain_ready, "self_test.run", "converter_commit", "abc", "version skew"),
    (test_gguf.test_toolchain_ready, "self_test.run", "expected_commit", "abc", "version skew"),
    (test_gguf.test_toolchain_ready, "self_test.run", "llama_cpp_python_release", "0.3.1", "version skew"),
    (test_gguf.test_merge, "merge.fold", "tensors_missing", ["x"], "are missing"),
    (test_gguf.test_merge, "merge.fold", "tensors_extra", ["x"], "not in the base"),
    (test_gguf.test_merge, "merge.fold", "dtypes", ["F16"], "BF16 wanted"),
    (test_gguf.test_merge, "merge.fold", "tensors_not_finite", ["x"], "NaN or inf"),
    (test_gguf.test_merge, "merge.fold", "targeted_unchanged", ["x"], "still the base's"),
    (test_gguf.test_merge, "merge.fold", "others_changed", ["x"], "does not touch"),
    (test_gguf.test_merge, "merge.fold", "largest_absolute_value", 7e4, "inf in F16"),
    (test_gguf.test_convert_f16, "gguf.convert", "tensors_missing", ["x"], "not in the GGUF"),
    (test_gguf.test_convert_f16, "gguf.convert", "parameters", 999, "999 parameters in the GGUF, 1,000 in the"),
    (test_gguf.test_convert_f16, "gguf.convert", "parameters_computed", 1, "999 parameters in the GGUF"),
    (test_gguf.test_convert_f16, "gguf.convert", "tensors_not_finite", ["x"], "overflowed F16"),
    (test_gguf.test_convert_f16, "gguf.convert", "file_type", "ALL_F32", "MOSTLY_F16 wanted"),
    (test_gguf.test_convert_f16, "gguf.convert", "chat_template_present", False, "no chat template"),
    (test_gguf.test_convert_f16, "gguf.convert", "chat_template_equal", False, "not the one"),
    (test_gguf.test_convert_f16, "gguf.convert", "eos_token_id", 0, "ends at token 0"),
    (test_gguf.test_convert_f16, "gguf.convert", "logits_not_finite", 1, "NaN or inf"),
    (test_gguf.test_quantize_q4, "gguf.quantize", "file_type", "MOSTLY_Q4_0", "MOSTLY_Q4_K_M wanted"),
    (test_gguf.test_quantize_q4, "gguf.quantize", "tensors_missing", ["x"], "in name or shape"),
    (test_gguf.test_quantize_q4, "gguf.quantize", "tensors_extra", ["x"], "in name or shape"),
    (test_gguf.test_quantize_q4, "gguf.quantize", "tensors_with_another_shape", ["x"], "in name or shape"),
    (test_gguf.test_quantize_q4, "gguf.quantize", "unforced_share_of_weights", 0.06, "multiples of 256"),
    (test_gguf.test_quantize_q4, "gguf.quantize", "file_bytes", 30, "not smaller"),
    (
        test_gguf.test_llama_cli_smoke,
        "smoke.llama_cli",
        "errors",
        ["Error: request (631 tokens) exceeds"],
        "exits with 0",
    ),
    (test_gguf.test_llama_cli_smoke, "smoke.llama_cli", "answer_found", False, "no answer in"),
    (test_gguf.test_llama_cli_smoke, "smoke.llama_cli", "kind", "degenerate", "the answer is degenerate"),
    (test_gguf.test_llama_cli_smoke, "smoke.llama_cli", "answers", {}, "no prompt was answered"),
    (test_gguf.test_llama_cpp_python_smoke, "smoke.llama_cpp_python", "chat_template_present", False, "is a fallback"),
    (
        test_gguf.test_llama_cpp_python_smoke,
        "smoke.llama_cpp_python",
        "prompt_is_the_templates",
        False,
        "another prompt",
    ),
    (test_gguf.test_llama_cpp_python_smoke, "smoke.llama_cpp_python", "kind", "empty", "the answer is empty"),
]


@pytest.mark.parametrize(
    ("gate", "worker", "fact", "value", "said"),
    CASES,
    ids=[f"{case[0].__name__}-{case[2]}-{case[3]}" for case in CASES],
)
def test_a_broken_fact_fails_its_gate(
    gate: Callable[..., Any], worker: str, fact: str, value: object, said: str
) -> None:
    with pytest.raises(AssertionError, match=said.replace("(", r"\(")):
        judge(gate, broken(worker, fact, value))


def test_every_gate_has_a_broken_fact() -> None:
    assert {gate_of(case[0]) for case in CASES} == {gate_of(function) for function in ALL}


def test_what_is_inf_in_f16_may_be_converted_to_bf16_and_then_has_to_be() -> None:
    judge(test_gguf.test_merge, broken("merge.fold", "largest_absolute_value", 7e4), "bf16")
    judge(test_gguf.test_convert_f16, broken("gguf.convert", "file_type", "MOSTLY_BF16"), "bf16")
    with pytest.raises(AssertionError, match="MOSTLY_BF16 wanted"):
        judge(test_gguf.test_convert_f16, HEALTHY, "bf16")


def test_thoughts_alone_fail_if_the_model_ended_there_and_cannot_be_judged_if_it_was_cut_off() -> None:
    facts = broken("bnb.mount", "kind", "think-only")
    with pytest.raises(Inconclusive, match="--max-new-tokens 1024"):
        judge(test_bnb.test_generate_non_empty, facts)
    facts["bnb.mount"]["generate"]["answers"]["p"]["ended_by"] = "end token"
    with pytest.raises(AssertionError, match="the answer is think-only"):
        judge(test_bnb.test_generate_non_empty, facts)


@pytest.mark.parametrize(
    ("gate", "worker", "fact", "value", "said"),
    [
        (test_fidelity.test_q4_survives, "distribution.measure q4", "share_lost_interval", [0.4, 0.6], "17 answers"),
        (
            test_fidelity.test_q4_distribution,
            "distribution.measure q4",
            "perplexity_ratio_interval",
            [1.5, 2.5],
            "20 seq",
        ),
        (test_fidelity.test_q4_strength, "gguf.quantize", "adapter_relative_size", 0.0, "no plain LoRA"),
        (test_parity.test_gguf_parity, "gguf.convert", "layout_is_modelled", False, "is not known here"),
        (test_parity.test_runtime_parity, "distribution.measure", "runtimes", {}, "every answer holds thoughts"),
    ],
)
def test_what_so_few_samples_cannot_show_is_inconclusive(
    gate: Callable[..., Any], worker: str, fact: str, value: object, said: str
) -> None:
    with pytest.raises(Inconclusive, match=said):
        judge(gate, broken(worker, fact, value))


def test_an_adapter_trained_on_another_name_is_inconclusive() -> None:
    facts = broken("adapter.inspect", "base_model_name_or_path", "unsloth/other-8b")
    with pytest.raises(Inconclusive, match="--trained-on 'unsloth/other-8b'"):
        judge(test_fidelity.test_adapter_files, facts)


def test_the_users_word_settles_an_adapters_base(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = broken("adapter.inspect", "base_model_name_or_path", "unsloth/other-8b")
    monkeypatch.setitem(globals(), "ADAPTER", Adapter(name="style", source="a", trained_on="unsloth/other-8b"))
    judge(test_fidelity.test_adapter_files, facts)


def test_a_recorded_base_is_compared_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base, "digest", "f00")
    monkeypatch.setitem(globals(), "ADAPTER", Adapter(name="style", source="a", recorded_base="bad"))
    with pytest.raises(AssertionError, match="was trained on a base with digest bad"):
        judge(test_fidelity.test_adapter_files, HEALTHY)


def test_an_adapter_that_changed_since_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ADAPTER", Adapter(name="style", source="a", recorded_digest="other"))
    with pytest.raises(AssertionError, match="not the adapter that candidate"):
        judge(test_fidelity.test_adapter_files, HEALTHY)


def test_a_dataset_that_is_not_here_is_unavailable_and_a_changed_one_inconclusive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RECORD["dataset"], "digest", "other")  # type: ignore[arg-type]
    with pytest.raises(Inconclusive, match="changed since c was trained on it"):
        judge(test_data.test_data_parse, HEALTHY)
    monkeypatch.setitem(RECORD["dataset"], "path", "nowhere")  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="nowhere: not found"):
        judge(test_data.test_data_parse, HEALTHY)
