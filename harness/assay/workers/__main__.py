"""`python -m assay.workers FOLDER PARENT`: runs the step described in FOLDER/step.json for the process PARENT."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from assay.errors import FREE_SPACE, AssayError, disk_is_full
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
    except ImportError as missing:
        traceback.print_exc()
        return _tell(folder, "unavailable", f"{missing}. Install it: `pip install -e '.[all]' -c constraints.txt`.")
    except AssayError as problem:
        return _tell(folder, getattr(problem, "kind", "failed"), str(problem))
    except Exception as problem:
        traceback.print_exc()
        if disk_is_full(problem):
            said = getattr(problem, "strerror", None) or problem
            return _tell(folder, "failed", f"{folder}: the disk is full ({said}). {FREE_SPACE}")
        return _tell(folder, "failed", f"{type(problem).__name__}: {problem}")
    return 0


def _tell(folder: Path, kind: str, reason: str) -> int:
    print(reason, flush=True)
    (folder / "problem.json").write_text(json.dumps({"kind": kind, "reason": reason}), encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
