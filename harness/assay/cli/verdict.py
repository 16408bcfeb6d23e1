"""`assay verdict`: a run's verdict as text and as exit code."""

from __future__ import annotations

from assay import paths
from assay.cli.arguments import Run
from assay.record.reading import newest_run, read_run
from assay.record.text import terminal_lines

EXAMPLE = "assay verdict reports/20260209-165643-gates"
EXIT_CODES = {0: "RELEASE, with or without warnings", 1: "HOLD", 2: "there is no run to judge, or it cannot be read"}


def command(run: Run = None) -> int:
    record = read_run(run or newest_run(paths.REPORTS))
    print("\n".join(terminal_lines(record)))
    return record.verdict.exit_code
