"""The published schemas and their page are what the models say, and records are what the schemas say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from assay.paths import REPORTS, REPOSITORY
from assay.record.outcome import Diagnosis, Outcome, Status, unstaged
from assay.record.reading import upgraded_outcome, upgraded_run
from assay.record.schema import FILES, reference, schema, write_documents
from assay.record.writing import append_outcome
from assay.steps.step import StepUse
from jsonschema import Draft202012Validator

from tests.samples import write_run

DOCS = REPOSITORY / "docs"


def published(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((DOCS / "schema" / f"{name}.schema.json").read_text(encoding="utf-8")))


def assert_fits(folder: Path, upgraded: bool = False) -> None:
    """Validate a run's two files, as they are or as the reader upgrades them."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    published("run").validate(upgraded_run(run) if upgraded else run)
    lines = (folder / "gates.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        outcome = json.loads(line)
        published("gates").validate(upgraded_outcome(outcome) if upgraded else outcome)


def test_what_is_published_is_what_the_models_say(tmp_path: Path) -> None:
    write_documents(tmp_path)
    for file in ("record.md", *(f"schema/{name}.schema.json" for name in FILES)):
        made, kept = (folder / file for folder in (tmp_path, DOCS))
        assert kept.read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), (
            "run `python -m assay.record.schema docs`"
        )


@pytest.mark.parametrize("name", list(FILES))
def test_every_field_is_described_and_no_other_is_allowed(name: str) -> None:
    made = schema(name)
    Draft202012Validator.check_schema(made)
    models = [one for one in (made, *made["$defs"].values()) if "properties" in one]
    assert all(model["additionalProperties"] is False for model in models)
    undescribed = [
        f"{model['title']}.{key}"
        for model in models
        for key, field in model["properties"].items()
        if not field.get("description")
    ]
    assert undescribed == []


def test_the_examples_on_the_page_fit_the_schemas() -> None:
    examples = re.findall(r"```json\n(.*?)```", reference(), re.DOTALL)
    assert len(examples) == len(FILES)
    for name, example in zip(FILES, examples, strict=True):
        published(name).validate(json.loads(example))


def test_a_record_that_is_written_fits_the_schemas(tmp_path: Path) -> None:
    use = StepUse(step="s", digest="0", seconds=0.0, peak_rss_bytes=0, reused_from=None, log="log.txt")
    cause = Diagnosis(id="i", cause="c", fix="f", link="", affects="", evidence=("e",))
    more: dict[str, Any] = {"code": "c", "details": {"n": 1}, "facts": unstaged({"n": [float("nan")]})}
    folder = write_run(tmp_path, {"p": ("primary", Status.FAILED)}, causes=(cause,), steps=(use,), **more)
    append_outcome(folder, Outcome(gate="s", adapter="a", status=Status.BLOCKED, blocked_by="p"))
    assert_fits(folder)


@pytest.mark.parametrize("folder", [REPORTS / "example", Path(__file__).parent / "version-1"], ids=lambda one: one.name)
def test_a_kept_record_fits_the_schemas_once_the_reader_has_upgraded_it(folder: Path) -> None:
    assert_fits(folder, upgraded=True)
