"""Every fault and every healthy healthy_variant that there is."""

from __future__ import annotations

# Importing a module registers what it defines.
from assay.faults import adapters, bases, bnb, data, ggufs, healthy, machines, merges, runtimes  # noqa: F401
from assay.faults.fault import FAULTS, HEALTHY_VARIANTS, OUT_OF_REACH

__all__ = ["FAULTS", "HEALTHY_VARIANTS", "OUT_OF_REACH"]
