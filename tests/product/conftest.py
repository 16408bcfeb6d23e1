"""What the tests of the main job share: a cache, something to judge, and the record of one healthy run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from assay import paths
from assay.inputs.bases import EMBEDDED, find_base
from assay.record.reading import Run, read_run
from filelock import FileLock

from tests.product.main_job import Workshop
from tests.samples import new_cache, write_adapter


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One workshop for all of xdist's processes: what it makes takes minutes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "workshop"
    with FileLock(f"{folder}.lock"):
        return make_workshop(folder) if not folder.exists() else Workshop(folder, folder / "adapter")


def make_workshop(folder: Path) -> Workshop:
    base = find_base(EMBEDDED)
    (new_cache(folder / "cache") / "store").mkdir()
    (folder / "probes").mkdir()
    # Named as a prompt is: a text and a question may be called the same.
    shutil.copyfile(paths.GATES / "probes" / "code.txt", folder / "probes" / "capacitor.txt")
    shapes = {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in base.tensors.items()
        if "q_proj" in name or "v_proj" in name
    }
    return Workshop(folder=folder, adapter=write_adapter(folder / "adapter", shapes, base=EMBEDDED, scale=0.02))


@pytest.fixture(scope="session")
def healthy(workshop: Workshop) -> Run:
    """The record of a run in which nothing is broken, made by the first process that asks for it."""
    with FileLock(f"{workshop.folder}.lock"):
        if not (workshop.folder / "runs" / "healthy").exists():
            workshop.gates("healthy")
    run = read_run(workshop.folder / "runs" / "healthy")
    assert [gate for gate in run.gates if gate.passed], [(gate.outcome.gate, gate.outcome.reason) for gate in run.gates]
    return run
