"""The files of the GGUF route: convert a checkpoint to F16, quantize it to Q4_K_M."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from assay.files import read_json
from assay.inputs.checkpoint import Tensor, chat_template, read_folder
from assay.inputs.gguf_file import (
    MODELLED,
    Weights,
    different_metadata,
    open_reader,
    open_weights,
    quantization_noise,
    unequal_tensors,
)
from assay.inputs.lora import read_lora_weights
from assay.inputs.model_files import end_token_id
from assay.inputs.toolchain import Toolchain
from assay.machine import usable_cores
from assay.measures import strength
from assay.measures.strength import AdapterStrength
from assay.steps.gguf import (
    F16,
    Q4,
    ConvertF16,
    Converting,
    F16File,
    F16Load,
    Q4File,
    QuantizationNoise,
    QuantizeQ4,
    Quantizing,
    SourceParity,
)
from assay.workers import Problem, Work, call
from assay.workers.llama import dequantizer, gguf_facts, import_gguf, import_llama_cpp

COMPUTED = ("rope_freqs", "rope_factors_")
"""Tensors that the converter computes from the config: no checkpoint has them."""

SUPER_BLOCK = 256
"""A K-quant packs this many weights of one row together; a row of any other length cannot be one."""


def convert(work: Work, *, adapter: str, base: str, merged: str, toolchain: str, dtype: str) -> None:
    """Run the converter, compare what it wrote with what it read, load it."""
    tools = Toolchain(path=Path(toolchain))
    checkpoint, out = Path(merged) / "checkpoint", work.folder / F16
    started = time.monotonic()
    # The converter finds its `conversion` package beside itself, which a safe path would hide.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    script = str(tools.source / "convert_hf_to_gguf.py")
    call([sys.executable, script, str(checkpoint), "--outtype", dtype, "--outfile", str(out)], env=env)
    _refuse_missing(out, "The converter", "converter-wrote-nothing")
    work.reached(ConvertF16.converted, Converting(convert_seconds=round(time.monotonic() - started, 3)))

    gguf = import_gguf(tools)
    reader, source = _open(gguf, out), read_folder(checkpoint)
    weights = open_weights(gguf, reader, list(source), read_json(checkpoint / "config.json"), dequantizer(gguf, tools))
    with ThreadPoolExecutor(usable_cores()) as pool:
        compared = _compare(gguf, reader, out, checkpoint, weights, pool.map)
        work.reached(ConvertF16.compared, compared)
        started = time.monotonic()
        modelled = compared.layout_is_modelled and not compared.tensors_missing
        rows = next((tensor.shape[0] for name, tensor in source.items() if name.endswith("embed_tokens.weight")), 0)
        parity = SourceParity(
            architecture=compared.architecture,
            layout_is_modelled=compared.layout_is_modelled,
            tensors_with_other_values=unequal_tensors(weights, source, pool.map) if modelled else [],
            metadata_that_differs=different_metadata(reader, checkpoint, rows),
            compare_seconds=round(time.monotonic() - started, 3),
        )
    work.reached(ConvertF16.parity, parity)
    work.reached(ConvertF16.strength, _strength(Path(base), Path(adapter), weights, known=modelled))
    work.reached(ConvertF16.loaded, _load(tools, out))


def _refuse_missing(file: Path, tool: str, code: str) -> None:
    if not file.exists():
        raise Problem(f"{tool} ended with exit code 0 and wrote no {file.name}.", code=code)


def _open(gguf: Any, file: Path) -> Any:
    """A reader of a GGUF.

    Raises:
        Problem: the file is shorter than its header promises, or is no GGUF.
    """
    try:
        return open_reader(gguf, file)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as problem:
        raise Problem(
            f"{file.name}: not a whole GGUF ({problem}). Convert it again, on a disk with room for it.",
            code="gguf-truncated",
        ) from problem


def _compare(
    gguf: Any, reader: Any, out: Path, checkpoint: Path, weights: Weights, each: Callable[..., Any]
) -> F16File:
    """Which tensors of the checkpoint the GGUF lacks, by the converter's table of names, and what the file says."""
    source, facts = read_folder(checkpoint), gguf_facts(gguf, reader, out)
    template = facts.pop("chat_template")
    held = {tensor.name: tensor for tensor in reader.tensors}
    lacking = [
        name for name, tensor in weights.tensors.items() if int(tensor.n_elements) != int(np.prod(source[name].shape))
    ]
    extra = set(held) - {tensor.name for name, tensor in weights.tensors.items() if name not in lacking}
    floats = [tensor for tensor in held.values() if tensor.tensor_type.name in ("F16", "F32")]
    finite = each(lambda tensor: bool(np.isfinite(tensor.data).all()), floats)
    return F16File(
        **facts,
        source_parameters=sum(int(np.prod(tensor.shape)) for tensor in source.values()),
        tensors_missing=lacking,
        tensors_unmapped=sorted(set(source) - set(weights.tensors)),
        tensors_extra=sorted(extra),
        parameters_computed=sum(int(held[name].n_elements) for name in extra if name.startswith(COMPUTED)),
        tensors_not_finite=[tensor.name for tensor, fine in zip(floats, finite, strict=True) if not fine],
        layout_is_modelled=weights.architecture in MODELLED,
        chat_template_present=template is not None,
        chat_template_equal=template == chat_template(checkpoint),
        source_eos_token_id=end_token_id(checkpoint),
    )


def _strength(base: Path, adapter: Path, weights: Weights, *, known: bool) -> AdapterStrength:
    if not known:
        return AdapterStrength(measured=False)
    tensors: dict[str, Tensor] = read_folder(base)
    held = weights.tensors

    def read(name: str) -> Any:
        return weights.float32(name) if name in held else None

    return strength.adapter_strength(tensors, read_lora_weights(adapter, tensors), read)


def _load(tools: Toolchain, file: Path) -> F16Load:
    """Load the file in llama.cpp, and evaluate a few tokens."""
    started = time.monotonic()
    llama_cpp = import_llama_cpp(tools)
    model = llama_cpp.Llama(
        str(file), n_ctx=64, n_threads=usable_cores(), n_gpu_layers=-1, logits_all=True, verbose=True
    )
    model.eval(model.tokenize(b"The capital of France is"))
    logits = np.asarray(model.scores[: model.n_tokens])
    return F16Load(
        load_seconds=round(time.monotonic() - started, 3), logits_not_finite=int((~np.isfinite(logits)).sum())
    )


def quantize(work: Work, *, adapter: str, base: str, f16: str, toolchain: str) -> None:
    """Run llama-quantize, then read from the file itself what it became."""
    tools = Toolchain(path=Path(toolchain))
    source, out = Path(f16) / F16, work.folder / Q4
    started = time.monotonic()
    call([str(tools.bin / "llama-quantize"), str(source), str(out), "Q4_K_M", str(usable_cores())])
    _refuse_missing(out, "llama-quantize", "quantizer-wrote-nothing")
    work.reached(QuantizeQ4.quantized, Quantizing(quantize_seconds=round(time.monotonic() - started, 3)))

    gguf = import_gguf(tools)
    dequantize = dequantizer(gguf, tools)
    reader = _open(gguf, out)
    before = {tensor.name: tensor for tensor in _open(gguf, source).tensors}
    after = {tensor.name: tensor for tensor in reader.tensors}
    changed = [name for name in before if name in after and list(before[name].shape) != list(after[name].shape)]
    facts = gguf_facts(gguf, reader, out)
    del facts["chat_template"]
    inspected = Q4File(
        **facts,
        **_fallbacks(after),
        source_bytes=source.stat().st_size,
        tensors_missing=sorted(set(before) - set(after)),
        tensors_extra=sorted(set(after) - set(before)),
        tensors_with_another_shape=changed,
    )
    work.reached(QuantizeQ4.inspected, inspected)
    started = time.monotonic()
    with ThreadPoolExecutor(usable_cores()) as pool:
        kept = {name: after[name] for name in after if name not in changed}
        noise = quantization_noise(dequantize, before, kept, pool.map)
    seconds = round(time.monotonic() - started, 3)
    work.reached(
        QuantizeQ4.noise,
        QuantizationNoise(noise_by_type=noise.by_type, tensors_beyond_noise=noise.beyond, compare_seconds=seconds),
    )
    names, config = list(read_folder(Path(base))), read_json(Path(base) / "config.json")
    weights = open_weights(gguf, reader, names, config, dequantize)
    modelled = weights.architecture in MODELLED and not changed
    work.reached(QuantizeQ4.strength, _strength(Path(base), Path(adapter), weights, known=modelled))


def _fallbacks(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors that should be K-quants and are of larger types, by whether their shape forces it."""
    forced: list[str] = []
    unforced: list[str] = []
    unforced_weights, quantizable_weights = 0, 0
    for name, tensor in tensors.items():
        # One-dimensional tensors (norms, biases) and what llama.cpp keeps in F32 on purpose are never quantized.
        if len(tensor.shape) < 2 or tensor.tensor_type.name == "F32":
            continue
        fits, is_k_quant = int(tensor.shape[0]) % SUPER_BLOCK == 0, tensor.tensor_type.name.endswith("_K")
        quantizable_weights += int(tensor.n_elements) if fits else 0
        if not is_k_quant:
            (unforced if fits else forced).append(f"{name} {tensor.tensor_type.name} (row of {int(tensor.shape[0])})")
            unforced_weights += int(tensor.n_elements) if fits else 0
    return {
        "fallbacks_forced_by_shape": forced,
        "fallbacks_unforced": unforced,
        "unforced_share_of_weights": round(unforced_weights / quantizable_weights, 4) if quantizable_weights else 0.0,
    }
