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

from airflow_qarnot_pool.parameters.configuration import LONGEST, SHORTEST
from airflow_qarnot_pool.waiting.intervals import poll_delay
from benchmarks.backlog import backlog
from benchmarks.peers import PEERS, Peer, SdkWaiters, Stub
from benchmarks.report import Report, exponent, main
from benchmarks.triggerer import Triggerer

#: Seconds between two polls at which all are compared.
INTERVAL = 5.0
TASK_TRIGGER = "airflow_qarnot_pool.triggers.task.QarnotTaskTrigger"
OURS, ALONE, SDK = "this provider", "not shared", "SDK task.wait()"
#: Each without a share has a thread and a connection, and so has each of the SDK.
MOST_ALONE, MOST_SDK = 100, 1000
#: Times since the last change, in seconds.
AGES = {"now": 0.0, "a minute ago": 60.0, "ten minutes ago": 600.0, "an hour ago": 3600.0}
#: Rounds of a window, because one of them is then a full poll.
ROUNDS = 13


@dataclass
class Cost:
    """Cost of one program: requests per round of polls, idle and with 1 % ending per round."""

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

        def window() -> tuple[dict[str, Any], float]:
            found = triggerer.window(seconds)
            found["sweeps"] = found["requests"] - found["changes"]
            return found, found["rounds"] / (count if alone else 1)

        found, done = window()
        cost = Cost(idle=found["requests"] / done, sweeps_idle=found["sweeps"] / done)
        if count > 10:
            with Ending(lambda: len(waiting.end_some()), interval):
                found, done = window()
                # Those that end poll no more, so their rounds do not measure the time.
                done = seconds / interval if alone else done
            cost.busy, cost.sweeps_busy = found["requests"] / done, found["sweeps"] / done
            cost.finished, cost.busy_requests = len(found["fired"]), found["requests"]
        return cost


def sdk(count: int, rounds: int, interval: float = SdkWaiters.INTERVAL) -> Cost:
    """The SDK's ``task.wait()``, a thread for each."""
    with (
        backlog(count, connect=False) as waiting,
        SdkWaiters(waiting.qarnot.url, waiting.qarnot.token, waiting.uuids, interval) as waiters,
    ):
        time.sleep(interval * 1.05)

        def polls(seconds: float) -> int:
            waiting.qarnot.clear_requests()
            time.sleep(seconds)
            return len(waiting.requests())

        cost = Cost(idle=polls(interval * rounds) / rounds)
        if count > 10:
            with Ending(lambda: len(waiting.end_some()), interval):
                cost.busy_requests = polls(interval * (rounds + 1))
            cost.busy, cost.finished = cost.busy_requests / (rounds + 1), len(waiters.ended)
        return cost


def provider(peer: Peer, count: int, interval: int, rounds: int) -> Cost:
    """The triggers of another provider."""
    with Stub() as stub, Triggerer() as triggerer:
        triggerer.add(peer.classpath, peer.kwargs(count, interval, stub))
        stub.wait_for(count)
        stub.requests()
        found = triggerer.window(rounds * interval)
        cost = Cost(idle=stub.requests() / (found["seconds"] / interval))
        if count > 10:
            left = list(range(1, count + 1))

            def some() -> int:
                ended = [left.pop() for _ in range(-(-count // 100))]
                stub.end(ended)
                return len(ended)

            with Ending(some, interval):
                found = triggerer.window(rounds * interval)
            cost.busy_requests = stub.requests()
            cost.busy = cost.busy_requests / (found["seconds"] / interval)
            cost.finished = len(found["fired"])
        return cost


def sizes_of(report: Report) -> list[int]:
    """The numbers of waiters that a program measures."""
    if report.quick:
        return [report.waiters]
    return [n for n in (1, 100, 1000, 10_000) if n < report.waiters] + [report.waiters]


def measure(report: Report) -> None:
    sizes = sizes_of(report)
    costs: dict[str, dict[int, Cost]] = {OURS: {}, ALONE: {}, SDK: {}}
    failed: list[BaseException] = []

    def others() -> None:
        for peer in (one for one in PEERS if one.installed and not report.quick):
            costs[peer.name] = {}
            for count in sorted({n for n in sizes if n <= peer.most} | {min(peer.most, report.waiters)}):
                costs[peer.name][count] = provider(peer, count, 2 if count >= 1000 else 1, 6)
                report.say(f"{peer.name}, {count:,} waiters")

    def official() -> None:
        for count in (n for n in sizes if n <= MOST_SDK):
            costs[SDK][count] = sdk(count, 1, 0.5) if report.quick else sdk(count, 2)
            report.say(f"{SDK}, {count:,} waiters")

    def beside(program: Callable[[], None]) -> None:
        try:
            program()
        except BaseException as error:
            failed.append(error)

    # Requests are counted here, not timed, so the peers may be measured at the same time.
    threads = [threading.Thread(target=beside, args=(one,)) for one in (official, others)]
    for thread in threads:
        thread.start()
    if report.quick:
        costs[OURS][report.waiters] = ours(report.waiters, 0.5, 2)
    else:
        for count in sorted({*sizes, min(10, report.waiters)}):
            costs[OURS][count] = ours(count, *((2.0, ROUNDS) if count > 1000 else (0.5, ROUNDS)))
            report.say(f"{OURS}, {count:,} waiters")
        for count in (n for n in sizes if n <= MOST_ALONE):
            costs[ALONE][count] = ours(count, 1.0, ROUNDS, alone=True)
            report.say(f"{ALONE}, {count:,} waiters")
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    _tell(report, sizes, costs)


def _tell(report: Report, sizes: list[int], costs: dict[str, dict[int, Cost]]) -> None:
    names = [name for name in costs if costs[name]]
    rates = _idle(report, sizes, names, costs)
    _finished(report, sizes, names, costs)
    _rounds(report, costs[OURS])
    most = max(sizes)
    _ages(report, most, costs[OURS][most])
    few, many = costs[OURS][min(n for n in costs[OURS] if n >= 10 or n == most)], costs[OURS][most]
    report.target(
        f"an idle round at {most:,} waiters costs as much as at 10 (ratio)",
        (many.idle - many.sweeps_idle) / (few.idle - few.sweeps_idle),
        1.1,
    )
    report.target("requests per round with 1 % changing, sweeps apart", many.busy - many.sweeps_busy, 2.0)
    # With 100 waiters the very best, one request a round and no sweeps, would be 100 times fewer.
    for count in (n for n in sizes if n >= 1000):
        for name, peer in ((ALONE, "one poll per waiter"), (SDK, "the SDK")):
            if name in names:
                ratio = rates[name][count] / rates[OURS][count]
                report.target(f"times fewer than {peer}, {count:,} waiters", ratio, 100, least=True)


def _idle(
    report: Report, sizes: list[int], names: list[str], costs: dict[str, dict[int, Cost]]
) -> dict[str, dict[int, float]]:
    """Requests per minute, by program and number of waiters."""
    table = report.table(
        f"Requests per minute while nothing changes, one poll every {INTERVAL:g} s",
        ["waiters", *names, "fewest of the peers / ours"],
        "Sweeps are included. A figure with * is reckoned, in proportion, from the largest number measured. A peer "
        "whose triggerer could not keep the interval asked less often than it should have.",
    )
    rates: dict[str, dict[int, float]] = {name: {} for name in names}
    for count in sizes:
        cells = []
        for name in names:
            measured = min(count, max(costs[name]))
            rates[name][count] = rate = costs[name][measured].idle * 60 / INTERVAL * count / measured
            report.figure(f"{name}.idle.{count}.requests_per_minute", rate)
            cells.append(f"{rate:,.0f}{'' if measured == count else '*'}")
        peers = [rates[name][count] for name in names if name != OURS]
        ratio = min(peers) / rates[OURS][count]
        report.figure(f"ratio.idle.{count}", ratio)
        table.row(f"{count:,}", *cells, ratio)
    grows = [exponent({n: one.idle for n, one in costs[name].items()}) for name in names]
    table.row("grows as N to the", *grows, None)
    for name, power in zip(names, grows, strict=True):
        report.figure(f"{name}.idle.exponent", power)
    return rates


def _finished(report: Report, sizes: list[int], names: list[str], costs: dict[str, dict[int, Cost]]) -> None:
    table = report.table(
        "Requests per finished task while 1 % end in every round",
        ["waiters", *names, "fewest of the peers / ours"],
        "Polling apart asks for each of the waiters in every round in which one per cent of them ends.",
    )
    for count in (n for n in sizes if n > 10):
        each = {name: costs[name][count].per_finished for name in names if count in costs[name]}
        peers = [value for name, value in each.items() if name != OURS and not math.isnan(value)]
        ratio = min(peers) / each[OURS] if peers and each[OURS] else math.nan
        for name, value in each.items():
            report.figure(f"{name}.busy.{count}.requests_per_finished", value)
        report.figure(f"ratio.busy.{count}", ratio)
        table.row(f"{count:,}", *(each.get(name) for name in names), ratio)


def _rounds(report: Report, mine: dict[int, Cost]) -> None:
    table = report.table(
        "A round of the shared poll, in requests",
        ["waiters", "idle: changes", "idle: sweeps", "1 % ending: changes", "1 % ending: sweeps"],
        "Changes: the one query, and pages if it comes back full. Sweeps: all objects by uuid, 500 in a request, "
        "once in 12 rounds, and the polls of their pools.",
    )
    for count, cost in mine.items():
        parts = {
            "idle.changes": cost.idle - cost.sweeps_idle,
            "idle.sweeps": cost.sweeps_idle,
            "busy.changes": cost.busy - cost.sweeps_busy,
            "busy.sweeps": cost.sweeps_busy if cost.finished else math.nan,
        }
        table.row(f"{count:,}", *parts.values())
        for name, value in parts.items():
            report.figure(f"round.{name}.{count}", value)


def _ages(report: Report, waiters: int, cost: Cost) -> None:
    from airflow_qarnot_pool.triggers.poller import JITTER, SWEEP_EVERY  # imports Airflow

    table = report.table(
        f"Requests per minute with the default options, {waiters:,} waiters",
        [
            "last change",
            "seconds between polls",
            "idle",
            "1 % ending in each round",
            f"idle, every {INTERVAL:g} s",
        ],
        "Reckoned from the cost of a round and of a full poll. The interval follows the last change of any of them.",
    )
    for name, age in AGES.items():
        delay = poll_delay(age, SHORTEST, LONGEST) * (1 - JITTER / 2)
        # A full poll comes after some rounds, and not before these could be rare ones.
        full = max(SWEEP_EVERY * delay, (1 - JITTER) * SWEEP_EVERY * LONGEST)
        idle, busy = (
            60 * (changes / delay + SWEEP_EVERY * sweeps / full)
            for changes, sweeps in (
                (cost.idle - cost.sweeps_idle, cost.sweeps_idle),
                (cost.busy - cost.sweeps_busy, cost.sweeps_busy),
            )
        )
        table.row(name, delay, idle, busy, 60 * cost.idle / INTERVAL)
        report.figure(f"age.{age:g}.idle.requests_per_minute", idle)
        report.figure(f"age.{age:g}.busy.requests_per_minute", busy)
        if age >= 600:
            report.target(f"requests per minute, {waiters:,} idle waiters, {name}", idle, 15)
        if age == 0:
            report.target(f"requests per minute, {waiters:,} waiters, 1 % ending in each round", busy, 100)


if __name__ == "__main__":
    main("poll_cost", __doc__, measure, waiters=10_000, meaning="the largest number of waiters")
