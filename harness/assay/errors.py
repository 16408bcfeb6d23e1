"""Exceptions. Every message names the subject, what was seen, what was expected and what to do."""

from __future__ import annotations

import errno
import re

FREE_SPACE = "Free some space, or set ASSAY_CACHE to a folder on a larger disk."
"""What to do about a full disk, wherever it is noticed."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_is_full(problem: BaseException) -> bool:
    """Whether a write failed for want of space. safetensors and torch tell it in errors of their own, by their text."""
    if isinstance(problem, OSError):
        return problem.errno in _NO_SPACE
    told = re.search(r"os error (\d+)", str(problem))
    return (told is not None and int(told[1]) in _NO_SPACE) or "PytorchStreamWriter failed writing" in str(problem)


class AssayError(Exception):
    """A problem that a person can act on. Its text is shown as it is, without a traceback.

    Args:
        text: for people; it may change.
        code: a stable word for the kind of problem, which causes and tests refer to; empty if nothing refers to it.
        details: values that a cause's text may name, such as the file.
    """

    def __init__(self, text: str = "", *, code: str = "", **details: str | float) -> None:
        super().__init__(text)
        self.code = code
        self.details = details


class InputError(AssayError):
    """Something the user gave cannot be used: a missing file, an unknown key, a pickle, an adapter for another base."""


class StepFailed(AssayError):
    """A step did not produce its artifact. `log` is the path of its log, relative to the run's folder."""

    def __init__(self, reason: str, *, step: str, log: str, code: str = "", **details: str | float) -> None:
        super().__init__(reason, code=code, **details)
        self.reason = reason
        self.step = step
        self.log = log


class WorkerCrashed(StepFailed):
    """The harness's own code raised in a worker. Nobody's model is at fault."""


class Unavailable(AssayError):
    """This machine lacks the device, library or tool. Nobody's model is at fault."""


class NoRoom(AssayError):
    """The machine has too little free memory or disk for the step, so the step does not begin."""


class Inconclusive(AssayError):
    """The data cannot decide."""
