"""What can be known before the first expensive step: versions, tools, headers, memory, disk. No torch, no weights.

Where a gate can judge already (the adapter's files, the toolchain), the gate itself is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from assay.gating.checks import CHECKS
from assay.gating.examination import Examination, Finding, Level
from assay.paths import commands_here


def examine(examination: Examination) -> Iterator[tuple[str, list[Finding], float]]:
    """Each check's name, what it found, and its seconds."""
    for check in CHECKS:
        started = time.monotonic()
        try:
            found = [replace(one, fix=commands_here(one.fix)) for one in check(examination)]
        except Exception as problem:  # a malformed file must not keep the gates from judging it
            text = f"could not be examined: {type(problem).__name__}: {problem}"
            found = [Finding(check=check.__name__, level=Level.NOTE, text=text)]
        yield check.__name__, found, time.monotonic() - started
