"""The prerequisites of the gates. Each is a gate that held, and hands on what that gate made."""

from __future__ import annotations

from pathlib import Path

import pytest
from assay.gate import prerequisite
from assay.plugin import use_gates
from test_bnb import base_is_usable, test_base_quant_load, test_lora_mount
from test_data import samples_encode, test_data_parse, training_is_known
from test_fidelity import test_adapter_files
from test_gguf import test_convert_f16, test_merge, test_quantize_q4, test_toolchain_ready


def pytest_configure(config: pytest.Config) -> None:
    use_gates(config, Path(__file__).parent)


training = prerequisite(training_is_known, of="data_parse_ok")
data_read = prerequisite(test_data_parse)
encoded = prerequisite(samples_encode, of="data_labels_ok")

base = prerequisite(base_is_usable, of="base_quant_load_ok")
base_nf4 = prerequisite(test_base_quant_load)
sound_adapter = prerequisite(test_adapter_files)
mounted = prerequisite(test_lora_mount)

toolchain = prerequisite(test_toolchain_ready)
merged = prerequisite(test_merge)
f16 = prerequisite(test_convert_f16)
q4 = prerequisite(test_quantize_q4)
