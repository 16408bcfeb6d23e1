"""What a case is, and the register of all cases.

A case is a function that alters one thing of a healthy candidate: its files, what a library or a tool makes of them, a
tool itself, or the machine. A *fault* breaks that thing, and a gate must fail. A *healthy variant* differs, and every
gate must pass. The real gates judge both, with the real tools.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from assay.faults.edits.sandbox import Sandbox

Make = Callable[[Sandbox], None]

BASELINE = "as_trained"
"""The healthy variant that alters nothing. What gates say of every other case is compared with what they say of it."""


class Area(StrEnum):
    """Where a fault enters, in the order of the work."""

    DATA = "training"
    ADAPTER = "adapter"
    BASE = "base"
    TOKENIZER = "tokenizer and template"
    BNB = "base load and mounting"
    MERGE = "merge"
    CONVERT = "convert"
    QUANTIZE = "quantize"
    LLAMA_CLI = "llama-cli"
    LLAMA_CPP_PYTHON = "llama-cpp-python"
    TOOLCHAIN = "toolchain"
    MACHINE = "machine"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault or a healthy variant."""

    name: str
    title: str
    """What differs, in one sentence."""
    make: Make
    quick: bool
    """Whether gates that load no model can judge it: part of `assay faults --quick`."""


@dataclass(frozen=True, kw_only=True)
class Fault(Case):
    """A case that a gate must catch."""

    area: Area
    silent: bool
    """Whether every command succeeds although the model is broken."""
    first: str
    """Id of the gate that must catch it first, in the policy's order, with `<adapter>` where the id has one."""
    cause: str
    """Id of the cause in `gates/causes.toml` that must come first in that gate's failure."""

    @property
    def module(self) -> str:
        """The module of `assay.faults.cases` that lists it."""
        return self.make.__module__.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class HealthyVariant(Case):
    """A case that every gate must pass."""


@dataclass(frozen=True, kw_only=True)
class OutOfReach:
    """A fault that no gate can catch, and why."""

    name: str
    title: str
    reason: str


FAULTS: dict[str, Fault] = {}
HEALTHY_VARIANTS: dict[str, HealthyVariant] = {}


def fault(area: Area, *, first: str, cause: str, silent: bool = True, quick: bool = False) -> Callable[[Make], Make]:
    """Register a function as a fault: its name is the fault's, its docstring says what is broken."""

    def register(make: Make) -> Make:
        name, title = make.__name__, " ".join((make.__doc__ or "").split())
        assert name not in FAULTS, name
        FAULTS[name] = Fault(
            name=name, title=title, make=make, area=area, silent=silent, first=first, cause=cause, quick=quick
        )
        return make

    return register


def healthy(name: str, title: str, make: Make, *, quick: bool = False) -> None:
    """Register a healthy variant."""
    assert name not in HEALTHY_VARIANTS, name
    HEALTHY_VARIANTS[name] = HealthyVariant(name=name, title=title, make=make, quick=quick)
