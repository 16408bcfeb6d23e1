"""Where things live outside the package: the gates, the reports, the cache.

In a checkout all of it is in the repository. A wheel carries a copy of the files that are needed from the repository,
under the same paths, in `assay/_data`; what is made then goes to the current directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent
_PACKAGED = PACKAGE / "_data"
REPOSITORY = _PACKAGED if _PACKAGED.is_dir() else PACKAGE.parents[1]
"""The checkout, or else the wheel's copy of its files."""
GATES = REPOSITORY / "gates"
CONSTRAINTS = REPOSITORY / "constraints.txt"
PIN = REPOSITORY / "tools" / "llama.cpp" / "pin.toml"

_OUTPUT = Path.cwd() if REPOSITORY == _PACKAGED else REPOSITORY
REPORTS = _OUTPUT / "reports"
TRAINED = _OUTPUT / "train" / "out"
"""Where `python -m train` puts its candidates."""
QUICKSTART = TRAINED / "quickstart" / "candidate.json"

_SAME_COMMANDS = (
    (r"nox -s gates( --)?", "assay run"),
    (r"nox -s (\w+)( --)?", r"assay \1"),
    (r"python -m train\b", "assay train"),
    (r"pip install -e '\.(\[\w+\])' -c constraints\.txt", rf"pip install 'WHEEL\1' -c {CONSTRAINTS}"),
)
"""A command in a checkout to what it is without one."""


def commands_here(text: str) -> str:
    """The text with the commands that it names as a user types them here: without a checkout there is no nox."""
    if REPOSITORY == _PACKAGED:
        for pattern, command in _SAME_COMMANDS:
            text = re.sub(pattern, command, text)
    return text


def cache() -> Path:
    """The user's cache (`ASSAY_CACHE` overrides): base models, toolchains, step results. Safe to delete."""
    override = os.environ.get("ASSAY_CACHE")
    return Path(override).resolve() if override else platformdirs.user_cache_path("assay")
