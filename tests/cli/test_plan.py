"""The plan: Qwen3-8B's figures by its config alone, and every formula against something that was really made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from assay.cli.app import main
from assay.cli.plan import make_plan, read_lora, read_shapes
from assay.errors import InputError
from assay.files import read_json
from assay.inputs.bases import EMBEDDED, Base, find_base
from assay.inputs.candidate import Adapter
from assay.measures import sizing as plan

from tests.samples import write_adapter

pytestmark = [pytest.mark.slow(seconds=40), pytest.mark.needs_toolchain]

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def qwen3_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3-8b")
    (folder / "config.json").write_text(json.dumps(QWEN3_8B))
    return folder


def test_qwen3_8b_by_its_config_alone(qwen3_8b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(qwen3_8b), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["parameters"] == 8_190_735_360
    assert data["lora"]["trainable"] == 15_335_424
    assert data["trainable_share"] == pytest.approx(0.00187, abs=5e-6)
    weights = data["weights_bytes"]
    # Measured on an H200 with bitsandbytes 0.50.2: docs/evidence/bnb-on-cuda.md.
    assert weights["nf4, double quantization"] == 6_073_318_128
    assert round(weights["nf4"] / 1e9, 2) == 6.40
    assert weights["16-bit"] == 2 * 8_190_735_360
    assert data["kv_bytes_per_token"] == 2 * 36 * 8 * 128 * 2
    assert data["serving"]["card"]["nf4, double quantization"] == "8 GB", "the thesis says 6 GB"
    # Measured on an H200, 8 × 512 tokens: docs/evidence/v3-on-one-gpu.md.
    assert data["training"]["peak_bytes"]["nf4, checkpointing"] == pytest.approx(15_082_736_640, rel=0.01)
    assert data["training"]["peak_bytes"]["nf4"] == pytest.approx(47_812_627_456, rel=0.03)


def test_a_person_reads_it(qwen3_8b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(qwen3_8b / "config.json")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "15,335,424 trainable (0.187%)" in said
    assert "Q4_K_M" in said


def test_headers_and_config_say_the_same() -> None:
    base = find_base(EMBEDDED)
    by_config = read_shapes(EMBEDDED)
    by_headers = plan.shapes_from_headers(base.tensors, read_json(base.path / "config.json"))
    assert plan.forecast(by_headers) == plan.forecast(by_config)
    assert by_headers.linears == by_config.linears


def test_an_adapter_is_counted_by_its_file(base: Base, tmp_path: Path) -> None:
    shapes = read_shapes(str(base.path))
    folder = write_adapter(tmp_path / "a", {"model.layers.0.self_attn.q_proj": (256, 256)}, base=base.id, rank=8)
    lora = read_lora(shapes, Adapter(name="style", source=str(folder)))
    assert (lora.trainable, lora.rank, lora.targets) == (8 * 512, 8, "q_proj")
    folder = write_adapter(tmp_path / "b", {"model.layers.7.self_attn.q_proj": (256, 256)}, base=base.id)
    with pytest.raises(InputError, match=r"layers\.7.*does not have"):
        read_lora(shapes, Adapter(name="style", source=str(folder)))


def test_peft_counts_the_same(base: Base) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path))
        model = get_peft_model(
            model, LoraConfig(r=16, target_modules=list(plan.THESIS_TARGETS), layers_to_transform=[1])
        )
    counted = sum(one.numel() for one in model.parameters() if one.requires_grad)
    linears = plan.adapted(read_shapes(str(base.path)), plan.THESIS_TARGETS, last_blocks=1)
    assert plan.trainable(linears, 16) == counted


@pytest.mark.parametrize("of", ["embedded", "qwen3"])
def test_q4_k_m_is_as_large_as_the_quantizer_makes_it(of: str, base: Base, tmp_path: Path) -> None:
    from assay.inputs.toolchain import find_toolchain
    from assay.steps.gguf import F16, Q4
    from assay.workers import Work
    from assay.workers.gguf import convert, quantize
    from gguf import GGUFReader

    model = find_base(EMBEDDED) if of == "embedded" else base
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "checkpoint").symlink_to(model.path)
    rows, columns = model.tensors["model.layers.0.self_attn.q_proj.weight"].shape
    adapter = write_adapter(tmp_path / "a", {"model.layers.0.self_attn.q_proj": (rows, columns)}, base=model.id)
    given: dict[str, Any] = {"adapter": str(adapter), "base": str(model.path), "toolchain": str(find_toolchain().path)}
    for name in ("f16", "q4"):
        (tmp_path / name).mkdir()
    convert(Work(tmp_path / "f16"), merged=str(merged), dtype="f16", **given)
    quantize(Work(tmp_path / "q4"), f16=str(tmp_path / "f16"), **given)
    assert (tmp_path / "f16" / F16).exists()
    made = sum(int(tensor.n_bytes) for tensor in GGUFReader(tmp_path / "q4" / Q4).tensors)
    shapes = plan.shapes_from_headers(model.tensors, read_json(model.path / "config.json"))
    assert plan.bytes_q4_k_m(shapes) == made


def test_what_does_not_fit_anywhere_is_said(qwen3_8b: Path) -> None:
    shapes = read_shapes(str(qwen3_8b))
    data = make_plan(shapes, read_lora(shapes, None), batch=64, length=2048, context=4096)
    assert data["training"]["card"]["16-bit"] is None
    assert plan.smallest_card(5_000_000_000) == "6 GB"
    assert plan.smallest_card(6 * 2**30) == "8 GB"


@pytest.mark.parametrize("text", ["{}", "not json", '{"model_type": "no-such-model"}'])
def test_a_config_that_is_none_is_one_sentence(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(text)
    assert main(["plan", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "config.json" in error
    assert "Traceback" not in error
