"""A step is made once, reused by content, remade when its result is not what was written, and never half there."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from assay.errors import StepFailed
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.process import Finished
from assay.steps.catalogue import InspectAdapter, Merge
from assay.steps.runner import Runner
from assay.steps.step import Step, StepUse
from assay.steps.store import Store

from tests.samples import write_adapter, write_safetensors


@pytest.fixture
def step(tmp_path: Path) -> InspectAdapter:
    """The cheapest real step: it reads two files in a process of its own."""
    base = tmp_path / "base"
    base.mkdir()
    write_safetensors(base / "model.safetensors", {"l.q_proj.weight": np.ones((4, 6))})
    adapter = write_adapter(tmp_path / "adapter", {"l.q_proj": (4, 6)}, base="b")
    return InspectAdapter(
        adapter=Adapter(name="style", source=str(adapter)), base=Base(id="b", revision=None, path=base)
    )


def runner(tmp_path: Path, run: str, *, fresh: bool = False, deadline_seconds: float = 60) -> Runner:
    (tmp_path / run).mkdir(exist_ok=True)
    return Runner(
        Store(tmp_path / "store"),
        tmp_path / run,
        run,
        fresh=fresh,
        say=lambda line: None,
        deadline_seconds=deadline_seconds,
    )


def use(of: Runner, step: Step) -> StepUse:
    attempt = of.attempt(step)
    assert attempt.problem is None
    return attempt.use


def test_a_step_is_made_once_and_reused_by_later_runs(tmp_path: Path, step: InspectAdapter) -> None:
    first = runner(tmp_path, "one")
    assert use(first, step).reused_from is None
    assert use(first, step).reused_from is None, "the same run made it"
    assert first.make(step).facts(InspectAdapter.inspected).adapted_modules == 1
    again = use(runner(tmp_path, "two"), step)
    assert again.reused_from == "one"
    assert (tmp_path / "two" / again.log).read_text().startswith("[stage] inspected")


def test_fresh_reuses_nothing_of_another_run_but_its_own(tmp_path: Path, step: InspectAdapter) -> None:
    runner(tmp_path, "one").make(step)
    fresh = runner(tmp_path, "two", fresh=True)
    assert use(fresh, step).reused_from is None
    made = fresh.make(step)
    assert made.run == "two"
    assert use(runner(tmp_path, "three"), step).reused_from == "two"


def test_another_input_is_another_step(tmp_path: Path, step: InspectAdapter) -> None:
    other = write_adapter(tmp_path / "other", {"l.q_proj": (4, 6)}, base="b", seed=1)
    changed = InspectAdapter(adapter=Adapter(name="style", source=str(other)), base=step.base)
    copy = shutil.copytree(step.adapter.path, tmp_path / "copy")
    same = InspectAdapter(adapter=Adapter(name="style", source=str(copy)), base=step.base)
    assert changed.digest != step.digest
    assert same.digest == step.digest, "a name of a folder is not content"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "unreadable"])
def test_a_result_that_is_not_what_was_written_is_made_again(tmp_path: Path, step: InspectAdapter, damage: str) -> None:
    slot = runner(tmp_path, "one").make(step).path
    log = slot / "log.txt"
    if damage == "truncate":
        log.write_bytes(log.read_bytes()[:-1])
    elif damage == "flip":
        log.write_bytes(bytes([log.read_bytes()[0] ^ 1]) + log.read_bytes()[1:])
    elif damage == "remove":
        log.unlink()
    else:
        (slot / "artifact.json").write_text("{")
    assert use(runner(tmp_path, "two"), step).reused_from is None


def test_a_result_that_was_only_copied_is_reused(tmp_path: Path, step: InspectAdapter) -> None:
    slot = runner(tmp_path, "one").make(step).path
    for file in slot.iterdir():
        file.touch()
    assert use(runner(tmp_path, "two"), step).reused_from == "one"


def test_a_failure_says_why_and_is_remembered_for_its_run_only(tmp_path: Path, step: InspectAdapter) -> None:
    (step.adapter.path / "adapter_config.json").write_text("{,")
    broken = InspectAdapter(adapter=Adapter(name="style", source=step.adapter.source), base=step.base)
    first = runner(tmp_path, "one")
    with pytest.raises(StepFailed, match=r"adapter_config\.json: not JSON, line 1 column 2") as failed:
        first.make(broken)
    assert "not JSON" in (tmp_path / "one" / failed.value.log).read_text()
    (tmp_path / "one" / failed.value.log).write_text("the first attempt's")
    with pytest.raises(StepFailed):
        first.make(broken)
    assert (tmp_path / "one" / failed.value.log).read_text() == "the first attempt's", "it was not tried again"
    second = runner(tmp_path, "two")
    with pytest.raises(StepFailed):
        second.make(broken)
    assert not [path for path in (tmp_path / "store").iterdir() if path.suffix != ".lock"], "nothing half-made is left"


def test_a_merge_that_is_killed_after_a_stage_keeps_no_stage(tmp_path: Path, step: InspectAdapter) -> None:
    """Its checkpoint is gone: a conversion of it would read a folder that is not there."""
    merge = Merge(base=cast(Base, step.base), adapter=step.adapter)

    def killed(part: Path, deadline_seconds: float) -> Finished:
        saved = {"saved": {"merge_seconds": 1.0, "peak_host_bytes": 1}}
        (part / "stages.json").write_text(json.dumps(saved), encoding="utf-8")
        return Finished(exit_code=-9, timed_out=False, seconds=1.0, peak_rss_bytes=1)

    of = runner(tmp_path, "one")
    of.execute = killed
    with pytest.raises(StepFailed, match=r"merge\.fold style ended after 'saved', exit code -9") as failed:
        of.make(merge, until=Merge.saved)
    assert failed.value.code == "killed"


def test_a_step_that_hangs_is_killed_and_told_so(tmp_path: Path, step: InspectAdapter) -> None:
    with pytest.raises(StepFailed, match="hung before its first stage: killed after"):
        runner(tmp_path, "one", deadline_seconds=0.01).make(step)


def test_a_step_that_cannot_fit_on_the_disk_is_not_started(
    tmp_path: Path, step: InspectAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(StepFailed, match=r"0\.0 GB free, merge\.fold style writes about 0\.0 GB\. Free some space"):
        runner(tmp_path, "one").make(Merge(base=cast(Base, step.base), adapter=step.adapter))


def test_a_step_that_finds_the_disk_full_says_so(
    tmp_path: Path, step: InspectAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To a process, a limit on the size of its files is a disk that fills up while it writes.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    names = json.dumps({"target_modules": [f"module_{number}" for number in range(100)]})
    (step.adapter.path / "adapter_config.json").write_text(names)

    monkeypatch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, preexec_fn=limit))
    with pytest.raises(StepFailed, match=r"the disk is full \(File too large\)\. Free some space"):
        runner(tmp_path, "one").make(step)
    assert not list((tmp_path / "store").glob("*/artifact.json"))


def test_a_result_that_cannot_be_kept_is_a_failure_and_not_a_result(
    tmp_path: Path, step: InspectAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("assay.steps.store.write_json", full)
    with pytest.raises(StepFailed, match=r"could not be kept \(No space left on device\)\. Free"):
        runner(tmp_path, "one").make(step)
    assert not [path for path in (tmp_path / "store").iterdir() if path.suffix != ".lock"]


def test_a_run_of_the_same_name_is_another_run(tmp_path: Path, step: InspectAdapter) -> None:
    runner(tmp_path, "one").make(step)
    namesake = Runner(Store(tmp_path / "store"), tmp_path / "one", "another", fresh=True, say=lambda line: None)
    assert use(namesake, step).reused_from is None
    assert namesake.make(step).run == "another"


def test_a_step_ends_when_the_process_that_asked_for_it_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "adapter_config.json"
    os.mkfifo(fifo)  # reading it blocks for ever: a step that never ends
    (tmp_path / "step.json").write_text(
        json.dumps({"worker": "adapter.inspect", "arguments": {"adapter": str(tmp_path), "base": str(tmp_path)}})
    )
    code = (
        "import os, sys, pathlib; from assay import process; here = pathlib.Path.cwd()\n"
        "command = [sys.executable, '-m', 'assay.workers', str(here), str(os.getpid())]\n"
        "process.run(command, cwd=here, log=here / 'log', deadline_seconds=600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    worker = _wait_for(lambda: [pid for pid in _children(parent.pid) if "assay.workers" in _command(pid)])
    parent.kill()
    parent.wait()
    _wait_for(lambda: ["gone"] if not _command(worker) else [])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


def _wait_for(found: Callable[[], list[Any]]) -> Any:
    for _ in range(200):
        if result := found():
            return result[0]
        time.sleep(0.1)
    raise AssertionError("waited 20 s in vain")


def test_every_step_has_a_lock_and_a_working_folder_of_its_own(tmp_path: Path, step: InspectAdapter) -> None:
    store = Store(tmp_path / "store")
    merge = Merge(base=cast(Base, step.base), adapter=step.adapter)
    other = InspectAdapter(adapter=step.adapter, base=Base(id="c", revision=None, path=step.adapter.path))
    steps = (step, merge, other)
    assert len({store.lock(one).lock_file for one in steps}) == 3
    assert len({store.new_folder(one) for one in steps}) == 3
