"""The author of `run.json`: what a run expects of its candidate, and what it runs with.

What cannot be read is null here; the gate that needs it says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from assay import __version__
from assay.errors import AssayError
from assay.files import read_json
from assay.gating.causes import known_stages
from assay.gating.gate import Gate
from assay.gating.policy import Policy
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.prompts import Prompts
from assay.machine import machine, package_version
from assay.measures.sizing import forecast, shapes_from_headers
from assay.record.model import RecordModel
from assay.record.run import (
    CandidateRecord,
    Environment,
    Expected,
    FieldDescription,
    Forecast,
    Machine,
    RunRecord,
    StageDescription,
)
from assay.record.training import AdapterTraining, Evaluation, FormEvaluation, TrainedOn, TrainingRecord
from assay.steps.step import Stage

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "gguf", "safetensors", "pytest", "numpy")
"""Libraries whose versions the record names."""


def describe_run(
    *, name: str, id: str, candidate: Candidate, policy: Policy, gates: list[Gate], prompts: Prompts
) -> RunRecord:
    """`run.json` before the doctor has looked; it starts now.

    Args:
        name: name of the run's folder.
        id: unlike the name, never the same for two runs.
    """
    return RunRecord(
        name=name,
        id=id,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        candidate=describe_candidate(candidate),
        environment=Environment(
            assay=__version__,
            machine=Machine(**machine()),
            packages={package: package_version(package) for package in PACKAGES},
            prompts=tuple(sorted(file.stem for file in prompts.path.glob("*.txt"))),
        ),
        inconclusive_primary=policy.inconclusive_primary,
        expected=expected_gates(candidate, policy, gates),
        forecast=forecast_of(candidate),
        training=training_of(candidate),
        stages={id: describe_stage(stage) for id, stage in known_stages().items()},
    )


def describe_stage(stage: Stage[Any]) -> StageDescription:
    """What a stage measures, so that a rendering needs the record alone."""
    title = (stage.facts.__doc__ or "").partition("\n")[0]
    fields = {name: FieldDescription(**one) for name, one in stage.facts.describe().items()}
    return StageDescription(title=title, fields=fields)


def expected_gates(candidate: Candidate, policy: Policy, gates: Iterable[Gate]) -> tuple[Expected, ...]:
    """Policy × candidate, in the policy's order: what the verdict judges, whatever pytest selects."""
    by_id = {gate.id: gate for gate in gates}
    found = []
    for id, severity in policy.severity.items():
        gate = by_id[id]
        if not judges(gate, candidate):
            continue
        adapters = [adapter.name for adapter in candidate.adapters] if gate.per == "adapter" else [None]
        for adapter in adapters:
            found.append(
                Expected(
                    gate=gate.name_for(adapter),
                    route=gate.route,
                    severity=severity,
                    candidate=candidate.name,
                    adapter=adapter,
                    title=gate.title,
                    guide=gate.guide,
                )
            )
    return tuple(found)


def judges(gate: Gate, candidate: Candidate) -> bool:
    """Whether the candidate gives the gate anything to judge.

    Adapters trained elsewhere come without their dataset; before training there is a dataset and no adapter.
    """
    needs_dataset = gate.per == "dataset" or "training" in gate.needs
    needs_adapters = gate.per != "dataset"
    return (candidate.trained_here or not needs_dataset) and (bool(candidate.adapters) or not needs_adapters)


def describe_candidate(candidate: Candidate) -> CandidateRecord:
    return CandidateRecord(
        name=candidate.name,
        base=candidate.base_spec,
        revision=candidate.revision,
        adapters={adapter.name: _source(adapter, candidate) for adapter in candidate.adapters},
        digests={"base": _digest(candidate), **{adapter.name: _digest(adapter) for adapter in candidate.adapters}},
    )


def _source(adapter: Adapter, candidate: Candidate) -> str:
    """Where the adapter is: within the candidate's folder if it lies there, so that a record can be passed on."""
    source = Path(adapter.source)
    inside = candidate.trained_here and source.is_relative_to(candidate.folder)
    return str(source.relative_to(candidate.folder)) if inside else adapter.source


def forecast_of(candidate: Candidate) -> Forecast | None:
    """What the base's headers predict; None if the base cannot be used."""
    try:
        base = candidate.base
        return Forecast(**forecast(shapes_from_headers(base.tensors, read_json(base.path / "config.json"))))
    except (AssayError, OSError, ArithmeticError, ImportError):
        return None


def training_of(candidate: Candidate) -> TrainingRecord | None:
    """How the adapters were trained and evaluated, as far as the candidate's folder tells; None if it does not.

    It is shown and not judged: what cannot be read is left out.
    """
    if candidate.record is None or not candidate.adapters:
        return None
    try:
        given = _known(TrainingRecord, candidate.record)
        if "dataset" in given:
            given["dataset"] = _known(TrainedOn, given["dataset"])
        given["results"] = {name: _known(AdapterTraining, one) for name, one in given.get("results", {}).items()}
        return TrainingRecord.model_validate(
            {**given, "curves": _curves(candidate), "evaluation": _evaluation(candidate)}
        )
    except (AttributeError, ValidationError):
        return None


def _curves(candidate: Candidate) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        for line in (candidate.folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            curves.setdefault(one["adapter"], []).append((one["step"], round(one["loss"], 4)))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return curves


def _evaluation(candidate: Candidate) -> Evaluation | None:
    """The figures of these very adapters; None if there are none."""
    try:
        data = read_json(candidate.folder / "evaluation.json")
        if data["digests"] != {adapter.name: adapter.digest for adapter in candidate.adapters}:
            return None
        forms = {
            form: {name: _known(FormEvaluation, one) for name, one in adapters.items()}
            for form, adapters in data["forms"].items()
        }
        return Evaluation.model_validate({"forms": forms})
    except (AssayError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _known(model: type[RecordModel], data: dict[str, Any]) -> dict[str, Any]:
    """What the record has fields for: files of the training may say more."""
    return {name: value for name, value in data.items() if name in model.model_fields}


def _digest(of: Candidate | Adapter) -> str | None:
    """The digest of a candidate's base or of an adapter; None if it cannot be read."""
    try:
        return of.base.digest if isinstance(of, Candidate) else of.digest
    except (AssayError, OSError):
        return None
