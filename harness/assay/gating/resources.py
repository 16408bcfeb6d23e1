"""What this machine has free, without importing torch."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path


def torch_knows_gpus() -> bool:
    """Whether the torch that is installed was built for CUDA, as far as its name and needs tell."""
    try:
        torch, needs = version("torch"), distribution("torch").requires or []
    except PackageNotFoundError:
        return False
    return "+cpu" not in torch and ("+cu" in torch or any("nvidia" in need or "cuda" in need for need in needs))


def available_bytes() -> int:
    """Memory that a new process may take, of the host or of the container's limit, whichever is less."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(1024 * int(re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[0]))
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        # What files were read lies in memory only until somebody needs it.
        cached = int(re.findall(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)[0])
        found.append(limit - used + cached)
    return min(found, default=2**63)


def card_bytes() -> int | None:
    """Free memory of the GPU that the workers use, the first that they see; None if they use none."""
    if not torch_knows_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        free = [int(line) * 2**20 for line in answer.stdout.split()]
        return free[int(visible) if visible.isdigit() else 0]
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
