"""Feeds the same tokens to every form of a candidate and compares what each expects next. No logits touch the disk.

The reference is the adapter on the base in full precision. Its log-probabilities stay in memory while one form after
the other is loaded, compared and let go.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

from assay.inputs.toolchain import Toolchain
from assay.measures.divergence import Compared, compare_until_clear, loss_enters_at, share_lost, summarise_divergence
from assay.steps.distribution import (
    FormDistance,
    MeasureDistribution,
    Reference,
    RuntimeAnswers,
    Runtimes,
    Waterfall,
)
from assay.steps.gguf import F16, Q4
from assay.steps.step import Stage
from assay.workers import Work
from assay.workers.logits import BATCH, Logits, of_gguf, of_transformers
from assay.workers.model import full_dtype, load_nf4, load_reference, peaks
from assay.workers.sequences import Sequence, ask, completions, from_probes

SPEED = 24
"""Tokens generated to measure the speed of decoding."""
ROWS = 16
"""Positions whose whole distributions are compared at a time: as many as stay in the processor's cache."""


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
    """One stage per form: its distance from the reference, and how much of the fine-tune that costs.

    The 16-bit forms, `merged` and `f16`, are fed a part of the sequences first, and the others only where the distance
    is not below `clearly_exact` for certain.
    """
    against, tokenizer = _reference(work, base, adapter, probes, max_tokens, scored_tokens, clearly_exact)
    if merged is not None:
        network, _, device = load_reference(str(Path(merged) / "checkpoint"))
        against.measure(MeasureDistribution.of_merged, of_transformers(network, device), exact=True)
        del network
        gc.collect()
    else:
        against.skip(MeasureDistribution.of_merged)
    if nf4:
        model, device = _mounted_on_nf4(base, adapter)
        against.measure(MeasureDistribution.of_nf4, of_transformers(model, device, BATCH))
        del model
        gc.collect()
    else:
        against.skip(MeasureDistribution.of_nf4)
    answered = completions(tokenizer, answers)
    longest = max(len(one.ids) for one in [*against.sequences, *(one for some in answered.values() for one in some)])
    runtimes: dict[str, RuntimeAnswers] = {}
    files = ((MeasureDistribution.of_f16, f16, F16), (MeasureDistribution.of_q4, q4, Q4))
    for stage, folder, name in files:
        if folder is None:
            against.skip(stage)
            continue
        assert toolchain is not None  # a GGUF was made by one
        logits = of_gguf(Toolchain(path=Path(toolchain)), Path(folder) / name, longest)
        against.measure(stage, logits, exact=stage is MeasureDistribution.of_f16)
        if stage is MeasureDistribution.of_q4:
            runtimes = {runtime: from_greedy(logits, some, tokenizer) for runtime, some in answered.items()}
    work.reached(MeasureDistribution.of_runtimes, Runtimes(runtimes=runtimes))
    distances = against.distances
    distances |= {name: distances["q4"] + one.nats_from_greedy for name, one in runtimes.items()}
    work.reached(
        MeasureDistribution.waterfall, Waterfall(waterfall=distances, loss_enters_at=loss_enters_at(distances))
    )


class Against:
    """The reference's log-probabilities, which every form is compared with; each form leaves a stage."""

    def __init__(
        self, work: Work, sequences: list[Sequence], expected: list[Any], untrained: list[Compared], exact: float
    ) -> None:
        self.work = work
        self.sequences = sequences
        self.expected = expected
        """Log-probabilities, each scored positions × vocabulary, in the order of the sequences and not by name: a
        prompt and a text may have the same name."""
        self.untrained = untrained
        """The base without the adapter on the answers."""
        self.clearly_exact = exact
        self.distances: dict[str, float] = {}
        """Form to mean KL in nats."""
        self.began = time.monotonic()

    def measure(self, stage: Stage[FormDistance], logits: Logits, *, exact: bool = False) -> None:
        def compare(places: list[int]) -> list[Compared]:
            return _compare(logits, [self.sequences[at] for at in places], [self.expected[at] for at in places])

        everything = list(range(len(self.sequences)))
        compared = compare_until_clear(compare, everything, self.clearly_exact) if exact else compare(everything)
        answers = [one for one in compared if one.kind == "task"]
        distance = summarise_divergence(compared)
        self.distances[stage.name.removeprefix("of_")] = distance.kl_mean
        task = share_lost(answers, self.untrained) if answers else None
        seconds = round(time.monotonic() - self.began, 3)
        self.work.reached(stage, FormDistance(distance=distance, task=task, seconds=seconds))
        self.began = time.monotonic()

    def skip(self, stage: Stage[FormDistance]) -> None:
        """There is no such form; its own gates say why."""
        self.work.reached(stage, FormDistance(measured=False))
        self.began = time.monotonic()


def _reference(
    work: Work,
    base: str,
    adapter: str,
    probes: list[dict[str, str]],
    max_tokens: int,
    scored_tokens: int,
    clearly_exact: float,
) -> tuple[Against, Any]:
    """Run the adapter on the base in full precision, and the base alone on the answers."""
    import torch
    from peft import PeftModel

    started = time.monotonic()
    network, tokenizer, device = load_reference(base)
    model: Any = PeftModel.from_pretrained(network, adapter)
    model.eval()
    load_seconds = time.monotonic() - started
    speed = _speed(model, tokenizer, device, probes)
    memory = peaks(device)
    sequences = from_probes(model, tokenizer, device, probes, max_tokens, scored_tokens)
    started = time.monotonic()
    expected = [torch.log_softmax(given, dim=-1) for given in of_transformers(model, device)(sequences)]
    tasks = [at for at, one in enumerate(sequences) if one.kind == "task"]
    with model.disable_adapter():
        asked, theirs = [sequences[at] for at in tasks], [expected[at] for at in tasks]
        untrained = _compare(of_transformers(model, device), asked, theirs)
    facts = Reference(
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
    work.reached(MeasureDistribution.reference, facts)
    return Against(work, sequences, expected, untrained, clearly_exact), tokenizer


def _mounted_on_nf4(base: str, adapter: str) -> tuple[Any, str]:
    from peft import PeftModel

    # Where bf16 is emulated it takes three times as long for the same distance (0.4258 in bf16, 0.4250 in fp32).
    network, _, device = load_nf4(base, full_dtype())
    model = PeftModel.from_pretrained(network, adapter)
    model.eval()
    return model, device


def from_greedy(logits: Logits, completions: list[Sequence], tokenizer: Any) -> RuntimeAnswers:
    """How far a runtime's greedy answers are from what the file itself puts first at each place.

    Nats a token: what the file's own choice is more likely by. Kernels for one token and for many break near ties
    differently, which costs little; another prompt or a sampler that was left on costs much. Where one of the two
    tokens begins with the other, the runtime's text was cut otherwise than it was made, and nothing else was said.
    """
    import torch

    parts = []
    for one, rows in zip(completions, logits(completions), strict=True):
        following = torch.tensor(one.following)
        gaps = rows.max(dim=-1).values - rows.gather(1, following[:, None])[:, 0]
        for at in gaps.nonzero()[:, 0].tolist():
            chosen, first = tokenizer.convert_ids_to_tokens([int(following[at]), int(rows[at].argmax())])
            if chosen and first and (chosen.startswith(first) or first.startswith(chosen)):
                gaps[at] = 0
        parts.append(gaps)
    gaps = torch.cat(parts)
    return RuntimeAnswers(
        answers=len(completions),
        answer_tokens=gaps.numel(),
        tokens_not_greedy=int((gaps > 0).sum()),
        nats_from_greedy=float(f"{gaps.mean().item():.6g}"),
        nats_from_greedy_at_most=float(f"{gaps.max().item():.6g}"),
    )


def _speed(model: Any, tokenizer: Any, device: str, probes: list[dict[str, str]]) -> dict[str, Any]:
    """Tokens a second of the full-precision model, one question at a time."""
    import torch

    prompt = next((probe["prompt"] for probe in probes if "prompt" in probe), "What is the capital of France?")
    asked = ask(tokenizer, prompt, device)
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
