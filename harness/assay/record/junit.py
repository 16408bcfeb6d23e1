"""The record as JUnit XML, one test case a gate, for CI systems that draw such files."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from assay.record.record import Run, Status
from assay.record.text import subject, why

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(run: Run) -> str:
    """`failed` is a failure, `error` and `missing` are errors, the rest that did not pass is skipped."""
    kinds = {Status.FAILED: "failure", Status.ERROR: "error", Status.MISSING: "error"}
    statuses = [gate.outcome.status for gate in run.gates]
    suite = Xml.Element(
        "testsuite",
        name=f"assay {run.candidate['name']}",
        timestamp=run.started_at,
        tests=str(len(run.gates)),
        failures=str(statuses.count(Status.FAILED)),
        errors=str(statuses.count(Status.ERROR) + statuses.count(Status.MISSING)),
        skipped=str(sum(status not in kinds and status is not Status.PASSED for status in statuses)),
        time=f"{sum(gate.outcome.seconds for gate in run.gates):.3f}",
    )
    for gate in run.gates:
        case = Xml.SubElement(
            suite,
            "testcase",
            classname=f"gates.{gate.expected.route}",
            name=subject(gate),
            time=f"{gate.outcome.seconds:.3f}",
        )
        if not gate.passed:
            kind = kinds.get(gate.outcome.status, "skipped")
            message = f"{gate.outcome.status} ({gate.expected.severity}): {why(gate)}"
            problem = Xml.SubElement(case, kind, message=_clean(message))
            problem.text = _clean(gate.outcome.reason)
    root = Xml.Element("testsuites")
    root.append(suite)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """XML 1.0 has no control characters, not even escaped ones; models do emit them."""
    return _NOT_XML.sub("\ufffd", text)
