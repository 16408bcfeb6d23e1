"""The dataset: V3 is what the thesis says, and each way of spoiling one is named by the gate that guards it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assay.errors import InputError
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.dataset import Dataset, headings, read_dataset, similarity, squeeze
from assay.measures.encoding import FLAWS, IGNORED, Encoded, Served, encode_sample, flaws, render
from assay.paths import REPOSITORY
from assay.steps.catalogue import ReadDataset
from assay.workers import Work
from assay.workers import dataset as worker

from tests.gates.healthy import judge, with_facts

DATA = REPOSITORY / "train" / "data"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data"))


def read_facts(folder: Path, work: Path) -> dict[str, Any]:
    worker.read(Work(work), dataset=str(folder))
    facts: dict[str, Any] = json.loads((work / "stages.json").read_text())["read"]
    return facts


def change(file: Path, place: int, how: Callable[[dict[str, Any]], object]) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    changed = how(json.loads(lines[place]))
    lines[place] = changed if isinstance(changed, str) else json.dumps(changed, ensure_ascii=False)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_v3_is_the_thesiss_table_in_both_languages() -> None:
    dataset = read_dataset(DATA)
    for language in ("zh", "en"):
        style = dataset.samples("train", ["style"], language)
        writing = dataset.samples("train", ["writing"], language)
        assert [sum(s.origin == origin for s in style) for origin in ("original", "added")] == [11, 24]
        assert [sum(s.origin == origin for s in writing) for origin in ("original", "added")] == [6, 18]
        assert len(dataset.samples("eval", ["style"], language)) == 11
        assert len(dataset.samples("eval", ["writing"], language)) == 6
        chapters = {"electrostatics", "steady_magnetic_field", "time_varying_field", "out_of_scope"}
        assert {s.chapter for s in style} == chapters
        assert len({s.scenario for s in writing}) == 18
        for split in ("train", "eval"):
            some = dataset.samples(split, ["style", "writing"], language)
            assert {s.difficulty for s in some} == {"easy", "medium", "hard"}
            for task in ("style", "writing"):
                assert any(s.should_refuse for s in some if s.task == task), "Refusal has to measure something"


def test_the_two_languages_are_counterparts() -> None:
    dataset = read_dataset(DATA)
    for split in ("train", "eval"):
        zh, en = (dataset.samples(split, ["style", "writing"], language) for language in ("zh", "en"))
        for one, other in zip(zh, en, strict=True):
            same = ("id", "origin", "task", "chapter", "scenario", "difficulty", "should_refuse")
            assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]


STYLE = "train/style.en.jsonl"
Change = Callable[[dict[str, Any]], object]


def without(field: str) -> Change:
    return lambda sample: {name: value for name, value in sample.items() if name != field}


def retitled(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"answer": sample["answer"].replace("Conclusion", "Result")}


def hollow(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"answer": "\n".join(headings(sample["answer"]))}


SPOILED: list[tuple[str, str, int, Change, str, str]] = [
    ("comma", STYLE, 2, lambda s: json.dumps(s).replace(", ", ",, ", 1), "data_parse", r"\.en\.jsonl line 3 column"),
    ("not an object", STYLE, 2, lambda s: "[1]", "data_fields", "line 3"),
    ("no answer", STYLE, 0, without("answer"), "data_fields", "'answer' is missing"),
    ("empty answer", STYLE, 0, lambda s: s | {"answer": " "}, "data_fields", r"line 1 at \['answer'\]"),
    ("unknown field", STYLE, 0, lambda s: s | {"answr": "x"}, "data_fields", "answr"),
    ("no chapter", STYLE, 0, without("chapter"), "data_fields", "has a chapter"),
    ("wrong file", STYLE, 0, lambda s: s | {"language": "zh"}, "data_fields", "in the file of 'style' in 'en'"),
    ("eval in train", STYLE, 0, lambda s: s | {"origin": "eval"}, "data_fields", "style-01 has origin 'eval'"),
    ("wrong heading", STYLE, 0, retitled, "data_template", "Result"),
    ("heading twice", STYLE, 0, lambda s: s | {"answer": s["answer"] * 2}, "data_template", "each once, in order"),
    ("empty section", STYLE, 0, hollow, "data_template", "text below"),
    ("preface", STYLE, 0, lambda s: s | {"answer": "Sure! " + s["answer"]}, "data_template", "each once"),
    ("a harmless rewording", STYLE, 0, lambda s: s | {"prompt": s["prompt"] + " Please."}, "", ""),
    ("no such key point", STYLE, 0, lambda s: s | {"key_points": [["phlogiston"]]}, "data_references", "phlogiston"),
    ("decline unsaid", STYLE, 0, lambda s: s | {"should_refuse": True}, "data_references", "style-01 .en.: refusal"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "place", "how", "gate", "said"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED]
)
def test_a_spoiled_sample_fails_the_gate_that_guards_it_and_no_other_of_its_kind(
    copy: Path, tmp_path: Path, file: str, place: int, how: Change, gate: str, said: str
) -> None:
    change(copy / file, place, how)
    facts = with_facts(ReadDataset.read, **read_facts(copy, tmp_path))
    for name in ("data_parse", "data_fields", "data_template", "data_unique", "data_no_leak", "data_references"):
        if name == gate:
            with pytest.raises(AssertionError, match=said):
                judge(f"{name}_ok", facts)
        else:
            judge(f"{name}_ok", facts)


def test_a_missing_sample_and_a_duplicate_and_a_leak_are_named(copy: Path, tmp_path: Path) -> None:
    train, held_out = copy / STYLE, copy / "eval" / "style.en.jsonl"
    lines = train.read_text().splitlines()
    train.write_text("\n".join(lines[:-1]) + "\n")
    facts = with_facts(ReadDataset.read, **read_facts(copy, tmp_path))
    with pytest.raises(AssertionError, match=r"style in en: .*'added': 23.*dataset.toml says .*'added': 24"):
        judge("data_counts_ok", facts)

    first = json.loads(lines[0])
    train.write_text("\n".join([*lines[:-1], json.dumps({**first, "id": "style-35", "origin": "added"})]) + "\n")
    facts = with_facts(ReadDataset.read, **read_facts(copy, tmp_path))
    with pytest.raises(AssertionError, match=r"style-35 \(en\) repeats style-01"):
        judge("data_unique_ok", facts)

    leaked = json.loads(held_out.read_text().splitlines()[0])
    leaked |= {"id": "style-35", "origin": "added", "prompt": "Please tell me: " + leaked["prompt"].lower()}
    train.write_text("\n".join([*lines[:-1], json.dumps(leaked)]) + "\n")
    facts = with_facts(ReadDataset.read, **read_facts(copy, tmp_path))
    with pytest.raises(AssertionError, match=r"style-35 \(en\) is nearly style-eval-01"):
        judge("data_no_leak_ok", facts)


def test_an_empty_or_missing_file_is_named(copy: Path) -> None:
    (copy / STYLE).write_text("\n")
    dataset = read_dataset(copy)
    with pytest.raises(InputError, match=r"style\.en\.jsonl: no samples in it"):
        dataset.samples("train", ["style"], "en")
    (copy / STYLE).unlink()
    with pytest.raises(InputError, match=r"style\.en\.jsonl: not found"):
        dataset.samples("train", ["style"], "en")
    with pytest.raises(InputError, match="unknown language 'fr'"):
        dataset.samples("train", ["style"], "fr")


def test_the_digest_is_of_what_is_in_it(copy: Path) -> None:
    before = read_dataset(copy).digest
    assert before == read_dataset(DATA).digest
    change(copy / STYLE, 0, lambda s: s | {"difficulty": "hard"})
    assert read_dataset(copy).digest != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"E = \frac{\sigma}{2\varepsilon_0}", "E=\\fracσ2ε₀"),
        ("μ₀ n I", "$\\mu_0 n I$"),
        ("R²", "R^2"),
        ("−∂B/∂t", r"-\partial B / \partial t"),
        ("Gauss's Law", "gauss's law"),
    ],
)
def test_key_points_are_compared_without_markup(one: str, other: str) -> None:
    assert squeeze(one) == squeeze(other)


def test_similarity_tells_a_reworded_question_from_another() -> None:
    question = "Why does a charged conductor have no field inside it?"
    assert similarity(question, question) == 1.0
    assert similarity(question, "Why has a charged conductor no field inside it at all?") > 0.4
    assert similarity(question, "How do I shorten my abstract?") < 0.1


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_base(EMBEDDED).path)


@pytest.mark.needs_toolchain
def test_only_the_answer_and_its_end_are_trained_on(tokenizer: Any) -> None:
    row = encode_sample(tokenizer, "Why?", "Because.")
    assert tokenizer.decode(row.trained) == "Because." + tokenizer.eos_token
    assert row.labels.count(IGNORED) == len(row.labels) - len(row.trained)
    from assay.inputs.checkpoint import chat_template

    served = render(chat_template(find_base(EMBEDDED).path), "Why?", tokenizer.special_tokens_map)
    prompt = tokenizer(served, add_special_tokens=False)["input_ids"]
    assert flaws(row, True, Served(prompt_ids=prompt, end_tokens={tokenizer.eos_token_id})) == []


@pytest.mark.needs_toolchain
def test_a_tokenizer_without_an_end_token_and_a_template_without_one_are_refused() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_base(EMBEDDED).path)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="no end token"):
        encode_sample(tokenizer, "Why?", "Because.")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no end token; set eos_token"):
        encode_sample(tokenizer, "Why?", "Because.")


SERVED = Served(prompt_ids=[1, 2], end_tokens={9})


@pytest.mark.parametrize(
    ("row", "said", "flaw"),
    [
        (Encoded(input_ids=[1, 2, 5, 9], labels=[IGNORED, IGNORED, 5, 9]), False, FLAWS[0]),
        (Encoded(input_ids=[1, 2, 5, 6, 9], labels=[IGNORED, IGNORED, 5, IGNORED, 9]), True, FLAWS[0]),
        (Encoded(input_ids=[1, 2, 5, 9, 9], labels=[IGNORED, IGNORED, 5, 9, 9]), True, FLAWS[0]),
        (Encoded(input_ids=[1, 2, 5], labels=[IGNORED, IGNORED, 5]), True, "without_end_token"),
        (Encoded(input_ids=[1, 2, 9], labels=[IGNORED, IGNORED, 9]), True, "end_token_first"),
        (Encoded(input_ids=[1, 3, 5, 9], labels=[IGNORED, IGNORED, 5, 9]), True, "asked_otherwise_when_served"),
    ],
)
def test_each_flaw_of_an_encoded_sample_has_its_name(row: Encoded, said: bool, flaw: str) -> None:
    assert flaws(row, said, SERVED) == [flaw]
    assert flaws(Encoded(input_ids=[1, 2, 5, 9], labels=[IGNORED, IGNORED, 5, 9]), True, SERVED) == []


@pytest.mark.needs_toolchain
def test_the_whole_dataset_encodes_on_the_embedded_base(tmp_path: Path) -> None:
    base = find_base(EMBEDDED).path
    for language in ("en", "zh"):
        worker.encode(Work(tmp_path), dataset=str(DATA), base=str(base), language=language, tasks=["style", "writing"])
        facts = json.loads((tmp_path / "stages.json").read_text())["encoded"]
        assert [facts[name] for name in FLAWS] == [[], [], [], []]
        assert facts["not_encodable"] == []
        assert facts["longest_sample_tokens"] < {"en": 260, "zh": 512}[language]


@pytest.mark.needs_toolchain
def test_a_base_whose_end_token_differs_when_served_is_named(tmp_path: Path) -> None:
    base = Path(
        shutil.copytree(find_base(EMBEDDED).path, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    )
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 0}))
    worker.encode(Work(tmp_path), dataset=str(DATA), base=str(base), language="en", tasks=["writing"])
    facts = json.loads((tmp_path / "stages.json").read_text())["encoded"]
    assert len(facts["without_end_token"]) == 30


def test_a_dataset_object_is_an_input() -> None:
    from assay.steps.step import Input

    assert isinstance(read_dataset(DATA), Input)
    assert isinstance(read_dataset(DATA), Dataset)
