"""Ended Qarnot tasks and idle pools become events, against the local Qarnot."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.triggers import event_pollers, poller
from airflow_qarnot_pool.triggers.event_pollers import IdlePoolPoller
from airflow_qarnot_pool.triggers.idle_pool_watcher import QarnotPoolIdleWatcher
from airflow_qarnot_pool.triggers.task_watcher import QarnotTaskWatcher
from airflow_qarnot_pool.triggers.watermark import Watermark
from tests.triggers.watching import MemoryStore, running, store, until

__all__ = ["store"]

INTERVAL = 0.1


def submit(client: QarnotClient, pool: str, name: str, *tags: str, command: str = "true") -> str:
    return client.tasks.create(TaskSpec(name=name, pool=pool, command=command, tags=tags))


async def in_thread(call: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(call, *arguments, **options)


def ended(client: QarnotClient, uuid: str) -> bool:
    return client.tasks.get(uuid).state in ("Success", "Failure", "Cancelled")


def test_what_only_a_sweep_finds_is_new_to_the_watermark() -> None:
    watcher = QarnotTaskWatcher(tag="nightly", poll_interval=60, allowed_lateness=600)
    ended, late, until_sweep = 1000, 10, poller.SWEEP_EVERY
    floor = Watermark().floor_when_complete(ended + late + until_sweep, watcher._lateness)
    assert Watermark(floor).is_new({"uuid": "late"}, ended)
    assert floor > ended - 5, "it remembers no more than it needs"


def test_tasks_of_any_program_are_reported_once(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, store: MemoryStore
) -> None:
    async def case() -> None:
        old = submit(client, pool, "old", "nightly")
        await until(lambda: ended(client, old))
        watcher = QarnotTaskWatcher(tag="nightly", states=["success", "Failure"], poll_interval=INTERVAL)
        found: list[dict[str, Any]] = []
        async with running(watcher) as run:
            await until(lambda: store.values)
            names = {
                submit(client, pool, "good", "nightly", "other"): ("good", "Success"),
                submit(client, pool, "bad", "nightly", command="exit 3"): ("bad", "Failure"),
            }
            submit(client, pool, "foreign", "weekly")
            cancelled = submit(client, pool, "cancelled", "nightly", command="sleep 600")
            await in_thread(client.tasks.abort, cancelled)
            while len(found) < 2:
                payload = await run.next()
                store.store_event(payload)
                found += payload["tasks"]
            assert {task["uuid"]: (task["name"], task["state"]) for task in found} == names
            assert {task["pool"] for task in found} == {pool}
        # Another triggerer goes on from the stored watermark.
        async with running(watcher) as run:
            last = submit(client, pool, "last", "nightly")
            payload = await run.next()
            assert [task["uuid"] for task in payload["tasks"]] == [last]
            assert not run.received

    asyncio.run(case())


def test_a_hundred_watchers_cost_one_search_a_round(
    qarnot: LocalQarnot, client: QarnotClient, store: MemoryStore
) -> None:
    async def case() -> None:
        runs = [
            running(QarnotTaskWatcher(tag=f"tag-{n % 20}", poll_interval=INTERVAL, max_items=n + 1))
            for n in range(100)
        ]
        for run in runs:
            await run.__aenter__()
        await until(lambda: len(store.values) == 20)
        (shared,) = poller.pollers()
        await until(lambda: not any(each.is_new for each in shared.subscriptions.values()))
        qarnot.clear_requests()
        rounds = shared.rounds
        await until(lambda: shared.rounds >= rounds + 5)
        # A response with tasks may need a request for the total.
        assert len(qarnot.requests()) <= 2 * (shared.rounds - rounds + 1)
        for run in runs:
            await run.__aexit__(None, None, None)

    asyncio.run(case())


def test_a_pool_is_reported_once_for_each_time_that_it_is_idle(
    qarnot: LocalQarnot, client: QarnotClient, store: MemoryStore
) -> None:
    async def case() -> None:
        pool, busy = (client.pools.create(PoolSpec(name=name, tags=("team",))) for name in ("idle", "busy"))
        blocking = submit(client, busy, "blocking", command="sleep 600")
        watcher = QarnotPoolIdleWatcher(tag="team", idle_for=1, poll_interval=INTERVAL)
        async with running(watcher) as run:
            first = await run.next()
            store.store_event(first)
            assert [each["uuid"] for each in first["pools"]] == [pool]
        async with running(watcher) as run:
            task = submit(client, pool, "work")
            second = await run.next()
            store.store_event(second)
            assert [each["uuid"] for each in second["pools"]] == [pool]
            end = client.tasks.get(task).state_transition_time
            assert end is not None
            assert second["pools"][0]["idle_since"] == end.isoformat()
            assert first["pools"][0]["idle_since"] < second["pools"][0]["idle_since"]
            assert not run.received
        for each in (blocking,):
            client.tasks.abort(each)
        for each in (pool, busy):
            client.pools.close(each)

    asyncio.run(case())


class EndedTasks:
    """Qarnot tasks that have ended on pools, and the searches for them: pools, and since when."""

    def __init__(self, ends: dict[str, datetime]) -> None:
        self.ends = ends
        self.searches: list[tuple[list[str], datetime | None]] = []

    def search_all(self, filter: dict[str, Any], *, fields: Any) -> list[Any]:
        pools, *times = filter.get("filters", [filter])
        since = datetime.fromisoformat(times[0]["value"]) if times else None
        self.searches.append((pools["values"], since))
        return [
            SimpleNamespace(pool=pool, state_transition_time=end)
            for pool, end in self.ends.items()
            if pool in pools["values"] and (since is None or end >= since)
        ]


def test_searches_for_the_tasks_of_idle_pools_are_bounded() -> None:
    """In the number of pools, and to the tasks that may have ended since a pool was seen busy."""
    now, start = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    names = [f"pool-{number:03}" for number in range(250)]
    pools: list[Any] = [
        SimpleNamespace(uuid=name, state_transition_time=start, creation_date=start) for name in names
    ]
    tasks = EndedTasks({"pool-000": now, "pool-007": start + timedelta(hours=1)})
    poller = object.__new__(IdlePoolPoller)
    poller._client = SimpleNamespace(tasks=tasks)  # type: ignore[assignment]
    poller._idle, poller._busy = {"pool-001": start}, {"pool-000": now - timedelta(seconds=30)}
    idle = poller._idle_since(pools, now)
    assert idle == dict.fromkeys(names, start) | tasks.ends
    known, turned, *new = tasks.searches
    assert known == (["pool-001"], start)
    assert turned == (["pool-000"], now - timedelta(seconds=30) - event_pollers.OVERLAP)
    assert [since for _, since in new] == [None] * 3
    assert max(len(part) for part, _ in new) == event_pollers.MAX_POOLS
    assert sorted(name for part, _ in tasks.searches for name in part) == names


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: QarnotTaskWatcher(tag=""), "tag"),
        (lambda: QarnotTaskWatcher(tag=["a"]), "tag"),  # type: ignore[arg-type]
        (lambda: QarnotTaskWatcher(tag="t", states="FullyExecuting"), "states"),
        (lambda: QarnotTaskWatcher(tag="t", states=[]), "states"),
        (lambda: QarnotTaskWatcher(tag="t", states=3), "states"),  # type: ignore[arg-type]
        (lambda: QarnotPoolIdleWatcher(tag="t", idle_for=0), "idle_for"),
        (lambda: QarnotPoolIdleWatcher(tag="t", idle_for=None), "idle_for"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_dag_is_parsed(make: Any, field: str) -> None:
    with pytest.raises(QarnotInvalidSpecError) as caught:
        make()
    assert caught.value.field == field


def test_arguments_survive_the_database() -> None:
    for watcher in (
        QarnotTaskWatcher(tag="t", states="success", allowed_lateness=7),
        QarnotPoolIdleWatcher(tag="t", idle_for=60, existing=False),
    ):
        _, kwargs = watcher.serialize()
        again = type(watcher)(**kwargs)
        assert again.serialize() == watcher.serialize()
        assert again.state_key == watcher.state_key
