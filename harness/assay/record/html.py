"""The record as one self-contained HTML file: verdict first, then the gates; what did not pass opens to its log."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from assay.process import last_lines
from assay.record.outcome import Outcome, Status, facts_by_name
from assay.record.reading import Run
from assay.record.run import RunRecord
from assay.record.text import cause_is_unknown, evidence_to_send, headline, subject, why
from assay.record.verdict import GateResult


def render_html(run: Run) -> str:
    """Everything a model, a log or a user wrote is escaped by the template engine."""
    environment = Environment(
        loader=PackageLoader("assay.record"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"human": human, "bytes": human_bytes, "fixed": fixed, "percent": percent}
    return environment.get_template("report.html").render(
        run=run,
        record=run.record,
        headline=headline(run),
        gates=[_row(run, gate) for gate in run.gates],
        diagnoses=diagnoses(run),
        doctor=[one for one in run.record.doctor if one.level != "fine"],
        predictions=predictions(run),
        training=training(run),
        curves=curves(run),
        performance=performance(run),
        comparison=comparison(run),
        waterfall=waterfall(run),
        answers=answers(run),
    )


def diagnoses(run: Run) -> list[dict[str, Any]]:
    """What to do: each gate that failed, with its causes and the gates that it blocks."""
    found = []
    for gate in run.gates:
        if gate.outcome.status in (Status.PASSED, Status.BLOCKED, Status.MISSING):
            continue
        adapter = gate.expected.adapter
        # A gate of one adapter blocks gates of that adapter only; a gate of all adapters blocks gates of each.
        blocked = [
            subject(one)
            for one in run.gates
            if one.outcome.blocked_by == gate.expected.gate and adapter in (None, one.expected.adapter)
        ]
        found.append(
            {
                "subject": subject(gate),
                "severity": gate.expected.severity.value,
                "status": gate.outcome.status.value,
                "code": gate.outcome.code,
                "reason": why(gate),
                "causes": gate.outcome.causes,
                "blocked": blocked,
                "send": evidence_to_send(run, gate) if cause_is_unknown(gate) else [],
            }
        )
    # What blocks a release comes first.
    return sorted(found, key=lambda one: (one["severity"] != "primary", one["status"] == "inconclusive"))


def _row(run: Run, gate: GateResult) -> dict[str, Any]:
    logs = [] if gate.passed else [(use, last_lines(run.folder / use.log, 40)) for use in gate.outcome.steps]
    return {
        "result": gate,
        "subject": subject(gate),
        "why": why(gate),
        "title": gate.expected.title or "passed",
        # One line per paragraph: the line breaks of a docstring are for the source.
        "guide": [" ".join(part.split()) for part in gate.expected.guide.split("\n\n")],
        "more": gate.outcome.reason if gate.outcome.blocked_by else gate.outcome.reason.partition("\n")[2],
        "facts": _facts(run.record, gate.outcome),
        "logs": logs,
        "reused": bool(gate.outcome.steps) and all(use.reused_from for use in gate.outcome.steps),
        "step_seconds": sum(use.seconds for use in gate.outcome.steps),
    }


def _facts(record: RunRecord, outcome: Outcome) -> list[dict[str, Any]]:
    """The facts but for the answers, which have a table of their own, each with its unit and description if known."""
    about = {
        name: record.stages[stage].fields.get(name)
        for stage, facts in outcome.facts.items()
        if stage in record.stages
        for name in facts
    }
    facts = {name: fact for name, fact in facts_by_name(outcome).items() if name != "answers"}
    return [{"name": name, "fact": fact, "about": about.get(name)} for name, fact in facts.items()]


def performance(run: Run) -> list[dict[str, Any]]:
    """Speed and memory of each gate that ran a model. A cell that was not measured stays empty."""
    speeds = ("load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second")
    names = (*speeds, "peak_host_bytes", "peak_device_bytes")
    rows = []
    for gate in run.gates:
        facts = facts_by_name(gate.outcome)
        if "decode_tokens_per_second" in facts:
            rows.append({"subject": subject(gate), **{name: facts.get(name) for name in names}})
    return rows


def comparison(run: Run) -> list[dict[str, Any]]:
    """Memory, speed and quality: one row per adapter and form."""
    facts = {gate.expected.key: facts_by_name(gate.outcome) for gate in run.gates}
    base = facts.get(("base_quant_load_ok", None), {})
    rows = []
    sixteen = run.record.forecast.bytes_16bit if run.record.forecast else None
    for adapter in run.record.candidate.adapters:

        def of(gate: str, adapter: str = adapter) -> dict[str, Any]:
            return facts.get((gate, adapter), {})

        full, q4 = of("merged_distribution_ok"), of("quantize_q4_ok")
        forms: tuple[tuple[str, int | None, dict[str, Any], str], ...] = (
            (f"full ({full.get('computed_in', '–')})", None if sixteen is None else 2 * sixteen, full, ""),
            ("nf4 + adapter", base.get("weight_bytes"), of(f"{adapter}_generate_non_empty"), "nf4"),
            ("merged, bf16", of("merge_ok").get("checkpoint_bytes"), {}, "merged"),
            ("F16 GGUF", of("convert_f16_ok").get("file_bytes"), {}, "f16"),
            ("Q4_K_M GGUF", q4.get("file_bytes"), of("llama_cpp_python_smoke_ok"), "q4"),
        )
        for form, size, ran, name in forms:
            far = of(f"{name}_distribution_ok") if name else {}
            # Nested in version 2: a form that was not measured has no distance.
            distance = {**far, **(far.get("distance") or {}), **(far.get("task") or {})}
            if distance or ran:
                rows.append({"adapter": adapter, "form": form, "bytes": size, "ran": ran, "distance": distance})
    return rows


def waterfall(run: Run) -> list[dict[str, Any]]:
    """Where quality is lost: per adapter the distance of each form from the reference, and the bar that shows it."""
    drawn = []
    for gate in run.gates:
        facts = facts_by_name(gate.outcome)
        stages = facts.get("waterfall")
        if not stages:
            continue
        top = max((kl for kl in stages.values() if kl), default=1.0)  # null where it was not finite
        ways = [name for name in ("nf4", "merged", "f16", "q4", "llama_cli", "llama_cpp_python") if name in stages]
        bars = [{"stage": stage, "kl": stages[stage], "width": 100 * (stages[stage] or 0) / top} for stage in ways]
        drawn.append({"adapter": gate.expected.adapter, "bars": bars, "enters_at": facts.get("loss_enters_at")})
    return drawn


def predictions(run: Run) -> list[dict[str, Any]]:
    """What the shapes predict beside what was measured, in bytes."""
    rows: list[dict[str, Any]] = []
    measured = {
        ("base_quant_load_ok", "weight_bytes"): ("weights in nf4", "bytes_nf4"),
        ("merge_ok", "checkpoint_bytes"): ("merged checkpoint", "bytes_16bit"),
        ("convert_f16_ok", "file_bytes"): ("f16 GGUF", "bytes_16bit"),
        ("quantize_q4_ok", "file_bytes"): ("Q4_K_M GGUF", "bytes_q4_k_m"),
    }
    forecast = run.record.forecast.model_dump() if run.record.forecast else {}
    for gate in run.gates:
        facts = facts_by_name(gate.outcome)
        for (id, fact), (what, key) in measured.items():
            if forecast and gate.expected.gate == id and fact in facts:
                what = f"{what} {gate.expected.adapter or ''}".strip()
                rows.append({"what": what, "predicted": forecast[key], "measured": facts[fact]})
    for name, result in (run.record.training.results if run.record.training else {}).items():
        device = result.peak_device_bytes
        rows.append(
            {
                "what": f"training {name}, peak " + ("on the GPU" if device else "of the process"),
                "predicted": result.peak_bytes_predicted,
                "measured": device or result.peak_host_bytes,
            }
        )
    return rows


def training(run: Run) -> dict[str, Any] | None:
    """How the adapters were trained: a sentence on the recipe, one row per adapter, and the evaluation."""
    trained = run.record.training
    if trained is None:
        return None
    recipe = trained.recipe
    lora = recipe.get("lora", {})
    return {
        "recipe": f"Recipe {recipe.get('name')}: learning rate {recipe.get('learning_rate')}, r={lora.get('rank')} on "
        f"{', '.join(lora.get('targets', []))}, seed {recipe.get('seed')}, language {recipe.get('language', 'en')}.",
        "rows": [{"adapter": name, **result.model_dump()} for name, result in trained.results.items()],
        "forms": trained.evaluation.forms if trained.evaluation else {},
    }


def curves(run: Run, width: int = 640, height: int = 180) -> list[dict[str, Any]]:
    """The loss of each adapter as the points of an SVG polyline, each the mean of up to five steps."""
    drawn = []
    logged = run.record.training.curves if run.record.training else {}
    losses = {name: [loss for _, loss in points if loss is not None] for name, points in logged.items()}
    top = max((loss for values in losses.values() for loss in values), default=1.0)
    steps = max((len(values) for values in losses.values()), default=1)
    for name, values in losses.items():
        smooth = [sum(part) / len(part) for at in range(len(values)) if (part := values[max(0, at - 4) : at + 1])]
        points = [
            f"{at / max(1, steps - 1) * width:.1f},{(1 - loss / top) * height:.1f}" for at, loss in enumerate(smooth)
        ]
        drawn.append({"name": name, "points": " ".join(points), "steps": steps, "top": top})
    return drawn


def answers(run: Run) -> list[dict[str, Any]]:
    """What the model answered, by gate and prompt."""
    found = []
    for gate in run.gates:
        for prompt, answer in facts_by_name(gate.outcome).get("answers", {}).items():
            found.append({"subject": subject(gate), "prompt": prompt, **answer})
    return found


def human(fact: object) -> str:
    """A fact as people read it."""
    if isinstance(fact, bool) or fact is None:
        return {True: "yes", False: "no", None: "–"}[fact]
    if isinstance(fact, int):
        return f"{fact:,}"
    if isinstance(fact, float):
        return f"{fact:.4g}"
    if isinstance(fact, list | tuple):
        if not fact:
            return "none"
        shown = ", ".join(str(item) for item in fact[:6])
        return shown if len(fact) <= 6 else f"{shown}, … ({len(fact)} in all)"
    if isinstance(fact, dict):
        return ", ".join(f"{key} {value}" for key, value in fact.items())
    return str(fact) if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)


def fixed(number: float | None, places: int) -> str:
    """A number with this many decimal places; a dash where it was not measured or not finite."""
    return "–" if number is None else f"{number:.{places}f}"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash where it was not measured or not finite."""
    return "–" if share is None else f"{100 * share:.1f} %"


def human_bytes(count: int | None) -> str:
    """Decimal units, as disks and cards are sold."""
    if count is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
