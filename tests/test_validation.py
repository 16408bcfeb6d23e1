"""Files that a user writes: a problem is one sentence that names the file, the key, the value and what is expected."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from assay.cli.explain import explain
from assay.errors import InputError
from assay.gating.policy import read_policy
from assay.inputs.candidate import given_candidate, read_candidate
from assay.inputs.dataset import read_dataset
from assay.paths import REPOSITORY
from assay.record.outcome import Status
from assay.validation import FileModel, Text, matching, refuse_unknown_names, validate
from pydantic import Field, ValidationError

from tests.samples import write_run
from train.recipe import RECIPES, read_recipe

NAME = "a name of at most 64 lower-case letters, digits and _, and not `base`, since gate ids contain it"
TEXTS = "a non-empty list, each entry a non-empty string"
LORA = "rank, alpha, dropout, targets, last_blocks"
RECIPE = (
    "base, language, epochs, learning_rate, warmup_ratio, batch_size, max_tokens, quantization, "
    "gradient_checkpointing, seed, lora, adapters, epochs_of"
)


def sentence(problem: pytest.ExceptionInfo[InputError]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    return text


# ---- train/recipes/*.toml


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("adapters.style=style", f'adapters.style = "style"; expected {TEXTS}.'),
        ("adapters.style=[]", f"adapters.style = []; expected {TEXTS}."),
        ("adapters={}", f"adapters = {{}}; expected a non-empty table, each value {TEXTS}."),
        ('adapters.Style=["style"]', f'adapters has the key "Style"; expected {NAME}.'),
        ("lora.targets=[1,2]", "lora.targets[0] = 1; expected a non-empty string."),
        ("lora.targets=[]", f"lora.targets = []; expected {TEXTS}."),
        ("lora.dropout=2", "lora.dropout = 2; expected a number of at least 0 and below 1."),
        ("lora.dropout=true", "lora.dropout = true; expected a number of at least 0 and below 1."),
        ("lora=3", f"lora = 3; expected a table with the keys {LORA}."),
        ("lora={}", "the key lora.rank is missing; expected a whole number above 0."),
        ("lora.rnk=3", f"unknown key 'lora.rnk'. Did you mean 'lora.rank'? Known keys of lora: {LORA}."),
        ("warmup_ratio=7", "warmup_ratio = 7; expected a number of at least 0 and of at most 1."),
        ('warmup_ratio="0.1"', 'warmup_ratio = "0.1"; expected a number of at least 0 and of at most 1.'),
        ("learning_rate=nan", "learning_rate = nan; expected a number above 0 and of at most 1."),
        ("learning_rate=inf", "learning_rate = inf; expected a number above 0 and of at most 1."),
        ("epochs=three", 'epochs = "three"; expected a whole number above 0.'),
        ("epochs=true", "epochs = true; expected a whole number above 0."),
        ("epochs=1.0", "epochs = 1.0; expected a whole number above 0."),
        ("epochs=0", "epochs = 0; expected a whole number above 0."),
        ("seed=4294967296", "seed = 4294967296; expected a whole number of at least 0 and below 4294967296."),
        ("base=", 'base = ""; expected a non-empty string.'),
        ("quantization=fp4", 'quantization = "fp4"; expected "nf4" or "none".'),
        ("gradient_checkpointing=1", "gradient_checkpointing = 1; expected true or false."),
        ("epochs_of.style=0", "epochs_of.style = 0; expected a whole number above 0."),
        ("epocs=3", f"unknown key 'epocs'. Did you mean 'epochs'? Known keys: {RECIPE}."),
        ("name=x", f"unknown key 'name'. Known keys: {RECIPE}."),
    ],
)
def test_a_wrong_value_of_a_recipe(change: str, expected: str) -> None:
    with pytest.raises(InputError) as problem:
        read_recipe("quickstart", ["seed=1", change])
    assert sentence(problem) == f"{RECIPES / 'quickstart.toml'} with --set seed=1 --set {change}: {expected}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("epochs", "--set epochs: expected KEY=VALUE, as in --set learning_rate=2e-4 or --set lora.rank=8."),
        ("lora.=8", "--set lora.=8: expected KEY=VALUE, as in --set learning_rate=2e-4 or --set lora.rank=8."),
        ("base.x=3", "--set base.x=3: base is a value; expected a table, as lora in --set lora.rank=8."),
    ],
)
def test_a_change_that_is_none(change: str, expected: str) -> None:
    with pytest.raises(InputError) as problem:
        read_recipe("quickstart", [change])
    assert sentence(problem) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_size = ", "batchsize = ",
         f": unknown key 'batchsize'. Did you mean 'batch_size'? Known keys: {RECIPE}."),
        ("batch_size = 1\n", "", ": the key batch_size is missing; expected a whole number above 0."),
        ("rank = 16", "r = 16", f": unknown key 'lora.r'. Known keys of lora: {LORA}."),
        ("version = 1\n", "", ": the key version is missing; expected version = 1 at the top."),
        ("version = 1\n", "version = 2\n", ": version = 2; expected version = 1, the only one known."),
        ("version = 1\n", "version = true\n", ": version = true; expected version = 1, the only one known."),
        ("style = 2\n", "stil = 2\n", ", epochs_of: unknown adapter 'stil'. Did you mean 'style'? "
         "Known adapters: style, writing, multitask."),
    ],
)  # fmt: skip
def test_a_wrong_recipe(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text, path = (RECIPES / "quickstart.toml").read_text(), tmp_path / "mine.toml"
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as problem:
        read_recipe(str(path))
    assert sentence(problem) == f"{path}{expected}"


# ---- gates/policy.toml

POLICY = 'version = 1\n[severity]\nmerge_ok = "primary"\n"<adapter>_lora_mount_ok" = "secondary"\n'
GATES = ["merge_ok", "<adapter>_lora_mount_ok"]
SEVERITY = 'a table, each value "primary" or "secondary"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": the key version is missing; expected version = 1 at the top."),
        ("version = 1", f": the key severity is missing; expected {SEVERITY}."),
        ("version = 1\nseverity = 3", f": severity = 3; expected {SEVERITY}."),
        ('version = 1\nseverity = ["merge_ok"]', f': severity = ["merge_ok"]; expected {SEVERITY}.'),
        (POLICY.replace('"primary"', '"fatal"'), ': severity.merge_ok = "fatal"; expected "primary" or "secondary".'),
        (POLICY.replace('"primary"', "1"), ': severity.merge_ok = 1; expected "primary" or "secondary".'),
        (POLICY.replace('"secondary"', "nan"),
         ': severity.<adapter>_lora_mount_ok = nan; expected "primary" or "secondary".'),
        (POLICY.replace("merge_ok", "merg_ok"), ", severity: unknown gate 'merg_ok'. Did you mean 'merge_ok'? "
         "Known gates: merge_ok, <adapter>_lora_mount_ok."),
        (POLICY.replace("<adapter>", "style"), ", severity: unknown gate 'style_lora_mount_ok'. "
         "Did you mean '<adapter>_lora_mount_ok'? Known gates: merge_ok, <adapter>_lora_mount_ok."),
        (POLICY.replace("merge_ok", "x"), ", severity: unknown gate 'x'. "
         "Known gates: merge_ok, <adapter>_lora_mount_ok."),
        (POLICY.replace('merge_ok = "primary"\n', ""), ", severity: no line for the gate 'merge_ok'. "
         'Add `"merge_ok" = "secondary"`.'),
        (POLICY + "[inconclusiv]", ": unknown key 'inconclusiv'. Did you mean 'inconclusive'? "
         "Known keys: severity, inconclusive."),
        (POLICY + '[inconclusive]\nprimary = "pass"', ': inconclusive.primary = "pass"; expected "hold" or "warn".'),
        (POLICY + '[inconclusive]\nother = "hold"', ": unknown key 'inconclusive.other'. "
         "Known keys of inconclusive: primary."),
        (POLICY + 'inconclusive = "hold"', ': severity.inconclusive = "hold"; expected "primary" or "secondary".'),
        (POLICY.replace("= 1", "= 2"), ": version = 2; expected version = 1, the only one known."),
        ("[severity", ": not valid TOML: Expected ']' at the end of a table declaration (at end of document)."),
        ('[severity]\na = "b"\na = "b"', ": not valid TOML: Cannot overwrite a value (at end of document)."),
    ],
)  # fmt: skip
def test_a_wrong_policy(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InputError) as problem:
        read_policy(path, GATES)
    assert sentence(problem) == f"{path}{expected}"


# ---- candidate.json

ADAPTER = "a table with the keys path, digest"
RECORD: dict[str, dict[str, Any]] = {
    "dataset": {"path": "d", "digest": "0"},
    "recipe": {"language": "en", "max_tokens": 9, "adapters": {"style": ["style"]}},
}


def record(part: str, **change: Any) -> dict[str, Any]:
    return {"training": {**RECORD, part: {**RECORD[part], **change}}}


def record_without(part: str, key: str) -> dict[str, Any]:
    return {"training": {**RECORD, part: {name: value for name, value in RECORD[part].items() if name != key}}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"base": "Qwen"}, 'base = "Qwen"; expected a table with the keys id, revision, digest.'),
        ({"base": None}, "base = null; expected a table with the keys id, revision, digest."),
        ({"base": {}}, "the key base.id is missing; expected a non-empty string."),
        ({"base": {"id": "b", "revison": "main"}},
         "unknown key 'base.revison'. Did you mean 'base.revision'? Known keys of base: id, revision, digest."),
        ({"base": {"id": "b", "sha": 1}}, "unknown key 'base.sha'. Known keys of base: id, revision, digest."),
        ({"name": 5}, "name = 5; expected a non-empty string of at most 200 characters."),
        ({"name": ""}, 'name = ""; expected a non-empty string of at most 200 characters.'),
        ({"name": "\ud800"}, r'name = "\ud800"; expected a non-empty string of at most 200 characters.'),
        ({"adapters": 3}, f"adapters = 3; expected a table, each value {ADAPTER}."),
        ({"adapters": {}}, "adapters = {}; expected at least one adapter, since there is no training either."),
        ({"adapters": {"style": "x"}}, f'adapters.style = "x"; expected {ADAPTER}.'),
        ({"adapters": {"style": {}}}, "the key adapters.style.path is missing; expected a non-empty string."),
        ({"adapters": {"style": {"path": 3}}}, "adapters.style.path = 3; expected a non-empty string."),
        ({"adapters": {"My Style": {"path": "x"}}}, f'adapters has the key "My Style"; expected {NAME}.'),
        ({"adaptors": {}},
         "unknown key 'adaptors'. Did you mean 'adapters'? Known keys: name, base, adapters, training."),
        ({"training": "x"}, 'training = "x"; expected a table with the keys recipe, dataset, results.'),
        ({"training": {"dataset": RECORD["dataset"]}},
         "the key training.recipe is missing; expected a table with the keys language, max_tokens, adapters."),
        (record_without("dataset", "digest"), "the key training.dataset.digest is missing; "
         "expected a non-empty string."),
        (record_without("recipe", "language"), "the key training.recipe.language is missing; "
         "expected a non-empty string."),
        (record_without("recipe", "adapters"), "the key training.recipe.adapters is missing; "
         "expected a table, each value a list, each entry a non-empty string."),
        (record("recipe", max_tokens=float("nan")),
         "training.recipe.max_tokens = nan; expected a whole number above 0."),
        (record("recipe", max_tokens=float("-inf")),
         "training.recipe.max_tokens = -inf; expected a whole number above 0."),
        (record("recipe", adapters={"style": "style"}),
         'training.recipe.adapters.style = "style"; expected a list, each entry a non-empty string.'),
        ({"training": {**RECORD, "results": 3}}, "training.results = 3; expected a table, each value a table."),
        ({"version": 2}, "version = 2; expected version = 1, the only one known."),
        ({"version": True}, "version = true; expected version = 1, the only one known."),
        ({"version": "1"}, 'version = "1"; expected version = 1, the only one known.'),
        ({"version": float("nan")}, "version = NaN; expected version = 1, the only one known."),
    ],
)  # fmt: skip
def test_a_wrong_candidate(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    good = {"version": 1, "name": "c", "base": {"id": "b"}, "adapters": {"style": {"path": "a"}}}
    path = tmp_path / "candidate.json"
    path.write_text(json.dumps(good | {"training": RECORD}))
    assert read_candidate(path).adapters
    path.write_text(json.dumps(good | change))
    with pytest.raises(InputError) as problem:
        read_candidate(path)
    assert sentence(problem) == f"{path}: {expected}"


@pytest.mark.parametrize(
    ("text", "expected", "code"),
    [
        (b"", "not JSON, the file is empty.", "not-json"),
        (b"{", "not JSON, line 1 column 2: Expecting property name enclosed in double quotes.", "not-json"),
        (b'{"adapters": {"style": {}, "style": {}}}',
         "not valid JSON: the key 'style' appears twice in one object.", "not-json"),
        (b"[" * 100_000, "not valid JSON: maximum recursion depth exceeded", "not-json"),
        (b'{"version": ' + b"1" * 5000, "not valid JSON: Exceeds the limit (4300 digits)", "not-json"),
        (b"null", "expected a JSON object, found null.", ""),
        (b'[{"version": 1}]', "expected a JSON object, found a list.", ""),
        (b"3", "expected a JSON object, found a number.", ""),
        (b"{}", "the key version is missing; expected version = 1 at the top.", ""),
        (b"\xff", "not UTF-8 (invalid start byte at byte 0).", ""),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_file_that_is_no_candidate(tmp_path: Path, text: bytes, expected: str, code: str) -> None:
    path = tmp_path / "candidate.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as problem:
        read_candidate(path)
    assert sentence(problem).startswith(f"{path}: {expected}")
    assert problem.value.code == code


def test_a_folder_and_a_missing_file_are_no_candidates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_candidate(tmp_path)
    with pytest.raises(InputError, match=r"none\.json: not found") as problem:
        read_candidate(tmp_path / "none.json")
    assert problem.value.code == "file-missing"


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        (["style"], "--adapter 'style': expected NAME=FOLDER_OR_HUB_ID, as in --adapter style=./adapter_style."),
        (["a=x/y", "a=x/z"], "--adapter 'a=x/z': the name 'a' is given twice; expected another name."),
        (["A-1=x/y"], f"--adapter 'A-1=x/y': the name is 'A-1'; expected {NAME}."),
        (["base=x/y"], f"--adapter 'base=x/y': the name is 'base'; expected {NAME}."),
        ([], "A candidate needs at least one adapter: --adapter NAME=FOLDER_OR_HUB_ID."),
    ],
)
def test_a_wrong_adapter_option(adapters: list[str], expected: str) -> None:
    with pytest.raises(InputError) as problem:
        given_candidate("org/model", adapters, None, None)
    assert sentence(problem) == expected


# ---- train/data/dataset.toml


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("added = 24", 'added = "many"',
         ': tasks.style.samples.added = "many"; expected a whole number of at least 0.'),
        ("added = 24", "added = -1", ": tasks.style.samples.added = -1; expected a whole number of at least 0."),
        ("added = 24", "added = nan", ": tasks.style.samples.added = nan; expected a whole number of at least 0."),
        ("original = 11", "orignal = 11", ", tasks.style.samples: unknown origin 'orignal'. Did you mean 'original'? "
         "Known origins: original, added, eval."),
        ("[decline]", "[declines]", ": unknown key 'declines'. Did you mean 'decline'? "
         "Known keys: name, languages, tasks, decline, thresholds."),
        ('name = "v3"', "", ": the key name is missing; expected a non-empty string."),
        ('name = "v3"', "name = 3", ": name = 3; expected a non-empty string."),
        ('name = "v3"', 'name = "v3"\npath = "x"', ": unknown key 'path'. "
         "Known keys: name, languages, tasks, decline, thresholds."),
        ("[tasks.style.samples]", "[tasks.style.sample]", ": unknown key 'tasks.style.sample'. "
         "Did you mean 'tasks.style.samples'? Known keys of tasks.style: samples, headings."),
        ('["zh", "en"]', '"zh"', ': languages = "zh"; expected a non-empty list, each entry a string.'),
        ('["zh", "en"]', '["zh", "e/n"]', ': languages[1] = "e/n"; '
         "expected a name without /, since a file is named after it."),
        ('["zh", "en"]', '["zh"]', ", decline: unknown language 'en'. Known languages: zh."),
        ('["zh", "en"]', '["zh", "en", "fr"]', ": the key decline.fr is missing; expected one per language."),
        ('"### Conclusion"', '"Conclusion"', ': tasks.style.headings.en[0] = "Conclusion"; '
         "expected one line that begins with # and does not end with a space."),
        ("style = { coverage = 0.90", "style = { coverge = 0.90", ", thresholds.style: unknown metric 'coverge'. "
         "Did you mean 'coverage'? Known metrics: coverage, format, refusal."),
        ("style = { coverage = 0.90", "style = { coverage = 1.0",
         ": thresholds.style.coverage = 1.0; expected a number above 0 and below 1."),
        ("style = { coverage", "stile = { coverage", ", thresholds: unknown task 'stile'. Did you mean 'style'? "
         "Known tasks: style, writing, all."),
        ("version = 1", "version = 2", ": version = 2; expected version = 1, the only one known."),
    ],
)  # fmt: skip
def test_a_wrong_dataset(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = Path(shutil.copy(REPOSITORY / "train" / "data" / "dataset.toml", tmp_path))
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError) as problem:
        read_dataset(tmp_path)
    assert sentence(problem) == f"{path}{expected}"


# ---- names on the command line


def test_a_gate_that_a_run_does_not_have(tmp_path: Path) -> None:
    names = [f"gate_{number:02}_ok" for number in range(40)]
    run = write_run(tmp_path / "run", dict.fromkeys(names, ("primary", Status.PASSED)))
    with pytest.raises(InputError) as problem:
        explain(run, "foo")
    assert sentence(problem) == f"{run}: unknown gate 'foo'. Known gates: {', '.join(names[:16])}, and 24 more."
    with pytest.raises(InputError) as problem:
        explain(run, "gate_39_okay")
    assert sentence(problem) == f"{run}: unknown gate 'gate_39_okay'. Did you mean 'gate_39_ok'?"


def test_only_what_is_near_is_suggested() -> None:
    with pytest.raises(InputError, match=r"^assay: unknown gate 'merg_ok'\. Did you mean 'merge_ok'\? Known gates: m"):
        refuse_unknown_names("assay", "gate", ["merge_ok", "merg_ok"], ["merge_ok"])
    with pytest.raises(InputError, match=r"^assay: unknown gate 'foo'\. Known gates: none\.$"):
        refuse_unknown_names("assay", "gate", ["foo"], [])
    refuse_unknown_names("assay", "gate", [], ["merge_ok"])


# ---- the helper itself


class Entry(FileModel):
    when: str = Field(default="", alias="if")
    kinds: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    word: Annotated[str, matching("[a-z]+", "lower-case letters")] | None = None
    share: float = 0.5
    number: Literal[1, 2] = 1


class File(FileModel):
    entries: list[Entry]
    folder: Path


def read(entry: Any) -> File:
    return validate(File, {"entries": [entry]}, "f.toml", folder=Path("x"))


def test_a_model_takes_what_the_file_says_and_what_is_given() -> None:
    file = read({"if": "x", "kinds": ["a"], "share": 1})
    assert (file.entries[0].when, file.entries[0].kinds, file.folder) == ("x", ("a",), Path("x"))
    assert isinstance(file.entries[0].share, float), "a whole number is a number too"
    with pytest.raises(ValidationError, match="frozen"):
        file.entries[0].share = 0.1


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (3, "entries[0] = 3; expected a table with the keys if, kinds, word, share, number."),
        ({"iff": 1}, "unknown key 'entries[0].iff'. Did you mean 'entries[0].if'? "
         "Known keys of entries[0]: if, kinds, word, share, number."),
        ({"if": 1}, "entries[0].if = 1; expected a string."),
        ({"kinds": "a"}, 'entries[0].kinds = "a"; expected a list, each entry a non-empty string.'),
        ({"kinds": [1]}, "entries[0].kinds[0] = 1; expected a non-empty string."),
        ({"word": "A"}, 'entries[0].word = "A"; expected lower-case letters.'),
        ({"word": 1}, "entries[0].word = 1; expected a string."),
        ({"share": False}, "entries[0].share = false; expected a number."),
        ({"number": 3}, "entries[0].number = 3; expected 1 or 2."),
        ({"a key": 1}, "unknown key 'entries[0].\"a key\"'. Known keys of entries[0]: if, kinds, word, share, number."),
        ({"word": "\x1b[31m\x9b"}, r'entries[0].word = "\u001b[31m\x9b"; expected lower-case letters.'),
        ({"word": "A" * 99}, f'entries[0].word = "{"A" * 58}…; expected lower-case letters.'),
    ],
)  # fmt: skip
def test_a_sentence_names_key_value_and_what_is_expected(entry: Any, expected: str) -> None:
    with pytest.raises(InputError) as problem:
        read(entry)
    assert sentence(problem) == f"f.toml: {expected}"


def test_a_field_that_is_given_is_no_key_of_the_file() -> None:
    with pytest.raises(InputError, match=r"^f\.toml: unknown key 'folder'\. Known keys: entries\.$"):
        validate(File, {"entries": [], "folder": "y"}, "f.toml", folder=Path("x"))


def test_what_the_command_line_needs_at_once_does_not_import_pydantic() -> None:
    code = "import sys, assay.errors, assay.files, assay.paths; sys.exit('pydantic' in sys.modules)"
    folder = Path(sys.modules["assay"].__path__[0]).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0
