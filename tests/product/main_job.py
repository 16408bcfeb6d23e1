"""The main job on the real model, in a process of its own, and what its record says.

One adapter with small random weights stands in for a trained one: the base still speaks, and nothing has to be trained.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay import paths
from assay.gating.gate import read_gates
from assay.inputs.bases import EMBEDDED
from assay.inputs.toolchain import find_toolchain
from assay.record.outcome import Outcome, Status
from assay.record.reading import Run, read_run

GATES = [gate for gate in read_gates(paths.GATES) if gate.per != "dataset" and "training" not in gate.needs]
"""The gates that judge an adapter of which no training is known."""
MAKES = {
    "base": "base_quant_load_ok",
    "base_nf4": "base_quant_load_ok",
    "sound_adapter": "adapter_files_ok",
    "mounted": "<adapter>_lora_mount_ok",
    "toolchain": "toolchain_ready",
    "merged": "merge_ok",
    "f16": "convert_f16_ok",
    "q4": "quantize_q4_ok",
    "llama_cli": "llama_cli_smoke_ok",
    "llama_cpp_python": "llama_cpp_python_smoke_ok",
}
"""Prerequisite to the gate that makes it."""
MEASURED_OF = ("base", "sound_adapter")
"""What the fixture `distribution` cannot do without; of the forms it measures those that there are."""


def of_route(*routes: str) -> set[str]:
    return {gate.name_for("style") for gate in GATES if gate.route in routes}


def behind(id: str) -> set[str]:
    """The gates that a failure of one blocks, directly or through another."""
    blocked: set[str] = {id}
    before: set[str] = set()
    while blocked != before:
        before = set(blocked)
        for gate in GATES:
            needs = [name for need in gate.needs for name in (MEASURED_OF if need == "distribution" else (need,))]
            if any(MAKES[need] in blocked for need in needs):
                blocked.add(gate.id)
    return {gate.name_for("style") for gate in GATES if gate.id in blocked - {id}}


LOST = ["nf4_survives_ok", "q4_survives_ok"]
"""The stand-in moves the base by next to nothing, so 4 bits move it further: these two say so, and rightly."""


@dataclass(frozen=True)
class Workshop:
    """A cache of this test session's own, with the user's base and toolchain in it, and something to judge."""

    folder: Path
    adapter: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def with_toolchain(self, name: str) -> Workshop:
        """The same with a copy of the toolchain, to be broken."""
        copy = Workshop(folder=self.folder / name, adapter=self.adapter)
        copy.cache.mkdir(parents=True)
        for shared in ("bases", "store"):
            (copy.cache / shared).symlink_to(self.cache / shared)
        toolchain = find_toolchain().path
        shutil.copytree(toolchain, copy.cache / "toolchains" / toolchain.name, symlinks=True)
        return copy

    def program(self, name: str) -> Path:
        return next(self.cache.glob(f"toolchains/*/bin/{name}"))

    def gates(
        self,
        run: str,
        *options: str,
        adapter: Path | None = None,
        env: dict[str, str] | None = None,
        file_bytes: int = resource.RLIM_INFINITY,
    ) -> tuple[int, Run]:
        """Run the gates in a process of their own, where no file may be larger; its exit code and the record."""

        def limited() -> None:
            if file_bytes != resource.RLIM_INFINITY:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        where = self.folder / "runs" / run
        given = ["--base", EMBEDDED, "--adapter", f"style={adapter or self.adapter}", "--run", str(where)]
        given += ["--probes", str(self.adapter.parent / "probes"), "--scored-tokens", "300"]
        chosen = [option for option in options if option.startswith(str(paths.GATES))] or [str(paths.GATES)]
        rest = [option for option in options if option not in chosen]
        command = [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider", *given, *rest]
        done = subprocess.run(
            command,
            cwd=paths.REPOSITORY,
            env={**os.environ, "ASSAY_CACHE": str(self.cache), **(env or {})},
            capture_output=True,
            text=True,
            timeout=900,
            preexec_fn=limited,
        )
        assert (where / "run.json").exists(), done.stdout + done.stderr
        return done.returncode, read_run(where)


def by_name(outcome: Outcome) -> dict[str, Any]:
    return {name: fact for facts in outcome.facts.values() for name, fact in facts.items()}


def statuses(run: Run) -> dict[str, Status]:
    return {gate.expected.gate: gate.outcome.status for gate in run.gates}


def verdict_code(run: Run) -> int:
    """What `assay verdict` says, as CI asks it."""
    return subprocess.run([sys.executable, "-m", "assay", "verdict", str(run.folder)], capture_output=True).returncode


def assert_one_failure(run: Run, failed: str, reason: str, *routes: str) -> None:
    """Exactly one gate failed, the ones behind it are blocked by it by name, every other one passed.

    Args:
        routes: the routes that ran, if not all.
    """
    ran = of_route(*routes) if routes else set(statuses(run))
    seen, blocked = {gate: status for gate, status in statuses(run).items() if gate in ran}, behind(failed) & ran
    lost = set(LOST) & ran - blocked
    assert {gate for gate, status in seen.items() if status is Status.FAILED} == {failed, *lost}
    assert {gate for gate, status in seen.items() if status is Status.BLOCKED} == blocked
    assert {gate for gate, status in seen.items() if status is Status.PASSED} == set(seen) - {failed, *lost, *blocked}
    for gate in run.gates:
        if gate.outcome.status is Status.BLOCKED:
            assert gate.outcome.blocked_by == failed
        if gate.outcome.gate == failed:
            assert reason in gate.outcome.reason
