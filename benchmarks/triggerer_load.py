"""What waiting costs the triggerer: CPU, memory per waiter, and how late its event loop wakes up.

Triggers run in Airflow's real ``TriggerRunner``, in a process that does nothing else. Beside ours: triggers of
ours that share nothing, the triggers of other providers against a stub of their service, and one of Airflow's own
that only sleeps, which is what any trigger costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.backlog import backlog
from benchmarks.peers import PEERS, Peer, Stub
from benchmarks.poll_cost import ALONE, OURS, TASK_TRIGGER, Ending, sizes_of
from benchmarks.report import Report, Table, exponent, main, percentile
from benchmarks.triggerer import Triggerer

#: Seconds between two polls, a fifth of the default, because a window must hold many.
INTERVAL = 1.0
BUSY = f"{OURS}, 1 % end per round"
SLEEPING = "a trigger that sleeps"
SLEEPER = "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
MOST_ALONE = 100
#: Waiters whose objects are counted.
OBJECTS_AT = 1000
#: Number of waiters from which pages show the memory of a waiter.
PAGES_FROM = 5000
#: Bytes of the page that each greenlet of Airflow's (greenback, one for each trigger) has for its Python frames; the
#: interpreter maps it, and tracemalloc does not see it.
STACK = 4096
COLUMNS = (
    "waiters",
    "",
    "CPU [%]",
    "memory per waiter [kB]",
    "objects per waiter [kB]",
    "lag p50 [ms]",
    "lag p99 [ms]",
    "lag max [ms]",
    "longest CPU slice [ms]",
)


@dataclass(frozen=True)
class Load:
    """Of one triggerer over a stretch of time; lags and slices in seconds, memory in bytes per waiter."""

    cpu: float
    lag: list[float]
    blocked: list[float]
    memory: float | None = None
    objects: float | None = None


def load(found: dict[str, Any], **more: float | None) -> Load:
    return Load(cpu=found["cpu"] / found["seconds"], lag=found["lag"], blocked=found["blocked"], **more)


def filled(
    triggerer: Triggerer, classpath: str, kwargs: list[dict[str, Any]], settle: Callable[[int], object]
) -> int:
    """Start the triggers; bytes of memory with the first of them only.

    :param settle: returns when so many of them really wait.
    """
    triggerer.add(classpath, kwargs[:1])
    settle(1)
    triggerer.window(2 * INTERVAL)  # a round loads more modules
    first = triggerer.memory()
    triggerer.add(classpath, kwargs[1:])
    settle(len(kwargs))
    return first


def grown(triggerer: Triggerer, first: int, count: int) -> float:
    """Bytes that each waiter but the first takes."""
    return (triggerer.memory() - first) / max(1, count - 1)


def objects(
    classpath: str, kwargs: list[dict[str, Any]], settle: Callable[[Triggerer], object]
) -> float | None:
    """Return the same from tracemalloc, in a separate process because tracing takes time and memory."""
    if len(kwargs) != OBJECTS_AT:
        return None
    with Triggerer(traced=True) as triggerer:
        first = filled(triggerer, classpath, kwargs, lambda _: settle(triggerer))
        triggerer.window(2 * INTERVAL)
        return grown(triggerer, first, len(kwargs))


def ours(count: int, seconds: float, *, alone: bool = False, busy: bool = False) -> Iterator[Load]:
    """Our triggers, idle; *alone*: each polls for itself; *busy*: then with one per cent ending in every round."""
    with backlog(count) as waiting:
        kwargs = waiting.trigger_kwargs(INTERVAL)
        exact = None if alone else objects(TASK_TRIGGER, kwargs, lambda one: one.settle())
        with Triggerer(alone=alone) as triggerer:
            first = filled(triggerer, TASK_TRIGGER, kwargs, lambda _: triggerer.settle())
            found = triggerer.window(seconds)
            memory = grown(triggerer, first, count)
            changing = None
            if busy:
                with Ending(lambda: len(waiting.end_some()), INTERVAL):
                    changing = triggerer.window(seconds)
    yield load(found, memory=memory, objects=exact)
    if changing is not None:
        yield load(changing)


def provider(peer: Peer, count: int, seconds: float) -> Iterator[Load]:
    """The triggers of another provider; their smallest interval is 1 s, as ours here."""
    with Stub() as stub, Triggerer() as triggerer:
        first = filled(triggerer, peer.classpath, peer.kwargs(count, int(INTERVAL), stub), stub.wait_for)
        found = triggerer.window(seconds)
        yield load(found, memory=grown(triggerer, first, count))


def sleeping(count: int, seconds: float) -> Iterator[Load]:
    """One of Airflow's own triggers."""
    kwargs = [{"target_time": "2099-01-01T00:00:00+00:00"}] * count
    with Triggerer() as triggerer:
        first = filled(triggerer, SLEEPER, kwargs, lambda _: None)
        found = triggerer.window(seconds)
        memory = grown(triggerer, first, count)
    yield load(found, memory=memory, objects=objects(SLEEPER, kwargs, lambda _: None))


def measure(report: Report) -> None:
    seconds = 2.0 if report.quick else 13.0
    sizes = [n for n in sizes_of(report) if n > 1 or n == report.waiters]
    few = [min(MOST_ALONE, report.waiters)]
    #: A program measures one thing or two.
    programs: list[tuple[tuple[str, ...], Callable[[int], Iterator[Load]], list[int]]] = [
        ((OURS, BUSY), lambda n: ours(n, seconds, busy=not report.quick), sizes),
    ]
    if not report.quick:
        programs += [
            ((SLEEPING,), lambda n: sleeping(n, seconds), sizes),
            ((ALONE,), lambda n: ours(n, seconds, alone=True), few),
        ]
        programs += [
            ((peer.name,), lambda n, peer=peer: provider(peer, n, seconds), [min(peer.most, report.waiters)])  # type: ignore[misc]
            for peer in PEERS
            if peer.installed
        ]
    loads: dict[str, dict[int, Load]] = {}
    table = report.table(
        f"The triggerer's process, one poll every {INTERVAL:g} s, for {seconds:g} s",
        COLUMNS,
        f"Memory: pages that belong to no file, what all waiters but the first add; not told below {PAGES_FROM:,} of "
        "ours, where room that was free before hides some of it. Objects: the same by Python's own account "
        f"(tracemalloc, {OBJECTS_AT:,} waiters), without the 4 kB of stack that Airflow's triggerer gives to every "
        "trigger. "
        "Lag: how much later than asked an asyncio.sleep(0.01) ended. Longest CPU slice: the most CPU time the event "
        "loop's thread took between two such looks, which other processes on the machine do not disturb.",
    )
    for count in sorted({n for *_, counts in programs for n in counts}):
        for names, program, counts in programs:
            if count not in counts:
                continue
            for name, one in zip(names, program(count), strict=False):
                loads.setdefault(name, {})[count] = one
                _tell(report, table, name, count, one)
    _grows(report, loads)
    most = max(loads[OURS])
    for name in (OURS, BUSY):
        if most in loads.get(name, {}):
            late = percentile(loads[name][most].lag, 0.99)
            report.target(f"lag p99, {name}, {most:,} waiters", 1000 * late, 50, unit=" ms")
    for count, one in loads[OURS].items():
        if (each := per_waiter(count, one)) is not None:
            what = "memory" if one.objects is None else "objects and stack"
            report.target(f"{what} per waiter, {count:,} waiters", each / 1000, 20, unit=" kB")


def per_waiter(count: int, one: Load) -> float | None:
    """Bytes that a waiter takes, as the measure says that is sound with so many."""
    if one.objects is not None:
        return one.objects + STACK
    return one.memory if count >= PAGES_FROM else None


def _tell(report: Report, table: Table, name: str, count: int, one: Load) -> None:
    enough = PAGES_FROM if name == OURS else OBJECTS_AT
    memory = one.memory / 1000 if one.memory is not None and count >= enough else None
    exact = one.objects / 1000 if one.objects is not None else None
    lags = {"p50": percentile(one.lag, 0.5), "p99": percentile(one.lag, 0.99), "max": max(one.lag)}
    slices = 1000 * max(one.blocked)
    table.row(
        f"{count:,}", name, 100 * one.cpu, memory, exact, *(1000 * lag for lag in lags.values()), slices
    )
    report.say(" | ".join(table.rows[-1]))
    report.figure(f"{name}.{count}.cpu_percent", 100 * one.cpu)
    report.figure(f"{name}.{count}.memory_kb_per_waiter", memory)
    report.figure(f"{name}.{count}.objects_kb_per_waiter", exact)
    for which, lag in lags.items():
        report.figure(f"{name}.{count}.lag_{which}_ms", 1000 * lag)
    report.figure(f"{name}.{count}.longest_slice_ms", slices)


def _grows(report: Report, loads: dict[str, dict[int, Load]]) -> None:
    grows = report.table("Grows with the number of waiters to the", ("", "CPU", "memory in all", "lag p99"))
    for name, by_count in loads.items():
        if len(by_count) < 2:
            continue
        powers = [
            exponent({n: one.cpu for n, one in by_count.items()}),
            exponent(
                {n: n * each for n, one in by_count.items() if (each := per_waiter(n, one)) is not None}
            ),
            exponent({n: percentile(one.lag, 0.99) for n, one in by_count.items()}),
        ]
        grows.row(name, *powers)
        for what, power in zip(("cpu", "memory", "lag_p99"), powers, strict=True):
            report.figure(f"{name}.exponent.{what}", power)


if __name__ == "__main__":
    main("triggerer_load", __doc__, measure, waiters=10_000, meaning="the largest number of waiters")
