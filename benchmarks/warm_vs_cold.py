"""Twelve short Qarnot tasks in three stages of four: on a warm pool of four nodes, and cold, each on a new node.

The operators run in threads, four at a time, waiting on the spot: Airflow's own time, the same for both, is left out.
The pool is made, waited for and closed within the time that is measured.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks import environment
from benchmarks.report import Report, main

BOOTS = (2.0, 5.0, 10.0)
WORK = 1.0
STAGES, WIDTH = 3, 4
POLL = 0.2


@dataclass(frozen=True)
class Run:
    """Result of one way: wall-clock seconds, billed node-seconds (up), requests."""

    wall: float
    nodes: float
    requests: int


def work(stage: int, where: dict[str, Any], seconds: float, way: str) -> None:
    """Run one stage on a pool, or on separate nodes, as the parameters in *where* decide."""
    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
    from tests.harness import FakeTI, context_of

    def one(n: int) -> None:
        operator = QarnotRunTaskOperator(
            task_id=f"work_{stage}_{n}",
            command=f"sleep {seconds}",
            deferrable=False,
            log_output=False,
            **where,
        )
        operator.execute(context_of(operator, FakeTI(task_id=operator.task_id, run_id=way)))

    with ThreadPoolExecutor(WIDTH) as threads:
        list(threads.map(one, range(WIDTH)))


def warm(seconds: float) -> None:
    """On one pool."""
    from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
    from tests.harness import context_of

    create = QarnotCreatePoolOperator(task_id="create", instance_count=WIDTH, deferrable=False)
    pool = create.execute(context_of(create))
    for stage in range(STAGES):
        work(stage, {"qarnot_pool": pool}, seconds, "warm")
    close = QarnotClosePoolOperator(task_id="close", qarnot_pool=pool)
    close.execute(context_of(close))


def cold(seconds: float) -> None:
    """Boot a node for each task."""
    for stage in range(STAGES):
        work(stage, {"task_spec": {"profile": "docker-batch"}}, seconds, "cold")


def timed(way: Any, boot: float, seconds: float) -> Run:
    from airflow_qarnot_pool.local import LocalQarnot

    with LocalQarnot(boot_seconds=boot, close_seconds=0.1) as qarnot:
        environment.connect_qarnot(qarnot, poll_interval=POLL)
        begun = time.monotonic()
        way(seconds)
        wall = time.monotonic() - begun
        time.sleep(0.3)  # the pool gives its nodes back
        return Run(wall=wall, nodes=qarnot.get_account()["nodeSeconds"], requests=len(qarnot.requests()))


def measure(report: Report) -> None:
    boots, seconds = ((0.3,), 0.1) if report.quick else (BOOTS, WORK)
    timed(warm, 0.1, 0.0)  # neither way pays for imports and first requests
    table = report.table(
        f"{STAGES} stages of {WIDTH} Qarnot tasks of {seconds:g} s",
        (
            "boot [s]",
            "warm [s]",
            "cold [s]",
            "cold / warm",
            "warm [node-s]",
            "cold [node-s]",
            "warm, start to start [s]",
        ),
        "Node-seconds: from the time when a node is up until it is released; booting is not billed here. "
        "The last column: what a stage takes on the warm pool beyond its work.",
    )
    for boot in boots:
        runs = {"warm": timed(warm, boot, seconds), "cold": timed(cold, boot, seconds)}
        report.say(f"boots of {boot:g} s")
        hot, chill = runs["warm"], runs["cold"]
        beyond = (hot.wall - boot) / STAGES - seconds
        table.row(boot, hot.wall, chill.wall, chill.wall / hot.wall, hot.nodes, chill.nodes, beyond)
        for name, run in runs.items():
            report.figure(f"{name}.{boot:g}.wall_seconds", run.wall)
            report.figure(f"{name}.{boot:g}.node_seconds", run.nodes)
        report.figure(f"ratio.{boot:g}.wall", chill.wall / hot.wall)


if __name__ == "__main__":
    main("warm_vs_cold", __doc__, measure, waiters=1, meaning="not used here")
