"""A step describes work: its inputs, its parameters and the tools that do it. Its digest names its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from assay.files import digest_files
from assay.machine import machine_digest, package_version
from assay.paths import PACKAGE


@runtime_checkable
class Input(Protocol):
    """What a step can be given: something on disk that is named by its content."""

    @property
    def path(self) -> Path: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """Base of all steps. A field is an `Input` or a plain JSON value; the worker gets it under the field's name."""

    worker: ClassVar[str]
    """`module.function` under `assay.workers`."""
    stages: ClassVar[tuple[str, ...]]
    """The milestones the worker reports, in order."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions are part of the digest."""
    on_device: ClassVar[bool] = False
    """Whether the result depends on this machine's processor or GPU (speed, memory, kernels)."""
    holds_model: ClassVar[bool] = True
    """Whether the step reads a whole model. Where the machine has no room for a model, no such step begins."""
    deadline_seconds: ClassVar[float] = 3600.0

    @property
    def title(self) -> str:
        """For progress lines and folder names: `quantize.q4 style`."""
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
    digest: str
    seconds: float
    """Wall time of the process that made it, in this run or in the one it is reused from."""
    peak_rss_bytes: int
    reused_from: str | None
    """The run that made it, or None if this one did."""
    log: str
    """Path of its log, relative to the run's folder."""


STEP_ROOMS = ("workers", "steps", "measures", "inputs")
"""The rooms whose code makes a step's result: `workers` and what `workers` may import."""


@cache
def code_digest() -> str:
    """The version of the code that makes results, so that no changed code reuses an old result."""
    sources = [*PACKAGE.glob("*.py"), *(file for room in STEP_ROOMS for file in (PACKAGE / room).rglob("*.py"))]
    return digest_files(PACKAGE, sorted(str(file.relative_to(PACKAGE)) for file in sources))
