"""`python -m assay.workers FOLDER PARENT`: runs the step described in FOLDER/step.json for the process PARENT."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path

from assay.errors import FREE_SPACE, AssayError, Inconclusive, Unavailable, disk_is_full
from assay.paths import PACKAGE
from assay.workers import Work


def die_with(parent: int) -> None:
    """End this process and its tools when the process that asked for the step is gone: nobody will take the result."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path, parent: int) -> int:
    die_with(parent)
    step = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    module, function = step["worker"].split(".")
    try:
        worker = getattr(importlib.import_module(f"assay.workers.{module}"), function)
        worker(Work(folder), **step["arguments"])
    except Exception as problem:
        return _tell(folder, problem)
    return 0


def _tell(folder: Path, problem: Exception) -> int:
    """Leave `problem.json`: what went wrong, in words and as a code."""
    kind, reason, code = "failed", f"{type(problem).__name__}: {problem}", "library-raised"
    details: dict[str, str | int | float] = {}
    if isinstance(problem, AssayError):
        kind = "unavailable" if isinstance(problem, Unavailable) else kind
        kind = "inconclusive" if isinstance(problem, Inconclusive) else kind
        reason, code, details = str(problem), problem.code, dict(problem.details)
    else:
        traceback.print_exc()
        if isinstance(problem, ImportError):
            reason = f"{problem}. Install it: `pip install -e '.[all]' -c constraints.txt`."
            kind, code = "unavailable", "library-missing"
            details["module"] = (problem.name or "").partition(".")[0]
        elif disk_is_full(problem):
            meaning = getattr(problem, "strerror", None) or problem
            reason, code = f"{folder}: the disk is full ({meaning}). {FREE_SPACE}", "disk-full"
        elif type(problem).__name__ == "OutOfMemoryError":
            code = "gpu-out-of-memory"
        elif is_own(problem):
            kind, code = "error", "worker-crashed"
    print(reason, flush=True)
    told = {"kind": kind, "reason": reason, "code": code, "details": details}
    (folder / "problem.json").write_text(json.dumps(told), encoding="utf-8")
    return 1


def is_own(problem: Exception) -> bool:
    """Whether Assay's own code raised it, by itself or through the standard library, and no other library did.

    What a library refuses says something about the model; what Assay's code trips over says something about Assay.
    """
    standard = sysconfig.get_paths()["stdlib"]

    def counts(file: str) -> bool:
        if "/pydantic/" in file:  # it refuses facts, which Assay made
            return False
        # Installed packages lie inside the standard library's folder, too.
        return "site-packages" in file or not file.startswith((standard, "<"))

    files = [frame.filename for frame in traceback.extract_tb(problem.__traceback__) if counts(frame.filename)]
    return bool(files) and Path(files[-1]).is_relative_to(PACKAGE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
