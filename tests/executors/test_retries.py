"""How often the executor sends again what fails."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace

import pytest

from airflow_qarnot_pool.api.errors import QarnotUnavailableError
from airflow_qarnot_pool.executors import retries
from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
from airflow_qarnot_pool.executors.remote import RemoteTasks


def test_a_part_that_fails_is_tried_less_and_less_and_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: clock))
    tasks = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions()}))
    failed, worked = [], []

    async def fail() -> None:
        failed.append(clock)
        raise QarnotUnavailableError("no route")

    async def work() -> None:
        worked.append(clock)

    for second in range(120):
        clock = float(second)
        asyncio.run(tasks._try(tasks._pauses, "submit tasks", fail))
        asyncio.run(tasks._try(tasks._pauses, "abort tasks", work))
    assert len(worked) == 120
    assert 120 / retries.MAX_PAUSE <= len(failed) <= 30
    assert max(later - earlier for earlier, later in pairwise(failed)) <= retries.MAX_PAUSE + 1


def test_a_part_that_works_again_has_no_pause() -> None:
    pauses = retries.Pauses()
    pauses.failed("submit tasks", QarnotUnavailableError("no route"))
    assert not pauses.is_due("submit tasks")
    assert pauses.last_error("submit tasks") == "no route."
    pauses.succeeded("submit tasks")
    assert pauses.is_due("submit tasks")
    assert not pauses
