"""Asks the doctor before the first gate: what it finds is in the record, and no step begins that has no room."""

from __future__ import annotations

from assay.gating.doctor import examine
from assay.gating.examination import Examination, Finding, Level
from assay.inputs.candidate import Candidate
from assay.record.run import DoctorFinding
from assay.record.text import printable
from assay.steps.runner import Runner


def preflight(candidate: Candidate, runner: Runner) -> tuple[DoctorFinding, ...]:
    """What the doctor finds. Where it finds no room for a model, the runner begins no step that holds one.

    A doctor that breaks must not keep the gates from judging: that it broke is a finding.
    """
    findings: list[Finding] = []
    try:
        for _, found, _ in examine(Examination(candidate, runner, in_run=True)):
            findings += found
    except Exception as problem:
        text = f"the doctor broke: {type(problem).__name__}: {problem}"
        findings.append(Finding(check="doctor", level=Level.NOTE, text=text))
    stops = [finding for finding in findings if finding.level is Level.STOPS]
    runner.no_room = f"{stops[0].text}. {stops[0].fix}" if stops else ""
    return tuple(DoctorFinding.model_validate(finding.to_json()) for finding in findings)


def header(findings: tuple[DoctorFinding, ...]) -> list[str]:
    """What the doctor found, one line per finding, for the top of pytest's output."""
    told = [one for one in findings if one.level != "fine"]
    lines = ["assay doctor: {}: {}".format(one.check, printable(one.text.partition("\n")[0])) for one in told]
    if any(one.level == "stops" for one in findings):
        lines.append("assay doctor: no step that holds a model begins")
    return lines
