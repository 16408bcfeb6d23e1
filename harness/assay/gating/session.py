"""One run of the gates inside pytest: from the options to `run.json`, from pytest's reports to `gates.jsonl`."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from assay import paths
from assay.errors import Inconclusive, InputError, NoRoom, StepFailed, Unavailable, WorkerCrashed
from assay.gating.causes import FILE as CAUSES
from assay.gating.causes import read_causes
from assay.gating.evidence import Evidence
from assay.gating.gate import Blocked, Gate, gate_of, read_gates
from assay.gating.options import GATES, users_gates
from assay.gating.policy import Policy, read_policy
from assay.gating.preflight import header, preflight
from assay.gating.run_record import describe_run, judges
from assay.inputs.candidate import Candidate, chosen_candidate
from assay.inputs.prompts import Prompts
from assay.record.outcome import Outcome, Status
from assay.record.reading import read_run
from assay.record.run import DoctorFinding
from assay.record.text import terminal_lines
from assay.record.writing import append_outcome, write_record
from assay.steps.runner import Runner
from assay.steps.store import Store

PROPERTY = "assay"
DOCTOR = "doctor"
"""What blocks a gate for whose step the machine has no room, in place of another gate's id."""
EVIDENCE = pytest.StashKey[Evidence]()
"""What the gate of a pytest item looked at."""
_SETUP_SECONDS = pytest.StashKey[float]()


class GatesSession:
    """A run of the gates, as one process of pytest sees it. Only the controlling process writes the record."""

    def __init__(
        self,
        config: pytest.Config,
        folder: Path,
        run: Path,
        id: str,
        gates: list[Gate],
        policy: Policy,
        candidate: Candidate,
    ) -> None:
        self.config = config
        self.id = id
        """Unlike the name of the folder, never the same for two runs."""
        self.writes = False
        self.findings: tuple[DoctorFinding, ...] = ()
        """What the doctor found before the first gate; empty in xdist's worker processes."""
        self.run = run
        self.gates = gates
        self.policy = policy
        self.candidate = candidate
        self.causes = read_causes(folder / CAUSES, [gate.id for gate in gates])
        self.prompts = Prompts(path=Path(config.getoption("--prompts") or folder / "prompts").resolve())
        # A wrong --prompts is the user's fault and not the candidate's: say so before any gate.
        _ = self.prompts.digest
        self.probes = Prompts(path=Path(config.getoption("--probes") or folder / "probes").resolve())
        _ = self.probes.digest
        self.max_new_tokens = config.getoption("--max-new-tokens")
        self.runner = Runner(
            Store(paths.cache() / "store"),
            run,
            id,
            fresh=config.getoption("--fresh"),
            say=self._say,
            deadline_seconds=config.getoption("--deadline"),
            execute=config.hook.pytest_assay_executor(config=config),
        )

    @classmethod
    def start(cls, config: pytest.Config, folder: Path) -> GatesSession:
        """Read the policy and the candidate and, in the controlling process, ask the doctor and write `run.json`.

        Raises:
            AssayError: what the user gave cannot be used, so there is no expected set to judge.
        """
        own = read_gates(folder)
        more = users_gates(config.getoption(GATES.name), [gate.id for gate in own])
        gates = [*own, *more]
        file = Path(config.getoption("--policy") or folder / "policy.toml")
        policy = read_policy(file, [gate.id for gate in own], secondary=[gate.id for gate in more])
        candidate = _candidate(config)
        worker = getattr(config, "workerinput", None)
        if worker is not None:
            session = cls(config, folder, Path(worker["assay_run"]), worker["assay_id"], gates, policy, candidate)
            session.runner.no_room = worker["assay_no_room"]
            return session
        if config.getoption("collectonly", False):
            return cls(config, folder, paths.REPORTS / "collect-only", "none", gates, policy, candidate)
        run = _new_folder(config, candidate)
        session = cls(config, folder, run, f"{run.name}#{secrets.token_hex(4)}", gates, policy, candidate)
        session._begin()
        if hasattr(config.option, "htmlpath") and not config.option.htmlpath:
            config.option.htmlpath, config.option.self_contained_html = str(run / "pytest.html"), True
        session.writes = True
        return session

    def _begin(self) -> None:
        """Ask the doctor, then write the record's first file, before the first gate."""
        record = describe_run(
            name=self.run.name,
            id=self.id,
            candidate=self.candidate,
            policy=self.policy,
            gates=self.gates,
            prompts=self.prompts,
        )
        (self.run / "gates.jsonl").touch(exist_ok=False)
        try:
            self.findings = preflight(self.candidate, self.runner)
        finally:
            # Even if the doctor is interrupted: without run.json nothing would be expected, and nothing held.
            write_record(self.run, record.model_copy(update={"doctor": self.findings}))

    def header(self) -> list[str]:
        """What the doctor found, for the top of pytest's output."""
        return header(self.findings)

    def judges(self, gate: Gate) -> bool:
        """Whether this candidate gives the gate anything to judge."""
        return judges(gate, self.candidate)

    def attach(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Put the gate's outcome on pytest's report, in one string: xdist passes builtin types only."""
        gate = gate_of(getattr(item, "function", None))
        if gate is None:
            return
        if call.when == "setup":
            item.stash[_SETUP_SECONDS] = call.duration
        status, reason, by = _status(call)
        if status is Status.PASSED and call.when != "call":
            return
        if status in (Status.BLOCKED, Status.UNAVAILABLE, Status.INCONCLUSIVE):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.reportinfo()[1] or 0, f"{status.value}: {reason}")
        problem = call.excinfo.value if call.excinfo else None
        evidence = item.stash.get(EVIDENCE, None) if call.when == "call" else None
        callspec = getattr(item, "callspec", None)
        name = callspec.params["adapter"].name if callspec else None
        outcome = Outcome(
            gate=gate.name_for(name),
            adapter=name,
            status=status,
            reason=reason,
            blocked_by=by,
            code=getattr(problem, "code", ""),
            details=getattr(problem, "details", {}),
            facts=evidence.to_json() if evidence else {},
            steps=tuple(evidence.uses.values()) if evidence else (),
            seconds=round(call.duration + (item.stash[_SETUP_SECONDS] if call.when == "call" else 0.0), 3),
        )
        if status not in (Status.PASSED, Status.BLOCKED):
            outcome = outcome.model_copy(update={"causes": tuple(self.causes.fitting(self.run, gate.id, outcome))})
        report.user_properties += [(PROPERTY, outcome.to_json()), ("assay-status", status.value)]

    def write(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY:
                append_outcome(self.run, Outcome.from_json(str(value)))

    def finish(self) -> None:
        """Render the record."""
        from assay.record.rendering import write_reports

        write_reports(self.run)

    def summarise(self, terminal: Any) -> None:
        """Each gate and the verdict, at the end of pytest's own output."""
        terminal.section("Assay")
        for line in terminal_lines(read_run(self.run)):
            terminal.write_line(line)

    def _say(self, line: str) -> None:
        """Print a line of progress past pytest's capture; xdist's worker processes have no terminal."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if terminal is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                terminal.ensure_newline()
                terminal.write_line(f"  {line}")


def _status(call: pytest.CallInfo[None]) -> tuple[Status, str, str | None]:
    """The status that an exception (or none) means, its text, and the gate that blocks."""
    if call.excinfo is None:
        return Status.PASSED, "", None
    problem = call.excinfo.value
    if isinstance(problem, Blocked):
        return Status.BLOCKED, problem.reason, problem.by
    if isinstance(problem, NoRoom):
        return Status.BLOCKED, str(problem), DOCTOR
    if isinstance(problem, Unavailable):
        return Status.UNAVAILABLE, str(problem), None
    if isinstance(problem, Inconclusive):
        return Status.INCONCLUSIVE, str(problem), None
    if isinstance(problem, WorkerCrashed):
        return Status.ERROR, f"The harness broke: {problem}", None
    if isinstance(problem, (AssertionError, StepFailed, InputError)) and call.when == "call":
        return Status.FAILED, str(problem), None
    return Status.ERROR, f"The harness broke: {type(problem).__name__}: {problem}", None


def _candidate(config: pytest.Config) -> Candidate:
    names = ("--candidate", "--base", "--adapter", "--revision", "--trained-on")
    candidate = chosen_candidate(*(config.getoption(name) for name in names))
    if candidate is None:
        raise InputError(
            f"{paths.QUICKSTART}: not found. Train it with `nox -s train -- quickstart`, or name a candidate: "
            "--candidate FILE, or --base BASE --adapter NAME=FOLDER_OR_HUB_ID."
        )
    return candidate


def _new_folder(config: pytest.Config, candidate: Candidate) -> Path:
    given = config.getoption("--run")
    if given:
        run = Path(given).resolve()
        # An old record in it would be read as this run's.
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise InputError(f"--run {run}: already there and not an empty folder. Name a new one.")
        run.mkdir(parents=True, exist_ok=True)
        return run
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9._-]+', '-', candidate.name)}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        run = paths.REPORTS / (stem + suffix)
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
    raise InputError(f"{paths.REPORTS}: 100 runs began in this second. Name a folder with --run.")
