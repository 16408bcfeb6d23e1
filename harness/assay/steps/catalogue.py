"""Every step there is. Adding work adds a class in one of these modules and a worker."""

from __future__ import annotations

from typing import Any

from assay.steps.adapter import Config, InspectAdapter, ReadShapes
from assay.steps.dataset import EncodeDataset, ReadDataset
from assay.steps.distribution import MeasureDistribution
from assay.steps.gguf import ComparePrompts, ConvertF16, QuantizeQ4
from assay.steps.merge import Merge
from assay.steps.nf4 import AskTransformers, LoadNf4, MountNf4
from assay.steps.runtimes import RunLlamaCli, RunLlamaCppPython, SelfTest
from assay.steps.step import Stage, Step

__all__ = [
    "AskTransformers",
    "ComparePrompts",
    "Config",
    "ConvertF16",
    "EncodeDataset",
    "InspectAdapter",
    "LoadNf4",
    "MeasureDistribution",
    "Merge",
    "MountNf4",
    "QuantizeQ4",
    "ReadDataset",
    "ReadShapes",
    "RunLlamaCli",
    "RunLlamaCppPython",
    "SelfTest",
    "stages",
]


def stages() -> dict[str, Stage[Any]]:
    """Every stage of every step, by id."""
    steps = [value for value in globals().values() if isinstance(value, type) and issubclass(value, Step)]
    return {stage.id: stage for step in steps if step is not Step for stage in step.stages}
