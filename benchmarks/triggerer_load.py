"""What waiting costs the triggerer: CPU, memory per waiter, and how late its event loop wakes up.

Triggers run in Airflow's real ``TriggerRunner``, in a process that does nothing else. Beside ours: triggers of
ours that share nothing, the triggers of other providers against a stub of their service, and one of Airflow's own
that only sleeps, which is what any trigger costs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from benchmarks.backlog import backlog
from benchmarks.peers import PEERS, Peer, Stub
from benchmarks.poll_cost import ALONE, OURS, TASK_TRIGGER, Ending, sizes_of
from benchmarks.report import Report, exponent, main, percentile
from benchmarks.triggerer import Triggerer

#: Seconds between two polls; five times as often as by default, so that a window holds many.
INTERVAL = 1.0
SLEEPING = "a trigger that sleeps"
SLEEPER = "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
MOST_ALONE = 100
COLUMNS = (
    "waiters",
    "",
    "CPU [%]",
    "memory per waiter [kB]",
    "lag p50 [ms]",
    "lag p99 [ms]",
    "lag max [ms]",
    "longest CPU slice [ms]",
)


@dataclass(frozen=True)
class Load:
    """Of one triggerer over a stretch of time; lags and slices in seconds, memory in bytes per waiter."""

    cpu: float
    memory: float
    lag: list[float]
    blocked: list[float]


def loaded(
    triggerer: Triggerer,
    classpath: str,
    kwargs: list[dict[str, Any]],
    settle: Callable[[int], object],
    seconds: float,
    meanwhile: AbstractContextManager[object] | None = None,
) -> Load:
    """Start the triggers and watch the process. Memory is what all but the first of them add.

    :param settle: returns when so many of them really wait.
    """
    triggerer.add(classpath, kwargs[:1])
    settle(1)
    first = triggerer.memory()
    triggerer.add(classpath, kwargs[1:])
    settle(len(kwargs))
    with meanwhile or nullcontext():
        found = triggerer.window(seconds)
    return Load(
        cpu=found["cpu"] / found["seconds"],
        memory=(triggerer.memory() - first) / max(1, len(kwargs) - 1),
        lag=found["lag"],
        blocked=found["blocked"],
    )


def ours(count: int, seconds: float, *, alone: bool = False, end_some: bool = False) -> Load:
    """Our triggers; *alone*: each polls for itself; *end_some*: one per cent ends in every round."""
    with backlog(count) as waiting, Triggerer(alone=alone) as triggerer:
        return loaded(
            triggerer,
            TASK_TRIGGER,
            waiting.trigger_kwargs(INTERVAL),
            lambda _: triggerer.settle(),
            seconds,
            Ending(lambda: len(waiting.end_some()), INTERVAL) if end_some else None,
        )


def provider(peer: Peer, count: int, seconds: float) -> Load:
    """The triggers of another provider; their smallest interval is 1 s, as ours here."""
    with Stub() as stub, Triggerer() as triggerer:
        return loaded(
            triggerer, peer.classpath, peer.kwargs(count, int(INTERVAL), stub), stub.wait_for, seconds
        )


def sleeping(count: int, seconds: float) -> Load:
    """One of Airflow's own triggers."""
    with Triggerer() as triggerer:
        kwargs = [{"target_time": "2099-01-01T00:00:00+00:00"}] * count
        return loaded(triggerer, SLEEPER, kwargs, lambda _: None, seconds)


def measure(report: Report) -> None:
    seconds = 2.0 if report.quick else 14.0
    sizes = [n for n in sizes_of(report) if n > 1 or n == report.waiters]
    programs: dict[str, tuple[Callable[[int], Load], list[int]]] = {
        OURS: (lambda n: ours(n, seconds), sizes),
    }
    if not report.quick:
        programs |= {
            f"{OURS}, 1 % end per round": (lambda n: ours(n, seconds, end_some=True), sizes),
            SLEEPING: (lambda n: sleeping(n, seconds), sizes),
            ALONE: (lambda n: ours(n, seconds, alone=True), [min(MOST_ALONE, report.waiters)]),
            **{
                peer.name: (
                    (lambda n, peer=peer: provider(peer, n, seconds)),
                    [min(peer.most, report.waiters)],
                )
                for peer in PEERS
                if peer.installed
            },
        }
    loads: dict[str, dict[int, Load]] = {name: {} for name in programs}
    table = report.table(
        f"The triggerer's process, one poll every {INTERVAL:g} s, for {seconds:g} s",
        COLUMNS,
        "Lag: how much later than asked an asyncio.sleep(0.01) ended. Longest CPU slice: the most CPU time the event "
        "loop's thread took between two such looks, which other processes on the machine do not disturb.",
    )
    for count in sorted({n for _, counts in programs.values() for n in counts}):
        for name, (program, counts) in programs.items():
            if count not in counts:
                continue
            load = loads[name][count] = program(count)
            report.say(f"{name}, {count:,} waiters")
            memory = load.memory / 1000 if count >= 100 else None
            lags = {"p50": percentile(load.lag, 0.5), "p99": percentile(load.lag, 0.99), "max": max(load.lag)}
            table.row(
                f"{count:,}",
                name,
                100 * load.cpu,
                memory,
                *(1000 * lag for lag in lags.values()),
                1000 * max(load.blocked),
            )
            report.figure(f"{name}.{count}.cpu_percent", 100 * load.cpu)
            report.figure(f"{name}.{count}.memory_kb_per_waiter", memory)
            for which, lag in lags.items():
                report.figure(f"{name}.{count}.lag_{which}_ms", 1000 * lag)
            report.figure(f"{name}.{count}.longest_slice_ms", 1000 * max(load.blocked))
    grows = report.table("Grows with the number of waiters to the", ("", "CPU", "memory in all", "lag p99"))
    for name, by_count in loads.items():
        if len(by_count) < 2:
            continue
        powers = [
            exponent({n: one.cpu for n, one in by_count.items()}),
            exponent({n: one.memory * n for n, one in by_count.items()}),
            exponent({n: percentile(one.lag, 0.99) for n, one in by_count.items()}),
        ]
        grows.row(name, *powers)
        for what, power in zip(("cpu", "memory", "lag_p99"), powers, strict=True):
            report.figure(f"{name}.exponent.{what}", power)
    most = max(loads[OURS])
    for name in list(programs)[:2]:
        if most in loads[name]:
            late = percentile(loads[name][most].lag, 0.99)
            report.target(f"lag p99, {name}, {most:,} waiters", 1000 * late, 50, unit=" ms")
    if most >= 100:
        report.target(f"memory per waiter, {most:,} waiters", loads[OURS][most].memory / 1000, 20, unit=" kB")


if __name__ == "__main__":
    main("triggerer_load", __doc__, measure, waiters=10_000, meaning="the largest number of waiters")
