"""How long after the remote change the trigger fires its event, against the poll interval.

One per cent of the waiters' Qarnot tasks end at random moments, whatever the phase of the polls. Counted from before
the request that ends them is sent until the event is in the triggerer's queue.

The last table has the default options, and Qarnot tasks that were submitted less than a minute ago. Those of a worker
are polled by as many threads as mapped siblings may wait on workers, and counted until the wait returns.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from airflow_qarnot_pool.parameters.configuration import DEFER_AFTER, LONGEST, SHORTEST
from airflow_qarnot_pool.waiting.conditions import TASK_ENDED
from airflow_qarnot_pool.waiting.intervals import MAX_SIBLINGS_ON_WORKERS, Forecast
from airflow_qarnot_pool.waiting.polling import KillFlag, wait_on_worker
from benchmarks.backlog import backlog
from benchmarks.peers import DATABRICKS, Peer, SdkWaiters, Stub
from benchmarks.poll_cost import ALONE, OURS, SDK, TASK_TRIGGER, sizes_of
from benchmarks.report import Report, exponent, main, median, percentile
from benchmarks.triggerer import Triggerer

INTERVAL = 2.0
MOST_ALONE, MOST_PEER = 100, 1000


class Changes(AbstractContextManager["Changes"]):
    """Ends some tasks at random times, once in *pause* seconds on average, during a ``with`` block."""

    def __init__(self, end_some: Callable[[], Sequence[Hashable]], pause: float) -> None:
        self._end_some, self._pause = end_some, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ended: dict[Hashable, float] = {}

    def _run(self) -> None:
        chance = random.Random(7)
        while not self._over.wait(chance.uniform(0, 2 * self._pause)):
            now = time.time()
            self.ended |= dict.fromkeys(self._end_some(), now)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def latencies(self, fired: dict[Hashable, float]) -> list[float]:
        """Return the seconds from change to event, infinite without an event."""
        return [fired.get(one, math.inf) - then for one, then in self.ended.items()]


def ours(
    count: int,
    seconds: float,
    interval: float = INTERVAL,
    *,
    alone: bool = False,
    grace: float | None = None,
) -> list[float]:
    """Our triggers.

    :param alone: each polls for itself.
    :param grace: seconds in which the last events may come. Default: three intervals.
    """
    with backlog(count) as waiting, Triggerer(alone=alone) as triggerer:
        triggerer.add(TASK_TRIGGER, waiting.trigger_kwargs(interval))
        triggerer.settle()
        with Changes(waiting.end_some, seconds / 50) as changes:
            triggerer.window(seconds)
        fired = triggerer.window(3 * interval if grace is None else grace)["fired"]
        return changes.latencies({waiting.uuids[int(n) - 1]: then for n, then in fired.items()})


class DefaultRhythm(AbstractContextManager["DefaultRhythm"]):
    """Polls follow the age, as with the default options, during a ``with`` block."""

    OPTION = "AIRFLOW__QARNOT__MIN_POLL_INTERVAL"

    def __enter__(self) -> DefaultRhythm:
        self._before = os.environ[self.OPTION]
        os.environ[self.OPTION] = str(SHORTEST)
        return self

    def __exit__(self, *_: object) -> None:
        os.environ[self.OPTION] = self._before


def young_in_triggerer(count: int, seconds: float) -> list[float]:
    """Our triggers, of Qarnot tasks that end within *seconds* after the first polls."""
    with DefaultRhythm():
        return ours(count, seconds, LONGEST, grace=5.0)


def young_on_workers(count: int, seconds: float) -> list[float]:
    """Our waits on workers, of *count* Qarnot tasks that end within *seconds* after the start of the waits."""
    with (
        DefaultRhythm(),
        backlog(count) as waiting,
        ThreadPoolExecutor(count) as threads,
        Changes(waiting.end_some, seconds / count) as changes,
    ):

        def wait(uuid: str) -> tuple[Hashable, float]:
            wait_on_worker(
                waiting.client.tasks.get,
                uuid,
                TASK_ENDED,
                LONGEST,
                None,
                KillFlag(),
                forecast=Forecast(DEFER_AFTER),
            )
            return uuid, time.time()

        return changes.latencies(dict(threads.map(wait, waiting.uuids)))


def sdk(count: int, seconds: float, interval: float = SdkWaiters.INTERVAL) -> list[float]:
    """The SDK's ``task.wait()``."""
    with (
        backlog(count, connect=False) as waiting,
        SdkWaiters(waiting.qarnot.url, waiting.qarnot.token, waiting.uuids, interval) as waiters,
    ):
        time.sleep(interval * 1.05)
        with Changes(waiting.end_some, seconds / 50) as changes:
            time.sleep(seconds)
        time.sleep(1.5 * interval)
        return changes.latencies(dict(waiters.ended))


def provider(peer: Peer, count: int, seconds: float) -> list[float]:
    """The triggers of another provider."""
    with Stub() as stub, Triggerer() as triggerer:
        triggerer.add(peer.classpath, peer.kwargs(count, int(INTERVAL), stub))
        stub.wait_for(count)
        left = list(range(1, count + 1))

        def end_some() -> list[int]:
            ended = [left.pop() for _ in range(-(-count // 100)) if left]
            stub.end(ended)
            return ended

        with Changes(end_some, seconds / 50) as changes:
            triggerer.window(seconds)
        fired = triggerer.window(3 * INTERVAL)["fired"]
        return changes.latencies({int(n): then for n, then in fired.items()})


def measure(report: Report) -> None:
    seconds, each = (2.0, INTERVAL / 4) if report.quick else (30.0, INTERVAL)
    sizes = [n for n in sizes_of(report) if n > 1 or n == report.waiters]
    some = [n for n in sizes if n == min(MOST_PEER, report.waiters)]
    runs: list[tuple[str, int, float, Callable[[], list[float]]]] = [
        (OURS, count, each, lambda count=count: ours(count, seconds, each)) for count in sizes
    ]
    if not report.quick:
        runs += [(SDK, n, SdkWaiters.INTERVAL, lambda n=n: sdk(n, seconds)) for n in some]
        if DATABRICKS.installed:
            runs += [
                (DATABRICKS.name, n, INTERVAL, lambda n=n: provider(DATABRICKS, n, seconds)) for n in some
            ]
        few = min(MOST_ALONE, report.waiters)
        runs += [(ALONE, few, INTERVAL, lambda: ours(few, seconds, alone=True))]
    table = report.table(
        "From the remote change to the event",
        ("waiters", "", "interval [s]", "changes", "p50 [s]", "p99 [s]", "p50 / interval", "p99 / interval"),
        f"Not more than {MOST_PEER:,} of the others, and {MOST_ALONE:,} without sharing. The SDK's interval "
        "is fixed.",
    )
    mine: dict[int, list[float]] = {}
    for name, count, interval, program in runs:
        took = program()
        middle, late = median(took), percentile(took, 0.99)
        table.row(f"{count:,}", name, interval, len(took), middle, late, middle / interval, late / interval)
        report.say(" | ".join(table.rows[-1]))
        report.figure(f"{name}.{count}.p50_of_interval", middle / interval)
        report.figure(f"{name}.{count}.p99_of_interval", late / interval)
        if name == OURS:
            mine[count] = took
    power = exponent({n: median(took) for n, took in mine.items()})
    report.figure("exponent.p50", power)
    if power is not None:
        table.row("grows as N to the", OURS, None, None, power, None, None, None)
    goal = 1000 if 1000 in mine else max(mine)
    report.target(f"p50 / interval, {goal:,} waiters", median(mine[goal]) / each, 0.6)
    report.target(f"p99 / interval, {goal:,} waiters", percentile(mine[goal], 0.99) / each, 1.2)
    measure_young(report)


def measure_young(report: Report) -> None:
    """Measure the waits for Qarnot tasks that are younger than a minute."""
    some, rounds = min(MAX_SIBLINGS_ON_WORKERS, report.waiters), 1 if report.quick else 10
    on_workers = [
        late for _ in range(rounds) for late in young_on_workers(some, 2.0 if report.quick else DEFER_AFTER)
    ]
    in_triggerer = young_in_triggerer(report.waiters, 2.0 if report.quick else 40.0)
    table = report.table(
        "From the end on Qarnot until it is seen, tasks younger than a minute, default options",
        ("", "waiters", "changes", "p50 [s]", "p99 [s]"),
        "On a worker: without a forecast from an earlier DAG run. In the triggerer: without the 5 s before which no "
        "trigger fires (docs/upgrade-airflow.md).",
    )
    for name, count, took in (
        ("on a worker", some, on_workers),
        ("in the triggerer", report.waiters, in_triggerer),
    ):
        middle, late = median(took), percentile(took, 0.99)
        table.row(name, f"{count:,}", len(took), middle, late)
        report.say(" | ".join(table.rows[-1]))
        report.figure(f"young.{name}.p50", middle)
        report.figure(f"young.{name}.p99", late)
        report.target(f"median, {name}", middle, 0.7, unit=" s")
        report.target(f"p99, {name}", late, 2.0, unit=" s")


if __name__ == "__main__":
    main("detection_latency", __doc__, measure, waiters=1000, meaning="the largest number of waiters")
