"""A policy names every gate and nothing else; what is off is named with the nearest known word."""

from __future__ import annotations

from pathlib import Path

import pytest
from assay.errors import InputError
from assay.gating.gate import read_gates
from assay.gating.policy import read_policy
from assay.paths import GATES
from assay.record.run import Severity

GATE_IDS = ["merge_ok", "convert_f16_ok"]
GOOD = 'version = 1\n[severity]\nmerge_ok = "primary"\nconvert_f16_ok = "secondary"\n'


def read(tmp_path: Path, text: str) -> object:
    (tmp_path / "policy.toml").write_text(text)
    return read_policy(tmp_path / "policy.toml", GATE_IDS)


def test_a_policy_is_read_in_its_own_order(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(GOOD)
    policy = read_policy(tmp_path / "policy.toml", list(reversed(GATE_IDS)))
    assert policy.severity == {"merge_ok": Severity.PRIMARY, "convert_f16_ok": Severity.SECONDARY}
    assert list(policy.severity) == GATE_IDS
    assert policy.inconclusive_primary == "hold"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("merge_ok", "merge_okay"), "unknown key 'merge_okay'. Did you mean 'merge_ok'"),
        (GOOD.replace('merge_ok = "primary"\n', ""), "no line for the gate 'merge_ok'"),
        (GOOD.replace("primary", "fatal"), "expected one of primary, secondary"),
        (GOOD + "[inconclusiv]\n", "unknown key 'inconclusiv'. Did you mean 'inconclusive'"),
        (GOOD + '[inconclusive]\nprimary = "pass"\n', "expected hold or warn"),
        (GOOD + '[inconclusive]\nsecondary = "hold"\n', "unknown key 'secondary'. Did you mean 'primary'"),
        (GOOD.replace("version = 1", "version = 2"), "`version = 1` expected"),
        ("[severity\n", "not valid TOML"),
    ],
)
def test_what_is_off_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as problem:
        read(tmp_path, text)
    assert said in str(problem.value)
    assert "policy.toml" in str(problem.value)


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
