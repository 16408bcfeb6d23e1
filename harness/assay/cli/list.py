"""`assay list`: every gate, one line each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from assay import paths
from assay.gating.gate import read_gates
from assay.gating.policy import read_policy

EXAMPLE = "assay list"
EXIT_CODES = {0: "listed", 2: "the gates or their policy cannot be read"}


def command() -> int:
    gates = read_gates(paths.GATES)
    policy = read_policy(paths.GATES / "policy.toml", [gate.id for gate in gates])
    table = Table(box=None)
    table.add_column("gate", no_wrap=True)
    for name in ("route", "severity", "per", "needs"):
        table.add_column(name)
    by_id = {gate.id: gate for gate in gates}
    for id, severity in policy.severity.items():
        gate = by_id[id]
        table.add_row(id, gate.route, severity.value, gate.per, ", ".join(gate.needs) or "–")
    Console().print(table)
    return 0
