"""Many commands on one warm pool: by one `QarnotRunTasksOperator`, by `.expand()` of `QarnotRunTaskOperator`, and
by the official SDK in a mapped Python task.

Each slice of an Airflow task runs in a process forked from one that has imported Airflow, as LocalExecutor's and
Celery's workers do it, and makes its operators anew, as parsing the DAG does; CPU is that of these processes. What
Airflow adds for each slice (supervisor, API, scheduler) is left out, and so is the triggerer: that favours the ways
with many Airflow tasks. They are measured with few commands, one after the other, and reckoned in proportion; their
wall-clock time is not compared, as Airflow would run several at once.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import environment
from benchmarks.report import Report, Table, main

SLOTS = 8
MAPPED = 12
OURS, EXPAND, SDK = "one QarnotRunTasksOperator", ".expand()", "SDK, mapped"


@dataclass
class Cost:
    """Cost of a number of commands: wall-clock seconds, CPU seconds of workers, slices, requests."""

    commands: int
    wall: float = 0.0
    cpu: float = 0.0
    slices: int = 0
    requests: int = 0


def forked(call: Callable[[], Any], cost: Cost) -> Any:
    """Return the result of *call* in a new process, whose CPU time is added to *cost*."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "wb") as out:
                pickle.dump(call(), out)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        data = answer.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError("a slice failed; see its messages")
    cost.cpu += usage.ru_utime + usage.ru_stime
    cost.slices += 1
    return pickle.loads(data)


def airflow_task(make: Callable[[], Any], ti: Any, cost: Cost) -> None:
    """Run a task to its end, with a process for each slice. Triggers run in this process."""
    from airflow_qarnot_pool.version_compat import TaskDeferred
    from tests.harness import context_of, fire

    def slice_of(method: str | None, event: Any) -> tuple[Any, dict[str, Any]]:
        operator = make()
        context = context_of(operator, ti)
        try:
            if method is None:
                operator.execute(context)
            else:
                operator.resume_execution(method, {"event": event}, context)
        except TaskDeferred as deferred:
            return (deferred.method_name, deferred.trigger.serialize()), ti.xcoms
        return None, ti.xcoms

    method, event = None, None
    while True:
        deferral, ti.xcoms = forked(partial(slice_of, method, event), cost)
        if deferral is None:
            return
        method, serialized = deferral
        event = fire(_Deferred(_Trigger(serialized)))  # type: ignore[arg-type]


@dataclass
class _Trigger:
    serialized: tuple[str, dict[str, Any]]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return self.serialized


@dataclass
class _Deferred:
    trigger: _Trigger


def one_airflow_task(qarnot: Any, pool: str, count: int, cost: Cost) -> None:
    from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
    from tests.harness import FakeTI

    def make() -> Any:
        return QarnotRunTasksOperator(task_id="work", qarnot_pool=pool, commands=["true"] * count)

    airflow_task(make, FakeTI(run_id="ours"), cost)


def expand(qarnot: Any, pool: str, count: int, cost: Cost) -> None:
    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
    from tests.harness import FakeTI

    def make() -> Any:
        return QarnotRunTaskOperator(task_id="work", qarnot_pool=pool, command="true")

    for n in range(count):
        airflow_task(make, FakeTI(run_id="expand", map_index=n), cost)


def sdk_mapped(qarnot: Any, pool: str, count: int, cost: Cost) -> None:
    def run() -> None:
        import qarnot as official

        # Its naps of 10 s cost no CPU, and are cut.
        official.task.time = _Clock()
        connection = official.connection.Connection(cluster_url=qarnot.url, client_token=qarnot.token)
        task = connection.create_task("work", connection.retrieve_pool(pool), 1)
        task.constants["DOCKER_CMD"] = "true"
        task.run()

    for _ in range(count):
        forked(run, cost)


class _Clock:
    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / 10)


def write_costs(report: Report, table: Table, n: int, found: Mapping[str, Cost], mine: Cost) -> None:
    """Write a row for each way, reckoned for *n* pieces of work and compared with *mine*."""
    for name, cost in found.items():
        times = n / cost.commands
        star = "" if times == 1 else "*"
        table.row(
            name,
            cost.commands,
            f"{cost.slices * times:,.0f}{star}",
            f"{cost.cpu * times:,.1f}{star}",
            f"{cost.requests * times:,.0f}{star}",
            cost.cpu * times / mine.cpu,
            cost.requests * times / mine.requests,
        )
        report.figure(f"{name}.cpu_seconds", cost.cpu * times)
        report.figure(f"{name}.requests", cost.requests * times)


def measure(report: Report) -> None:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.local import LocalQarnot

    n = report.waiters
    interval, few = (0.5, 1) if report.quick else (5.0, min(MAPPED, n))
    found = {OURS: Cost(n), EXPAND: Cost(few), SDK: Cost(few)}
    with (
        LocalQarnot(boot_seconds=0.2, close_seconds=0.1) as qarnot,
        QarnotClient(qarnot.url, qarnot.token) as client,
    ):
        qarnot.set_account(maxTask=100_000)
        pool = client.pools.create(PoolSpec(name="warm", instance_count=SLOTS))
        for name, way in ((OURS, one_airflow_task), (EXPAND, expand), (SDK, sdk_mapped)):
            cost = found[name]
            qarnot.clear_requests()
            begun = time.monotonic()
            # A single Qarnot task finishes at once, so a long interval would only add waiting time.
            environment.connect_qarnot(qarnot, poll_interval=interval if name == OURS else 0.5)
            way(qarnot, pool, cost.commands, cost)
            cost.wall = time.monotonic() - begun
            cost.requests = len(qarnot.requests())
            report.say(f"{name}, {cost.commands:,} commands")
    table = report.table(
        f"{n:,} commands on a pool of {SLOTS} slots",
        ("", "measured with", "slices", "worker CPU [s]", "requests", "CPU / ours", "requests / ours"),
        "A figure with * is reckoned from fewer commands, in proportion. "
        f"Ours took {found[OURS].wall:.0f} s by the clock, a poll every {interval:g} s.",
    )
    mine = found[OURS]
    write_costs(report, table, n, found, mine)
    report.figure(f"{OURS}.wall_seconds", mine.wall)
    sdk = found[SDK]
    times = n / sdk.commands
    report.target("share of the worker CPU of the SDK, mapped", mine.cpu / (sdk.cpu * times), 1 / 50)
    report.target("share of the requests of the SDK, mapped", mine.requests / (sdk.requests * times), 1 / 20)


if __name__ == "__main__":
    main("fan_out", __doc__, measure, waiters=1000, meaning="how many commands")
