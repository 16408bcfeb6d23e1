"""The record as JUnit XML, one test case per gate, for CI systems that show such files."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from assay.record.outcome import Status
from assay.record.reading import Run
from assay.record.text import subject, why
from assay.record.verdict import GateResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KINDS = {
    Status.PASSED: "passed",
    Status.FAILED: "failure",
    Status.ERROR: "error",
    Status.MISSING: "error",
    Status.INCONCLUSIVE: "skipped",
    Status.UNAVAILABLE: "skipped",
    Status.BLOCKED: "skipped",
}


def render_junit(run: Run) -> str:
    """`failed` is a failure, `error` and `missing` are errors, each other status but `passed` is skipped."""
    kinds = [_KINDS[gate.outcome.status] for gate in run.gates]
    suite = Xml.Element(
        "testsuite",
        name=_clean(f"assay {run.record.candidate.name}"),
        timestamp=run.record.started_at,
        tests=str(len(kinds)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
        time=f"{sum(gate.outcome.seconds for gate in run.gates):.3f}",
    )
    suite.extend(_case(gate, kind) for gate, kind in zip(run.gates, kinds, strict=True))
    root = Xml.Element("testsuites")
    root.append(suite)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _case(gate: GateResult, kind: str) -> Xml.Element:
    outcome = gate.outcome
    route, seconds = f"gates.{gate.expected.route}", f"{outcome.seconds:.3f}"
    case = Xml.Element("testcase", classname=route, name=subject(gate), time=seconds)
    if not gate.passed:
        message = _clean(f"{outcome.status} ({gate.expected.severity}): {why(gate)}")
        problem = Xml.SubElement(case, kind, message=message)
        problem.text = _clean(outcome.reason)
        if outcome.code:
            problem.set("type", outcome.code)
    return case


def _clean(text: str) -> str:
    """XML 1.0 has no control characters, not even escaped ones; models do emit them."""
    return _NOT_XML.sub("\ufffd", text)
