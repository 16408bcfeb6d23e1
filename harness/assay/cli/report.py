"""`assay report`: the renderings of a run's record."""

from __future__ import annotations

from assay import paths
from assay.cli.arguments import Run
from assay.record.reading import newest_run
from assay.record.rendering import write_reports

EXAMPLE = "assay report reports/20260209-165643-gates"
EXIT_CODES = {0: "the files are written", 2: "there is no run, or its record cannot be read"}


def command(run: Run = None) -> int:
    """The files are written into the run's folder and named on stdout."""
    for path in write_reports(run or newest_run(paths.REPORTS)):
        print(path)
    return 0
