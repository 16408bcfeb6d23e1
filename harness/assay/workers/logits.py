"""Logits of a model on given token sequences, in transformers and in llama.cpp. None of them touches the disk."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assay.inputs.toolchain import Toolchain
from assay.machine import usable_cores
from assay.workers.llama import import_llama_cpp
from assay.workers.sequences import Sequence

BATCH = 2048
"""Tokens that a model in 4 bits, or on a GPU, is fed at a time: it dequantizes each layer once per forward."""
DENSE_BATCH = 512
"""The same of a dense model on a processor, which is no faster for more of them and computes their padding too."""

Logits = Callable[[list[Sequence]], Iterator[Any]]
"""A model: sequences to logits, each scored positions × vocabulary, as torch tensors of float32 on the host."""


def of_transformers(model: Any, device: str, tokens: int | None = None) -> Logits:
    """Several sequences at a time, so many tokens with their padding behind."""
    import torch

    tokens = tokens or (DENSE_BATCH if device == "cpu" else BATCH)

    def logits(sequences: list[Sequence]) -> Iterator[Any]:
        for batch in _batches(sequences, tokens):
            longest = max(len(one.ids) for one in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, one in enumerate(batch):
                ids[place, : len(one.ids)] = torch.tensor(one.ids)
                mask[place, : len(one.ids)] = 1
            first = min(one.scored[0] for one in batch)
            with torch.inference_mode():
                whole = model(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    use_cache=False,
                    logits_to_keep=longest - first,
                ).logits
            for place, one in enumerate(batch):
                yield whole[place, torch.tensor(one.scored) - first].float().cpu()

    return logits


def _batches(sequences: list[Sequence], tokens: int) -> Iterator[list[Sequence]]:
    """Neighbours, as many as fit into so many tokens with their padding."""
    batch: list[Sequence] = []
    for one in sequences:
        longest = max(len(other.ids) for other in [*batch, one])
        if batch and longest * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def of_gguf(tools: Toolchain, file: Path, longest: int) -> Logits:
    """A GGUF in llama.cpp, on the very same tokens.

    Raises:
        ValueError: it cannot be loaded; the reason is in the log.
    """
    import torch

    llama = import_llama_cpp(tools)
    threads = usable_cores()
    model = llama.Llama(
        str(file),
        n_ctx=longest + 8,
        n_batch=longest + 8,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=-1,
        flash_attn=True,  # as llama-cli and llama-perplexity do where it can be; the binding's default is without
        verbose=True,
    )
    words = model.n_vocab()

    def one(sequence: Sequence) -> Any:
        count, scored = len(sequence.ids), set(sequence.scored)
        llama.llama_memory_clear(llama.llama_get_memory(model.ctx), True)
        batch = llama.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for at, token in enumerate(sequence.ids):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, at, 1
                batch.seq_id[at][0], batch.logits[at] = 0, at in scored
            if llama.llama_decode(model.ctx, batch):
                raise ValueError(f"{file.name}: llama.cpp could not evaluate {sequence.name} ({count} tokens)")
            pointer = ctypes.cast(llama.llama_get_logits(model.ctx), ctypes.POINTER(ctypes.c_float))
            rows = np.ctypeslib.as_array(pointer, shape=(len(sequence.scored), words))
            return torch.from_numpy(rows.copy())
        finally:
            llama.llama_batch_free(batch)

    return lambda sequences: map(one, sequences)
