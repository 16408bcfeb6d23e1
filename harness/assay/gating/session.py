"""One run of the gates inside pytest: from the options to `run.json`, from pytest's reports to `gates.jsonl`."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from assay import __version__, paths
from assay.errors import AssayError, Inconclusive, InputError, NoRoom, StepFailed, Unavailable
from assay.files import read_json, write_json
from assay.gating.causes import FILE as CAUSES
from assay.gating.causes import read_causes
from assay.gating.doctor import Finding, Level, Patient, examine
from assay.gating.gate import Blocked, Gate, gate_of, read_gates
from assay.gating.policy import Policy, read_policy
from assay.inputs.candidate import Candidate, chosen_candidate
from assay.inputs.prompts import Prompts
from assay.machine import machine, package_version
from assay.measures.sizing import forecast, shapes_from_headers
from assay.record.record import VERSION, Expected, Outcome, Status, append_outcome, read_run
from assay.record.text import printable
from assay.steps.runner import Bench
from assay.steps.store import Store

PROPERTY = "assay"
DOCTOR = "doctor"
"""What blocks a gate whose step the machine has no room for, instead of another gate's id."""
_EVALUATED = ("language", "summary", "why_empty", "seconds", "peak_host_bytes", "peak_device_bytes")
_SETUP_SECONDS = pytest.StashKey[float]()
_VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "gguf", "safetensors", "pytest", "numpy")


class GatesSession:
    """What a process of a gates run knows. Only the controlling process writes the record."""

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
        """Unlike the folder's name, never the same for two runs."""
        self.writes = False
        self.findings: list[Finding] = []
        """What the doctor found before the first gate; of the controlling process alone."""
        self.run = run
        self.gates = gates
        self.policy = policy
        self.candidate = candidate
        self.causes = read_causes(folder / CAUSES, [gate.id for gate in gates])
        self.prompts = Prompts(path=Path(config.getoption("--prompts") or folder / "prompts").resolve())
        _ = self.prompts.digest  # a wrong --prompts is the user's, not the candidate's: say so before anything runs
        self.probes = Prompts(path=Path(config.getoption("--probes") or folder / "probes").resolve())
        _ = self.probes.digest
        self.max_new_tokens = config.getoption("--max-new-tokens")
        self.bench = Bench(
            Store(paths.cache() / "store"),
            run,
            id,
            fresh=config.getoption("--fresh"),
            say=self._say,
            deadline_seconds=config.getoption("--deadline"),
        )

    @classmethod
    def start(cls, config: pytest.Config, folder: Path) -> GatesSession:
        """Read the policy and the candidate and, in the controlling process, write `run.json`.

        Raises:
            AssayError: what the user gave cannot be used, so there is no expected set to judge.
        """
        gates = read_gates(folder)
        policy = read_policy(Path(config.getoption("--policy") or folder / "policy.toml"), [gate.id for gate in gates])
        candidate = _candidate(config)
        worker = getattr(config, "workerinput", None)
        if worker is not None:
            session = cls(config, folder, Path(worker["assay_run"]), worker["assay_id"], gates, policy, candidate)
            session.bench.no_room = worker["assay_no_room"]
            return session
        if config.getoption("collectonly", False):
            return cls(config, folder, paths.REPORTS / "collect-only", "none", gates, policy, candidate)
        run = _new_folder(config, candidate)
        session = cls(config, folder, run, f"{run.name}#{secrets.token_hex(4)}", gates, policy, candidate)
        session._write_expectations()
        session._examine()
        if hasattr(config.option, "htmlpath") and not config.option.htmlpath:
            config.option.htmlpath, config.option.self_contained_html = str(run / "pytest.html"), True
        session.writes = True
        return session

    def _examine(self) -> None:
        """Ask the doctor, and add what it found to `run.json`: what stops everything is known before the first step."""
        for _, findings, _ in examine(Patient(self.candidate, self.bench, in_run=True)):
            self.findings += findings
        stops = [finding for finding in self.findings if finding.level is Level.STOPS]
        self.bench.no_room = f"{stops[0].text}. {stops[0].fix}" if stops else ""
        self.bench.forget_used()
        record = read_json(self.run / "run.json")
        write_json(self.run / "run.json", {**record, "doctor": [finding.to_json() for finding in self.findings]})

    def header(self) -> list[str]:
        """What the doctor found, for the top of pytest's output."""
        told = [one for one in self.findings if one.level is not Level.FINE]
        lines = [f"assay doctor: {one.check}: {printable(one.text.splitlines()[0])}" for one in told]
        stopped = ["assay doctor: no step that holds a model begins"] if self.bench.no_room else []
        return [*lines, *stopped]

    def expected(self) -> list[Expected]:
        """Policy × candidate, in the policy's order: what the verdict will judge, whatever pytest selects."""
        by_id = {gate.id: gate for gate in self.gates}
        found = []
        for id, severity in self.policy.severity.items():
            gate = by_id[id]
            if not self.judges(gate):
                continue
            adapters = [adapter.name for adapter in self.candidate.adapters] if gate.per == "adapter" else [None]
            for adapter in adapters:
                found.append(
                    Expected(
                        gate=gate.name_for(adapter),
                        route=gate.route,
                        severity=severity,
                        candidate=self.candidate.name,
                        adapter=adapter,
                        title=gate.title,
                        guide=gate.guide,
                    )
                )
        return found

    def judges(self, gate: Gate) -> bool:
        """Whether this candidate gives the gate anything to judge.

        Adapters trained elsewhere come without their dataset; before training there is a dataset and no adapter.
        """
        needs_dataset = gate.per == "dataset" or "training" in gate.needs
        needs_adapters = gate.per != "dataset"
        return (self.candidate.trained_here or not needs_dataset) and (
            bool(self.candidate.adapters) or not needs_adapters
        )

    def _write_expectations(self) -> None:
        write_json(
            self.run / "run.json",
            {
                "version": VERSION,
                "name": self.run.name,
                "id": self.id,
                "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "candidate": {
                    "name": self.candidate.name,
                    "base": self.candidate.base_spec,
                    "revision": self.candidate.revision,
                    "adapters": {adapter.name: adapter.source for adapter in self.candidate.adapters},
                    "digests": self._digests(),
                },
                "environment": {
                    "assay": __version__,
                    "machine": machine(),
                    "packages": {package: package_version(package) for package in _VERSIONED},
                    "prompts": sorted(file.stem for file in self.prompts.path.glob("*.txt")),
                },
                "forecast": self._forecast(),
                "training": self._training(),
                "inconclusive_primary": self.policy.inconclusive_primary,
                "expected": [vars(gate) for gate in self.expected()],
            },
        )
        (self.run / "gates.jsonl").touch(exist_ok=False)

    def _forecast(self) -> dict[str, int] | None:
        """What the base's headers promise, for the report to hold its measurements against; None if it is unusable."""
        try:
            base = self.candidate.base
            return forecast(shapes_from_headers(base.tensors, read_json(base.path / "config.json")))
        except (AssayError, OSError, ArithmeticError, ImportError):
            return None

    def _training(self) -> dict[str, Any] | None:
        """How the adapters were trained and evaluated, as far as their folder tells."""
        record, folder = self.candidate.record, self.candidate.folder
        if record is None or not self.candidate.adapters:
            return None
        more: dict[str, Any] = {"curves": {}, "evaluation": None}
        try:
            for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines():
                one = json.loads(line)
                more["curves"].setdefault(one["adapter"], []).append([one["step"], round(one["loss"], 4)])
            evaluation = read_json(folder / "evaluation.json")
            # Figures of other adapters than these say nothing of these.
            if evaluation["digests"] == {adapter.name: adapter.digest for adapter in self.candidate.adapters}:
                forms = {
                    form: {name: {key: one[key] for key in _EVALUATED} for name, one in adapters.items()}
                    for form, adapters in evaluation["forms"].items()
                }
                more["evaluation"] = {"forms": forms}
        except (AssayError, OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # They are shown and not judged: what cannot be read is not shown.
        return {**record, **more}

    def _digests(self) -> dict[str, str | None]:
        """What was judged, by content; None for what cannot be read, whose own gate will say why."""

        def digest(of: Any, name: str) -> str | None:
            try:
                return str(getattr(of(), name))
            except (AssayError, OSError):
                return None

        digests = {"base": digest(lambda: self.candidate.base, "digest")}
        for adapter in self.candidate.adapters:
            digests[adapter.name] = digest(lambda adapter=adapter: adapter, "digest")
        return digests

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
        if status in (Status.BLOCKED, Status.UNAVAILABLE, Status.INCONCLUSIVE) and report.outcome != "skipped":
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.reportinfo()[1] or 0, f"{status.value}: {reason}")
        callspec = getattr(item, "callspec", None)
        name = callspec.params["adapter"].name if callspec else None
        outcome = Outcome(
            gate=gate.name_for(name),
            adapter=name,
            status=status,
            reason=reason,
            blocked_by=by,
            facts=self.bench.facts if call.when == "call" else {},
            steps=tuple(self.bench.used.values()) if call.when == "call" else (),
            seconds=round(call.duration + (item.stash[_SETUP_SECONDS] if call.when == "call" else 0.0), 3),
        )
        if status not in (Status.PASSED, Status.BLOCKED):
            outcome = replace(outcome, causes=tuple(self.causes.fitting(self.run, gate.id, outcome)))
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
        """The verdict and the gates that did not pass, at the end of pytest's own output."""
        from assay.record.rendering import terminal_lines

        terminal.section("Assay")
        for line in terminal_lines(read_run(self.run)):
            terminal.write_line(line)

    def _say(self, line: str) -> None:
        """A line of progress, past pytest's capture. xdist's worker processes have no terminal and stay silent."""
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
    if isinstance(problem, (AssertionError, StepFailed, InputError)) and call.when == "call":
        return Status.FAILED, _without_introspection(str(problem)), None
    return Status.ERROR, f"The harness broke: {type(problem).__name__}: {problem}", None


def _without_introspection(text: str) -> str:
    """A gate's own words; pytest appends what it saw (`assert [...] == []`) after them."""
    return re.split(r"\nassert ", text, maxsplit=1)[0]


def _candidate(config: pytest.Config) -> Candidate:
    names = ("--candidate", "--base", "--adapter", "--revision", "--trained-on")
    candidate = chosen_candidate(*(config.getoption(name) for name in names))
    if candidate is None:
        raise InputError(
            f"{paths.QUICKSTART}: not found. Train it with `nox -s train`, or name a candidate: --candidate FILE, or "
            "--base BASE --adapter NAME=FOLDER_OR_HUB_ID."
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
    raise InputError(f"{paths.REPORTS}: a hundred runs in one second; name a folder with --run.")
