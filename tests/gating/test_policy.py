"""Policies: their order, and the project's own. What is wrong with one is in tests/test_validation.py."""

from __future__ import annotations

from pathlib import Path

from assay.gating.gate import read_gates
from assay.gating.policy import read_policy
from assay.paths import GATES
from assay.record.run import Severity

GATE_IDS = ["merge_ok", "convert_f16_ok"]
GOOD = 'version = 1\n[severity]\nmerge_ok = "primary"\nconvert_f16_ok = "secondary"\n'


def test_a_policy_is_read_in_its_own_order(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(GOOD)
    policy = read_policy(tmp_path / "policy.toml", list(reversed(GATE_IDS)))
    assert policy.severity == {"merge_ok": Severity.PRIMARY, "convert_f16_ok": Severity.SECONDARY}
    assert list(policy.severity) == GATE_IDS
    assert policy.inconclusive_primary == "hold"


def test_the_projects_own_policy_keeps_the_public_ids() -> None:
    policy = read_policy(GATES / "policy.toml", [gate.id for gate in read_gates(GATES)])
    primary = {gate for gate, severity in policy.severity.items() if severity is Severity.PRIMARY}
    assert primary == {
        "adapter_files_ok",
        "base_quant_load_ok",
        "<adapter>_lora_mount_ok",
        "<adapter>_generate_non_empty",
    }
    assert set(policy.severity) - primary == {
        "merge_exact_ok",
        "merged_strength_ok",
        "f16_strength_ok",
        "q4_strength_ok",
        "nf4_strength_ok",
        "merged_distribution_ok",
        "f16_distribution_ok",
        "nf4_distribution_ok",
        "q4_distribution_ok",
        "nf4_survives_ok",
        "q4_survives_ok",
        "gguf_parity_ok",
        "token_parity_ok",
        "prompt_parity_ok",
        "q4_parity_ok",
        "runtime_parity_ok",
        "nf4_task_ok",
        "q4_task_ok",
        "data_parse_ok",
        "data_fields_ok",
        "data_template_ok",
        "data_counts_ok",
        "data_unique_ok",
        "data_no_leak_ok",
        "data_references_ok",
        "data_length_ok",
        "data_labels_ok",
        "data_prompt_ok",
        "toolchain_ready",
        "merge_ok",
        "convert_f16_ok",
        "quantize_q4_ok",
        "llama_cli_smoke_ok",
        "llama_cpp_python_smoke_ok",
    }
