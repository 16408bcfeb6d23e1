"""Renderings say what the record says, and whatever a model wrote stays text."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from assay.record.outcome import Outcome, Status
from assay.record.reading import read_run
from assay.record.rendering import write_reports
from assay.record.text import terminal_lines
from assay.record.writing import append_outcome

from tests.samples import write_run

HOSTILE = "<script>alert(1)</script> | `x` \x1b[31m\x00 ]]> & 'q' {{ 7*7 }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    facts = {
        "Load.load": {"weight_bytes": 1_500_000_000},
        "Ask.ask": {"answers": {"p": {"text": HOSTILE, "kind": "ok"}}},
    }
    gates = {
        "good_ok": ("primary", Status.PASSED),
        "bad_ok": ("secondary", Status.FAILED),
        "gone_ok": ("secondary", None),
    }
    return write_run(tmp_path / "run", gates, reason=HOSTILE, facts=facts)


def test_every_rendering_is_written_and_names_the_verdict(folder: Path) -> None:
    assert [path.name for path in write_reports(folder)] == ["report.html", "junit.xml", "summary.md"]
    for name in ("report.html", "summary.md"):
        assert "HOLD" in (folder / name).read_text()
    assert not list(folder.glob(".*"))


def test_html_escapes_what_a_model_wrote(folder: Path) -> None:
    write_reports(folder)
    html = (folder / "report.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7*7 }}" in html
    assert "1.50 GB" in html
    assert "http://" not in html
    assert "https://" not in html


def test_markdown_keeps_a_hostile_reason_in_its_cell(folder: Path) -> None:
    write_reports(folder)
    row = next(line for line in (folder / "summary.md").read_text().splitlines() if "bad_ok" in line)
    assert "<script>" not in row
    assert row.replace("\\|", "").count("|") == 6


def test_junit_is_xml_and_counts_what_did_not_pass(folder: Path) -> None:
    write_reports(folder)
    suite = ElementTree.parse(folder / "junit.xml").getroot()[0]
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "1", "skipped": "0"}
    assert [case.get("name") for case in suite] == ["good_ok", "bad_ok", "gone_ok"]


def test_the_terminal_gets_no_control_characters(folder: Path) -> None:
    lines = terminal_lines(read_run(folder))
    assert not any("\x1b" in line or "\x00" in line for line in lines)
    assert lines[-2] == "HOLD: 1 of 3 gates passed, 1 failed, 1 missing"


def test_a_fact_of_a_described_stage_comes_with_its_description_and_unit(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    fields = {"kl_mean": {"description": f"Mean distance {HOSTILE}", "unit": "nats"}}
    record["stages"] = {"Compare.compared": {"title": "Compares", "fields": fields}}
    (folder / "run.json").write_text(json.dumps(record))
    facts = {"Compare.compared": {"kl_mean": 0.25, "unknown": 1}}
    append_outcome(folder, Outcome(gate="gone_ok", adapter=None, status=Status.PASSED, facts=facts))
    write_reports(folder)
    html = (folder / "report.html").read_text()
    assert '<dt title="Mean distance &lt;script&gt;' in html
    assert "<dd>0.25 nats</dd>" in html
    assert "<dt>unknown</dt><dd>1</dd>" in html


def test_a_failure_code_is_in_the_report_and_in_junit(folder: Path) -> None:
    append_outcome(
        folder, Outcome(gate="gone_ok", adapter=None, status=Status.FAILED, reason="w", code="tensors-missing")
    )
    write_reports(folder)
    assert "tensors-missing" in (folder / "report.html").read_text()
    failure = ElementTree.parse(folder / "junit.xml").getroot().find(".//testcase[@name='gone_ok']/failure")
    assert failure is not None
    assert failure.get("type") == "tensors-missing"


def test_numbers_that_were_not_finite_are_dashes(folder: Path) -> None:
    nan = float("nan")
    distance = {"kl_mean": nan, "kl_mean_interval": [nan, nan], "top1_agreement": nan, "share_lost": nan}
    distance |= {"perplexity_ratio": float("inf"), "perplexity_ratio_interval": [nan, nan]}
    facts = {"Compare.compared": {**distance, "waterfall": {"merged": nan, "q4": 0.1}}}
    record = json.loads((folder / "run.json").read_text())
    record["expected"] += [{**record["expected"][0], "gate": "q4_distribution_ok", "adapter": "style"}]
    (folder / "run.json").write_text(json.dumps(record))
    append_outcome(folder, Outcome(gate="q4_distribution_ok", adapter="style", status=Status.PASSED, facts=facts))
    write_reports(folder)
    html = (folder / "report.html").read_text()
    assert "Q4_K_M GGUF" in html
    assert "nan" not in html


def test_training_and_predictions_are_shown_beside_what_was_measured(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    share = {"successes": 17, "share": 1.0, "lower_bound": 0.838}
    judged = {**share, "threshold": 0.92, "judgement": "cannot be shown with n=17 (needs 36)"}
    summary = {"all": {"n": 17, "coverage": share, "format": judged, "refusal": share}}
    evaluation = {"language": "en", "summary": summary, "why_empty": HOSTILE, "seconds": 9.0, "peak_host_bytes": 1}
    evaluation |= {"peak_device_bytes": None}
    result = {"seconds": 9.0, "peak_bytes_predicted": 1_000_000_000, "peak_device_bytes": 1_500_000_000}
    record["training"] = {
        "recipe": {"name": HOSTILE},
        "results": {"style": result},
        "curves": {"style": [[1, 4.0], [2, 2.0], [3, 1.0]]},
        "evaluation": {"forms": {"q4_k_m": {"style": evaluation}}},
    }
    (folder / "run.json").write_text(json.dumps(record))
    write_reports(folder)
    html = " ".join((folder / "report.html").read_text().split())
    assert "training style, peak on the GPU" in html
    assert ">1.500<" in html, "measured against predicted"
    assert 'points="0.0,0.0 320.0,45.0 640.0,75.0"' in html, "the running mean of the loss"
    assert "format &gt; 0.92: cannot be shown with n=17 (needs 36)" in html
    assert "<script>" not in html


def test_a_training_record_with_holes_is_still_a_report(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["training"] = {"results": {"style": {}}, "curves": {"style": []}, "evaluation": None}
    (folder / "run.json").write_text(json.dumps(record))
    write_reports(folder)
    assert "<h2>Training</h2>" in (folder / "report.html").read_text()
