"""Every documented metric of the executor reaches a real StatsD listener, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor
from airflow_qarnot_pool.executors.remote import RemoteTasks
from airflow_qarnot_pool.executors.running import Outcome
from airflow_qarnot_pool.local import LocalQarnot
from tests.crash.children import eventually
from tests.executors.test_qarnot_executor import (
    Database,
    database,
    end,
    executor,
    name,
    queue,
    sent,
    state_of,
    workload,
)
from tests.executors.test_remote import attempt, client, ends, live, qarnot, server, submission, until
from tests.operators.test_metrics import documented, missing, statsd
from tests.statsd import Statsd

__all__ = ["client", "database", "executor", "qarnot", "server", "statsd"]
PREFIX = "qarnot.executor."


@pytest.fixture
def tasks(qarnot: LocalQarnot) -> Iterator[RemoteTasks]:
    tasks = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions()}))
    yield tasks
    tasks.stop(10)


def test_every_documented_metric_of_the_executor_and_no_other_reaches_a_listener(
    statsd: Statsd,
    executor: QarnotExecutor,
    database: Database,
    client: QarnotClient,
    tasks: RemoteTasks,
) -> None:
    # Sent to a local Qarnot, and adopted from another scheduler.
    tasks.submit([running := submission("sleep 600")])
    until(lambda: live(client, running.attempt))
    (uuid,) = tasks.find([running.attempt], 60).values()  # type: ignore[union-attr]
    tasks.watch({attempt(): uuid})
    tasks.submit([submission(), submission()])
    ends(tasks, 2)
    tasks.abort([running.attempt.name])
    # One waits, one runs, one is queued again, and one is lost.
    waits, runs, again = workload("waits"), workload("runs"), workload("again")
    queue(executor, database, waits, runs, again)
    sent(executor).started = {name(runs)}
    end(executor, again, Outcome.FAILURE, "node lost")
    queue(executor, database, lost := workload("lost", {"pool": "gpu"}))
    state_of(database, lost, "running")
    end(executor, lost, Outcome.FAILURE, "node lost")

    expected = {name: kind for name, kind in documented().items() if name.startswith(PREFIX)}
    assert len(expected) == 8
    eventually(lambda: expected.keys() <= statsd.seen().keys(), patience=5, say=missing(statsd, expected))
    seen = {name: value for name, value in statsd.seen().items() if name.startswith(PREFIX)}
    assert {name: kind for name, (kind, _) in seen.items()} == expected
    counts = {name.removeprefix(PREFIX): value for name, (kind, value) in seen.items() if kind == "c"}
    assert counts == {"submitted": 3, "adopted": 1, "requeued": 1, "lost": 1}


def test_the_gauges_are_of_each_pool(
    executor: QarnotExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(
        "airflow_qarnot_pool.metrics.gauge", lambda name, value, pool: told.update({(name, pool): value})
    )
    waits, runs = workload("waits"), workload("runs", {"pool": "gpu"})
    queue(executor, database, waits, runs)
    sent(executor).started = {name(runs)}
    executor.sync()
    assert told == {
        ("executor.slots", "airflow"): 8,
        ("executor.running", "airflow"): 0,
        ("executor.waiting", "airflow"): 1,
        ("executor.slots", "gpu"): 8,
        ("executor.running", "gpu"): 1,
        ("executor.waiting", "gpu"): 0,
    }


def test_an_adopted_task_counts_for_the_pool_of_its_config(executor: QarnotExecutor) -> None:
    instance = {"key": "key", "id": "id", "external_executor_id": "x"}
    pools = [
        executor._adopted(SimpleNamespace(**instance, executor_config=config)).pool  # type: ignore[arg-type]
        for config in (None, {"pool": "gpu"}, {"pool": "of older options"})
    ]
    assert pools == ["airflow", "gpu", "unknown"]
