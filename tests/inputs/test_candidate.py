"""Candidates, their adapters and their base. What is wrong with a candidate.json is in tests/test_validation.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from assay.errors import InputError, Unavailable
from assay.inputs.bases import find_base
from assay.inputs.candidate import given_candidate, read_candidate

from tests.samples import write_adapter, write_safetensors

GOOD: dict[str, Any] = {
    "version": 1,
    "name": "c",
    "base": {"id": "smollm2-135m-instruct", "revision": None, "digest": "abc"},
    "adapters": {"style": {"path": "adapter_style", "digest": "def"}},
}
RECORD: dict[str, Any] = {
    "dataset": {"path": "d", "digest": "0"},
    "recipe": {"language": "en", "max_tokens": 9, "adapters": {}},
}
"""`training`, as little of it as a candidate may say."""


def write(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "candidate.json"
    path.write_text(json.dumps(data))
    return path


def test_a_candidate_file_is_read(tmp_path: Path) -> None:
    candidate = read_candidate(write(tmp_path, GOOD))
    (style,) = candidate.adapters
    assert (candidate.base_spec, style.source) == ("smollm2-135m-instruct", str(tmp_path / "adapter_style"))
    assert (style.recorded_digest, style.recorded_base) == ("def", "abc")


def test_what_training_recorded_stays_as_it_is_written(tmp_path: Path) -> None:
    record = {**RECORD, "recipe": {**RECORD["recipe"], "a key of another version": 1}, "results": {"style": {"x": 1}}}
    assert read_candidate(write(tmp_path, GOOD | {"training": record})).record == record


def test_a_candidate_is_given_on_the_command_line(tmp_path: Path) -> None:
    candidate = given_candidate("org/model", [f"style={tmp_path}", "multi=org/lora"], "main", None)
    assert [(adapter.name, adapter.source) for adapter in candidate.adapters] == [
        ("style", str(tmp_path)),
        ("multi", "org/lora"),
    ]


def test_an_adapter_folder_is_looked_at_only_when_asked_for(tmp_path: Path) -> None:
    candidate = given_candidate("org/model", [f"style={tmp_path / 'none'}"], None, None)
    with pytest.raises(InputError, match="no such folder"):
        _ = candidate.adapters[0].path


@pytest.mark.parametrize(
    ("remove", "add", "said"),
    [
        ("adapter_config.json", "", "adapter_config.json is missing"),
        ("adapter_model.safetensors", "", "adapter_model.safetensors is missing"),
        ("adapter_model.safetensors", "adapter_model.bin", "is a pickle and is never loaded"),
    ],
)
def test_half_an_adapter_is_refused(tmp_path: Path, remove: str, add: str, said: str) -> None:
    folder = write_adapter(tmp_path / "a", {"l.q_proj": (4, 4)}, base="b")
    (folder / remove).unlink()
    if add:
        (folder / add).write_bytes(b"\x80")
    with pytest.raises(InputError, match=said):
        _ = given_candidate("org/model", [f"style={folder}"], None, None).adapters[0].digest


def test_before_training_a_candidate_has_a_dataset_and_no_adapter(tmp_path: Path) -> None:
    candidate = read_candidate(write(tmp_path, GOOD | {"adapters": {}, "training": RECORD}))
    assert (candidate.trained_here, candidate.adapters) == (True, ())
    with pytest.raises(Unavailable, match="not on this machine"):
        _ = candidate.training


def base_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_safetensors(folder / "model.safetensors", {})
    return folder


def test_a_base_folder_is_found_relative_to_the_candidate(tmp_path: Path) -> None:
    base_folder(tmp_path)
    assert find_base("base", relative_to=tmp_path).path == tmp_path / "base"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("chat_template.jinja", None, "no chat template"),
        ("config.json", None, "config.json: not found"),
        ("config.json", '{"quantization_config": {"quant_method": "bitsandbytes"}}', "already quantized .bitsandbytes"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("model.safetensors", None, "safetensors expected, none found"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(tmp_path: Path, file: str, content: str | None, said: str) -> None:
    folder = base_folder(tmp_path)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=said):
        find_base(str(folder))


def test_a_base_that_is_nowhere_is_refused() -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_base("./nowhere")


def test_renaming_a_folder_does_not_change_the_base_and_a_byte_does(tmp_path: Path) -> None:
    folder = base_folder(tmp_path)
    before = find_base(str(folder)).digest
    renamed = folder.rename(tmp_path / "renamed")
    assert find_base(str(renamed)).digest == before
    (renamed / "chat_template.jinja").write_text("{{ messages[0] }}")
    assert find_base(str(renamed)).digest != before
