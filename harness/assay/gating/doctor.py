"""What can be known before the first expensive step: versions, tools, headers, memory, disk. No torch, no weights.

Each check is a function that yields what it found; the cheap ones come first. Where a gate can judge already (the
adapter's files, the toolchain), the gate itself is asked.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from assay import paths
from assay.errors import FREE_SPACE, AssayError, Inconclusive, Unavailable
from assay.files import read_json
from assay.gating.causes import FILE as CAUSES
from assay.gating.causes import read_causes
from assay.gating.gate import read_gates
from assay.inputs.bases import EMBEDDED, Base, embedded_home, find_base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.model_files import end_token_id
from assay.inputs.toolchain import find_toolchain
from assay.machine import gpus
from assay.measures.sizing import Shapes, forecast, gguf_type, shapes_from_headers
from assay.record.outcome import Outcome, Status, unstaged
from assay.steps.catalogue import Merge
from assay.steps.runner import Bench
from assay.steps.step import Step, StepUse
from assay.steps.store import Artifact
from assay.workers import Work

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers", "gguf")
PROCESS_BYTES = 1_500_000_000
"""What a process with torch and transformers takes beside its tensors (1.2 to 1.4 GB measured)."""
HASHED_AT_ONCE_BYTES = 3_000_000_000
"""A base of more is not hashed here: sha256 takes a second for two gigabytes."""
BARELY_ANY_DISK_BYTES = 100_000_000
TORCH_WITH_CUDA = "https://download.pytorch.org/whl/cu130"


class Level(StrEnum):
    """What a finding means for the gates."""

    FINE = "fine"
    NOTE = "note"
    """Worth knowing; nothing fails for it."""
    FAILS = "fails"
    """A gate will not pass."""
    STOPS = "stops"
    """No step that holds a model may begin: a gate is judged on what earlier runs made, or blocked."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    level: Level
    text: str
    """What was seen, and what was wanted."""
    fix: str = ""
    gate: str | None = None
    """The gate that it foretells."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Patient:
    """What is examined: a candidate (None for the machine alone), with a runner that can make the self-test.

    Args:
        in_run: the gates follow at once: what they need anyway may be fetched and hashed now.
    """

    def __init__(self, candidate: Candidate | None, bench: Bench, *, in_run: bool = False) -> None:
        self.candidate = candidate
        self.bench = bench
        self.in_run = in_run

    @cached_property
    def found_base(self) -> Base | AssayError | None:
        """The base, or why it cannot be used; None if it is not on this machine and is not to be fetched now."""
        candidate = self.candidate
        if candidate is None or (candidate.base_spec == EMBEDDED and not embedded_home().exists() and not self.in_run):
            return None
        try:
            if self.in_run:
                return candidate.base
            return find_base(candidate.base_spec, candidate.revision, candidate.folder, offline=True)
        except AssayError as problem:
            return None if "not to be had from the hub" in str(problem) and not self.in_run else problem

    @property
    def base(self) -> Base | None:
        """The base, if it is here and usable."""
        return self.found_base if isinstance(self.found_base, Base) else None

    @cached_property
    def shapes(self) -> Shapes | None:
        if self.base is None:
            return None
        try:
            return shapes_from_headers(self.base.tensors, read_json(self.base.path / "config.json"))
        except (AssayError, OSError):
            return None

    @cached_property
    def may_hash(self) -> bool:
        """Whether the base's digest, which names every step, is to be had in a second or two."""
        size = sum(tensor.nbytes for tensor in self.base.tensors.values()) if self.base else 0
        return self.in_run or size <= HASHED_AT_ONCE_BYTES

    def has(self, step: Callable[[], Step]) -> bool:
        """Whether a step was made before, so that it costs nothing any more."""
        try:
            return self.may_hash and self.bench.has(step())
        except (AssayError, OSError):
            return False


def examine(patient: Patient) -> Iterator[tuple[str, list[Finding], float]]:
    """Each check's name, what it found, and its seconds."""
    for check in CHECKS:
        started = time.monotonic()
        try:
            found = list(check(patient))
        except Exception as problem:  # a malformed file must not keep the gates from judging it
            text = f"could not be examined: {type(problem).__name__}: {problem}"
            found = [Finding(check=check.__name__, level=Level.NOTE, text=text)]
        yield check.__name__, found, time.monotonic() - started


def versions(patient: Patient) -> Iterator[Finding]:
    """The installed libraries are those of the verified set."""
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)", paths.CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    others = []
    for name in LIBRARIES:
        try:
            seen = version(name)
        except PackageNotFoundError:
            text = f"{name} is not installed; {wanted.get(name, 'some version')} is wanted"
            fix = "pip install -e '.[all]' -c constraints.txt"
            yield Finding(check="versions", level=Level.FAILS, text=text, fix=fix, gate="base_quant_load_ok")
            continue
        if name in wanted and seen.partition("+")[0] != wanted[name]:
            others.append(f"{name} {seen} (verified: {wanted[name]})")
    if others:
        fix = "pip install -e '.[all]' -c constraints.txt"
        text = f"not the verified versions: {', '.join(others)}"
        yield Finding(check="versions", level=Level.NOTE, text=text, fix=fix)
    else:
        text = ", ".join(f"{name} {wanted[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
        yield Finding(check="versions", level=Level.FINE, text=text)


def gpu(patient: Patient) -> Iterator[Finding]:
    """A GPU that is there is one that torch can use."""
    seen = gpus()
    if not seen:
        if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
            text, fix = "there is an NVIDIA driver, and nvidia-smi lists no GPU", "nvidia-smi   # says why"
            yield Finding(check="gpu", level=Level.NOTE, text=text, fix=fix)
        else:
            yield Finding(check="gpu", level=Level.FINE, text="none: everything runs on the processor")
        return
    yield Finding(check="gpu", level=Level.FINE, text="; ".join(seen))
    if not torch_knows_gpus():
        torch = version("torch")
        text = f"torch {torch} is built for the processor only, so the GPU stands idle"
        fix = f"pip install --force-reinstall torch=={torch.partition('+')[0]} --index-url " + TORCH_WITH_CUDA
        yield Finding(check="gpu", level=Level.NOTE, text=text, fix=fix)


def torch_knows_gpus() -> bool:
    """Whether the torch that is installed was built for CUDA, as far as its name and needs tell."""
    try:
        torch, needs = version("torch"), distribution("torch").requires or []
    except PackageNotFoundError:
        return False
    return "+cpu" not in torch and ("+cu" in torch or any("nvidia" in need or "cuda" in need for need in needs))


def base(patient: Patient) -> Iterator[Finding]:
    """The base is whole, unquantized, and has one chat template and a tokenizer."""
    candidate, found = patient.candidate, patient.found_base
    if candidate is None:
        return
    if found is None:
        text = f"{candidate.base_spec} is not on this machine yet, so its headers cannot be looked at"
        fix = f"hf download {candidate.base_spec}" if candidate.base_spec != EMBEDDED else "nox -s train -- quickstart"
        yield Finding(check="base", level=Level.NOTE, text=text, fix=fix)
    elif isinstance(found, AssayError):
        yield _told("base", patient.bench, "base_quant_load_ok", None, found)
    elif patient.shapes is not None:
        text = f"{candidate.base_spec}: {patient.shapes.count:,} weights in {len(patient.shapes.parameters)} tensors"
        yield Finding(check="base", level=Level.FINE, text=text)


def adapters(patient: Patient) -> Iterator[Finding]:
    """Every adapter's files are whole and fit the base."""
    if patient.base is None or patient.candidate is None:
        return
    for adapter in patient.candidate.adapters:
        if not patient.in_run and not Path(adapter.source).is_dir() and not adapter.source.startswith((".", "/", "~")):
            text = f"{adapter.name}: {adapter.source} is on the hub and was not looked at"
            yield Finding(check="adapters", level=Level.NOTE, text=text, fix=f"hf download {adapter.source}")
            continue
        bench: Any = patient.bench if patient.may_hash else Glance(patient.bench.run)
        bench.forget_used()
        # Without its digest the base is known by name only: the gate itself will compare the content.
        known = (
            adapter if patient.may_hash else replace(adapter, recorded_base=None, trained_on=_recorded_name(adapter))
        )
        given = {"bench": bench, "base": patient.base, "adapter": known}
        found = list(_judged(bench, "adapters", "adapter_files_ok", given))
        yield from found
        if not found:
            yield Finding(check="adapters", level=Level.FINE, text=f"{adapter.name}: whole, and fits the base")


def _recorded_name(adapter: Adapter) -> str | None:
    try:
        return str(read_json(adapter.path / "adapter_config.json").get("base_model_name_or_path"))
    except AssayError:
        return None


def ends(patient: Patient) -> Iterator[Finding]:
    """The tokenizer's end token is one that ends an answer when served."""
    if patient.base is None:
        return
    wanted = end_token_id(patient.base.path)
    named: Any = None
    for name in ("generation_config.json", "config.json"):
        file = patient.base.path / name
        named = read_json(file).get("eos_token_id") if named is None and file.exists() else named
    served: set[Any] = set(named) if isinstance(named, list) else {named}
    if named is None:
        text = "neither generation_config.json nor config.json names an end token"
        fix = f'"eos_token_id": {wanted if wanted is not None else "ID"}   # in generation_config.json'
        yield Finding(check="ends", level=Level.FAILS, text=text, fix=fix, gate="<adapter>_generate_non_empty")
    elif wanted is not None and wanted not in served:
        text = f"answers end at {sorted(served)}, the tokenizer's eos_token is {wanted}: they may run to the limit"
        fix = f'"eos_token_id": {wanted}   # in generation_config.json'
        yield Finding(check="ends", level=Level.NOTE, text=text, fix=fix)
    else:
        yield Finding(check="ends", level=Level.FINE, text=f"answers end at {sorted(served)}")


def converter(patient: Patient) -> Iterator[Finding]:
    """The interpreter that runs the converter can read this base's tokenizer."""
    source = find_toolchain().source
    for name in ("convert_hf_to_gguf.py", "gguf-py/gguf"):
        if not (source / name).exists():
            text, fix = f"{source / name} is missing", "nox -s toolchain"
            yield Finding(check="converter", level=Level.FAILS, text=text, fix=fix, gate="toolchain_ready")
            return
    if patient.base is not None:
        file = patient.base.path / "tokenizer_config.json"
        kind = read_json(file).get("tokenizer_class") if file.exists() else None
        try:
            seen = version("transformers")
        except PackageNotFoundError:
            return
        if kind == "TokenizersBackend" and int(seen.partition(".")[0]) < 5:
            text = f"the tokenizer was saved by transformers 5 ({kind}), the converter runs with {seen}"
            fix = "pip install -c constraints.txt transformers"
            yield Finding(check="converter", level=Level.FAILS, text=text, fix=fix, gate="convert_f16_ok")
            return
    yield Finding(check="converter", level=Level.FINE, text="runs in this environment, from the toolchain's source")


def memory(patient: Patient) -> Iterator[Finding]:
    """The model fits into memory in each form that is judged. What is already made plays no part in it."""
    if patient.shapes is None or patient.base is None:
        return
    needs, host, card = forecast(patient.shapes), available_bytes(), card_bytes()
    room, where = (host, "memory") if card is None else (card, "the GPU's memory")
    loaded = needs["bytes_16bit" if card is None else "bytes_nf4"] + PROCESS_BYTES
    merged = needs["bytes_16bit"] + PROCESS_BYTES
    # In fp32; on a GPU without room for that, in bf16.
    reference = needs["bytes_16bit"] * (2 if card is None else 1) + PROCESS_BYTES
    fix = "take a machine with more, or close what uses it; `assay plan BASE` names the smallest card"
    if loaded > room and merged > host:
        free = f"{_gb(room)} of {where}, {_gb(host)} of memory"
        text = f"loading takes {_gb(loaded)}, merging {_gb(merged)}; free are {free}"
        yield Finding(check="memory", level=Level.STOPS, text=text, fix=fix)
        return
    forms = [
        ("loading in 4 bits", loaded, room, "base_quant_load_ok"),
        ("merging", merged, host, "merge_ok"),
        ("the reference in full precision", reference, room, "merged_distribution_ok"),
    ]
    short = [form for form in forms if form[1] > form[2]]
    for what, needed, there, gate in short:
        text = f"{what} takes about {_gb(needed)}, {_gb(there)} are free"
        yield Finding(check="memory", level=Level.FAILS, text=text, fix=fix, gate=gate)
    if not short:
        text = f"at most {_gb(max(form[1] for form in forms))} needed, {_gb(room)} free"
        yield Finding(check="memory", level=Level.FINE, text=text)


def disk(patient: Patient) -> Iterator[Finding]:
    """What merging, converting and quantizing write, and was not written before, fits on the disk of the cache."""
    folder = paths.cache()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < BARELY_ANY_DISK_BYTES:
        text = f"{folder}: {_gb(free)} free; not even a log can be kept"
        yield Finding(check="disk", level=Level.STOPS, text=text, fix=FREE_SPACE)
        return
    if patient.shapes is None or patient.candidate is None or patient.base is None:
        yield Finding(check="disk", level=Level.FINE, text=f"{_gb(free)} free")
        return
    needs, usable = forecast(patient.shapes), patient.base
    each = 2 * needs["bytes_16bit"] + needs["bytes_q4_k_m"]

    def is_made(adapter: Adapter) -> bool:
        return patient.has(lambda: Merge(base=usable, adapter=adapter))

    new = [adapter for adapter in patient.candidate.adapters if not is_made(adapter)]
    text = f"{_gb(each * len(new))} to be written ({_gb(each)} for each of {len(new)} adapters), {_gb(free)} free"
    if free < each * len(new):
        yield Finding(check="disk", level=Level.FAILS, text=text, fix=FREE_SPACE, gate="merge_ok")
    else:
        yield Finding(check="disk", level=Level.FINE, text=text)


def fallbacks(patient: Patient) -> Iterator[Finding]:
    """Q4_K_M is what its name says, as far as the shapes allow."""
    shapes = patient.shapes
    if shapes is None:
        return
    matrices = {name: shape for name, shape in shapes.parameters.items() if len(shape) == 2}
    forced = [name for name, shape in matrices.items() if shape[-1] % 256]
    blocks, tied = int(shapes.setting("num_hidden_layers", 0)), "lm_head.weight" not in shapes.parameters
    bits = 8 * forecast(shapes)["bytes_q4_k_m"] / shapes.count
    if not forced:
        text = f"none: {bits:.2f} bits a weight"
        yield Finding(check="fallbacks", level=Level.FINE, text=text)
        return
    first = forced[0]
    text = (
        f"{len(forced)} of {len(matrices)} matrices have rows that are no multiple of 256 and become larger types "
        f"({first} {gguf_type(first, matrices[first], blocks, tied)}): {bits:.2f} bits a weight"
    )
    fix = "none for Q4_K_M: a row is as long as the model is wide. Compare with Q5_K_M and Q8_0, which may be as small"
    yield Finding(check="fallbacks", level=Level.NOTE, text=text, fix=fix)


def toolchain(patient: Patient) -> Iterator[Finding]:
    """llama.cpp's tools run, compute and are one commit: the self-test."""
    bench = patient.bench
    bench.forget_used()
    found = list(_judged(bench, "toolchain", "toolchain_ready", {"bench": bench}))
    yield from found
    if not found:
        tools = find_toolchain()
        text = f"llama.cpp {tools.commit or 'of your own'}, llama-cpp-python {tools.release}: the self-test passes"
        yield Finding(check="toolchain", level=Level.FINE, text=text)


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    versions,
    disk,
    base,
    ends,
    memory,
    fallbacks,
    adapters,
    gpu,
    converter,
    toolchain,
)
"""Cheapest first."""


class Glance:
    """Looks at small files in this very process, by no digest: a bench for the workers that import nothing heavy."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.forget_used()

    def forget_used(self) -> None:
        self.facts: dict[str, Any] = {}
        self.used: dict[str, StepUse] = {}

    def make(self, step: Step, stage: str | None = None) -> Artifact:
        module, function = step.worker.split(".")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            work = Work(Path(folder))
            getattr(import_module(f"assay.workers.{module}"), function)(work, **step.arguments())
        artifact = Artifact(
            path=Path(folder), digest="", step=step.title, stages=work.stages, run="", seconds=0.0, peak_rss_bytes=0
        )
        self.facts |= artifact.facts
        return artifact


def _judged(bench: Any, check: str, id: str, given: dict[str, Any]) -> Iterator[Finding]:
    """What a gate says already: nothing if it holds."""
    test = next(one.test for one in read_gates(paths.GATES) if one.id == id)
    body = getattr(import_module(test.partition(".py")[0]), test.rpartition("::")[2])
    try:
        body(**{name: given[name] for name in inspect.signature(body).parameters})
    except Exception as problem:  # whatever it is, the gate will meet it too
        yield _told(check, bench, id, given.get("adapter"), problem)


def _told(check: str, bench: Any, gate: str, adapter: Adapter | None, problem: Exception) -> Finding:
    """A gate's problem as a finding, with the fix of its likeliest cause."""
    status = Status.FAILED
    if isinstance(problem, Unavailable | Inconclusive):
        status = Status.UNAVAILABLE if isinstance(problem, Unavailable) else Status.INCONCLUSIVE
    reason = str(problem).split("\nassert ")[0]
    if not isinstance(problem, AssertionError | AssayError | OSError):
        reason = f"{type(problem).__name__}: {reason}"
    name = adapter.name if adapter is not None else None
    uses = tuple(bench.used.values())
    outcome = Outcome(gate=gate, adapter=name, status=status, reason=reason, facts=unstaged(bench.facts), steps=uses)
    known = read_causes(paths.GATES / CAUSES, [one.id for one in read_gates(paths.GATES)])
    causes = known.fitting(bench.run, gate, outcome)
    text = f"{name}: {reason}" if name else reason
    return Finding(check=check, level=Level.FAILS, text=text, fix=causes[0].fix if causes else "", gate=gate)


def available_bytes() -> int:
    """Memory that a new process may take, of the host or of the container's limit, whichever is less."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(1024 * int(re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[0]))
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        # What files were read lies in memory only until somebody needs it.
        cached = int(re.findall(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)[0])
        found.append(limit - used + cached)
    return min(found, default=2**63)


def card_bytes() -> int | None:
    """Free memory of the GPU that the workers use, the first that they see; None if they use none."""
    if not torch_knows_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        free = [int(line) * 2**20 for line in answer.stdout.split()]
        return free[int(visible) if visible.isdigit() else 0]
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
