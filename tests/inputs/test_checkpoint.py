"""Model folders are read by their headers, and what cannot be a model is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from assay.errors import InputError
from assay.files import read_json
from assay.inputs.checkpoint import all_finite_max, chat_template, read_folder, read_header

from tests.samples import write_safetensors


def test_values_are_read_exactly(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [65504.0, 1e-8]], dtype=np.float32)
    write_safetensors(tmp_path / "model.safetensors", {"w": values})
    tensor = read_folder(tmp_path)["w"]
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == ((2, 2), "F32", 16)
    assert np.array_equal(tensor.float32(), values)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    bits = np.array([0x3F80, 0xC000, 0x7F80], dtype="<u2")  # 1, -2, inf
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    tensor = read_header(tmp_path / "a.safetensors")["w"]
    assert tensor.float32().tolist() == [1.0, -2.0, float("inf")]
    assert all_finite_max(tensor) == (1, 2.0)


def test_values_that_are_not_finite_are_counted_over_chunks(tmp_path: Path) -> None:
    values = np.ones(100, dtype=np.float32)
    values[[3, 97]] = np.nan, -np.inf
    values[50] = -7
    write_safetensors(tmp_path / "a.safetensors", {"w": values})
    assert all_finite_max(read_header(tmp_path / "a.safetensors")["w"], chunk=8) == (2, 7.0)


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write_safetensors(tmp_path / "new.safetensors", {"w": np.full((2, 2), value)})
        (tmp_path / "new.safetensors").replace(tmp_path / "a.safetensors")
        assert read_header(tmp_path / "a.safetensors")["w"].float32().tolist() == [[value] * 2] * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04 a zip, as torch.save writes it", "not a safetensors file"),
        (b"", "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_folder(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones((4, 4))})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="truncated"):
        read_folder(tmp_path)


def test_a_pickle_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*can run code"):
        read_folder(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": np.ones(2)})
    with pytest.raises(InputError, match=r"w is in both a\.safetensors and b\.safetensors"):
        read_folder(tmp_path)


def test_an_index_that_names_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"w": np.ones(2)})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}})
    )
    with pytest.raises(InputError, match="names 1 tensors that no file has, v first"):
        read_folder(tmp_path)


def test_only_the_files_that_transformers_loads_are_the_model(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model-1.safetensors", {"w": np.ones(2)})
    write_safetensors(tmp_path / "consolidated.safetensors", {"layers.w": np.ones(2), "w": np.zeros(2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    assert list(read_folder(tmp_path)) == ["w"]


def test_a_broken_json_is_named_by_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a": 1,\n  b}')
    with pytest.raises(InputError, match=r"c\.json: not JSON, line 2 column 3"):
        read_json(tmp_path / "c.json")


def test_no_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="no chat template"):
        chat_template(tmp_path)


def test_two_chat_templates_that_disagree_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "chat_template.jinja").write_text("new")
    with pytest.raises(InputError, match="different chat templates"):
        chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("old")
    assert chat_template(tmp_path) == "old"
