"""How much of an adapter a form holds: the facts that every form with readable weights shares."""

from __future__ import annotations

from assay.facts import Facts


class AdapterStrength(Facts):
    """The strength ⟨W' − W, s·BA⟩ / ⟨s·BA, s·BA⟩ of the adapter in a file: 1 is right, 0 absent, 2 applied twice."""

    measured: bool = True
    """Whether this architecture's layout is known, so that the file's tensors can be read."""
    strength: float = 0.0
    """Pooled over all layers."""
    strength_standard_error: float = 0.0
    """Standard error of the pooled strength."""
    strength_of_random_adapter: float = 0.0
    """Strength of a random change of equal size: the control, which should be 0."""
    strength_by_layer_median: float | None = None
    """Median over layers."""
    strength_furthest_layers: tuple[str, ...] = ()
    """The layers whose strength is furthest from 1, with the strength."""
    adapter_relative_size: float = 0.0
    """‖s·BA‖ / ‖W‖ over the tensors that the adapter changes; 0 if the adapter is no plain LoRA."""
