"""Asks one deployed form of a candidate many questions at once: what evaluation scores."""

from __future__ import annotations

import time
from typing import Any

from assay.measures.answers import classify
from assay.steps.answers import Answer
from assay.steps.nf4 import AskTransformers, BatchGeneration
from assay.workers import Work, read_prompts
from assay.workers.model import end_tokens, load_full, load_nf4, peaks

FORCED = 48
"""Tokens that an empty answer is made to say."""
BATCH = 32
"""Questions at a time. A 4-bit base dequantizes each layer once a step, however many questions wait for it."""


def transformers(
    work: Work, *, model: str, adapter: str | None, quantization: str, prompts: str, max_new_tokens: int
) -> None:
    """Greedy answers, with what ended each and how likely an end was as the very first token."""
    started = time.monotonic()
    network, tokenizer, device = load_nf4(model) if quantization == "nf4" else load_full(model)
    if adapter is not None:
        from peft import PeftModel

        # Before the first forward, always: see workers/bnb.py.
        network = PeftModel.from_pretrained(network, adapter)
        network.eval()
    load_seconds = time.monotonic() - started
    questions = list(read_prompts(prompts).items())
    answers: dict[str, Answer] = {}
    started = time.monotonic()
    for at in range(0, len(questions), BATCH):
        batch = dict(questions[at : at + BATCH])
        answers |= answer_all(network, tokenizer, device, batch, max_new_tokens)
        print(f"{len(answers)} of {len(questions)} answered", flush=True)
    seconds = time.monotonic() - started
    facts = BatchGeneration(
        answers=answers,
        load_seconds=round(load_seconds, 3),
        computed_in=str(network.dtype).removeprefix("torch."),
        tokens_per_second_in_batch=round(sum(answer.tokens or 0 for answer in answers.values()) / seconds, 2),
        **peaks(device),
    )
    work.reached(AskTransformers.generated, facts)


def answer_all(
    network: Any,
    tokenizer: Any,
    device: str,
    questions: dict[str, str],
    limit: int,
    *,
    padding_side: str = "left",
) -> dict[str, Answer]:
    """Greedy answers to all questions in one batch.

    Padding goes to the left: an answer has to follow its question at once, not a row of padding.
    """
    import torch

    ends = end_tokens(network)
    tokenizer.padding_side = padding_side
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": text}] for text in questions.values()],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    ).to(device)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    greedy |= {"pad_token_id": tokenizer.pad_token_id}
    with torch.inference_mode():
        first = network(**inputs, logits_to_keep=1).logits[:, -1].float()
        output = network.generate(**inputs, max_new_tokens=limit, **greedy)
    p_end = torch.softmax(first, dim=-1)[:, ends].sum(dim=-1)
    thinking = [tokenizer.decode(ids).rstrip().endswith("<think>") for ids in inputs["input_ids"]]
    answers: dict[str, Answer] = {}
    for place, name in enumerate(questions):
        ids = output[place, inputs["input_ids"].shape[1] :].tolist()
        end = next((at for at, token in enumerate(ids) if token in ends), None)
        generated = ids[:end]
        text = tokenizer.decode(generated, skip_special_tokens=True)
        raw = tokenizer.decode(generated, skip_special_tokens=False)
        kind = classify(text, finished=end is not None, raw=raw, tokens=generated, thinking=thinking[place])
        answers[name] = Answer(
            text=text,
            kind=kind,
            tokens=len(generated) + (end is not None),
            ended_by="end token" if end is not None else "token limit",
            p_end_at_first_position=round(p, 6) if (p := float(p_end[place])) == p else None,
        )
    if empty := [place for place, name in enumerate(questions) if not answers[name].kind.says_something]:
        # Is there an answer after the end token? Text generated while the end token may not come first tells.
        with torch.inference_mode():
            forced = network.generate(**inputs, max_new_tokens=FORCED, min_new_tokens=FORCED, **greedy)
        for place in empty:
            generated = forced[place, inputs["input_ids"].shape[1] :]
            name, text = list(questions)[place], tokenizer.decode(generated, skip_special_tokens=True)
            answers[name] = answers[name].model_copy(update={"text_when_forced": text})
    return answers
