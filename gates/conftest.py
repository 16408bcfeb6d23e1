"""The prerequisites of the gates. Each is a gate that held, and hands on what that gate made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from assay.errors import AssayError
from assay.gating.gate import Blocked, prerequisite
from assay.gating.plugin import use_gates
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.prompts import Prompts
from assay.steps.catalogue import MeasureDistribution, RunLlamaCli, RunLlamaCppPython
from test_bnb import base_is_usable, test_base_quant_load, test_lora_mount
from test_data import samples_encode, test_data_parse, training_is_known
from test_fidelity import EXACT, test_adapter_files
from test_gguf import (
    test_convert_f16,
    test_llama_cli_smoke,
    test_llama_cpp_python_smoke,
    test_merge,
    test_quantize_q4,
    test_toolchain_ready,
)

pytest_plugins = ["assay.gating.plugin"]


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
llama_cli = prerequisite(test_llama_cli_smoke)
llama_cpp_python = prerequisite(test_llama_cpp_python_smoke)


@pytest.fixture
def distribution(
    request: pytest.FixtureRequest,
    base: Base,
    candidate: Candidate,
    adapter: Adapter,
    sound_adapter: Adapter,
    prompts: Prompts,
    probes: Prompts,
    scored_tokens: int,
) -> MeasureDistribution:
    """One measurement of every form that got there: a form that did not is its own gates' matter."""

    def made(name: str) -> Any:
        try:
            return request.getfixturevalue(name)
        except Blocked:
            return None

    q4, f16 = made("q4"), made("f16")
    runtimes = {"llama_cli": RunLlamaCli.generated, "llama_cpp_python": RunLlamaCppPython.generated}
    answered = {name: ran.facts(stage).answers for name, stage in runtimes.items() if (ran := made(name)) is not None}
    return MeasureDistribution(
        base=base,
        adapter=adapter,
        probes=_task(candidate, adapter, prompts) + _texts(probes),
        answers=[
            {"runtime": runtime, **asked, "answer": answers[asked["name"]].text}
            for runtime, answers in answered.items()
            for asked in _asked(prompts)
        ],
        max_tokens=1024,
        scored_tokens=scored_tokens,
        clearly_exact=EXACT / 2,
        nf4=made("mounted") is not None,
        merged=made("merged"),
        f16=f16,
        q4=q4,
        toolchain=made("toolchain") if f16 else None,
    )


def _task(candidate: Candidate, adapter: Adapter, prompts: Prompts) -> list[dict[str, str]]:
    """The evaluation samples with their answers where the dataset is known, else the prompts."""
    try:
        samples = candidate.evaluation_samples(adapter) if candidate.trained_here else []
    except AssayError:
        samples = []
    if not samples:
        return _asked(prompts)
    return [{"name": sample.id, "prompt": sample.prompt, "answer": sample.answer} for sample in samples]


def _asked(prompts: Prompts) -> list[dict[str, str]]:
    return [{"name": file.stem, "prompt": file.read_text(encoding="utf-8").strip()} for file in _files(prompts)]


def _texts(probes: Prompts) -> list[dict[str, str]]:
    return [{"name": file.stem, "text": file.read_text(encoding="utf-8")} for file in _files(probes)]


def _files(folder: Prompts) -> list[Path]:
    return sorted(folder.path.glob("*.txt"))
