"""GGUF parity: a healthy conversion has no difference, and each thing that is changed in the file is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from assay.files import read_json
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.checkpoint import read_folder
from assay.inputs.gguf_file import different_metadata, open_reader, open_weights, quantization_noise, unequal_tensors
from assay.inputs.toolchain import Toolchain, find_toolchain
from assay.steps.catalogue import ConvertF16, Merge, QuantizeQ4
from assay.steps.gguf import F16, Q4
from assay.steps.runner import Runner
from assay.steps.store import Artifact, Store
from assay.workers import Work
from assay.workers.llama import dequantizer
from assay.workers.parity import prompts

from tests.samples import SMALL, THINKING, write_adapter, write_model

pytestmark = pytest.mark.slow(seconds=90)

SHAPES = {"model.layers.0.self_attn.q_proj": (256, 256), "model.layers.1.self_attn.k_proj": (128, 256)}
Row = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def made(request: pytest.FixtureRequest, base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Merged checkpoint, F16 and Q4_K_M of a small model, by the real tools.

    llama's q and k rows are permuted, and this llama's template has a thinking switch.
    """
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp(f"made-{request.param}")
    if request.param == "llama":
        config = LlamaConfig(**SMALL, rope_theta=50000.0, rms_norm_eps=1e-5)
        base = write_model(folder / "base", config, seed=2, template=THINKING)
    (folder / "run").mkdir()
    bench = Runner(Store(folder / "store"), folder / "run", "run#1", say=lambda line: None)
    style = Adapter(name="style", source=str(write_adapter(folder / "lora", SHAPES, base=base.id, scale=0.05)))
    tools = find_toolchain()
    merged = bench.make(Merge(base=base, adapter=style))
    f16 = bench.make(ConvertF16(adapter=style, base=base, merged=merged, toolchain=tools))
    q4 = bench.make(QuantizeQ4(adapter=style, base=base, f16=f16, toolchain=tools))
    return {"merged": merged, "f16": f16, "q4": q4}


def test_a_healthy_conversion_differs_in_nothing(made: dict[str, Artifact]) -> None:
    facts = made["f16"].facts(ConvertF16.parity)
    assert facts.layout_is_modelled is True
    assert facts.tensors_with_other_values == []
    assert facts.metadata_that_differs == []
    assert made["q4"].facts(QuantizeQ4.noise).tensors_beyond_noise == []
    for name, stage in {"merged": Merge.strength, "f16": ConvertF16.strength, "q4": QuantizeQ4.strength}.items():
        assert made[name].facts(stage).strength == pytest.approx(1, abs=0.05)


def differences(made: dict[str, Artifact], edit: Callable[[Any], None], tmp_path: Path) -> list[str]:
    """What is told of a copy of the F16 file that was edited in place."""
    file, checkpoint = tmp_path / "edited.gguf", made["merged"].file("checkpoint")
    shutil.copyfile(made["f16"].file(F16), file)
    edit(open_reader(gguf, file, "r+"))
    reader, source = open_reader(gguf, file), read_folder(checkpoint)
    weights = open_weights(gguf, reader, list(source), read_json(checkpoint / "config.json"), gguf.quants.dequantize)
    return unequal_tensors(weights, source, map) + different_metadata(reader, checkpoint, 49152)


def set_field(name: str, value: object) -> Callable[[Any], None]:
    def edit(reader: Any) -> None:
        key = next(key for key in reader.fields if key.endswith(name))
        field = reader.fields[key]
        field.parts[field.data[0]][0] = value

    return edit


def one_value(reader: Any) -> None:
    next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight").data[3, 5] += 1


def swap_rows(reader: Any) -> None:
    data = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight").data
    data[[0, 1]] = data[[1, 0]]


def control_token(reader: Any) -> None:
    types = reader.fields["tokenizer.ggml.token_type"]
    types.parts[types.data[3]][0] = 1


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_field(".rope.freq_base", 1234.0), "rope.freq_base: the GGUF says 1234.0"),
        (set_field(".attention.layer_norm_rms_epsilon", 0.01), "layer_norm_rms_epsilon"),
        (set_field(".attention.head_count_kv", 4), "head_count_kv: the GGUF says 4, the checkpoint 2"),
        (set_field(".context_length", 512), "context_length"),
        (set_field("tokenizer.ggml.eos_token_id", 0), "eos_token: the GGUF says 0"),
        (one_value, "model.layers.1.mlp.up_proj.weight (F16)"),
        (swap_rows, "model.layers.0.self_attn.q_proj.weight (F16)"),
        (control_token, "token 3"),
    ],
)
def test_what_is_changed_in_the_file_is_named(
    made: dict[str, Artifact], tmp_path: Path, edit: Callable[[Any], None], said: str
) -> None:
    told = differences(made, edit, tmp_path)
    assert len(told) == 1
    assert said in told[0]


def test_a_damaged_tensor_stands_out_from_the_noise_of_quantization(made: dict[str, Artifact], tmp_path: Path) -> None:
    file = tmp_path / "damaged.gguf"
    shutil.copyfile(made["q4"].file(Q4), file)
    writable = open_reader(gguf, file, "r+")
    next(tensor for tensor in writable.tensors if tensor.name == "blk.0.attn_output.weight").data[:64] = 0
    before, after = (
        {tensor.name: tensor for tensor in open_reader(gguf, path).tensors} for path in (made["f16"].file(F16), file)
    )
    noise = quantization_noise(gguf.quants.dequantize, before, after, map)
    assert [one.split()[0] for one in noise.beyond] == ["blk.0.attn_output.weight"]


def test_ggml_and_gguf_py_dequantize_to_the_same_bits(made: dict[str, Artifact]) -> None:
    fast = dequantizer(gguf, find_toolchain())
    assert fast is not gguf.quants.dequantize
    tensors = [tensor for tensor in open_reader(gguf, made["q4"].file(Q4)).tensors if len(tensor.shape) == 2]
    assert {tensor.tensor_type.name for tensor in tensors} == {"Q4_K", "Q6_K"}
    packed = [(tensor.data, tensor.tensor_type) for tensor in tensors]
    values = np.random.default_rng(0).standard_normal((8, 256), dtype=np.float32)
    for name in ("Q8_0", "Q5_0", "Q4_1", "BF16", "F16", "F32"):
        kind = gguf.GGMLQuantizationType[name]
        packed.append((gguf.quants.quantize(values, kind), kind))
    for data, kind in packed:
        assert np.array_equal(fast(data, kind), gguf.quants.dequantize(data, kind)), kind.name


def test_without_ggmls_own_library_gguf_py_dequantizes(tmp_path: Path) -> None:
    (tmp_path / "toolchain.json").write_text('{"bin": "bin"}')
    assert dequantizer(gguf, Toolchain(path=tmp_path)) == gguf.quants.dequantize


def compared_prompts(made: dict[str, Artifact], edit: Callable[[Any], None], tmp_path: Path) -> dict[str, Any]:
    """What the three make of the same text, from a copy of the F16 file that was edited in place."""
    shutil.copyfile(made["f16"].file(F16), tmp_path / F16)
    edit(open_reader(gguf, tmp_path / F16, "r+"))
    (tmp_path / "work").mkdir()
    work, checkpoint = Work(tmp_path / "work"), str(made["merged"].file("checkpoint"))
    prompts(work, tokenizer=checkpoint, f16=str(tmp_path), toolchain=str(find_toolchain().path))
    return {name: fact for facts in work.stages.values() for name, fact in facts.items()}


def nothing(reader: Any) -> None:
    pass


def other_word_in_the_template(reader: Any) -> None:
    field = reader.fields["tokenizer.chat_template"]
    text = field.parts[field.data[0]]
    at = bytes(text).find(b"helpful")
    text[at : at + 7] = np.frombuffer(b"hapless", dtype=np.uint8)


@pytest.mark.parametrize(
    ("edit", "differs"),
    [
        (nothing, None),
        (other_word_in_the_template, "prompts_rendered_differently"),
        (control_token, "strings_tokenized_differently"),
    ],
)
def test_the_three_runtimes_agree_on_prompts_unless_the_file_is_changed(
    made: dict[str, Artifact], tmp_path: Path, edit: Callable[[Any], None], differs: str | None
) -> None:
    facts = compared_prompts(made, edit, tmp_path)
    refused = facts.pop("dialogs_refused_by_template")
    lists = {name: fact for name, fact in facts.items() if isinstance(fact, list)}
    assert len(lists) == 3
    if differs is None:
        assert not any(lists.values())
        assert facts["start_tokens_at_most"] == 1
        expected = (14, ["empty content: nothing was said"]) if facts["dialogs"] > 11 else (11, [])
        assert (facts["dialogs"], refused) == expected, "one template has a thinking switch, and refuses an empty turn"
    else:
        assert lists[differs]


def thoughts_by_another_name(reader: Any) -> None:
    field = reader.fields["tokenizer.chat_template"]
    text = field.parts[field.data[0]]
    for match in re.finditer(b"reasoning_content", bytes(text)):
        text[match.start() : match.end()] = np.frombuffer(b"reasoning_in_text", dtype=np.uint8)


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_a_thinking_switch_that_llama_cpp_does_not_see_is_off_there_and_on_in_transformers(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    facts = compared_prompts(made, thoughts_by_another_name, tmp_path)
    differ = facts["prompts_rendered_differently"]
    assert {one["runtime"] for one in differ} == {"llama.cpp"}
    assert all("</think>" in one["transformers"] + one["other"] for one in differ)
    dialogs = {one["dialog"] for one in differ}
    assert "system turn" in dialogs
    assert not any(dialog.startswith("thinking ") for dialog in dialogs), "where it is set, all three agree"
