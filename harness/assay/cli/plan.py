"""`assay plan`: what training and deploying a fine-tune of a base takes, before any weight is downloaded."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from assay import paths
from assay.cli.arguments import Revision
from assay.errors import InputError, StepFailed
from assay.files import read_json
from assay.inputs.bases import EMBEDDED, find_base, from_hub
from assay.inputs.candidate import Adapter
from assay.inputs.checkpoint import read_header
from assay.inputs.lora import CONFIG, WEIGHTS
from assay.measures import sizing as plan
from assay.measures.sizing import Shapes
from assay.steps.catalogue import Config, ReadShapes
from assay.steps.runner import Runner
from assay.steps.store import Store

EXAMPLE = "assay plan Qwen/Qwen3-8B --batch 8 --tokens 512"
EXIT_CODES = {0: "planned", 2: "no model can be built from the config, or the adapter does not fit it"}


def command(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="a folder with config.json, that file, a hub id, or " + EMBEDDED)
    ],
    adapter: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="folder or hub id (default: the thesis's LoRA, r=16 on q, k, v, o)"),
    ] = None,
    revision: Revision = None,
    batch: Annotated[int, typer.Option(metavar="N", help="samples per training step")] = 8,
    tokens: Annotated[int, typer.Option(metavar="N", help="tokens per sample")] = 512,
    context: Annotated[int, typer.Option(metavar="N", help="tokens of context when deployed")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, in bytes")] = False,
) -> int:
    """Only the config is read: no weight is downloaded."""
    shapes = read_shapes(base, revision)
    lora = read_lora(shapes, Adapter(name="adapter", source=adapter) if adapter else None)
    data = make_plan(shapes, lora, batch=batch, length=tokens, context=context)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        render(base, data, Console())
    return 0


@dataclass(frozen=True, kw_only=True)
class Lora:
    targets: str
    """What is adapted, for people."""
    rank: int
    trainable: int
    linears: dict[str, tuple[int, ...]]


def read_shapes(spec: str, revision: str | None = None) -> Shapes:
    """The shapes of a base: a folder with a `config.json`, that file itself, a hub id, or the embedded base.

    Raises:
        InputError: no config there, or transformers cannot build a model from it.
    """
    where = Path(spec)
    if spec == EMBEDDED:
        folder = find_base(spec).path
    elif where.is_file():
        folder = where.parent
    elif where.is_dir():
        folder = where
    else:
        folder = from_hub(spec, revision, ["config.json"])
    config = read_json(folder / "config.json")
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(Store(paths.cache() / "store"), Path(scratch), "plan", say=lambda _: None)
        try:
            facts = runner.make(ReadShapes(config=Config(path=folder))).facts(ReadShapes.read)
        except StepFailed as problem:
            raise InputError(f"{folder / 'config.json'}: no model can be built from it: {problem.reason}") from None
    return Shapes(
        parameters={name: tuple(shape) for name, shape in facts.parameters.items()},
        linears=frozenset(facts.linears),
        config=config,
    )


def read_lora(shapes: Shapes, adapter: Adapter | None) -> Lora:
    """The LoRA of an adapter, by its config and its file's header, or else the thesis's (r=16 on q, k, v, o)."""
    if adapter is None:
        linears = plan.adapted(shapes, plan.THESIS_TARGETS)
        count = plan.trainable(linears, plan.THESIS_RANK)
        return Lora(targets=", ".join(plan.THESIS_TARGETS), rank=plan.THESIS_RANK, trainable=count, linears=linears)
    config = read_json(adapter.path / CONFIG)
    header = read_header(adapter.path / WEIGHTS)
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in header if ".lora_" in name}
    linears = {
        f"{m}.weight": shapes.parameters[f"{m}.weight"] for m in sorted(modules) if f"{m}.weight" in shapes.linears
    }
    if len(linears) < len(modules):
        strange = next(m for m in sorted(modules) if f"{m}.weight" not in shapes.linears)
        raise InputError(
            f"{adapter.path / WEIGHTS}: it adapts {strange}, which this base does not have as a linear layer."
        )
    count = sum(math.prod(tensor.shape) for tensor in header.values())
    targets = ", ".join(sorted({module.rpartition(".")[2] for module in modules}))
    return Lora(targets=targets, rank=int(config["r"]), trainable=count, linears=linears)


def make_plan(shapes: Shapes, lora: Lora, *, batch: int, length: int, context: int) -> dict[str, Any]:
    """Everything that the command says, in bytes."""
    tokens = batch * length
    peaks = {
        "nf4, checkpointing": ("nf4", True),
        "nf4": ("nf4", False),
        "16-bit, checkpointing": ("none", True),
        "16-bit": ("none", False),
    }
    weights = {
        "16-bit": plan.bytes_16bit(shapes),
        "nf4": plan.bytes_nf4(shapes, double_quantization=False),
        "nf4, double quantization": plan.bytes_nf4(shapes, double_quantization=True),
        "Q4_K_M": plan.bytes_q4_k_m(shapes),
    }
    kv = plan.kv_bytes_per_token(shapes)
    serve = {form: size + context * kv + 2 * lora.trainable for form, size in weights.items()}
    train = {
        name: plan.training_peak_bytes(
            shapes, lora.linears, lora.rank, tokens=tokens, quantization=quantization, checkpointing=checkpointing
        )
        for name, (quantization, checkpointing) in peaks.items()
    }
    return {
        "parameters": shapes.count,
        "lora": {"targets": lora.targets, "rank": lora.rank, "trainable": lora.trainable},
        "trainable_share": lora.trainable / shapes.count,
        "weights_bytes": weights,
        "kv_bytes_per_token": kv,
        "serving": {
            "context_tokens": context,
            "bytes": serve,
            "card": {f: plan.smallest_card(b) for f, b in serve.items()},
        },
        "training": {
            "batch": batch,
            "tokens": length,
            "peak_bytes": train,
            "card": {name: plan.smallest_card(size) for name, size in train.items()},
        },
    }


def render(name: str, data: dict[str, Any], console: Console) -> None:
    lora, serving, training = data["lora"], data["serving"], data["training"]
    console.print(
        f"{name}: {data['parameters']:,} parameters. LoRA r={lora['rank']} on {lora['targets']}: "
        f"{lora['trainable']:,} trainable ({data['trainable_share']:.3%}).",
        highlight=False,
    )
    console.print(f"Keys and values: {data['kv_bytes_per_token']:,} bytes a token.\n", highlight=False)
    table = Table(
        box=None, title=f"Deploying, with {serving['context_tokens']:,} tokens of context", title_justify="left"
    )
    for column in ("form", "weights, bytes", "with context and adapter", "smallest card"):
        table.add_column(column, justify="left" if column in ("form", "smallest card") else "right")
    for form, size in data["weights_bytes"].items():
        table.add_row(
            form, f"{size:,}", f"{serving['bytes'][form] / 1e9:.2f} GB", serving["card"][form] or "none of them"
        )
    console.print(table)
    title = f"Training {training['batch']} × {training['tokens']} tokens a step"
    table = Table(box=None, title=title, title_justify="left")
    for column in ("base in", "peak", "smallest card"):
        table.add_column(column, justify="right" if column == "peak" else "left")
    for form, size in training["peak_bytes"].items():
        table.add_row(form, f"{size / 1e9:.2f} GB", training["card"][form] or "none of them")
    console.print(table)
