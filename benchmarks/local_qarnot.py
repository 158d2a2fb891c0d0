"""How many requests per second the local Qarnot answers, with 100 Qarnot tasks in it and with 10,000 (and 500 pools).

One client sends one request after the other, so most of a figure is the client and HTTP. It must not fall with the
number of objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks import environment
from benchmarks.backlog import Backlog, backlog
from benchmarks.report import Report, exponent, main, median

FEW, POOLS = 100, 500


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Calls per second: the median of ten stretches."""
    call()
    rates = []
    for _ in range(10):
        done, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds / 10 or not done:
            call()
            done += 1
        rates.append(done / passed)
    return median(rates)


def rates(waiting: Backlog, seconds: float) -> dict[str, float]:
    """Return the requests per second, by kind of request."""
    from airflow_qarnot_pool.api import filters
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
    from airflow_qarnot_pool.ownership.identity import namespace_tag
    from airflow_qarnot_pool.triggers.poller import POLL_FIELDS

    tasks, pools = waiting.client.tasks, waiting.client.pools
    some, one = waiting.uuids[:100], waiting.uuids[len(waiting.uuids) // 2]
    pool = pools.create(PoolSpec(name="more", instance_count=1))
    # Later than everything there is, as in a round in which nothing has changed.
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
    ours = filters.equal("Tags", namespace_tag(environment.NAMESPACE))
    changed = filters.and_(ours, filters.ge("StateTransitionTime", later))
    spec = TaskSpec(name="one more", pool=pool, command="true")
    programs: dict[str, Callable[[], Any]] = {
        "get a task": lambda: tasks.get(one),
        "search 100 by uuid": lambda: tasks.search(filters.in_("Uuid", some), fields=POLL_FIELDS, limit=100),
        "search by tag and time": lambda: tasks.search(changed, fields=POLL_FIELDS, limit=1000),
        "search by a tag of one": lambda: tasks.search(
            filters.equal("Tags", waiting.identities[0].tags()[1])
        ),
        "a page of 100": lambda: tasks.page(ours, limit=100),
        "get a pool": lambda: pools.get(pool),
        "list all pools": pools.list_summaries,
        "create and delete a task": lambda: tasks.delete(tasks.create(spec)),
        "create and close a pool": lambda: pools.close(pools.create(PoolSpec(name="p", instance_count=1))),
    }
    return {name: timed(call, seconds) for name, call in programs.items()}


def measure(report: Report) -> None:
    seconds = 0.1 if report.quick else 2.0
    sizes = [FEW, report.waiters] if report.waiters > FEW else [report.waiters]
    found: dict[int, dict[str, float]] = {}
    for count in sizes:
        with backlog(count, groups=min(POOLS, count)) as waiting:
            found[count] = rates(waiting, seconds)
        report.say(f"{count:,} tasks")
    table = report.table(
        "The local Qarnot, requests per second",
        ("", *(f"{count:,} tasks, {min(POOLS, count)} pools" for count in sizes), "time grows as N to the"),
        "Listing all pools grows with their number, as its answer does.",
    )
    for name in found[sizes[0]]:
        each = {count: found[count][name] for count in sizes}
        power = exponent({count: 1 / rate for count, rate in each.items()}, start=1)
        table.row(name, *each.values(), power)
        for count, rate in each.items():
            report.figure(f"{name}.{count}.per_second", rate)
        report.figure(f"{name}.exponent", power)
        if power is not None and name != "list all pools":
            report.target(f"{name}: grows as N to the", power, 0.25)


if __name__ == "__main__":
    main("local_qarnot", __doc__, measure, waiters=10_000, meaning="the larger number of Qarnot tasks")
