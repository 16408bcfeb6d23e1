"""Judges many cases, several at a time, each job on its own share of the cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.fault import Case
from assay.faults.processes import prepare
from assay.faults.result import CaseResult
from assay.faults.runner import FaultRunner

_runner: FaultRunner | None = None


def judge_all(runner: FaultRunner, cases: list[Case], jobs: int) -> Iterator[CaseResult]:
    """The results of `cases` as they come, the first case's first: its finished steps are what the others reuse.

    Args:
        cases: as `FaultRunner.cases` returns them.
        jobs: how many to judge at a time, at most one per core.
    """
    prepare()
    # A case holds functions, which cannot be sent to a process: the pool's processes know the runner, and get a name.
    global _runner
    _runner = runner
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(jobs, len(cores))
    shares = get_context("fork").SimpleQueue()
    for job in range(jobs):
        shares.put(cores[job::jobs])
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork"), initializer=_take_share, initargs=(shares,)) as pool:
        try:
            first, *others = [one.name for one in cases]
            # On a share of the cores, too: what depends on their number is reused only where it is the same.
            yield pool.submit(_judge, first).result()
            for done in as_completed([pool.submit(_judge, name) for name in others]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _take_share(shares: SimpleQueue[list[int]]) -> None:
    """Bind this process and its children to cores of its own.

    Two jobs that share cores run ten times slower, because their threads busy-wait on each other.
    """
    os.sched_setaffinity(0, shares.get())


def _judge(name: str) -> CaseResult:
    assert _runner is not None
    return _runner.judge(FAULTS.get(name) or HEALTHY_VARIANTS[name])
