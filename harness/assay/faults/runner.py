"""Takes one case through the gates, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from assay import paths, process
from assay.errors import AssayError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.digests import case_digest
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.fault import BASELINE, Case, Fault
from assay.faults.processes import Forks
from assay.faults.result import CaseResult
from assay.files import write_json
from assay.gating.causes import FILE as CAUSES
from assay.gating.causes import read_causes
from assay.gating.gate import Gate, read_gates
from assay.gating.policy import read_policy
from assay.inputs.candidate import Adapter, Candidate
from assay.record.outcome import Status
from assay.record.reading import read_run
from assay.validation import refuse_unknown_names
from assay.workers.__main__ import die_with
from assay.workers.tensors import use_threads

DEADLINE_SECONDS = 4 * 3600.0
NOT_APPLICABLE = "not-applicable.txt"


class FaultRunner:
    """Judges cases of one candidate.

    Args:
        candidate: healthy; its first adapter is the one that cases alter.
        folder: where the records of the cases go.
        quick: run only gates that load no model, on cases that those gates can judge.
    """

    def __init__(self, candidate: Candidate, folder: Path, *, quick: bool = False) -> None:
        self.candidate = candidate
        self.adapter: Adapter = candidate.adapters[0]
        self.folder = folder
        self.quick = quick
        self.gates = {gate.id: gate for gate in read_gates(paths.GATES)}
        self.order = list(read_policy(paths.GATES / "policy.toml", list(self.gates)).severity)

    def cases(self, names: list[str] | None = None) -> list[Case]:
        """The unaltered candidate, then all cases or those named, faults before healthy variants.

        Raises:
            InputError: there is no case of that name.
        """
        all_cases: dict[str, Case] = {**FAULTS, **HEALTHY_VARIANTS}
        refuse_unknown_names("assay faults", "case", names or [], all_cases)
        chosen = names or [name for name, one in all_cases.items() if one.quick or not self.quick]
        return [all_cases[BASELINE], *(all_cases[name] for name in chosen if name != BASELINE)]

    def judge(self, case: Case) -> CaseResult:
        """The case's result: from its record if nothing that it depends on has changed, else judged now.

        Raises:
            AssayError: the run of the gates broke off.
        """
        folder = self.folder / case.name
        digest = case_digest(case, self.candidate, self.adapter, quick=self.quick)
        try:
            kept = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            if kept.pop("digest") == digest:
                return self._named(folder, CaseResult(**kept))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        seconds = self._run(case, folder)
        if (folder / NOT_APPLICABLE).exists():
            reason = (folder / NOT_APPLICABLE).read_text(encoding="utf-8")
            result = CaseResult(name=case.name, not_applicable=reason, seconds=seconds)
        else:
            result = self._read(case, folder, seconds)
        write_json(folder / "case.json", {"digest": digest, **vars(result)})
        return self._named(folder, result)

    def _run(self, case: Case, folder: Path) -> float:
        """Run the gates on the case in a fork, and return the seconds that it took."""
        scratch_root = paths.cache() / "faults"  # on the cache's disk, because candidates are large
        scratch_root.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-", dir=scratch_root) as scratch:
            child = process.fork(
                partial(self._enact, case, Path(scratch) / case.name, folder, os.getpid()),
                cwd=paths.REPOSITORY,
                log=folder / "pytest.txt",
                deadline_seconds=DEADLINE_SECONDS,
            )
        if child.timed_out or child.exit_code not in (0, 1):
            log = process.last_lines(folder / "pytest.txt", 20)
            raise AssayError(f"{folder}: the run of the gates broke off (exit code {child.exit_code}).\n{log}")
        return round(time.monotonic() - started, 1)

    def _enact(self, case: Case, scratch: Path, folder: Path, parent: int) -> int:
        """In the case's own process, which ends with the runner's: alter the candidate, then run the gates on it."""
        import pytest

        # A process whose torch has started threads cannot fork any more.
        use_threads(1)
        die_with(parent)
        scratch.mkdir()
        store = paths.cache() / "store"
        store.mkdir(parents=True, exist_ok=True)
        sandbox = Sandbox(scratch, self.candidate, self.adapter, store)
        try:
            case.make(sandbox)
        except NotApplicable as reason:
            (folder / NOT_APPLICABLE).write_text(str(reason), encoding="utf-8")
            return 0
        if case.name != BASELINE:
            os.environ["ASSAY_CACHE"] = str(sandbox.cache)
        arguments = [*self._chosen(case), "-q", "-p", "no:cacheprovider", "--run", str(folder / "run")]
        return int(pytest.main([*arguments, *sandbox.arguments()], plugins=[Forks(sandbox)]))

    def _chosen(self, case: Case) -> list[str]:
        """What pytest runs: all gates, or with `quick` the fault's first gate with what it needs."""
        if not self.quick:
            return [str(paths.GATES)]
        gates = [self.gates[case.first]] if isinstance(case, Fault) else list(self._quick_gates())
        return [f"{paths.GATES / gate.test}" for gate in gates]

    def _quick_gates(self) -> Iterator[Gate]:
        """The gates that catch quick faults first, except for the one that also loads the base."""
        quick = {one.first for one in FAULTS.values() if one.quick} - {"base_quant_load_ok"}
        return (gate for gate in self.gates.values() if gate.id in quick)

    def _read(self, case: Case, folder: Path, seconds: float) -> CaseResult:
        run = read_run(folder / "run")
        outcomes = {one.expected.gate: one.outcome for one in run.gates}
        statuses, reasons = {}, {}
        for id in self.order:
            outcome = outcomes.get(self.gates[id].name_for(self.adapter.name))
            if outcome is not None and not (self.quick and outcome.status is Status.MISSING):
                statuses[id] = outcome.status.value
                if outcome.status not in (Status.PASSED, Status.BLOCKED, Status.MISSING):
                    reasons[id] = outcome.reason.split("\n")[0][:300]
        return CaseResult(name=case.name, statuses=statuses, reasons=reasons, seconds=seconds)

    def _named(self, folder: Path, result: CaseResult) -> CaseResult:
        """The result with the causes of today, which may differ from those of the record."""
        if result.not_applicable is not None:
            return result
        run, known = read_run(folder / "run"), read_causes(paths.GATES / CAUSES, list(self.gates))
        ids = {gate.name_for(self.adapter.name): id for id, gate in self.gates.items()}
        causes: dict[str, list[str]] = {}
        fits: list[str] = []
        for one in run.gates:
            id = ids[one.expected.gate]
            if one.outcome.status in (Status.BLOCKED, Status.MISSING):
                continue
            found = [finding.id for finding in known.fitting(run.folder, id, one.outcome)]
            if one.outcome.status is Status.PASSED:
                fits += found
            else:
                causes[id] = found
        return replace(result, causes=causes, fits=fits)
