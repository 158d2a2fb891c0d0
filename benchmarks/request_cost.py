"""Requests per operation against the official SDK, on the same local Qarnot.

Three Airflow tasks: one makes a pool of one node and waits until it is ready, one runs a Qarnot task on it to its end
and reads its output, one closes the pool. Ours are the operators as Airflow runs them, slice by slice; the SDK's are
Python tasks that follow its documentation. Each Airflow task is a process and has to connect. The number of requests
of a wait depends on its duration, so nodes and work take the same time for both. Both poll every 10 s, which is the
only interval of the SDK.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks import environment
from benchmarks.report import Report, main

STEPS = ("connect", "create the pool", "wait for the pool", "submit", "wait for the task", "output", "close")
OURS, SDK = "this provider", "official SDK"
SDK_INTERVAL = 10.0
#: Ours logs the cost of the pool and its idle share; a user of the SDK would have to request them.
COST = "cost of the pool"


class Counter:
    """Requests by step."""

    def __init__(self, qarnot: Any) -> None:
        self._qarnot = qarnot
        self.steps: dict[str, list[str]] = {step: [] for step in STEPS}
        qarnot.clear_requests()

    def __call__(self, step: str) -> None:
        """Those since the last call belong to *step*."""
        self.steps[step] += [f"{one['method']} {one['path']}" for one in self._qarnot.requests()]
        self._qarnot.clear_requests()

    @property
    def total(self) -> int:
        """Without what only one of them does."""
        return sum(len(self.steps[step]) for step in STEPS)


def ours(qarnot: Any, command: str, interval: float) -> Counter:
    """The operators."""
    from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
    from tests.harness import FakeTI, context_of, defer, fire

    environment.connect_qarnot(qarnot, poll_interval=interval)
    count = Counter(qarnot)

    def slices(make: Callable[[], Any], began: str, waited: str, resumed: str) -> Any:
        deferred, context = defer(make, FakeTI(task_id=make().task_id))
        count(began)
        event = fire(deferred)
        count(waited)
        operator = make()
        result = operator.resume_execution(
            deferred.method_name, {"event": event}, {**context, "task": operator}
        )
        count(resumed)
        return result

    def create() -> Any:
        return QarnotCreatePoolOperator(task_id="create", instance_count=1)

    pool = slices(create, "create the pool", "wait for the pool", "wait for the pool")

    def work() -> Any:
        return QarnotRunTaskOperator(task_id="work", qarnot_pool=pool, command=command)

    slices(work, "submit", "wait for the task", "output")
    close = QarnotClosePoolOperator(task_id="close", qarnot_pool=pool)
    close.execute(context_of(close))
    count("close")
    said = count.steps["close"]
    count.steps["close"] = [one for one in said if one.endswith("/close")]
    count.steps[COST] = [one for one in said if not one.endswith("/close")]
    return count


def sdk(qarnot: Any, command: str, interval: float) -> Counter:
    """The SDK. It has no wait for pools, so its user writes the loop."""
    import qarnot as official

    count = Counter(qarnot)

    def connected() -> Any:
        connection = official.connection.Connection(cluster_url=qarnot.url, client_token=qarnot.token)
        count("connect")
        return connection

    pool = connected().create_pool("warm", "docker-batch", 1)
    pool.submit()
    count("create the pool")
    while pool.state != "FullyExecuting":
        time.sleep(interval)
        pool.update(True)
    count("wait for the pool")

    connection = connected()
    task = connection.create_task("work", connection.retrieve_pool(pool.uuid), 1)
    task.constants["DOCKER_CMD"] = command
    task.submit()
    count("submit")
    if interval == SDK_INTERVAL:
        task.wait()
    else:  # with --quick: not to wait for its fixed interval
        task.wait(timeout=interval)
        task.wait(timeout=interval)
    count("wait for the task")
    task.stdout()
    task.stderr()
    count("output")

    connected().retrieve_pool(pool.uuid).close()
    count("close")
    return count


def measure(report: Report) -> None:
    from airflow_qarnot_pool.local import LocalQarnot

    boot, work, interval = (0.3, 0.2, 0.5) if report.quick else (8.0, 15.0, SDK_INTERVAL)
    with LocalQarnot(boot_seconds=boot, close_seconds=0.1) as qarnot:
        mine = ours(qarnot, f"sleep {work}", interval)
        report.say(OURS)
        theirs = sdk(qarnot, f"sleep {work}", interval)
        report.say(SDK)
    table = report.table(
        f"Requests: the node boots for {boot:g} s, the work takes {work:g} s, a poll every {interval:g} s",
        ("", OURS, SDK, "SDK / ours"),
        "The output of a Qarnot task: its final state, and its two streams. Only our teardown reports the cost of a "
        "pool, which is left out of the comparison.",
    )
    for step in STEPS:
        few, many = len(mine.steps[step]), len(theirs.steps[step])
        table.row(step, few, many, many / few if few else None)
        report.figure(f"{OURS}.{step}", few)
        report.figure(f"{SDK}.{step}", many)
    table.row("all", mine.total, theirs.total, theirs.total / mine.total)
    table.row(COST, len(mine.steps[COST]), None, None)
    report.figure(f"{OURS}.{COST}", len(mine.steps[COST]))
    report.figure(f"{OURS}.all", mine.total)
    report.figure(f"{SDK}.all", theirs.total)
    report.target("create + run + close, share of the SDK's requests", mine.total / theirs.total, 0.5)


if __name__ == "__main__":
    main("request_cost", __doc__, measure, waiters=1, meaning="not used here")
