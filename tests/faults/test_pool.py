from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.fault import BASELINE, Case
from assay.faults.pool import judge_all
from assay.faults.result import CaseResult

pytestmark = pytest.mark.slow(seconds=8)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """The pool sets variables for the processes that it forks; other tests must not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class CountsCores:
    """Stands for the runner of faults: a case's result is the number of cores that it was judged on."""

    def judge(self, case: Case) -> CaseResult:
        return CaseResult(name=case.name, statuses={}, reasons={}, seconds=float(len(os.sched_getaffinity(0))))


def test_every_case_has_as_many_cores_as_the_healthy_candidate_whose_steps_it_reuses() -> None:
    cases: list[Case] = [HEALTHY_VARIANTS[BASELINE], *list(FAULTS.values())[:4]]
    jobs = min(2, len(os.sched_getaffinity(0)))
    results = list(judge_all(cast(Any, CountsCores()), cases, jobs))
    assert results[0].name == BASELINE
    assert {one.name for one in results} == {one.name for one in cases}
    assert {one.seconds for one in results} == {len(os.sched_getaffinity(0)) // jobs}
