"""A full disk is recognised in whatever error a library makes of it."""

from __future__ import annotations

import errno

import pytest
from assay.errors import disk_is_full


@pytest.mark.parametrize(
    ("problem", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        # As safetensors 0.8.0 and torch 2.13.0 say it.
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (Exception("Error while serializing: I/O error: Permission denied (os error 13)"), False),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("out of memory"), False),
    ],
)
def test_a_full_disk_is_recognised(problem: Exception, full: bool) -> None:
    assert disk_is_full(problem) is full
