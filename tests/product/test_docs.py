"""What is written down is what the code says."""

from __future__ import annotations

import re

from assay.cli.list import reference
from assay.gating.gate import read_gates
from assay.paths import GATES, REPORTS, REPOSITORY
from assay.record.outcome import Status
from assay.record.reading import read_run
from assay.record.rendering import RENDERINGS
from assay.record.verdict import Verdict


def test_the_gate_reference_is_the_gates_own_words() -> None:
    made = (REPOSITORY / "docs" / "gates.md").read_text(encoding="utf-8")
    assert made == reference(read_gates(GATES)), "run `assay list --markdown > docs/gates.md`"


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


def test_every_file_that_the_readme_links_to_is_there() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPOSITORY / link).exists(), link


def test_the_example_is_what_the_code_renders_from_its_record() -> None:
    run = read_run(REPORTS / "example")
    assert run.verdict is Verdict.RELEASE_WITH_WARNINGS
    warned = {(gate.expected.route, gate.outcome.status) for gate in run.gates if not gate.passed}
    assert warned == {("task", Status.INCONCLUSIVE)}
    for name, render in RENDERINGS.items():
        made = (run.folder / name).read_text(encoding="utf-8")
        assert made == render(run), f"{name}: run `assay report reports/example`"
