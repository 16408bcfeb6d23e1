"""The pytest plugin: hooks only. It writes `run.json` before the first gate and one line of `gates.jsonl` a gate.

It does nothing until a `conftest.py` calls `use_gates(config, folder)`. Only that `conftest.py` and `assay run` name
it, so no other pytest of the environment loads it. PYTEST_DONT_REWRITE: it asserts nothing, and is imported before
pytest could rewrite it.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from assay.errors import AssayError
from assay.gating.evidence import Evidence
from assay.gating.gate import gate_of
from assay.gating.options import OPTIONS
from assay.gating.session import EVIDENCE, GatesSession
from assay.paths import commands_here

if TYPE_CHECKING:
    from assay.inputs.candidate import Candidate
    from assay.inputs.prompts import Prompts
    from assay.steps.runner import Executor

SESSION = pytest.StashKey[GatesSession]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("assay", "Assay: which candidate, and where the record goes")
    for option in OPTIONS:
        group.addoption(option.name, **option.for_argparse())


class Hooks:
    """Hooks that a plugin may implement beside pytest's own."""

    @pytest.hookspec(firstresult=True)
    def pytest_assay_executor(self, config: pytest.Config) -> Executor | None:
        """How the workers of this run are run; a process of its own per step if no plugin says otherwise."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def use_gates(config: pytest.Config, folder: Path) -> None:
    """Make this pytest run a run of the gates in `folder`. For `conftest.py`'s `pytest_configure`."""
    try:
        session = config.stash[SESSION] = GatesSession.start(config, folder)
    except (AssayError, OSError) as problem:
        raise pytest.UsageError(commands_here(str(problem))) from None
    if session.writes:
        config.pluginmanager.register(Recorder(session), "assay-recorder")


def _session(config: pytest.Config) -> GatesSession | None:
    return config.stash.get(SESSION, None)


def pytest_report_header(config: pytest.Config) -> list[str]:
    session = _session(config)
    return session.header() if session else []


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: every worker process writes to the controller's run."""
    if session := _session(node.config):
        given = {"assay_run": str(session.run), "assay_id": session.id, "assay_no_room": session.runner.no_room}
        node.workerinput |= given


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session, gate = _session(metafunc.config), gate_of(metafunc.function)
    if session and gate and "adapter" in metafunc.fixturenames:
        adapters = session.candidate.adapters
        metafunc.parametrize("adapter", adapters, ids=[adapter.name for adapter in adapters])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the gates that this candidate gives nothing to judge: they are not expected either."""
    if session := _session(config):
        gates = {item: gate_of(getattr(item, "function", None)) for item in items}
        items[:] = [item for item, gate in gates.items() if gate is None or session.judges(gate)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if session := _session(item.config):
        session.attach(item, call, report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Show the real status in the terminal; for pytest itself the outcome stays what it is."""
    word = next((str(value) for name, value in getattr(report, "user_properties", ()) if name == "assay-status"), None)
    if word is None or word == "passed" or report.outcome != "skipped":
        return None
    return "skipped", word[0], word.upper()


class Recorder:
    """The hooks of the process that writes the record: pytest's own, or xdist's controller."""

    def __init__(self, session: GatesSession) -> None:
        self.session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.session.write(report)

    def pytest_sessionfinish(self) -> None:
        self.session.finish()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self.session.summarise(terminalreporter)


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Where a gate asks for steps and facts; what it looked at goes on its record."""
    found = request.node.stash[EVIDENCE] = Evidence(request.config.stash[SESSION].runner)
    return found


@pytest.fixture
def candidate(request: pytest.FixtureRequest) -> Candidate:
    return request.config.stash[SESSION].candidate


@pytest.fixture
def prompts(request: pytest.FixtureRequest) -> Prompts:
    """What every generating gate asks."""
    return request.config.stash[SESSION].prompts


@pytest.fixture
def probes(request: pytest.FixtureRequest) -> Prompts:
    """General prose that every form is fed, beside the task's own answers."""
    return request.config.stash[SESSION].probes


@pytest.fixture
def gguf_dtype(request: pytest.FixtureRequest) -> str:
    """The 16-bit type that a checkpoint is converted to: f16 or bf16."""
    return str(request.config.getoption("--gguf-dtype"))


@pytest.fixture
def scored_tokens(request: pytest.FixtureRequest) -> int:
    """At how many positions distributions are compared, at most."""
    return int(request.config.getoption("--scored-tokens"))


@pytest.fixture
def max_new_tokens(request: pytest.FixtureRequest) -> int:
    """Where every answer is cut off."""
    return int(request.config.stash[SESSION].max_new_tokens)
