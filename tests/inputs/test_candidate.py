"""A candidate is read whole, and what is wrong with it is one sentence that names the file."""

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


def write(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "candidate.json"
    path.write_text(json.dumps(data))
    return path


def test_a_candidate_file_is_read(tmp_path: Path) -> None:
    candidate = read_candidate(write(tmp_path, GOOD))
    (style,) = candidate.adapters
    assert (candidate.base_spec, style.source) == ("smollm2-135m-instruct", str(tmp_path / "adapter_style"))
    assert (style.recorded_digest, style.recorded_base) == ("def", "abc")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adaptors": {}}, "unknown key 'adaptors'. Did you mean 'adapters'"),
        ({"version": 2}, "version 2"),
        ({"adapters": {}}, "at least one adapter"),
        ({"adapters": {"My Style": {"path": "x"}}}, "lower-case letters"),
        ({"adapters": {"style": {}}}, "the key 'path' is missing"),
        ({"adapters": {"style": "x"}}, "unknown key 'x'"),
        ({"base": {"id": "x", "sha": 1}}, "unknown key 'sha'"),
        ({"adapters": 3}, "not a candidate"),
    ],
)
def test_what_is_off_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as problem:
        read_candidate(write(tmp_path, GOOD | change))
    assert said in str(problem.value)


def test_a_candidate_is_given_on_the_command_line(tmp_path: Path) -> None:
    candidate = given_candidate("org/model", [f"style={tmp_path}", "multi=org/lora"], "main", None)
    assert [(adapter.name, adapter.source) for adapter in candidate.adapters] == [
        ("style", str(tmp_path)),
        ("multi", "org/lora"),
    ]


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (["style"], "NAME=FOLDER_OR_HUB_ID expected"),
        (["a=x/y", "a=x/z"], "given twice"),
        ([], "at least one"),
        (["A-1=x/y"], "lower-case"),
    ],
)
def test_a_wrong_adapter_option_is_explained(adapters: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        given_candidate("org/model", adapters, None, None)


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


RECORD = {"dataset": {"path": "d", "digest": "0"}, "recipe": {"language": "en", "max_tokens": 9, "adapters": {}}}


@pytest.mark.parametrize("lacking", [("dataset", "digest"), ("recipe", "language"), ("recipe", "adapters")])
def test_half_a_training_record_is_refused(tmp_path: Path, lacking: tuple[str, str]) -> None:
    record = json.loads(json.dumps(RECORD))
    del record[lacking[0]][lacking[1]]
    file = tmp_path / "candidate.json"
    text = {"version": 1, "name": "c", "base": {"id": "b"}, "adapters": {}, "training": record}
    file.write_text(json.dumps(text))
    with pytest.raises(InputError, match=f"the key '{lacking[1]}' is missing"):
        read_candidate(file)
    file.write_text(json.dumps(text | {"training": ["x"]}))
    with pytest.raises(InputError, match="at least one adapter"):
        read_candidate(file)
    file.write_text(json.dumps(text | {"training": None}))
    with pytest.raises(InputError, match="not a candidate"):
        read_candidate(file)


def test_before_training_a_candidate_has_a_dataset_and_no_adapter(tmp_path: Path) -> None:
    file = tmp_path / "candidate.json"
    text = {"version": 1, "name": "c", "base": {"id": "b"}, "adapters": {}, "training": RECORD}
    file.write_text(json.dumps(text))
    candidate = read_candidate(file)
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
