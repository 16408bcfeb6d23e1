"""The doctor's checks: each yields what it found. No torch, no weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from assay import paths
from assay.errors import FREE_SPACE, AssayError
from assay.files import read_json
from assay.gating import resources
from assay.gating.evidence import Evidence
from assay.gating.examination import Examination, Finding, Level, judged, told
from assay.inputs.bases import EMBEDDED
from assay.inputs.candidate import Adapter
from assay.inputs.model_files import end_token_id
from assay.inputs.toolchain import find_toolchain
from assay.machine import gpus
from assay.measures.sizing import forecast, gguf_type
from assay.steps.catalogue import Merge

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers", "gguf")
PROCESS_BYTES = 1_500_000_000
"""What a process with torch and transformers takes beside its tensors (1.2 to 1.4 GB measured)."""
BARELY_ANY_DISK_BYTES = 100_000_000
TORCH_WITH_CUDA = "https://download.pytorch.org/whl/cu130"


def versions(examination: Examination) -> Iterator[Finding]:
    """The installed libraries are those of the verified set."""
    expected = dict(re.findall(r"^([\w.-]+)==(\S+)", paths.CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    others = []
    for name in LIBRARIES:
        try:
            seen = version(name)
        except PackageNotFoundError:
            text = f"{name} is not installed; {expected.get(name, 'some version')} is expected"
            fix = "pip install -e '.[all]' -c constraints.txt"
            yield Finding(check="versions", level=Level.FAILS, text=text, fix=fix, gate="base_quant_load_ok")
            continue
        if name in expected and seen.partition("+")[0] != expected[name]:
            others.append(f"{name} {seen} (verified: {expected[name]})")
    if others:
        fix = "pip install -e '.[all]' -c constraints.txt"
        text = f"not the verified versions: {', '.join(others)}"
        yield Finding(check="versions", level=Level.NOTE, text=text, fix=fix)
    else:
        text = ", ".join(f"{name} {expected[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
        yield Finding(check="versions", level=Level.FINE, text=text)


def gpu(examination: Examination) -> Iterator[Finding]:
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
    if not resources.torch_knows_gpus():
        torch = version("torch")
        text = f"torch {torch} is built for the processor only, so the GPU stands idle"
        fix = f"pip install --force-reinstall torch=={torch.partition('+')[0]} --index-url " + TORCH_WITH_CUDA
        yield Finding(check="gpu", level=Level.NOTE, text=text, fix=fix)


def base(examination: Examination) -> Iterator[Finding]:
    """The base is whole, unquantized, and has one chat template and a tokenizer."""
    candidate, found = examination.candidate, examination.found_base
    if candidate is None:
        return
    if found is None:
        text = f"{candidate.base_spec} is not on this machine yet, so its headers cannot be looked at"
        fix = f"hf download {candidate.base_spec}" if candidate.base_spec != EMBEDDED else "nox -s train -- quickstart"
        yield Finding(check="base", level=Level.NOTE, text=text, fix=fix)
    elif isinstance(found, AssayError):
        yield told("base", Evidence(examination.runner), "base_quant_load_ok", None, found)
    elif examination.shapes is not None:
        shapes = examination.shapes
        text = f"{candidate.base_spec}: {shapes.count:,} weights in {len(shapes.parameters)} tensors"
        yield Finding(check="base", level=Level.FINE, text=text)


def adapters(examination: Examination) -> Iterator[Finding]:
    """Every adapter's files are whole and fit the base."""
    if examination.base is None or examination.candidate is None:
        return
    for adapter in examination.candidate.adapters:
        if (
            not examination.in_run
            and not Path(adapter.source).is_dir()
            and not adapter.source.startswith((".", "/", "~"))
        ):
            text = f"{adapter.name}: {adapter.source} is on the hub and was not looked at"
            yield Finding(check="adapters", level=Level.NOTE, text=text, fix=f"hf download {adapter.source}")
            continue
        # Without its digest the base is known by name only: the gate itself will compare the content.
        known = (
            adapter
            if examination.may_hash
            else replace(adapter, recorded_base=None, trained_on=_recorded_name(adapter))
        )
        given = {"base": examination.base, "adapter": known}
        found = list(judged(examination, "adapters", "adapter_files_ok", given))
        yield from found
        if not found:
            yield Finding(check="adapters", level=Level.FINE, text=f"{adapter.name}: whole, and fits the base")


def _recorded_name(adapter: Adapter) -> str | None:
    try:
        return str(read_json(adapter.path / "adapter_config.json").get("base_model_name_or_path"))
    except AssayError:
        return None


def ends(examination: Examination) -> Iterator[Finding]:
    """The tokenizer's end token is one that ends an answer when served."""
    if examination.base is None:
        return
    expected = end_token_id(examination.base.path)
    named: Any = None
    for name in ("generation_config.json", "config.json"):
        file = examination.base.path / name
        named = read_json(file).get("eos_token_id") if named is None and file.exists() else named
    served: set[Any] = set(named) if isinstance(named, list) else {named}
    if named is None:
        text = "neither generation_config.json nor config.json names an end token"
        fix = f'"eos_token_id": {expected if expected is not None else "ID"}   # in generation_config.json'
        yield Finding(check="ends", level=Level.FAILS, text=text, fix=fix, gate="<adapter>_generate_non_empty")
    elif expected is not None and expected not in served:
        text = f"answers end at {sorted(served)}, the tokenizer's eos_token is {expected}: they may run to the limit"
        fix = f'"eos_token_id": {expected}   # in generation_config.json'
        yield Finding(check="ends", level=Level.NOTE, text=text, fix=fix)
    else:
        yield Finding(check="ends", level=Level.FINE, text=f"answers end at {sorted(served)}")


def converter(examination: Examination) -> Iterator[Finding]:
    """The interpreter that runs the converter can read this base's tokenizer."""
    source = find_toolchain().source
    for name in ("convert_hf_to_gguf.py", "gguf-py/gguf"):
        if not (source / name).exists():
            text, fix = f"{source / name} is missing", "nox -s toolchain"
            yield Finding(check="converter", level=Level.FAILS, text=text, fix=fix, gate="toolchain_ready")
            return
    if examination.base is not None:
        file = examination.base.path / "tokenizer_config.json"
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


def memory(examination: Examination) -> Iterator[Finding]:
    """The model fits into memory in each form that is judged. What is already made plays no part in it."""
    if examination.shapes is None or examination.base is None:
        return
    needs, host, card = forecast(examination.shapes), resources.available_bytes(), resources.card_bytes()
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


def disk(examination: Examination) -> Iterator[Finding]:
    """What merging, converting and quantizing write, and was not written before, fits on the disk of the cache."""
    folder = paths.cache()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < BARELY_ANY_DISK_BYTES:
        text = f"{folder}: {_gb(free)} free; not even a log can be kept"
        yield Finding(check="disk", level=Level.STOPS, text=text, fix=FREE_SPACE)
        return
    if examination.shapes is None or examination.candidate is None or examination.base is None:
        yield Finding(check="disk", level=Level.FINE, text=f"{_gb(free)} free")
        return
    needs, usable = forecast(examination.shapes), examination.base
    each = 2 * needs["bytes_16bit"] + needs["bytes_q4_k_m"]

    def is_made(adapter: Adapter) -> bool:
        return examination.has(lambda: Merge(base=usable, adapter=adapter))

    new = [adapter for adapter in examination.candidate.adapters if not is_made(adapter)]
    text = f"{_gb(each * len(new))} to be written ({_gb(each)} for each of {len(new)} adapters), {_gb(free)} free"
    if free < each * len(new):
        yield Finding(check="disk", level=Level.FAILS, text=text, fix=FREE_SPACE, gate="merge_ok")
    else:
        yield Finding(check="disk", level=Level.FINE, text=text)


def fallbacks(examination: Examination) -> Iterator[Finding]:
    """Q4_K_M is what its name says, as far as the shapes allow."""
    shapes = examination.shapes
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


def toolchain(examination: Examination) -> Iterator[Finding]:
    """llama.cpp's tools run, compute and are one commit: the self-test."""
    found = list(judged(examination, "toolchain", "toolchain_ready", {}))
    yield from found
    if not found:
        tools = find_toolchain()
        text = f"llama.cpp {tools.commit or 'of your own'}, llama-cpp-python {tools.release}: the self-test passes"
        yield Finding(check="toolchain", level=Level.FINE, text=text)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


CHECKS: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
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
