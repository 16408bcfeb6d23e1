"""A process that has a share of the machine's cores starts no more threads than that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TELL = "from assay import machine; from assay.workers import llama; print(machine.usable_cores(), *llama._threads())"


@pytest.mark.parametrize("share", [1, None])
def test_a_share_of_the_cores_is_seen_and_llama_cpp_is_told(share: int | None) -> None:
    cores = sorted(os.sched_getaffinity(0))[:share]
    pinned = f"import os; os.sched_setaffinity(0, {cores}); {TELL}"
    done = subprocess.run([sys.executable, "-c", pinned], capture_output=True, text=True, check=True)
    told = [] if len(cores) == os.cpu_count() else ["--threads", str(len(cores))]
    assert done.stdout.split() == [str(len(cores)), *told]
