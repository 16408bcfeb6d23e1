from __future__ import annotations

import json
from pathlib import Path

import pytest
from assay.faults.runner import FaultRunner
from assay.inputs.bases import EMBEDDED
from assay.inputs.candidate import Candidate, read_candidate


@pytest.fixture
def named_candidate(tmp_path: Path) -> Candidate:
    """A candidate with a name, a base and an adapter, none of which is read."""
    base = {"id": EMBEDDED, "revision": None, "digest": None}
    adapters = {"style": {"path": str(tmp_path), "digest": None}}
    record = {"version": 1, "name": "any", "base": base, "adapters": adapters}
    (tmp_path / "candidate.json").write_text(json.dumps(record))
    return read_candidate(tmp_path / "candidate.json")


@pytest.fixture
def runner(named_candidate: Candidate, tmp_path: Path) -> FaultRunner:
    return FaultRunner(named_candidate, tmp_path)
