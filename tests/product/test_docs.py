"""What is written down is what the code says."""

from __future__ import annotations

import json
import re
from typing import Any

from assay.cli.list import reference
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.coverage import render as render_coverage
from assay.gating.gate import read_gates
from assay.paths import GATES, REPORTS, REPOSITORY
from assay.record.html import render_html
from assay.record.junit import render_junit
from assay.record.record import Status, Verdict, read_run
from assay.record.text import render_markdown


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


def coverage() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPOSITORY / "docs" / "coverage.json").read_text(encoding="utf-8"))
    return found


def test_the_coverage_document_is_what_fault_injection_showed() -> None:
    made = (REPOSITORY / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert made == render_coverage(coverage()), "run `assay faults --jobs 2 --publish`"


def test_coverage_and_code_hold_the_same_specimens_and_gates() -> None:
    faults, variants = (FAULTS, HEALTHY_VARIANTS)
    seen = coverage()
    assert set(seen["faults"]) == set(faults)
    assert set(seen["variants"]) == set(variants)
    assert set(seen["gates"]) == {gate.id for gate in read_gates(GATES)}
    assert not seen["quick"]
    for name, one in seen["faults"].items():
        known = faults[name]
        assert (one["place"], one["silent"], one["cause"]) == (known.place.value, known.silent, known.cause), name


def test_every_defect_is_caught_where_it_should_be_first_and_explained() -> None:
    faults, _ = (FAULTS, HEALTHY_VARIANTS)
    for name, one in coverage()["faults"].items():
        assert one["not_here"] is None, name
        assert one["caught_by"][:1] == [faults[name].first], name
        assert one["cause_named_by"], name


def test_every_gate_is_the_first_to_catch_something() -> None:
    first = {one["caught_by"][0] for one in coverage()["faults"].values()}
    assert first == {gate.id for gate in read_gates(GATES)}


def test_nothing_is_said_against_a_healthy_variant() -> None:
    variants = coverage()["variants"]
    for name, one in variants.items():
        assert (one["alarms"], one["causes_that_fit"]) == ([], []), name
    # DoRA over 4 bits is broken on some processors, which is a fault of the faults there.
    away = [one["not_here"] for one in variants.values() if one["not_here"]]
    assert all("bitsandbytes" in reason for reason in away)
    assert len(variants) - len(away) >= 50


def test_every_file_that_the_readme_links_to_is_there() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPOSITORY / link).exists(), link


def test_the_example_is_what_the_code_renders_from_its_record() -> None:
    run = read_run(REPORTS / "example")
    assert run.verdict is Verdict.RELEASE_WITH_WARNINGS
    warned = {(gate.expected.route, gate.outcome.status) for gate in run.gates if not gate.passed}
    assert warned == {("task", Status.INCONCLUSIVE)}
    for name, render in {"report.html": render_html, "junit.xml": render_junit, "summary.md": render_markdown}.items():
        made = (run.folder / name).read_text(encoding="utf-8")
        assert made == render(run), f"{name}: run `assay report reports/example`"
