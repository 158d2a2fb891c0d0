"""How many requests waiting costs, per minute and per finished task, for 1 to 10,000 waiters.

Idle, and with one per cent of the waiters' tasks ending in every round. Ours are real triggers in Airflow's real
``TriggerRunner``. Peers: ``task.wait()`` of the official SDK, one thread for each Airflow task that would run it;
our own triggers when they share nothing; the real triggers of other providers against a stub of their service.
All are measured at the intervals given below, and compared at one interval.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.backlog import Backlog, backlog
from benchmarks.peers import PEERS, Peer, SdkWaiters, Stub
from benchmarks.report import Report, exponent, main
from benchmarks.triggerer import Triggerer

#: Seconds between two polls at which all are compared: the default of ``[qarnot] poll_interval``.
INTERVAL = 5.0
TASK_TRIGGER = "airflow_qarnot_pool.triggers.task.QarnotTaskTrigger"
OURS, ALONE, SDK = "this provider", "not shared", "SDK task.wait()"
MOST_ALONE = MOST_SDK = 1000


@dataclass
class Cost:
    """Of one program with so many waiters: requests per round of polls, idle and with 1 % ending per round.

    ``waiters_rounds``: rounds are counted for each waiter apart, as each asks for itself.
    """

    idle: float
    busy: float = math.nan
    finished: int = 0
    busy_requests: int = 0
    sweeps_idle: float = 0.0
    sweeps_busy: float = 0.0

    @property
    def per_finished(self) -> float:
        return self.busy_requests / self.finished if self.finished else math.nan


class Ending:
    """Ends one per cent every *interval* seconds, in a thread, for the time of a ``with`` block."""

    def __init__(self, some: Callable[[], int], interval: float) -> None:
        self._some, self._interval = some, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ended = 0

    def _run(self) -> None:
        while True:
            self.ended += self._some()
            if self._over.wait(self._interval):
                return

    def __enter__(self) -> Ending:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


def ours(count: int, interval: float, rounds: int, *, alone: bool = False) -> Cost:
    """Our triggers; *alone*: each polls for itself."""
    with backlog(count) as waiting, Triggerer(alone=alone) as triggerer:
        triggerer.add(TASK_TRIGGER, waiting.trigger_kwargs(interval))
        triggerer.settle()
        seconds = rounds * interval

        def window() -> tuple[dict[str, Any], int, float]:
            waiting.qarnot.clear_requests()
            found = triggerer.window(seconds)
            asked = len(waiting.requests())
            return found, asked, found["rounds"] / (count if alone else 1)

        found, asked, done = window()
        cost = Cost(idle=asked / done, sweeps_idle=found["lookups"] / done)
        if count >= 100:
            with Ending(lambda: len(waiting.end_some()), interval):
                # The polls of those that end go with them, and so does their count of rounds.
                found, asked, done = window()
                done = seconds / interval if alone else done
            cost.busy, cost.sweeps_busy = asked / done, found["lookups"] / done
            cost.finished, cost.busy_requests = len(found["fired"]), asked
        return cost


def sdk(count: int, rounds: int) -> Cost:
    """The SDK's ``task.wait()``, a thread for each."""
    with backlog(count, connect=False) as waiting:
        waiters = SdkWaiters(waiting.qarnot.url, waiting.qarnot.token, waiting.uuids)
        time.sleep(SdkWaiters.INTERVAL * 1.05)

        def polls(seconds: float) -> int:
            waiting.qarnot.clear_requests()
            time.sleep(seconds)
            return len(waiting.requests())

        cost = Cost(idle=polls(SdkWaiters.INTERVAL * rounds) / rounds)
        if count >= 100:
            with Ending(lambda: len(waiting.end_some()), SdkWaiters.INTERVAL):
                cost.busy_requests = polls(SdkWaiters.INTERVAL * (rounds + 1))
            cost.busy, cost.finished = cost.busy_requests / (rounds + 1), len(waiters.ended)
        return cost


def provider(peer: Peer, count: int, interval: int, rounds: int) -> Cost:
    """The triggers of another provider."""
    with Stub() as stub, Triggerer() as triggerer:
        triggerer.add(peer.classpath, peer.kwargs(count, interval))
        while stub.seen() < count:
            time.sleep(0.1)
        stub.requests()
        found = triggerer.window(rounds * interval)
        cost = Cost(idle=stub.requests() / (found["seconds"] / interval))
        if count >= 100:
            left = list(range(1, count + 1))

            def some() -> int:
                ended = [left.pop() for _ in range(count // 100)]
                stub.end(ended)
                return len(ended)

            with Ending(some, interval):
                found = triggerer.window(rounds * interval)
            cost.busy_requests = stub.requests()
            cost.busy = cost.busy_requests / (found["seconds"] / interval)
            cost.finished = len(found["fired"])
        return cost


def measure(report: Report) -> None:
    sizes = [n for n in (1, 10, 100, 1000, 10_000) if n < report.waiters] + [report.waiters]
    costs: dict[str, dict[int, Cost]] = {OURS: {}, ALONE: {}, SDK: {}}
    peers = [peer for peer in PEERS if peer.installed]
    failed: list[BaseException] = []

    def others() -> None:
        try:
            for peer in peers:
                costs[peer.name] = {}
                for count in (n for n in sizes if n <= peer.most and n != 10):
                    rounds = 2 if report.quick else 6
                    costs[peer.name][count] = provider(peer, count, 2 if count >= 1000 else 1, rounds)
                    report.say(f"{peer.name}, {count:,} waiters")
        except BaseException as error:
            failed.append(error)

    def official() -> None:
        try:
            for count in (n for n in sizes if n <= MOST_SDK and n != 10):
                costs[SDK][count] = sdk(count, 1 if report.quick else 2)
                report.say(f"{SDK}, {count:,} waiters")
        except BaseException as error:
            failed.append(error)

    # Requests are counted here, not timed, so the peers may be measured at the same time.
    beside = [threading.Thread(target=one) for one in ((official,) if report.quick else (official, others))]
    for thread in beside:
        thread.start()
    for count in sizes:
        interval = 2.0 if count > 1000 else 0.5
        costs[OURS][count] = ours(count, interval, 4 if report.quick else 24 if count <= 1000 else 13)
        report.say(f"{OURS}, {count:,} waiters")
    for count in (n for n in sizes if n <= MOST_ALONE and n != 10):
        # Every one of them has a thread and a connection: at 1,000 a shorter interval would be too much.
        interval, rounds = (5.0, 3) if count >= 1000 else (1.0, 13)
        costs[ALONE][count] = ours(count, interval, 3 if report.quick else rounds, alone=True)
        report.say(f"{ALONE}, {count:,} waiters")
    for thread in beside:
        thread.join()
    if failed:
        raise failed[0]
    _tell(report, sizes, costs)


def _tell(report: Report, sizes: list[int], costs: dict[str, dict[int, Cost]]) -> None:
    per_minute = 60 / INTERVAL
    names = [name for name in costs if costs[name]]

    def minute(name: str, count: int) -> tuple[float, bool]:
        """Requests per minute, and whether they are reckoned from a smaller measurement."""
        if count in costs[name]:
            return costs[name][count].idle * per_minute, False
        most = max(costs[name])
        return costs[name][most].idle * per_minute * count / most, True

    table = report.table(
        f"Requests per minute while nothing changes, one poll every {INTERVAL:g} s",
        ["waiters", *names, "fewest of the peers / ours"],
        "Sweeps are included. A figure with * is reckoned from the largest number of waiters measured, in proportion.",
    )
    for count in (n for n in sizes if n != 10):
        cells, rates = [], {}
        for name in names:
            rates[name], reckoned = minute(name, count)
            report.figure(f"{name}.idle.{count}.requests_per_minute", rates[name])
            cells.append(f"{rates[name]:,.0f}{'*' if reckoned else ''}")
        ratio = min(rate for name, rate in rates.items() if name != OURS) / rates[OURS]
        report.figure(f"ratio.idle.{count}", ratio)
        table.row(f"{count:,}", *cells, ratio)
    grows = {name: exponent({n: c.idle for n, c in costs[name].items()}) for name in names}
    table.row("grows with N to the", *grows.values(), None)
    for name, power in grows.items():
        report.figure(f"{name}.idle.exponent", power)

    table = report.table(
        "Requests per finished task while 1 % end in every round",
        ["waiters", *names, "fewest of the peers / ours"],
        "Until it ends a task has been waited for by 100 rounds; where one ends per round, that is what polling apart costs.",
    )
    for count in (n for n in sizes if n >= 100):
        each = {name: costs[name][count].per_finished for name in names if count in costs[name]}
        rest = [value for name, value in each.items() if name != OURS and not math.isnan(value)]
        ratio = min(rest) / each[OURS] if rest and each[OURS] else math.nan
        for name, value in each.items():
            report.figure(f"{name}.busy.{count}.requests_per_finished", value)
        report.figure(f"ratio.busy.{count}", ratio)
        table.row(f"{count:,}", *(each.get(name) for name in names), ratio)

    table = report.table(
        "A round of the shared poll, in requests",
        ["waiters", "idle: changes", "idle: sweeps", "1 % changing: changes", "1 % changing: sweeps"],
        "Changes: the one query, and pages where it comes back full. Sweeps: everybody by uuid, 500 in a request, once "
        "in 12 rounds.",
    )
    for count in sizes:
        cost = costs[OURS][count]
        table.row(f"{count:,}", cost.idle - cost.sweeps_idle, cost.sweeps_idle, cost.busy - cost.sweeps_busy, cost.sweeps_busy)
        report.figure(f"{OURS}.idle.{count}.requests_per_round", cost.idle)
        report.figure(f"{OURS}.idle.{count}.changes_per_round", cost.idle - cost.sweeps_idle)
        report.figure(f"{OURS}.busy.{count}.requests_per_round", cost.busy)
        report.figure(f"{OURS}.busy.{count}.changes_per_round", cost.busy - cost.sweeps_busy)

    most = max(sizes)
    few = costs[OURS][10 if 10 in sizes else min(sizes)]
    many = costs[OURS][most]
    report.target(
        f"idle rounds cost the same at 10 and at {most:,} waiters (ratio)",
        (many.idle - many.sweeps_idle) / (few.idle - few.sweeps_idle),
        1.1,
    )
    report.target("requests per round with 1 % changing, sweeps apart", many.busy - many.sweeps_busy, 2.0)
    for count in (n for n in sizes if n >= 100):
        mine = minute(OURS, count)[0]
        report.target(f"times fewer than one poll per waiter, {count:,} waiters", minute(ALONE, count)[0] / mine, 100, least=True)
        report.target(f"times fewer than the SDK, {count:,} waiters", minute(SDK, count)[0] / mine, 100, least=True)


if __name__ == "__main__":
    main("poll_cost", __doc__, measure, waiters=10_000, meaning="the largest number of waiters")
