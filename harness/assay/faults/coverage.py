"""What fault injection measured: which gates catch which faults, and what they say of healthy variants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS, OUT_OF_REACH
from assay.faults.digests import measured_with
from assay.faults.fault import BASELINE
from assay.faults.result import CaseResult
from assay.faults.runner import FaultRunner
from assay.machine import machine
from assay.measures.statistics import lower_bound

VERSION = 2


def coverage(runner: FaultRunner, results: Iterable[CaseResult]) -> dict[str, Any]:
    """All that the page is made of, as JSON values. Faults and variants keep the order of `results`."""
    by_name = {one.name: one for one in results}
    baseline = by_name[BASELINE]
    here = machine()
    return {
        "version": VERSION,
        "measured_with": measured_with(),
        "candidate": runner.candidate.name,
        "base": runner.candidate.base_spec,
        "adapter": runner.adapter.name,
        "machine": {key: here[key] for key in ("processor", "cores", "memory_bytes", "gpus")},
        "quick": runner.quick,
        "gates": runner.order,
        "faults": {name: _fault(one, baseline) for name, one in by_name.items() if name in FAULTS},
        "variants": {name: _variant(one, baseline) for name, one in by_name.items() if name in HEALTHY_VARIANTS},
        "out_of_reach": [asdict(one) for one in OUT_OF_REACH],
    }


def _fault(one: CaseResult, baseline: CaseResult) -> dict[str, Any]:
    fault = FAULTS[one.name]
    return {
        "title": fault.title,
        "area": fault.area.value,
        "module": fault.module,
        "silent": fault.silent,
        "cause": fault.cause,
        "not_applicable": one.not_applicable,
        "caught_by": one.caught_by(baseline),
        "cause_named_by": cause_named_by(one, baseline),
        "blocked": sum(status == "blocked" for status in one.statuses.values()),
        "seconds": one.seconds,
    }


def cause_named_by(one: CaseResult, baseline: CaseResult) -> list[str]:
    """The gates that catch a fault and name its cause first."""
    return [gate for gate in one.caught_by(baseline) if one.causes.get(gate, [])[:1] == [FAULTS[one.name].cause]]


def alarms(one: CaseResult, baseline: CaseResult) -> list[str]:
    """The gates that fail a healthy variant. On the baseline, which is compared with nothing, each failure counts."""
    return one.alarms(CaseResult(name="") if one.name == BASELINE else baseline)


def _variant(one: CaseResult, baseline: CaseResult) -> dict[str, Any]:
    return {
        "title": HEALTHY_VARIANTS[one.name].title,
        "not_applicable": one.not_applicable,
        "alarms": alarms(one, baseline),
        "causes_that_fit": sorted(set(one.fits)),
        "seconds": one.seconds,
    }


def rates(data: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Counts as (how many, of how many): `silent` and `all` faults caught, faults `named` with their cause, variants
    with `alarms`, variants on which a cause `fits` a gate that passed. Cases that are not applicable do not count."""
    faults = [one for one in data["faults"].values() if one["not_applicable"] is None]
    silent = [one for one in faults if one["silent"]]
    variants = [one for one in data["variants"].values() if one["not_applicable"] is None]
    return {
        "silent": (sum(bool(one["caught_by"]) for one in silent), len(silent)),
        "all": (sum(bool(one["caught_by"]) for one in faults), len(faults)),
        "named": (sum(bool(one["cause_named_by"]) for one in faults), len(faults)),
        "alarms": (sum(bool(one["alarms"]) for one in variants), len(variants)),
        "fits": (sum(bool(one["causes_that_fit"]) for one in variants), len(variants)),
    }


def summary(data: dict[str, Any]) -> list[str]:
    """One line per rate, with exact one-sided 95 % bounds.

    The bounds treat the cases as random samples, which they are not.
    """
    found = rates(data)
    lines = []
    for key, what in (("silent", "silent faults"), ("all", "faults")):
        some, of = found[key]
        lines.append(f"{some} of {of} {what} caught ({_share(some, of)}, at least {100 * lower_bound(some, of):.1f} %)")
    some, of = found["named"]
    lines.append(f"{some} of {of} faults named with their cause first")
    some, of = found["alarms"]
    highest = 100 * (1 - lower_bound(of - some, of))
    lines.append(f"{some} false alarms on {of} healthy variants (at most {highest:.1f} %)")
    some, of = found["fits"]
    lines.append(f"{some} of {of} healthy variants on which a cause fits a gate that passed")
    return lines


def _share(some: int, of: int) -> str:
    return f"{100 * some / of:.1f} %" if of else "none"


def missed(data: dict[str, Any]) -> list[str]:
    """The faults that no gate caught."""
    return [name for name, one in data["faults"].items() if one["not_applicable"] is None and not one["caught_by"]]
