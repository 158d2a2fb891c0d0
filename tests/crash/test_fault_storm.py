"""800 operations while every fifth request meets a fault: nothing twice, nothing lost, nothing left on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.bases.operator import ExecutorSafeguard

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.exceptions import QarnotError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import namespace_tag
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.crash.children import eventually
from tests.harness import FakeTI, again, context_of, first_event

#: On each of the two servers: DAG runs, each of a create, tasks, and a close.
RUNS, TASKS = 4, 98
CALM_TASKS = 38
FAULTS = 0.2
TRIES = 6
THREADS = 16
#: Of the client. One that hardly asks again makes Airflow tasks fail, and their next tries look for what they left.
RETRIES = {"enforce": 6, "free": 1}
TIMEOUT = 1.0
KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 429, "retry_after": 0.05},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 502},
    {"kind": "status", "status": 503, "retry_after": 0.02},
    {"kind": "status", "status": 504},
    {"kind": "reset"},
    {"kind": "lost"},
    {"kind": "delay", "seconds": 1.5 * TIMEOUT},
    {"kind": "garbage"},
)
#: More requests than in calm weather, at most: a fifth of them fails, and what failed is asked about.
MOST_REQUESTS = 3.0


def weather() -> list[dict[str, Any]]:
    """Rules that together hit *FAULTS* of all requests, each kind as often as any other."""
    share = FAULTS / len(KINDS)
    return [{**kind, "probability": share / (1 - share * before)} for before, kind in enumerate(KINDS)]


@dataclass
class Storm:
    """DAG runs on one server, with Airflow's rules for tries."""

    qarnot: LocalQarnot
    namespace: str
    effects: Path
    threads: ThreadPoolExecutor
    retries: int
    operations: int = 0
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def conn_id(self) -> str:
        return self.namespace

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        extra = {
            "namespace": self.namespace,
            "timeout": TIMEOUT,
            "retries": self.retries,
            "poll_interval": 0.2,
        }
        connection = {"conn_type": "qarnot", "host": self.qarnot.url, "password": self.qarnot.token}
        monkeypatch.setenv(f"AIRFLOW_CONN_{self.conn_id.upper()}", json.dumps({**connection, "extra": extra}))

    async def dag_run(self, number: int, tasks: int) -> None:
        common = {"qarnot_conn_id": self.conn_id, "retries": TRIES - 1}
        run_id = f"run-{number}"
        create = partial(QarnotCreatePoolOperator, task_id="create", instance_count=8, **common)
        pool = await self.operation(create, run_id, "create")
        if pool is not None:
            await asyncio.gather(
                *(self.operation(self.task(pool, run_id, n, common), run_id, "work", n) for n in range(tasks))
            )
            close = partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=pool, **common)
            await self.operation(close, run_id, "close")

    def task(self, pool: str, run_id: str, number: int, common: dict[str, Any]) -> Any:
        return partial(
            QarnotRunTaskOperator,
            task_id="work",
            qarnot_pool=pool,
            command=f"sh -c 'echo {run_id} {number} >> {self.effects}'",
            log_output=False,
            deferrable=number % 4 != 0,
            **common,
        )

    async def operation(self, make: Any, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """One Airflow task through all its tries and slices; None where the last try failed."""
        self.operations += 1
        for try_number in range(1, TRIES + 1):
            self.tries += 1
            ti = FakeTI(
                run_id=run_id,
                task_id=task_id,
                map_index=map_index,
                try_number=try_number,
                max_tries=TRIES - 1,
            )
            try:
                return await self.slices(make, ti)
            except QarnotError as error:
                self.errors[type(error).__name__] += 1
        self.lost.append(f"{run_id} {task_id} {map_index}")
        return None

    async def slices(self, make: Any, ti: FakeTI) -> Any:
        operator = make()
        work = partial(operator.execute, context_of(operator, ti))
        while True:
            kind, value = await asyncio.get_running_loop().run_in_executor(self.threads, one_slice, work)
            if kind == "done":
                return value
            event = await first_event(again(value.trigger))
            operator = make()
            kwargs = {**(value.kwargs or {}), "event": event}
            context = context_of(operator, ti)
            work = partial(operator.resume_execution, value.method_name, kwargs, context)


def one_slice(work: Any) -> tuple[str, Any]:
    try:
        return "done", work()
    except TaskDeferred as deferred:
        return "deferred", deferred


def blow(storms: list[Storm], runs: int, tasks: int) -> int:
    """Run it all; returns the number of requests it took."""

    async def all_of_it() -> None:
        await asyncio.gather(*(storm.dag_run(n, tasks) for storm in storms for n in range(runs)))

    for storm in storms:
        storm.qarnot.clear_requests()
    asyncio.run(all_of_it())
    return sum(len(storm.qarnot.requests()) for storm in storms)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits between attempts, and few words about each of them."""
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.05)
    monkeypatch.setattr("airflow_qarnot_pool.waiting.intervals.MAX_BACKOFF", 1.0)
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_fault_storm(
    servers: dict[str, LocalQarnot],
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record_property: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        calm, storms = (
            [
                Storm(qarnot, f"{prefix}_{name}", tmp_path / f"{prefix}-{name}", threads, RETRIES[name])
                for name, qarnot in servers.items()
            ]
            for prefix in ("calm", "storm")
        )
        for storm in (*calm, *storms):
            storm.connect(monkeypatch)
        calm_requests = blow(calm, 1, CALM_TASKS)
        for seed, storm in enumerate(storms):
            storm.qarnot.faults(weather(), seed=seed)
        try:
            requests = blow(storms, RUNS, TASKS)
            faults = Counter(
                one.get("fault") for storm in storms for one in storm.qarnot.requests() if one.get("fault")
            )
        finally:
            for storm in storms:
                storm.qarnot.faults([])
    operations = sum(storm.operations for storm in storms)
    factor = (requests / operations) / (calm_requests / sum(storm.operations for storm in calm))
    found = Counter[str]()
    for storm in storms:
        found += account_of(storm)
    errors = sum((storm.errors for storm in storms), Counter())
    with capsys.disabled():
        print(
            f"\nfault storm: {operations} operations, {sum(s.tries for s in storms)} tries {dict(errors)}, "
            f"{requests} requests, {faults.total()} faults {dict(faults)}, {factor:.2f} times the requests of "
            f"calm weather; duplicates {found['duplicates']}, lost {found['lost']}, left on {found['left on']}"
        )
    assert operations == 2 * RUNS * (TASKS + 2) == 800
    assert 0.15 < faults.total() / requests < 0.25
    assert (found["duplicates"], found["lost"], found["left on"]) == (0, 0, 0)
    assert factor < MOST_REQUESTS


def account_of(storm: Storm) -> Counter[str]:
    """What the server has, now that the storm is over, and what the commands left behind."""
    with QarnotClient(storm.qarnot.url, storm.qarnot.token) as client:
        ours = filters.equal("Tags", namespace_tag(storm.namespace))
        eventually(lambda: all(pool.state != "Closing" for pool in client.pools.iterate(ours)))
        pools, tasks = list(client.pools.iterate(ours)), list(client.tasks.iterate(ours))
    successes = Counter(task.labels["airflow.lineage"] for task in tasks if task.state == "Success")
    expected = {f"run-{run} {number}" for run in range(RUNS) for number in range(TASKS)}
    done = set(storm.effects.read_text().splitlines())
    return Counter(
        {
            "duplicates": sum(times - 1 for times in successes.values()),
            "lost": len(storm.lost) + len(expected - done) + len(expected) - len(successes),
            "left on": sum(pool.state != "Closed" for pool in pools)
            + sum(task.state not in ("Success", "Failure", "Cancelled") for task in tasks),
        }
    )
