"""The options that name a candidate, for pytest (`assay run`) and for every other command that takes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of the command line."""

    name: str
    """As it is typed: `--base`."""
    help: str
    metavar: str = ""
    default: str | int | float | bool | None = None
    """Its type is the option's type; None stands for text. An option whose default is False is a flag."""
    choices: tuple[str, ...] = ()
    repeatable: bool = False

    def for_argparse(self) -> dict[str, Any]:
        """The keyword arguments of `add_argument`, which are those of pytest's `addoption`."""
        if self.default is False:
            return {"action": "store_true", "help": self.help}
        if self.repeatable:
            return {"action": "append", "default": [], "metavar": self.metavar, "help": self.help}
        kind = str if self.default is None else type(self.default)
        named = {"choices": self.choices} if self.choices else {"metavar": self.metavar}
        return {"type": kind, "default": self.default, "help": self.help, **named}


CANDIDATE = Option(name="--candidate", metavar="FILE", help="candidate.json (default: the quickstart's)")
BASE = Option(name="--base", metavar="BASE", help="base model: a folder, a hub id, or smollm2-135m-instruct")
REVISION = Option(name="--revision", metavar="REV", help="revision of a hub base")
ADAPTER = Option(
    name="--adapter", metavar="NAME=WHERE", help="adapter: a folder or a hub id; may be repeated", repeatable=True
)
TRAINED_ON = Option(
    name="--trained-on",
    metavar="NAME",
    help="confirm that the base the adapter records, NAME, is the one given with --base",
)
CANDIDATE_OPTIONS = (CANDIDATE, BASE, REVISION, ADAPTER, TRAINED_ON)
