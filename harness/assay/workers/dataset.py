"""Facts on a dataset: its files line by line, then every sample as the base's own tokenizer encodes it."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

from assay.errors import InputError
from assay.files import read_json
from assay.inputs.checkpoint import chat_template
from assay.inputs.dataset import METRICS, SPLITS, Dataset, Flaw, Sample, read_dataset, similarity, squeeze
from assay.measures import encoding
from assay.measures.answers import Kind
from assay.measures.metrics import score
from assay.steps.dataset import ClosestPair, DatasetFiles, EncodeDataset, EncodedSamples, ReadDataset
from assay.workers import Work

Splits = dict[str, list[Sample]]


def read(work: Work, *, dataset: str) -> None:
    """Facts on the files alone: no model, no tokenizer."""
    data = read_dataset(Path(dataset))
    splits, flaws = _read_all(data)
    facts = DatasetFiles(
        samples=sum(map(len, splits.values())),
        lines_not_parsed=[flaw.text for flaw in flaws if flaw.kind == "parse"],
        lines_with_wrong_fields=[flaw.text for flaw in flaws if flaw.kind == "fields"],
        lines_off_template=[flaw.text for flaw in flaws if flaw.kind == "template"],
        counts=_counts(data, splits),
        counts_expected={task: planned.samples for task, planned in data.tasks.items()},
        without_counterpart=_without_counterpart(data, splits),
        duplicates=_duplicates(splits),
        closest_pair_of_train_and_eval=_closest(splits),
        references_not_scoring_full=_references(data, splits),
    )
    work.reached(ReadDataset.read, facts)


def _read_all(data: Dataset) -> tuple[Splits, list[Flaw]]:
    splits: Splits = {split: [] for split in SPLITS}
    flaws: list[Flaw] = []
    for split, task, language in product(SPLITS, data.tasks, data.languages):
        try:
            sound, flawed = data.scan(split, task, language)
        except InputError as missing:
            sound, flawed = [], [Flaw(kind="parse", text=str(missing))]
        # An evaluation sample in a training file would be trained on, whatever it calls itself.
        astray = [one for one in sound if (one.origin == "eval") != (split == "eval")]
        where = data.file(split, task, language)
        flaws += [Flaw(kind="fields", text=f"{where}: {one.id} has origin {one.origin!r}.") for one in astray]
        splits[split] += sound
        flaws += flawed
    return splits, flaws


def _counts(data: Dataset, splits: Splits) -> dict[str, dict[str, dict[str, int]]]:
    """Language to task to origin to how many."""
    counted = Counter((one.language, one.task, one.origin) for samples in splits.values() for one in samples)
    return {
        language: {
            task: {origin: counted[language, task, origin] for origin in planned.samples}
            for task, planned in data.tasks.items()
        }
        for language in data.languages
    }


def _without_counterpart(data: Dataset, splits: Splits) -> list[str]:
    """Samples that are not there in every language."""
    languages = Counter(one.id for samples in splits.values() for one in samples)
    return sorted(id for id, count in languages.items() if count < len(data.languages))


def _duplicates(splits: Splits) -> list[str]:
    """Samples with an id or a question that an earlier one has."""
    seen: dict[tuple[str, str], str] = {}
    found = []
    for samples in splits.values():
        for one in samples:
            for key in ((one.language, one.id), (one.language, squeeze(one.prompt))):
                if key in seen:
                    found.append(f"{one.id} ({one.language}) repeats {seen[key]}")
                seen[key] = one.id
    return found


def _closest(splits: Splits) -> ClosestPair | None:
    """The training sample most like an evaluation sample, in its question or in its answer."""
    pairs = [(a, b) for a in splits["train"] for b in splits["eval"] if a.language == b.language]
    likeness = [(max(similarity(a.prompt, b.prompt), similarity(a.answer, b.answer)), a, b) for a, b in pairs]
    if not likeness:
        return None
    most, train, held_out = max(likeness, key=lambda entry: entry[0])
    return ClosestPair(similarity=round(most, 4), train=train.id, eval=held_out.id, language=train.language)


def _references(data: Dataset, splits: Splits) -> list[str]:
    """Reference answers that their own metrics do not give full marks: the metric's control."""
    found = []
    for one in (one for samples in splits.values() for one in samples):
        marks = score(one, one.answer, Kind.OK, data)
        lost = [metric for metric in METRICS if not getattr(marks, metric)]
        if lost:
            why = f", it lacks {list(marks.missing)}" if marks.missing else ""
            found.append(f"{one.id} ({one.language}): {', '.join(lost)}{why}")
    return found


def encode(work: Work, *, dataset: str, base: str, language: str, tasks: list[str]) -> None:
    """Every sample in tokens: what training really gets, against what deployment really asks. Reads no weights."""
    from transformers import AutoTokenizer

    data = read_dataset(Path(dataset))
    samples = [one for split in SPLITS for one in data.samples(split, tasks, language)]
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    template, ends = chat_template(Path(base)), _end_tokens(Path(base))
    lengths: dict[str, int] = {}
    trained = 0
    refused: list[str] = []
    flawed: dict[str, list[str]] = {name: [] for name in encoding.FLAWS}
    for one in samples:
        try:
            row = encoding.encode_sample(tokenizer, one.prompt, one.answer)
            prompt = encoding.render(template, one.prompt, tokenizer.special_tokens_map)
        except InputError as problem:
            refused.append(f"{one.id}: {problem}")
            continue
        lengths[one.id] = len(row.input_ids)
        trained += len(row.trained)
        served = encoding.Served(prompt_ids=tokenizer(prompt, add_special_tokens=False)["input_ids"], end_tokens=ends)
        for name in encoding.flaws(row, one.answer in tokenizer.decode(row.trained), served):
            flawed[name].append(one.id)
    longest = max(lengths, key=lambda id: lengths[id], default=None)
    facts = EncodedSamples(
        longest_sample=longest,
        longest_sample_tokens=lengths[longest] if longest else 0,
        mean_sample_tokens=round(sum(lengths.values()) / len(lengths), 1) if lengths else 0,
        trained_tokens=trained,
        end_tokens_when_served=sorted(ends),
        not_encodable=refused,
        **flawed,
    )
    work.reached(EncodeDataset.encoded, facts)


def _end_tokens(base: Path) -> set[int]:
    """The tokens that end an answer in deployment: generation_config.json's, or else config.json's."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(base / name).get("eos_token_id") if (base / name).exists() else None
        if ids is not None:
            return set(ids) if isinstance(ids, list) else {ids}
    return set()
