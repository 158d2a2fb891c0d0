"""Ten thousand calls of a Python function on one warm pool, by `.array()`, by `.expand()` of `@task.qarnot`, and by the
official SDK in a mapped Python task.

The pool boots within the time that is measured. The wall-clock time of the array is compared with
*boot + work / slots*, where *work* is the time that all calls sleep. Slices run as in `fan_out`. The ways with an
Airflow task for each call are measured with few calls, one after the other, and reckoned in proportion.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.fan_out import Cost, airflow_task, sdk_mapped, write_costs
from benchmarks.report import Report, main

SLOTS, BOOT, SLEEP = 8, 2.0, 0.1
#: The default is 10. Starting an instance takes about as long as two of these calls.
CHUNK = 50
MAPPED = 12
ARRAY, EXPAND, SDK = ".array()", ".expand()", "SDK, mapped"


def nap(number: int, seconds: float) -> int:
    """The call: a sleep, so that a small machine can have many slots."""
    import time

    time.sleep(seconds)
    return number


def function(pool: str) -> Any:
    from airflow_qarnot_pool.decorators.qarnot import qarnot_task

    return qarnot_task(qarnot_pool=pool, log_output=False)(nap)


def one_array(qarnot: Any, pool: str, count: int, cost: Cost) -> None:
    from tests.harness import FakeTI

    calls = function(pool).override(chunk_size=CHUNK).partial(seconds=SLEEP)
    airflow_task(lambda: calls.array(number=range(count)).operator, FakeTI(run_id="array"), cost)


def expand(qarnot: Any, pool: str, count: int, cost: Cost) -> None:
    from tests.harness import FakeTI

    calls = function(pool)
    for number in range(count):
        ti = FakeTI(run_id="expand", map_index=number)
        airflow_task(lambda number=number: calls(number, SLEEP).operator, ti, cost)  # type: ignore[misc]


def measure(report: Report) -> None:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.local import LocalQarnot

    n = report.waiters
    # Not a script that starts the Python of a version, such as those of pyenv.
    os.environ["PATH"] = f"{Path(sys.executable).resolve().parent}{os.pathsep}{os.environ['PATH']}"
    few = 1 if report.quick else min(MAPPED, n)
    found = {ARRAY: Cost(n), EXPAND: Cost(few), SDK: Cost(few)}
    posts = 0
    with (
        LocalQarnot(boot_seconds=BOOT, close_seconds=0.1) as qarnot,
        QarnotClient(qarnot.url, qarnot.token) as client,
    ):
        environment.connect_qarnot(qarnot, poll_interval=0.5 if report.quick else 2.0)
        for name, way in ((ARRAY, one_array), (EXPAND, expand), (SDK, sdk_mapped)):
            cost = found[name]
            begun = time.monotonic()
            pool = client.pools.create(PoolSpec(name="warm", instance_count=SLOTS))
            qarnot.clear_requests()
            way(qarnot, pool, cost.commands, cost)
            cost.wall = time.monotonic() - begun
            requests = qarnot.requests()
            cost.requests = len(requests)
            if name == ARRAY:
                posts = sum((one["method"], one["path"]) == ("POST", "/tasks") for one in requests)
            client.pools.close(pool)
            report.say(f"{name}, {cost.commands:,} calls")
    mine, best = found[ARRAY], BOOT + n * SLEEP / SLOTS
    table = report.table(
        f"{n:,} calls of {SLEEP:g} s on a pool of {SLOTS} slots, in chunks of {CHUNK}",
        ("", "measured with", "slices", "worker CPU [s]", "requests", "CPU / array", "requests / array"),
        "A figure with * is reckoned from fewer calls, in proportion. "
        f"The array took {mine.wall:.1f} s by the clock. Boot + work / slots are {best:.1f} s.",
    )
    write_costs(report, table, n, found, mine)
    report.figure(f"{ARRAY}.wall_seconds", mine.wall)
    report.figure(f"{ARRAY}.posts", posts)
    report.figure(f"{ARRAY}.wall_over_best", mine.wall / best)
    report.target("requests that create the work", posts, 1)
    report.target("worker CPU of the array", mine.cpu, 20, unit=" s")
    report.target("wall / (boot + work / slots)", mine.wall / best, 1.2)


if __name__ == "__main__":
    main("array", __doc__, measure, waiters=10_000, meaning="how many calls")
