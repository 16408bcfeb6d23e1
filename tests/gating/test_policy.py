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


PUBLIC = {
    "base_quant_load_ok",
    "<adapter>_lora_mount_ok",
    "<adapter>_generate_non_empty",
    "toolchain_ready",
    "merge_ok",
    "convert_f16_ok",
    "quantize_q4_ok",
    "llama_cli_smoke_ok",
    "llama_cpp_python_smoke_ok",
}
"""Ids that other people's pipelines name: they never change."""


def test_the_projects_own_policy_keeps_the_public_ids() -> None:
    policy = read_policy(GATES / "policy.toml", [gate.id for gate in read_gates(GATES)])
    assert set(policy.severity) >= PUBLIC
    primary = {gate for gate, severity in policy.severity.items() if severity is Severity.PRIMARY}
    assert primary >= {"base_quant_load_ok", "<adapter>_lora_mount_ok", "<adapter>_generate_non_empty"}
