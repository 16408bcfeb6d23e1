"""The plugin under options of pytest: whatever pytest selects, orders or breaks off, the record says what happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from assay.record.outcome import Outcome
from assay.record.reading import Run, read_run
from assay.record.verdict import Verdict

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow(seconds=25)

GATES = '''
from assay.gating.gate import gate, require

@gate("first_ok", per="run")
def test_first():
    """The first holds."""
    return "made"

@gate("second_ok", per="adapter")
def test_second(first, adapter):
    """The second holds for good adapters."""
    assert first == "made"
    require(adapter.name != "bad", "is-bad", f"{adapter.name} is bad", name=adapter.name)
    return adapter.name

@gate("third_ok", per="adapter")
def test_third(second, adapter):
    """The third needs the second."""
    assert second == adapter.name

@gate("fourth_ok", per="candidate")
def test_fourth(candidate):
    """The fourth breaks."""
    raise KeyError(candidate.name)
'''
CONFTEST = """
from pathlib import Path
from assay.gating.gate import prerequisite
from assay.gating.plugin import use_gates
from test_small import test_first, test_second

pytest_plugins = ["assay.gating.plugin"]

def pytest_configure(config):
    use_gates(config, Path(__file__).parent)

first = prerequisite(test_first)
second = prerequisite(test_second)
"""
POLICY = """version = 1
[severity]
first_ok = "secondary"
second_ok = "primary"
third_ok = "secondary"
fourth_ok = "secondary"
"""
CAUSES = """version = 1
[[cause]]
id = "bad-adapter"
codes = ["is-bad"]
cause = "$name is bad."
fix = "take $adapter away"
"""
EXPECTED = {
    "first_ok": "passed",
    "second_ok [good]": "passed",
    "second_ok [bad]": "failed",
    "third_ok [good]": "passed",
    "third_ok [bad]": "blocked",
    "fourth_ok": "error",
}


@pytest.fixture
def gates(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of four small gates, and a machine without a toolchain."""
    folder = pytester.mkdir("gates")
    files = {"conftest.py": CONFTEST, "test_small.py": GATES, "policy.toml": POLICY, "causes.toml": CAUSES}
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("prompts", "probes"):
        (folder / name).mkdir()
        (folder / name / "one.txt").write_text("What is a capacitor?")
    monkeypatch.setenv("ASSAY_CACHE", str(pytester.path / "cache"))
    return pytester


def run(gates: pytest.Pytester, name: str, *options: str) -> Run:
    adapters = ["--adapter", "good=./none", "--adapter", "bad=./none"]
    given = ["--base", "./none", *adapters, "--run", name, "-W", "error", "-p", "no:randomly"]
    gates.runpytest_subprocess("gates", *given, *options)
    return read_run(gates.path / name)


def outcomes(run: Run) -> dict[str, Outcome]:
    of = [gate.outcome for gate in run.gates]
    return {f"{one.gate} [{one.adapter}]" if one.adapter else one.gate: one for one in of}


def statuses(run: Run) -> dict[str, str]:
    return {name: one.status.value for name, one in outcomes(run).items()}


def test_every_gate_leaves_its_status_code_and_cause(gates: pytest.Pytester) -> None:
    made = run(gates, "all")
    assert statuses(made) == EXPECTED
    seen = outcomes(made)
    assert (seen["second_ok [bad]"].code, seen["second_ok [bad]"].reason) == ("is-bad", "bad is bad")
    assert [(one.id, one.fix) for one in seen["second_ok [bad]"].causes] == [("bad-adapter", "take bad away")]
    assert seen["third_ok [bad]"].blocked_by == "second_ok"
    assert "KeyError" in seen["fourth_ok"].reason
    assert made.verdict is Verdict.HOLD
    assert (gates.path / "all" / "report.html").exists()


@pytest.mark.parametrize("options", [["-n", "2"], ["-p", "backwards"]], ids=["two processes", "reversed"])
def test_neither_order_nor_processes_change_a_status(gates: pytest.Pytester, options: list[str]) -> None:
    backwards = "def pytest_collection_modifyitems(items):\n    items.reverse()\n"
    (gates.path / "backwards.py").write_text(backwards)
    gates.syspathinsert()
    assert statuses(run(gates, "again", *options)) == EXPECTED


def test_what_is_deselected_is_missing_and_holds(gates: pytest.Pytester) -> None:
    made = run(gates, "some", "-k", "third")
    third = {"third_ok [good]": "passed", "third_ok [bad]": "blocked"}
    assert statuses(made) == dict.fromkeys(EXPECTED, "missing") | third
    assert made.verdict is Verdict.HOLD


def test_what_comes_after_the_first_failure_is_missing_with_x(gates: pytest.Pytester) -> None:
    seen = statuses(run(gates, "first", "-x"))
    assert seen["second_ok [bad]"] == "failed"
    assert seen["fourth_ok"] == "missing"


def test_only_what_failed_is_judged_again_with_lf(gates: pytest.Pytester) -> None:
    run(gates, "before")
    again = run(gates, "after", "--lf")
    failed = {"second_ok [bad]": "failed", "fourth_ok": "error"}
    assert statuses(again) == dict.fromkeys(EXPECTED, "missing") | failed
    assert again.verdict is Verdict.HOLD


def test_an_interrupted_run_keeps_what_was_judged_and_holds(gates: pytest.Pytester) -> None:
    test = gates.path / "gates" / "test_small.py"
    test.write_text(test.read_text().replace("assert second == adapter.name", "raise KeyboardInterrupt"))
    made = run(gates, "interrupted")
    seen = statuses(made)
    assert (seen["first_ok"], seen["second_ok [good]"]) == ("passed", "passed")
    assert seen["third_ok [good]"] == seen["fourth_ok"] == "missing"
    assert made.verdict is Verdict.HOLD
    assert (gates.path / "interrupted" / "report.html").exists()


def test_a_broken_file_of_gates_ends_before_a_record_says_anything(gates: pytest.Pytester, tmp_path: Path) -> None:
    (gates.path / "gates" / "test_small.py").write_text(GATES + "\nimport no_such_module\n")
    done = gates.runpytest_subprocess("gates", "--base", "./none", "--adapter", "good=./none", "--run", "broken")
    assert done.ret != 0
    assert not (gates.path / "broken" / "gates.jsonl").exists()
