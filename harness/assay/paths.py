"""Where things live outside the package: the gates, the reports, the cache."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parents[1]
GATES = REPOSITORY / "gates"
REPORTS = REPOSITORY / "reports"
CONSTRAINTS = REPOSITORY / "constraints.txt"
PIN = REPOSITORY / "tools" / "llama.cpp" / "pin.toml"
QUICKSTART = REPOSITORY / "train" / "out" / "quickstart" / "candidate.json"


def cache() -> Path:
    """The user's cache (`ASSAY_CACHE` overrides): base models, toolchains, step results. Safe to delete."""
    override = os.environ.get("ASSAY_CACHE")
    return Path(override).resolve() if override else platformdirs.user_cache_path("assay")
