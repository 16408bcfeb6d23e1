"""The faults: faults that Assay must catch, and healthy variants that it must let pass.

A fault is a function that breaks one thing of a healthy candidate: its files, what a library or a tool makes of them,
a tool itself, or the machine. The real gates then judge it, with the real tools. `assay faults` runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assay.faults.sandbox import Sandbox

Breaks = Callable[["Sandbox"], None]


class NotApplicable(Exception):
    """A case that this candidate or this machine cannot have; the text says why."""


class Place(StrEnum):
    """The class of a fault: where in the chain it enters."""

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
    """A fault or a healthy healthy_variant."""

    name: str
    title: str
    """What it is, in one sentence."""
    make: Breaks


@dataclass(frozen=True, kw_only=True)
class Fault(Case):
    place: Place
    silent: bool
    """Whether every command succeeds and the model is broken all the same."""
    first: str
    """The gate that should see it first, in the policy's order, with `<adapter>` where it has one."""
    cause: str
    """The cause in `gates/causes.toml` that should be named for it."""
    quick: bool
    """Whether the gate that sees it needs no model: part of the fast subset."""


@dataclass(frozen=True, kw_only=True)
class HealthyVariant(Case):
    """Healthy, and unlike the others in one respect: no gate may fail on it."""

    quick: bool


@dataclass(frozen=True, kw_only=True)
class OutOfReach:
    """A fault that no gate can see, and why."""

    name: str
    title: str
    reason: str


FAULTS: dict[str, Fault] = {}
HEALTHY_VARIANTS: dict[str, HealthyVariant] = {}
OUT_OF_REACH = (
    OutOfReach(
        name="alpha_wrong_in_training",
        title="Training itself ran with another alpha than was meant.",
        reason="the adapter's config is the only word on its scale; what training wrote is what is judged",
    ),
    OutOfReach(
        name="layers_swapped_before_recording",
        title="Two layers' matrices were swapped before candidate.json was written.",
        reason="every file agrees with every other; only the task's own metrics can tell, with enough samples",
    ),
    OutOfReach(
        name="diverged_to_word_salad",
        title="Training diverged so far that answers are different words in no order.",
        reason="answers are judged by repetition and letters and not by sense, and full precision, which all forms are "
        "compared with, says the same; only the task's own metrics can tell, with enough samples",
    ),
    OutOfReach(
        name="template_wrong_everywhere",
        title="The base's chat template was edited before training, which used it too.",
        reason="training and all runtimes agree on it, so it is what was trained",
    ),
)


def fault(
    place: Place, *, first: str, cause: str, silent: bool = True, quick: bool = False
) -> Callable[[Breaks], Breaks]:
    """Put a function into the faults; its docstring says what is broken, its name is the fault's."""

    def add(make: Breaks) -> Breaks:
        name = make.__name__
        assert name not in FAULTS, name
        FAULTS[name] = Fault(
            name=name,
            title=" ".join((make.__doc__ or "").split()),
            make=make,
            place=place,
            silent=silent,
            first=first,
            cause=cause,
            quick=quick,
        )
        return make

    return add


def healthy(name: str, title: str, make: Breaks, *, quick: bool = False) -> None:
    """Put a healthy healthy_variant into the faults."""
    assert name not in HEALTHY_VARIANTS, name
    HEALTHY_VARIANTS[name] = HealthyVariant(name=name, title=title, make=make, quick=quick)
