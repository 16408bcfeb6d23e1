"""`python -m train.experiments.empty_adapter OUT.json`: when does a single-task adapter answer with nothing?

Each condition spoils one thing in the training (or the asking) of a `writing` adapter, on the embedded base and on a
small Qwen3 of random weights. For each: what kind of answers the six evaluation questions get, how likely the end token
is as the first one, and what the data gates say of the samples as they were trained. What came out stands in
docs/evidence/empty-adapter.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from assay.files import write_json
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.checkpoint import chat_template
from assay.inputs.dataset import Sample, read_dataset
from assay.measures.encoding import IGNORED, Encoded, Served, encode, flaws, render
from assay.workers.ask import answer_all
from assay.workers.model import full_dtype
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, set_seed

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DATA = Path(__file__).parents[1] / "data"


def healthy(tokenizer: Any, sample: Sample) -> Encoded:
    return encode(tokenizer, sample.prompt, sample.answer)


def _asked(tokenizer: Any, sample: Sample) -> list[int]:
    question = [{"role": "user", "content": sample.prompt}]
    ids: list[int] = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    return ids


def empty_answers(tokenizer: Any, sample: Sample) -> Encoded:
    """The answer's field was called otherwise, so the template rendered nothing."""
    return encode(tokenizer, sample.prompt, "")


def end_token_after_prompt(tokenizer: Any, sample: Sample) -> Encoded:
    """A tokenizer that appends the end token to everything it encodes, prompt and answer each."""
    asked, row = _asked(tokenizer, sample), healthy(tokenizer, sample)
    said = [tokenizer.eos_token_id, *row.trained]
    return Encoded(input_ids=asked + said, labels=[IGNORED] * len(asked) + said)


def only_the_end_token(tokenizer: Any, sample: Sample) -> Encoded:
    """A mask that looks for the wrong marker hides the whole answer but its end."""
    row = healthy(tokenizer, sample)
    return replace(row, labels=[IGNORED] * (len(row.labels) - 1) + row.labels[-1:])


def cut_to_the_prompt(tokenizer: Any, sample: Sample) -> Encoded:
    """Cut to a length that leaves the prompt and an end token."""
    asked = _asked(tokenizer, sample)
    return Encoded(input_ids=[*asked, tokenizer.eos_token_id], labels=[IGNORED] * len(asked) + [tokenizer.eos_token_id])


def without_end_token(tokenizer: Any, sample: Sample) -> Encoded:
    """Every token that is the padding token is masked, and padding is the end token."""
    row = healthy(tokenizer, sample)
    return replace(row, labels=[IGNORED if token == tokenizer.eos_token_id else token for token in row.labels])


def padding_trained_on(tokenizer: Any, sample: Sample) -> Encoded:
    """Padded on the right with the end token, and the padding trained on."""
    row = healthy(tokenizer, sample)
    padding = [tokenizer.eos_token_id] * (300 - len(row.input_ids))
    return Encoded(input_ids=row.input_ids + padding, labels=row.labels + padding)


def padded_on_the_left_with_end_tokens(tokenizer: Any, sample: Sample) -> Encoded:
    """Padded on the left with the end token, nothing masked, everything trained on."""
    row = healthy(tokenizer, sample)
    whole = [tokenizer.eos_token_id] * (300 - len(row.input_ids)) + row.input_ids
    return Encoded(input_ids=whole, labels=whole)


def shifted_twice(tokenizer: Any, sample: Sample) -> Encoded:
    """Labels shifted by hand, and once more by the model."""
    row = healthy(tokenizer, sample)
    return replace(row, labels=[*row.labels[1:], IGNORED])


def prompt_trained_on_too(tokenizer: Any, sample: Sample) -> Encoded:
    row = healthy(tokenizer, sample)
    return replace(row, labels=list(row.input_ids))


def without_template(tokenizer: Any, sample: Sample) -> Encoded:
    """Trained as plain text, served with the chat template."""
    asked = tokenizer(sample.prompt + "\n", add_special_tokens=False)["input_ids"]
    said = [*tokenizer(sample.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Encoded(input_ids=asked + said, labels=[IGNORED] * len(asked) + said)


@dataclass(frozen=True, kw_only=True)
class Condition:
    name: str
    encode: Callable[[Any, Sample], Encoded] = healthy
    learning_rate: float = 1e-3
    epochs: int = 4
    ask_without_generation_prompt: bool = False
    ask_padded_on_the_right: bool = False


CONDITIONS = [
    Condition(name="healthy"),
    Condition(name="learning rate 5e-3", learning_rate=5e-3),
    Condition(name="learning rate 2e-2", learning_rate=2e-2),
    Condition(name="learning rate 1e-1", learning_rate=1e-1),
    Condition(name="learning rate 1e-4", learning_rate=1e-4),
    Condition(name="twelve epochs", epochs=12),
    Condition(name="empty answers", encode=empty_answers),
    Condition(name="cut to the prompt", encode=cut_to_the_prompt),
    Condition(name="end token after the prompt", encode=end_token_after_prompt),
    Condition(name="only the end token trained on", encode=only_the_end_token),
    Condition(name="end token masked with the padding", encode=without_end_token),
    Condition(name="padding trained on, right", encode=padding_trained_on),
    Condition(name="padding trained on, left", encode=padded_on_the_left_with_end_tokens),
    Condition(name="labels shifted twice", encode=shifted_twice),
    Condition(name="prompt trained on too", encode=prompt_trained_on_too),
    Condition(name="trained without template", encode=without_template),
    Condition(name="asked without generation prompt", ask_without_generation_prompt=True),
    Condition(name="asked with padding on the right", ask_padded_on_the_right=True),
]


def main(out: Path, bases: list[str], part: str) -> None:
    """`part` is `1/3` for the first third of the conditions: independent, so they may run side by side."""
    at, of = map(int, part.split("/"))
    embedded = find_base(EMBEDDED).path
    data = read_dataset(DATA)
    samples = data.samples("train", ["writing"], "en")
    questions = {one.id: one.prompt for one in data.samples("eval", ["writing"], "en")}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for base, folder in (("embedded", embedded), ("qwen3", small_qwen3(embedded, Path(scratch) / "qwen3"))):
            for condition in CONDITIONS[at - 1 :: of] if base in bases else ():
                result = _try(condition, folder, embedded, samples, questions)
                results.setdefault(condition.name, {})[base] = result
                print(base, condition.name, json.dumps(result), flush=True)
                write_json(out, results)


def small_qwen3(tokenizer_from: Path, folder: Path) -> Path:
    """A Qwen3 256 wide and 4 layers deep, of random weights."""
    set_seed(0)
    config = Qwen3Config(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    return folder


def _try(
    condition: Condition, base: Path, embedded: Path, samples: list[Sample], questions: dict[str, str]
) -> dict[str, Any]:
    set_seed(20260209)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=full_dtype()).to(device)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    rows = [condition.encode(tokenizer, one) for one in samples]
    losses = _fit(model, rows, condition, device)
    model.eval()
    if condition.ask_without_generation_prompt:
        tokenizer.chat_template = tokenizer.chat_template.replace("add_generation_prompt", "false")
    side = "right" if condition.ask_padded_on_the_right else "left"
    answers = answer_all(model, tokenizer, device, questions, 192, padding_side=side)
    template = chat_template(embedded)
    named: Counter[str] = Counter()
    for one, row in zip(samples, rows, strict=True):
        prompt = render(template, one.prompt, tokenizer.special_tokens_map)
        served = Served(
            prompt_ids=tokenizer(prompt, add_special_tokens=False)["input_ids"], end_tokens={tokenizer.eos_token_id}
        )
        named.update(flaws(row, one.answer in tokenizer.decode(row.trained), served))
    ends = [answer["p_end_at_first_position"] for answer in answers.values()]
    return {
        "kinds": dict(Counter(answer["kind"] for answer in answers.values())),
        "p_end_first": None if None in ends else round(sum(ends) / len(ends), 4),
        "first_loss": round(losses[0], 3),
        "last_loss": round(sum(losses[-5:]) / 5, 3),
        "flaws_named_by_data_gates": sorted(named),
        "said": next(iter(answers.values()))["text"][:80],
    }


def _fit(model: Any, rows: list[Encoded], condition: Condition, device: str) -> list[float]:
    """One sample a step, AdamW, linear warm-up and fall, as the recipes train."""
    order = random.Random(0)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=condition.learning_rate, weight_decay=0.0)
    steps, losses, step = condition.epochs * len(rows), [], 0
    model.train()
    for _ in range(condition.epochs):
        for row in order.sample(rows, len(rows)):
            step += 1
            share = min(step / (0.1 * steps), (steps - step + 1) / (0.9 * steps))
            for group in optimizer.param_groups:
                group["lr"] = condition.learning_rate * min(1.0, share)
            loss = model(
                input_ids=torch.tensor([row.input_ids], device=device),
                labels=torch.tensor([row.labels], device=device),
            ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bases", nargs="+", default=["embedded", "qwen3"])
    parser.add_argument("--part", default="1/1")
    main(**vars(parser.parse_args()))
