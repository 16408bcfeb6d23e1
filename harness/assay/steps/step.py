"""A step describes work: its inputs, its parameters and the tools that do it. Its digest names its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from assay.facts import Facts
from assay.files import digest_files
from assay.machine import machine_digest, package_version
from assay.paths import PACKAGE

F = TypeVar("F", bound=Facts)
F_co = TypeVar("F_co", bound=Facts, covariant=True)
STEP_ROOMS = ("workers", "steps", "measures", "inputs")
"""The rooms whose code makes a step's result: `workers` and what `workers` may import."""


@runtime_checkable
class Input(Protocol):
    """What a step can be given: something on disk that is named by its content."""

    @property
    def path(self) -> Path: ...

    @property
    def digest(self) -> str: ...


class Stage(Generic[F_co]):
    """A milestone inside a step, so that several gates share one process. Declared as an attribute of its step."""

    def __init__(self, facts: type[F_co], step: str = "", name: str = "") -> None:
        self.facts = facts
        """The type of what the stage measures."""
        self.step = step
        self.name = name

    def __set_name__(self, step: type, name: str) -> None:
        self.step, self.name = step.__name__, name

    @property
    def id(self) -> str:
        """Names the stage in a record, as in `Merge.compared`."""
        return f"{self.step}.{self.name}"

    def __repr__(self) -> str:
        return f"Stage({self.id})"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Base of all steps. A field is an `Input` or a plain JSON value; the worker gets it under the field's name."""

    worker: ClassVar[str]
    """`module.function` under `assay.workers`."""
    stages: ClassVar[tuple[Stage[Any], ...]]
    """The milestones that the worker reaches, in the order of their declaration."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions are part of the digest."""
    on_device: ClassVar[bool] = False
    """Whether the result depends on this machine's processor or GPU (speed, memory, kernels)."""
    holds_model: ClassVar[bool] = True
    """Whether the step reads a whole model. Where the machine has no room for a model, no such step begins."""
    makes_model: ClassVar[bool] = False
    """Whether later steps read the files that it writes. Of such a step that failed, no stage stands: they are gone."""
    deadline_seconds: ClassVar[float] = 3600.0

    def __init_subclass__(cls) -> None:
        cls.stages = tuple(value for value in vars(cls).values() if isinstance(value, Stage))

    @property
    def title(self) -> str:
        """For progress lines and folder names: `gguf.quantize style`."""
        adapter = getattr(self, "adapter", None)
        return f"{self.worker} {adapter.name}" if adapter is not None else self.worker

    @property
    def disk_bytes(self) -> int:
        """Forecast of what the step writes. Nothing is started that cannot fit."""
        return 0

    def arguments(self) -> dict[str, Any]:
        """What the worker is called with: paths for inputs, values for parameters."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value.path) if isinstance(value, Input) else value for name, value in values.items()}

    @property
    def digest(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        description = {
            "worker": self.worker,
            "version": code_digest(),
            "packages": {package: package_version(package) for package in self.packages},
            "machine": machine_digest() if self.on_device else None,
            "fields": {k: v.digest if isinstance(v, Input) else v for k, v in values.items()},
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StepUse:
    """One step that a gate looked at."""

    step: str
    """Its title: the worker, and the adapter if it is of one."""
    digest: str
    """sha256 of its inputs, parameters, code and tools: the name of its result."""
    seconds: float
    """Wall time of the process that made it, in this run or in the one it is reused from."""
    peak_rss_bytes: int
    """Peak of that process's resident memory, in bytes."""
    reused_from: str | None
    """The run that made it, or None if this one did."""
    log: str
    """Path of its log, relative to the run's folder."""


@cache
def code_digest() -> str:
    """The version of the code that makes results, so that no changed code reuses an old result."""
    sources = [*PACKAGE.glob("*.py"), *(file for room in STEP_ROOMS for file in (PACKAGE / room).rglob("*.py"))]
    return digest_files(PACKAGE, sorted(str(file.relative_to(PACKAGE)) for file in sources))
