"""What a step's digest covers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from assay import paths
from assay.facts import Bytes, Facts, Seconds
from assay.gating.causes import known_stages
from assay.steps import step


@pytest.mark.parametrize(
    "file", ["workers/gguf.py", "measures/strength.py", "inputs/lora.py", "steps/store.py", "files.py"]
)
def test_code_that_makes_a_result_is_part_of_the_digest(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(paths.PACKAGE, tmp_path / "assay")
    monkeypatch.setattr(step, "PACKAGE", copy)
    before = step.code_digest.__wrapped__()
    (copy / file).write_text((copy / file).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert step.code_digest.__wrapped__() != before


@pytest.mark.parametrize("file", ["gating/gate.py", "record/html.py", "cli/app.py", "faults/fault.py"])
def test_code_that_judges_or_shows_results_is_not(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(paths.PACKAGE, tmp_path / "assay")
    monkeypatch.setattr(step, "PACKAGE", copy)
    before = step.code_digest.__wrapped__()
    (copy / file).write_text("# changed\n", encoding="utf-8")
    assert step.code_digest.__wrapped__() == before


@pytest.mark.parametrize("id", list(known_stages()))
def test_every_fact_says_what_it_is(id: str) -> None:
    described = known_stages()[id].facts.describe()
    assert [name for name, one in described.items() if not one["description"]] == []


def test_a_unit_is_found_inside_a_type() -> None:
    class Sample(Facts):
        load: Seconds | None
        sizes: dict[str, Bytes]
        name: str | None

    assert {name: one["unit"] for name, one in Sample.describe().items()} == {"load": "s", "sizes": "bytes", "name": ""}
