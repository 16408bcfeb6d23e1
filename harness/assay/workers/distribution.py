"""Feeds the same tokens to every form of a candidate and compares what each expects next. No logits touch the disk.

The reference is the adapter on the base in full precision. Its log-probabilities stay in memory while one form after
the other is loaded, compared and let go.
"""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assay.inputs.toolchain import Toolchain
from assay.machine import usable_cores
from assay.measures.divergence import Compared, compare_until_clear, loss_enters_at, share_lost, summarise_divergence
from assay.measures.encoding import IGNORED, encode_sample
from assay.workers import Work
from assay.workers.gguf import F16, Q4
from assay.workers.llama import import_llama_cpp
from assay.workers.model import full_dtype, load_nf4, load_reference, peaks

ANSWER = 48
"""Tokens of its own that the reference answers with where a probe has no reference answer."""
SPEED = 24
"""Tokens generated to measure the speed of decoding."""
BATCH = 2048
"""Tokens that a model in 4 bits, or on a GPU, is fed at a time: it dequantizes each layer once a forward."""
DENSE_BATCH = 512
"""The same of a dense model on a processor, which is no faster for more of them and computes their padding too."""
ROWS = 16
"""Positions whose whole distributions are compared at a time: as many as stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A probe in tokens."""

    name: str
    kind: str
    ids: list[int]
    scored: list[int]
    """Positions whose next token is judged."""

    @property
    def following(self) -> list[int]:
        """The token that does come after each scored position."""
        return [self.ids[at + 1] for at in self.scored]


Logits = Callable[[list[Sequence]], Iterator[Any]]
"""A model: sequences to logits, each scored positions × vocabulary, as torch tensors of float32 on the host."""


def measure(
    work: Work,
    *,
    base: str,
    adapter: str,
    probes: list[dict[str, str]],
    answers: list[dict[str, str]],
    max_tokens: int,
    scored_tokens: int,
    clearly_exact: float,
    nf4: bool,
    merged: str | None,
    f16: str | None,
    q4: str | None,
    toolchain: str | None,
) -> None:
    """One stage a form: its distances from the reference, and how much of the fine-tune they cost.

    A form that there is none of leaves a stage without facts. The 16-bit forms, `merged` and `f16`, are fed a part of
    the sequences first, and the others only where the distance is not below `clearly_exact` for certain.
    """
    import torch
    from peft import PeftModel

    distances: dict[str, float] = {}
    started = time.monotonic()
    network, tokenizer, device = load_reference(base)
    model: Any = PeftModel.from_pretrained(network, adapter)
    model.eval()
    load_seconds = time.monotonic() - started
    speed = _speed(model, tokenizer, device, probes)
    memory = peaks(device)
    sequences = _sequences(model, tokenizer, device, probes, max_tokens, scored_tokens)
    started = time.monotonic()
    # In the order of the sequences and not by name: a prompt and a text may be called the same.
    expected = [torch.log_softmax(given, dim=-1) for given in _forward(model, device)(sequences)]
    tasks = [at for at, one in enumerate(sequences) if one.kind == "task"]
    with model.disable_adapter():
        asked, wanted = [sequences[at] for at in tasks], [expected[at] for at in tasks]
        untrained = _compare(_forward(model, device), asked, wanted)
    work.stage(
        "reference",
        computed_in=str(network.dtype).removeprefix("torch."),
        load_seconds=round(load_seconds, 3),
        **speed,
        **memory,
        sequences=len(sequences),
        tokens=sum(len(one.ids) for one in sequences),
        longest_sequence_tokens=max(len(one.ids) for one in sequences),
        scored_tokens=sum(len(one.scored) for one in sequences),
        base=summarise_divergence(untrained) if untrained else None,
        seconds=round(time.monotonic() - started, 3),
    )
    del model, network
    gc.collect()

    def stage(name: str, logits: Logits, began: float, *, exact: bool = False) -> None:
        def compare(places: list[int]) -> list[Compared]:
            return _compare(logits, [sequences[at] for at in places], [expected[at] for at in places])

        everything = list(range(len(sequences)))
        compared = compare_until_clear(compare, everything, clearly_exact) if exact else compare(everything)
        answers = [one for one in compared if one.kind == "task"]
        kept = share_lost(answers, untrained) if answers else {}
        summary = summarise_divergence(compared)
        distances[name] = summary["kl_mean"]
        work.stage(name, **summary, **kept, seconds=round(time.monotonic() - began, 3))

    if merged is None:
        work.stage("merged")
    else:
        began = time.monotonic()
        network, _, device = load_reference(str(Path(merged) / "checkpoint"))
        stage("merged", _forward(network, device), began, exact=True)
        del network
        gc.collect()
    if not nf4:
        work.stage("nf4")
    else:
        began = time.monotonic()
        # Where bf16 is emulated it takes three times as long for the same distance (0.4258 in bf16, 0.4250 in fp32).
        network, _, device = load_nf4(base, full_dtype())
        model = PeftModel.from_pretrained(network, adapter)
        model.eval()
        stage("nf4", _forward(model, device, BATCH), began)
        del model, network
        gc.collect()
    said = _said(tokenizer, answers)
    longest = max(len(one.ids) for one in [*sequences, *(one for some in said.values() for one in some)])
    runtimes: dict[str, dict[str, Any]] = {}
    for name, file in (("f16", f16 and Path(f16) / F16), ("q4", q4 and Path(q4) / Q4)):
        if not file:
            work.stage(name)
            continue
        assert toolchain is not None  # a GGUF was made by one
        began = time.monotonic()
        logits = gguf_logits(Toolchain(path=Path(toolchain)), file, longest)
        stage(name, logits, began, exact=name == "f16")
        if name == "q4":
            runtimes = {runtime: from_greedy(logits, some, tokenizer) for runtime, some in said.items()}
    work.stage("runtimes", runtimes=runtimes)
    distances |= {name: distances["q4"] + facts["nats_from_greedy"] for name, facts in runtimes.items()}
    work.stage("waterfall", waterfall=distances, loss_enters_at=loss_enters_at(distances))


def _said(tokenizer: Any, answers: list[dict[str, str]]) -> dict[str, list[Sequence]]:
    """Each runtime's answers behind their prompts, in tokens; none with thoughts, which llama-cli spells otherwise."""
    said: dict[str, list[Sequence]] = {}
    for one in answers:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": one["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer(one["answer"], add_special_tokens=False)["input_ids"]
        thinks = "<think>" in one["answer"] or tokenizer.decode(asked).rstrip().endswith("<think>")
        if answer and not thinks:
            scored = list(range(len(asked) - 1, len(asked) + len(answer) - 1))
            sequence = Sequence(name=one["name"], kind="answer", ids=[*asked, *answer], scored=scored)
            said.setdefault(one["runtime"], []).append(sequence)
    return said


def from_greedy(logits: Logits, said: list[Sequence], tokenizer: Any) -> dict[str, Any]:
    """How far a runtime's greedy answers are from what the file itself puts first at each place.

    Nats a token: what the file's own choice is more likely by. Kernels for one token and for many break near ties
    differently, which costs little; another prompt or a sampler that was left on costs much. Where one of the two
    tokens begins with the other, the runtime's text was cut otherwise than it was made, and nothing else was said.
    """
    import torch

    parts = []
    for one, rows in zip(said, logits(said), strict=True):
        following = torch.tensor(one.following)
        gaps = rows.max(dim=-1).values - rows.gather(1, following[:, None])[:, 0]
        for at in gaps.nonzero()[:, 0].tolist():
            chosen, first = tokenizer.convert_ids_to_tokens([int(following[at]), int(rows[at].argmax())])
            if chosen and first and (chosen.startswith(first) or first.startswith(chosen)):
                gaps[at] = 0
        parts.append(gaps)
    gaps = torch.cat(parts)
    return {
        "answers": len(said),
        "answer_tokens": gaps.numel(),
        "tokens_not_greedy": int((gaps > 0).sum()),
        "nats_from_greedy": float(f"{gaps.mean().item():.6g}"),
        "nats_from_greedy_at_most": float(f"{gaps.max().item():.6g}"),
    }


def _sequences(
    model: Any, tokenizer: Any, device: str, probes: list[dict[str, str]], max_tokens: int, positions: int
) -> list[Sequence]:
    made = []
    for probe in probes:
        name = probe["name"]
        if "text" in probe:
            ids = tokenizer(probe["text"])["input_ids"][:max_tokens]
            made.append(Sequence(name=name, kind="text", ids=ids, scored=list(range(len(ids) - 1))))
            continue
        if "answer" in probe:
            encoded = encode_sample(tokenizer, probe["prompt"], probe["answer"])
            ids, labels = encoded.input_ids[:max_tokens], encoded.labels[:max_tokens]
        else:
            asked, ids = _answered(model, tokenizer, device, probe["prompt"])
            labels = [IGNORED] * asked + ids[asked:]
        scored = [at - 1 for at, label in enumerate(labels) if label != IGNORED]
        made.append(Sequence(name=name, kind="task", ids=ids, scored=scored))
    # Neighbours are padded to the longer one of them.
    return sorted(within([one for one in made if one.scored], positions), key=lambda one: len(one.ids))


def within(sequences: list[Sequence], positions: int) -> list[Sequence]:
    """Every text, and of the answers as many, evenly drawn, as so many scored positions leave room for."""
    texts = [one for one in sequences if one.kind == "text"]
    answers = [one for one in sequences if one.kind == "task"]
    room = max(1, positions - sum(len(one.scored) for one in texts))
    return texts + answers[:: math.ceil(sum(len(one.scored) for one in answers) / room) or 1]


def _answered(model: Any, tokenizer: Any, device: str, prompt: str) -> tuple[int, list[int]]:
    """The prompt's length, and its tokens with the reference's own greedy answer behind."""
    import torch

    asked = _ask(tokenizer, prompt, device)
    with torch.inference_mode():
        output = model.generate(
            **asked, max_new_tokens=ANSWER, do_sample=False, temperature=None, top_p=None, top_k=None
        )
    return int(asked["input_ids"].shape[1]), output[0].tolist()


def _ask(tokenizer: Any, prompt: str, device: str) -> Any:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(device)


def _speed(model: Any, tokenizer: Any, device: str, probes: list[dict[str, str]]) -> dict[str, Any]:
    """Tokens a second of the full-precision model, one question at a time."""
    import torch

    prompt = next((probe["prompt"] for probe in probes if "prompt" in probe), "What is the capital of France?")
    asked = _ask(tokenizer, prompt, device)
    times = []
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    # The same once before: the first pass allocates and warms up.
    for count in (1, 1, SPEED + 1):
        started = time.monotonic()
        with torch.inference_mode():
            model.generate(**asked, max_new_tokens=count, min_new_tokens=count, **greedy)
        times.append(time.monotonic() - started)
    return {
        "prefill_tokens_per_second": round(int(asked["input_ids"].shape[1]) / times[1], 2),
        "decode_tokens_per_second": round(SPEED / max(times[2] - times[1], 1e-6), 2),
    }


def _forward(model: Any, device: str, tokens: int | None = None) -> Logits:
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


def gguf_logits(tools: Toolchain, file: Path, longest: int) -> Logits:
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


def _compare(logits: Logits, sequences: list[Sequence], expected: list[Any]) -> list[Compared]:
    """A model against the reference's log-probabilities, sequence by sequence."""
    given = zip(sequences, expected, logits(sequences), strict=True)
    return [compared(one, reference, rows) for one, reference, rows in given]


def compared(sequence: Sequence, reference: Any, logits: Any) -> Compared:
    """One sequence: log-probabilities of the reference against logits of a model, each scored positions × vocabulary.

    A vocabulary padded for speed has rows of no token, which GGUF drops: only what both have is compared.
    """
    import torch

    columns = min(reference.shape[-1], logits.shape[-1])
    parts = []
    for at in range(0, len(sequence.scored), ROWS):
        p = reference[at : at + ROWS, :columns]
        q = torch.log_softmax(logits[at : at + ROWS, :columns], dim=-1)
        follow = torch.tensor(sequence.following[at : at + ROWS])[:, None]
        first, second = p.argmax(dim=-1), q.argmax(dim=-1)
        parts.append(
            (
                (p.exp() * (p - q)).sum(dim=-1).clamp(min=0),
                first == second,
                second == follow[:, 0],
                first == follow[:, 0],
                -q.gather(1, follow)[:, 0],
                -p.gather(1, follow)[:, 0],
            )
        )
    kl, agrees, right, reference_right, loss, reference_loss = (
        torch.cat(part).numpy() for part in zip(*parts, strict=True)
    )
    return Compared(
        name=sequence.name,
        kind=sequence.kind,
        kl=kl,
        agrees=agrees,
        right=right,
        reference_right=reference_right,
        loss=loss,
        reference_loss=reference_loss,
    )
