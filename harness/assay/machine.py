"""What this machine is, without importing torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@cache
def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs. Every value is a plain JSON value."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus(),
    }


def usable_cores() -> int:
    """How many cores this process may run on: all of them, or the share that a container or `taskset` gives it.

    More threads than that run many times slower: threads that wait for each other take the cores in turn.
    """
    return len(os.sched_getaffinity(0))


def machine_digest() -> str:
    """Names what a result's speed, memory and numerics depend on: the processor with its instruction sets, the GPUs."""
    parts = [cpu_model(), cpu_flags(), usable_cores(), gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor()


@cache
def cpu_flags() -> list[str]:
    """The processor's instruction sets, sorted; empty where /proc/cpuinfo does not exist."""
    return sorted(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def package_version(package: str) -> str | None:
    """The installed version of a Python package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def gpus() -> list[str]:
    """The NVIDIA GPUs by name and driver, as nvidia-smi lists them; empty if it is not there or does not answer."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
