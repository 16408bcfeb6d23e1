"""All faults and healthy variants, by name, and the faults that no gate can catch."""

from __future__ import annotations

# Importing a module registers the cases that it lists.
from assay.faults.cases import (  # noqa: F401
    adapters,
    bases,
    bnb,
    conversions,
    data,
    healthy_adapters,
    healthy_bases,
    healthy_models,
    healthy_uses,
    machines,
    merges,
    quantizations,
    runtimes,
)
from assay.faults.cases.out_of_reach import OUT_OF_REACH
from assay.faults.fault import FAULTS, HEALTHY_VARIANTS

__all__ = ["FAULTS", "HEALTHY_VARIANTS", "OUT_OF_REACH"]
