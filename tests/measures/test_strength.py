"""Strength: which adapter, how much of it, in a checkpoint, a bitsandbytes 4-bit copy and a GGUF."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from assay.cli.app import main
from assay.files import read_json
from assay.inputs.bases import Base
from assay.inputs.candidate import read_candidate
from assay.inputs.checkpoint import read_folder
from assay.inputs.gguf_file import open_reader, open_weights
from assay.inputs.lora import read_lora_weights
from assay.inputs.toolchain import find_toolchain
from assay.measures.strength import adapter_strength, measure_strengths
from assay.steps.catalogue import ConvertF16, Merge, QuantizeQ4
from assay.steps.gguf import F16, Q4
from assay.steps.runner import Runner
from assay.steps.store import Store

from tests.samples import write_adapter, write_safetensors

pytestmark = pytest.mark.slow(seconds=75)

SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (128, 256),
        "mlp.up_proj": (512, 256),
    }.items()
}


@pytest.fixture(scope="module")
def adapters(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, SHAPES, base=base.id, scale=0.01, seed=seed)
        for seed, name in enumerate(("style", "writing"))
    }


def checkpoint_with(base: Base, adapter: Path, k: float, file: Path) -> Path:
    """The base's tensors with k times the adapter in them, in fp32."""
    lora = read_lora_weights(adapter, base.tensors)
    tensors = {name: tensor.float32().copy() for name, tensor in base.tensors.items()}
    for name, low in lora.changes.items():
        left, right = low.factors()
        tensors[name] += np.float32(k * low.scale) * (left @ right)
    write_safetensors(file, tensors)
    return file


@pytest.mark.parametrize(
    ("k", "name", "code"),
    [(1, "right", 0), (0, "absent", 1), (0.5, "half", 1), (2, "doubled", 1), (-1, "flipped", 1), (3, "at 3.00", 1)],
)
def test_the_strength_in_a_checkpoint_is_told(
    base: Base,
    adapters: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    k: float,
    name: str,
    code: int,
) -> None:
    file = checkpoint_with(base, adapters["style"], k, tmp_path / "model.safetensors")
    given = [part for adapter in adapters.values() for part in ("--adapter", str(adapter))]
    assert main(["strength", "--base", str(base.path), *given, str(file), "--json"]) == code
    told = json.loads(capsys.readouterr().out)["adapters"]
    assert (told["style"]["is"], told["writing"]["is"]) == (name, "absent")
    assert told["style"]["strength"] == pytest.approx(k, abs=0.01)


def test_adapters_that_resemble_each_other_are_solved_for_together(
    base: Base, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Half of this one is the other, as in adapters trained from the same start: alone, each would seem present."""
    style, writing = (read_lora_weights(adapter, base.tensors) for adapter in adapters.values())
    mixed: dict[str, np.ndarray[Any, Any]] = {}
    for low, other in zip(style.changes.values(), writing.changes.values(), strict=True):
        key = f"base_model.model.{low.module}"
        mixed[f"{key}.lora_A.weight"] = np.concatenate([low.a.float32(), other.a.float32()])
        mixed[f"{key}.lora_B.weight"] = np.concatenate([low.b.float32(), other.b.float32()], axis=1)
    both = Path(shutil.copytree(adapters["style"], tmp_path / "both"))
    write_safetensors(both / "adapter_model.safetensors", mixed)
    config = json.loads((both / "adapter_config.json").read_text())
    (both / "adapter_config.json").write_text(json.dumps(config | {"r": 16, "lora_alpha": 32}))
    file = read_folder(checkpoint_with(base, both, 1, tmp_path / "model.safetensors").parent)
    loras = {"both": read_lora_weights(both, base.tensors), "style": style}
    alone = measure_strengths(base.tensors, {"style": style}, lambda name: file[name].float32())
    together = measure_strengths(base.tensors, loras, lambda name: file[name].float32())
    assert alone.pooled["style"] == pytest.approx(1, abs=0.05)
    assert together.pooled["both"] == pytest.approx(1, abs=0.01)
    assert together.pooled["style"] == pytest.approx(0, abs=0.01)


def test_the_same_adapter_twice_cannot_be_told_apart(
    base: Base, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint_with(base, adapters["style"], 1, tmp_path / "model.safetensors")
    given = ["--adapter", f"a={adapters['style']}", "--adapter", f"b={adapters['style']}"]
    assert main(["strength", "--base", str(base.path), *given, str(file)]) == 3
    assert "too much alike" in capsys.readouterr().out


def test_what_bitsandbytes_saved_in_4_bits_is_read(base: Base, adapters: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    merged = Path(shutil.copytree(base.path, tmp_path / "merged"))
    checkpoint_with(base, adapters["style"], 1, merged / "model.safetensors")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model: Any = AutoModelForCausalLM.from_pretrained(merged, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "in-4-bits")
    given = ["--base", str(base.path), "--adapter", str(adapters["style"]), "--adapter", str(adapters["writing"])]
    assert main(["strength", *given, str(tmp_path / "in-4-bits")]) == 0


def test_a_random_change_of_equal_size_is_in_no_file(base: Base, adapters: dict[str, Path], tmp_path: Path) -> None:
    checkpoint_with(base, adapters["style"], 1, tmp_path / "model.safetensors")
    file, lora = read_folder(tmp_path), read_lora_weights(adapters["style"], base.tensors)
    told = adapter_strength(base.tensors, lora, lambda name: file[name].float32())
    assert told.strength == pytest.approx(1, abs=0.01)
    assert abs(told.strength_of_random_adapter) < 0.02
    for low, twin in zip(lora.changes.values(), lora.randomized().changes.values(), strict=True):
        sizes = [float(np.linalg.norm(left @ right)) for left, right in (low.factors(), twin.factors())]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_files_that_cannot_be_read_are_named(base: Base, adapters: dict[str, Path], tmp_path: Path) -> None:
    given = ["strength", "--base", str(base.path), "--adapter", str(adapters["style"])]
    (tmp_path / "x.gguf").write_text("no GGUF")
    assert main([*given, str(tmp_path / "x.gguf")]) == 2
    assert main([*given, str(tmp_path / "nowhere.gguf")]) == 2
    write_safetensors(tmp_path / "other.safetensors", {"x": np.zeros(3)})
    assert main([*given, str(tmp_path / "other.safetensors")]) == 3


def test_a_trained_adapter_is_found_in_a_true_q4_k_m_at_its_strength_and_the_other_one_is_not(
    base: Base, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on the shipped data, by the real tools: two adapters from one start, which resemble each other."""
    (tmp_path / "run").mkdir()
    bench = Runner(Store(tmp_path / "store"), tmp_path / "run", "run#1", say=lambda line: None)
    style, writing = read_candidate(trained / "quickstart" / "candidate.json").adapters
    tools = find_toolchain()
    merged = bench.make(Merge(base=base, adapter=style))
    f16 = bench.make(ConvertF16(adapter=style, base=base, merged=merged, toolchain=tools))
    q4 = bench.make(QuantizeQ4(adapter=style, base=base, f16=f16, toolchain=tools))
    assert q4.facts(QuantizeQ4.inspected).fallbacks_forced_by_shape == []
    given = ["--base", str(base.path), "--adapter", f"style={style.path}", "--adapter", f"writing={writing.path}"]
    for file in (merged.file("checkpoint"), f16.file(F16), q4.file(Q4)):
        assert main(["strength", *given, str(file), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["adapters"]
        assert told["style"]["strength"] == pytest.approx(1, abs=0.05), file
        assert told["writing"]["strength"] == pytest.approx(0, abs=0.05), file
    lora = read_lora_weights(style.path, base.tensors)
    for k, name in ((0, "absent"), (0.5, "half"), (2, "doubled"), (-1, "flipped")):
        file = tmp_path / f"{name}.gguf"
        shutil.copyfile(f16.file(F16), file)
        writable = open_reader(gguf, file, "r+")
        held = open_weights(
            gguf, writable, list(base.tensors), read_json(base.path / "config.json"), np.asarray
        ).tensors
        for weight, low in lora.changes.items():
            left, right = low.factors()
            held[weight].data[:] = base.tensors[weight].float32() + np.float32(k * low.scale) * (left @ right)
        quantized = tmp_path / f"{name}-q4_k_m.gguf"
        command = [str(tools.bin / "llama-quantize"), str(file), str(quantized), "Q4_K_M"]
        subprocess.run(command, check=True, capture_output=True)
        assert main(["strength", *given, str(quantized), "--json"]) == 1
        told = json.loads(capsys.readouterr().out)["adapters"]
        assert (told["style"]["is"], told["writing"]["is"]) == (name, "absent")
        assert told["style"]["strength"] == pytest.approx(k, abs=0.05 * max(1, abs(k)))
