"""What is written down is what the code says."""

from __future__ import annotations

import re

from assay.gating.gate import read_gates
from assay.paths import GATES, PACKAGE, REPORTS, REPOSITORY
from assay.record.outcome import Status
from assay.record.reading import read_run
from assay.record.rendering import RENDERINGS
from assay.record.verdict import Verdict

from docs.generate import PAGES, documents


def test_generated_pages_are_what_the_code_gives() -> None:
    made = documents()
    assert set(PAGES.iterdir()) == {file for file in made if file.parent == PAGES}, "run `python -m docs.generate`"
    for file, text in made.items():
        assert file.read_text(encoding="utf-8") == text, f"{file}: run `python -m docs.generate`"


def test_the_page_on_the_rooms_has_each_room() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^\| \[(\w+)\]", text, re.MULTILINE)) == rooms


def test_every_gate_says_why_it_matters_and_what_to_do() -> None:
    for gate in read_gates(GATES):
        assert gate.title.endswith("."), gate.id
        assert "Why it matters:" in gate.guide, gate.id
        assert "When it fails:" in gate.guide, gate.id


def test_ci_runs_the_readmes_test_command() -> None:
    command = "python3 -m pip install nox && python3 -m nox -s tests"
    for name in ("README.md", "README.zh-CN.md", ".ci/run"):
        assert command in (REPOSITORY / name).read_text(encoding="utf-8").splitlines(), name


def test_both_readmes_explain_every_status() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert {match[1] for match in re.finditer(r"^\| `(\w+)`", text, re.MULTILINE)} == {s.value for s in Status}, (
            name
        )


def test_every_file_that_a_page_links_to_is_there() -> None:
    folders = (REPOSITORY, REPOSITORY / "docs", PAGES, REPORTS, REPOSITORY / "train")
    for page in (page for folder in folders for page in folder.glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_example_is_what_the_code_renders_from_its_record() -> None:
    run = read_run(REPORTS / "example")
    assert run.verdict is Verdict.RELEASE_WITH_WARNINGS
    warned = {(gate.expected.route, gate.outcome.status) for gate in run.gates if not gate.passed}
    assert warned == {("task", Status.INCONCLUSIVE)}
    for name, render in RENDERINGS.items():
        made = (run.folder / name).read_text(encoding="utf-8")
        assert made == render(run), f"{name}: run `assay report reports/example`"
