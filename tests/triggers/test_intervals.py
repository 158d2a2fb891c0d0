"""The shared poll follows the age of the youngest object that is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.parameters.configuration import SHORTEST
from airflow_qarnot_pool.triggers import poller
from airflow_qarnot_pool.triggers.poller import Poller, Subscription, subscribe
from tests.crash.children import eventually
from tests.operators.conftest import connect
from tests.triggers.test_poller import PATIENCE, submit, until

LONGEST = 15.0
HOUR = 3600.0


@pytest.fixture(scope="module")
def own_server() -> Iterator[LocalQarnot]:
    """A server of its own, because its clock is moved."""
    with LocalQarnot(boot_seconds=0.3) as server:
        yield server


@pytest.fixture
def qarnot(own_server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> LocalQarnot:
    connect(own_server, monkeypatch)
    own_server.clear_requests()
    return own_server


@asynccontextmanager
async def waiting_for(
    key: str, kind: poller.PollKind = "task", interval: float = LONGEST, **options: Any
) -> AsyncIterator[Poller]:
    """Yield the poller of a wait for *key*, once it has been polled."""
    async with subscribe("qarnot_default", kind, key, interval=interval, **options) as subscriber:
        await subscriber.next(PATIENCE)
        shared = subscriber._poller
        assert shared is not None
        yield shared


def running(client: QarnotClient, pool: str, count: int = 1) -> list[str]:
    uuids = submit(client, pool, count)
    for uuid in uuids:
        eventually(lambda uuid=uuid: client.tasks.get(uuid).state == "FullyExecuting")  # type: ignore[misc]
    return uuids


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def test_a_young_object_is_polled_often(client: QarnotClient, pool: str) -> None:
    (young,) = running(client, pool)

    async def story() -> None:
        async with waiting_for(young) as shared:
            assert shared._delay() == SHORTEST

    run(story)


def test_an_old_object_is_polled_rarely_from_the_first_poll_on(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    """A triggerer that restarts among old waits does not flood the service."""
    (old,) = running(client, pool)
    qarnot.advance_clock(HOUR)

    async def story() -> None:
        async with waiting_for(old) as shared:
            assert shared._delay() == LONGEST

    run(story)


def test_a_newcomer_makes_the_rounds_of_all_frequent_until_it_leaves(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    (old,) = running(client, pool)
    qarnot.advance_clock(HOUR)
    (young,) = running(client, pool)

    async def story() -> None:
        async with waiting_for(old) as shared:
            async with waiting_for(young) as other:
                assert other is shared
                assert shared._delay() == SHORTEST
            assert shared._delay() == LONGEST

    run(story)


def test_a_change_of_state_makes_an_object_young(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    first, _ = running(client, pool, 2)
    (queued,) = submit(client, pool, 1)
    qarnot.advance_clock(HOUR)

    async def story() -> None:
        async with waiting_for(queued, interval=0.1) as shared:
            assert shared.subscriptions[queued].changed_at < shared.loop.time() - HOUR / 2
            await asyncio.to_thread(client.tasks.abort, first)
            await until(lambda: shared.subscriptions[queued].changed_at > shared.loop.time() - HOUR / 2)

    run(story)


@pytest.mark.parametrize("is_tag", [False, True], ids=["object", "tag"])
@pytest.mark.parametrize(
    ("seen", "changed_at"),
    [
        pytest.param(["FullyExecuting"], 100.0, id="its first poll shows when it moved"),
        pytest.param(["FullyExecuting", "FullyExecuting"], 100.0, id="nothing changes"),
        pytest.param(["Submitted", "FullyExecuting"], 1001.0, id="it starts"),
        pytest.param(["FullyExecuting", "Success"], 100.0, id="an end is no reason to poll more"),
        pytest.param(["Nonsense"], 100.0, id="an unknown state concerns only its subscribers"),
    ],
)
def test_when_an_object_has_changed(is_tag: bool, seen: list[str], changed_at: float) -> None:
    subscription = Subscription("u", is_tag)
    for number, state in enumerate(seen):
        subscription.observe(Task(uuid="u", state=state), 100.0, 1000.0 + number)
    assert subscription.changed_at == changed_at


def test_instances_that_finish_make_an_array_no_younger() -> None:
    subscription = Subscription("u", False, counts_instances=True)
    for number in range(3):
        polled = Task(uuid="u", state="FullyExecuting", running_instance_count=number)
        subscription.observe(polled, 100.0, 1000.0 + number)
    assert subscription.changed_at == 100.0
    subscription.observe(Task(uuid="u", state="UploadingResults", running_instance_count=2), 100.0, 1005.0)
    assert subscription.changed_at == 1005.0


def test_an_object_with_a_time_in_the_future_grows_old_all_the_same(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    qarnot.advance_clock(HOUR)
    (uuid,) = running(client, pool)
    qarnot.step_clock(-HOUR)
    try:

        async def story() -> None:
            async with waiting_for(uuid) as shared:
                changed_at = shared.subscriptions[uuid].changed_at
                assert changed_at <= shared.loop.time()

        run(story)
    finally:
        qarnot.step_clock(HOUR)


def test_an_object_that_is_missing_is_polled_often_until_that_is_certain(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    (uuid,) = running(client, pool)
    qarnot.advance_clock(HOUR)

    async def story() -> None:
        async with waiting_for(uuid, interval=0.2) as shared:
            await asyncio.to_thread(client.tasks.delete, uuid)
            await until(lambda: shared.subscriptions[uuid].absence is not None)
            shared._intervals.clear()
            shared._intervals[LONGEST] = 1
            assert shared._delay() == SHORTEST

    run(story)


def test_a_wait_that_follows_no_age_keeps_its_interval(client: QarnotClient, pool: str) -> None:
    """As that for the end of the pool of queued tasks."""

    async def story() -> None:
        async with waiting_for(pool, "pool", interval=50.0, follows_age=False) as shared:
            assert shared._delay() == 50.0
            async with waiting_for(pool, "pool"):
                assert shared._delay() < LONGEST
            assert shared._delay() == 50.0

    run(story)


def test_equal_bounds_make_a_fixed_interval(
    client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__MIN_POLL_INTERVAL", "5")
    (young,) = running(client, pool)

    async def story() -> None:
        async with waiting_for(young, interval=5.0) as shared:
            assert shared._delay() == 5.0

    run(story)


def test_a_mistake_in_the_configuration_of_a_triggerer_fails_no_wait(
    client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__MIN_POLL_INTERVAL", "soon")
    (young,) = running(client, pool)

    async def story() -> None:
        async with waiting_for(young) as shared:
            assert shared._delay() == SHORTEST

    run(story)
    assert "min_poll_interval" in caplog.text


@pytest.mark.parametrize(
    ("rounds", "seconds", "due"),
    [
        pytest.param(12, 180.0, True, id="rare rounds"),
        pytest.param(12, 12.0, False, id="frequent rounds"),
        pytest.param(200, 165.0, True, id="frequent rounds for as long as rare ones take"),
        pytest.param(200, 155.0, False, id="frequent rounds for a shorter time"),
        pytest.param(11, 500.0, False, id="slow rounds"),
    ],
)
def test_frequent_rounds_make_full_polls_no_more_frequent(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, rounds: int, seconds: float, due: bool
) -> None:
    (young,) = running(client, pool)

    async def story() -> None:
        async with waiting_for(young) as shared:
            shared.rounds, shared._swept = rounds, (0, 0.0)
            assert shared._is_sweep_due(seconds) is due

    run(story)
