"""The shared poll against a service that refuses for a moment, cuts answers, lags, or has wrong clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.exceptions import QarnotDeletedError, QarnotRefusedError, QarnotUnavailableError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.triggers import poller
from airflow_qarnot_pool.triggers.poller import Poller, subscribe
from airflow_qarnot_pool.waiting import intervals
from tests.triggers.test_poller import INTERVAL, OURS, PATIENCE, searches, state_of, submit, until

SEARCH = {"method": "POST", "path": "^/tasks/search$"}


@pytest.fixture(autouse=True)
def true_again(qarnot: LocalQarnot) -> Iterator[None]:
    yield
    qarnot.cap_searches(None)
    qarnot.lag_searches(0)


@pytest.fixture
def no_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is seen is seen by the query for changes."""
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)


def the_poller() -> Poller:
    (shared,) = poller.pollers()
    return shared


async def all_seen(count: int) -> Poller:
    """Wait until each of so many objects has been looked at once."""
    await until(lambda: any(poller.pollers()))
    shared = the_poller()
    await until(lambda: sum(entry.last is not None for entry in shared.subscriptions.values()) == count)
    return shared


def while_waiting(
    uuids: list[str],
    story: Callable[[Poller, dict[str, asyncio.Task[str]]], Coroutine[Any, Any, None]],
    interval: float = INTERVAL,
) -> None:
    """Run *story* while a waiter waits for the end of each of these."""

    async def main() -> None:
        waiting = {
            uuid: asyncio.create_task(state_of(uuid, "Cancelled", interval=interval)) for uuid in uuids
        }
        try:
            await story(await all_seen(len(uuids)), waiting)
        finally:
            for one in waiting.values():
                one.cancel()
            await asyncio.gather(*waiting.values(), return_exceptions=True)

    asyncio.run(main())


async def cost_of_rounds(qarnot: LocalQarnot, shared: Poller, rounds: int = 12) -> float:
    """Searches in each of the next rounds."""
    begun, asked = shared.rounds, searches(qarnot)
    await until(lambda: shared.rounds >= begun + rounds)
    return (searches(qarnot) - asked) / (shared.rounds - begun)


# ---- a search that is refused


@pytest.mark.parametrize(
    ("status", "times"), [(403, 1), (403, 2), (403, 9), (403, 40), (400, 1), (400, 9), (404, 3), (418, 3)]
)
def test_a_refusal_of_the_moment_fails_no_waiter_and_costs_nothing_afterwards(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    times: int,
) -> None:
    monkeypatch.setattr(intervals, "MAX_BACKOFF", 0.05)
    monkeypatch.setattr(poller, "SWEEP_EVERY", 4)
    monkeypatch.setattr(poller, "MAX_UUIDS", 50)
    uuids = submit(client, pool, 60)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        usual = await cost_of_rounds(qarnot, shared)
        qarnot.clear_requests()
        fault = {"kind": "status", "status": status, "message": "Forbidden", "times": times, **SEARCH}
        qarnot.faults([fault])
        await until(lambda: sum(one["status"] == status for one in qarnot.requests()) == times)
        # What was made smaller grows again with the looks that follow.
        await until(lambda: (shared._max_uuids, shared._can_ask_for_changes) == (50, True))
        begun = shared.rounds
        await until(lambda: shared.rounds >= begun + poller.SWEEP_EVERY)
        assert await cost_of_rounds(qarnot, shared) <= usual + 0.5
        assert not any(one.done() for one in waiting.values())
        await asyncio.to_thread(client.tasks.abort, uuids[7])
        assert await waiting[uuids[7]] == "Cancelled"

    while_waiting(uuids, story)


def test_a_search_that_is_refused_for_good_backs_off_and_costs_two_requests_a_round(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "MAX_BACKOFF", 0.2)
    uuids = submit(client, pool, 30)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        qarnot.faults([{"kind": "status", "status": 403, **SEARCH}])
        await until(lambda: shared._failures >= 3)
        assert await cost_of_rounds(qarnot, shared, 5) <= 2
        assert not any(one.done() for one in waiting.values())
        qarnot.faults([])
        await asyncio.to_thread(client.tasks.abort, uuids[0])
        assert await waiting[uuids[0]] == "Cancelled"

    while_waiting(uuids, story)


def test_a_chunk_that_is_too_large_for_good_stays_small_enough(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 1)
    uuids = submit(client, pool, 40)
    sent: list[int] = []
    search = Poller._search

    def strict(self: Poller, wanted: list[str]) -> Any:
        from airflow_qarnot_pool.api.errors import QarnotRefusedError

        sent.append(len(wanted))
        if len(wanted) > 10:
            raise QarnotRefusedError("too many values", status=400)
        return search(self, wanted)

    monkeypatch.setattr(Poller, "_search", strict)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        del sent[:]
        begun = shared.rounds
        await until(lambda: shared.rounds >= begun + 8)
        refused = sum(one > 10 for one in sent)
        assert (
            refused <= (shared.rounds - begun + 1) / 2 + 1
        )  # it is tried again after each look without a refusal
        assert not any(one.done() for one in waiting.values())

    while_waiting(uuids, story)


@pytest.mark.parametrize("status", [504, 403, None], ids=["504", "403", "a timeout"])
def test_a_tag_whose_search_keeps_failing_keeps_no_other_wait_from_its_polls(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    no_sweeps: None,
    status: int | None,
) -> None:
    """It is too large, say. Neither those that wait already nor those that join notice, uuids or tags."""
    monkeypatch.setattr(intervals, "MAX_BACKOFF", 0.05)
    large, other = f"airflow-lineage:large-{status}", f"airflow-lineage:other-{status}"
    error = QarnotRefusedError(status=403) if status == 403 else QarnotUnavailableError(status=status)
    failed: list[int] = []
    search = TaskResource.search_all

    def search_all(self: TaskResource, wanted: Any, **options: Any) -> Any:
        if large in str(wanted):
            failed.append(1)
            raise error
        return search(self, wanted, **options)

    monkeypatch.setattr(TaskResource, "search_all", search_all)
    waits, joins = submit(client, pool, 2)
    (member,) = submit(client, pool, 1, tags=(*OURS, other))

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        async with subscribe("qarnot_default", "task", large, is_tag=True, interval=INTERVAL):
            await until(lambda: len(failed) >= 2)
            await seen_soon(client, waits, waiting)
            late = asyncio.create_task(state_of(joins, "Cancelled"))
            await until(lambda: joins in shared.subscriptions)
            await seen_soon(client, joins, {joins: late})
            async with subscribe("qarnot_default", "task", other, is_tag=True, interval=INTERVAL) as waiter:
                assert (await waiter.next(PATIENCE)).uuid == member

    while_waiting([waits], story)


def test_changes_whose_query_keeps_failing_are_seen_by_full_polls(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "MAX_BACKOFF", 0.05)
    monkeypatch.setattr(poller, "SWEEP_EVERY", 2)
    uuids = submit(client, pool, 2)

    async def fails(self: Poller) -> bool:
        raise QarnotUnavailableError(status=504)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        monkeypatch.setattr(Poller, "_poll_changes", fails)
        await seen_soon(client, uuids[0], waiting)
        await seen_soon(client, uuids[1], waiting)

    while_waiting(uuids, story)


def test_of_two_errors_in_a_round_the_one_that_asks_for_more_patience_counts(qarnot: LocalQarnot) -> None:
    async def main() -> float:
        async with subscribe("qarnot_default", "task", "u", interval=INTERVAL):
            shared = the_poller()
            for retry_after in (None, 30.0, 2.0):
                with shared._deferring_errors():
                    raise QarnotUnavailableError(status=429, retry_after=retry_after)
            assert shared._deferred_error is not None
            return shared._pause_after(shared._deferred_error)

    assert asyncio.run(main()) >= 30.0


# ---- an object that Qarnot denies


@pytest.mark.parametrize("status", [403, 404])
def test_one_that_no_search_shows_yet_survives_a_stray_denial(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, status: int
) -> None:
    qarnot.lag_searches(3600)
    (uuid,) = submit(client, pool, 1, "true")
    denied = {"method": "GET", "path": f"^/tasks/{uuid}$", "kind": "status", "status": status}
    qarnot.faults([{**denied, "times": 1}])
    assert asyncio.run(state_of(uuid, "Success")) == "Success"


@pytest.mark.parametrize("path", ["^/tasks/", "^/tasks/search$"])
def test_a_gateway_that_says_404_denies_nothing(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(intervals, "MAX_BACKOFF", 0.05)
    qarnot.lag_searches(3600)
    (uuid,) = submit(client, pool, 1, "true")
    qarnot.clear_requests()
    qarnot.faults([{"kind": "proxy", "status": 404, "path": path, "times": 12}])
    assert asyncio.run(state_of(uuid, "Success")) == "Success"
    assert sum(one["status"] == 404 for one in qarnot.requests()) == 12


@pytest.mark.parametrize("error", [QarnotDeletedError, QarnotRefusedError])
def test_one_that_qarnot_goes_on_to_deny_fails_its_waiters_alone(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, error: type[Exception]
) -> None:
    qarnot.lag_searches(3600)
    denied, stays = submit(client, pool, 2)
    status = 404 if error is QarnotDeletedError else 403
    fault = {"method": "GET", "path": f"^/tasks/{denied}$", "kind": "status", "status": status}

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        qarnot.faults([fault])
        shared.subscriptions[denied].tagged = False  # it is looked up in each round
        with pytest.raises(error):
            await waiting[denied]
        assert not waiting[stays].done()

    while_waiting([denied, stays], story)


# ---- an answer that is cut


@pytest.mark.parametrize("cap", [1, 4, 30])
def test_objects_by_name_are_found_under_a_cap_without_asking_for_each(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, cap: int
) -> None:
    uuids = submit(client, pool, 30)
    qarnot.cap_searches(cap)
    qarnot.clear_requests()

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        assert not [one for one in qarnot.requests() if one["method"] == "GET" and "/tasks/" in one["path"]]
        await asyncio.to_thread(client.tasks.abort, uuids[-1])
        assert await waiting[uuids[-1]] == "Cancelled"

    while_waiting(uuids, story)


@pytest.mark.parametrize("cap", [1, 7])
def test_all_changes_are_seen_under_a_cap(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, cap: int, no_sweeps: None
) -> None:
    uuids = submit(client, pool, 20)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        qarnot.cap_searches(cap)
        for uuid in uuids:
            await asyncio.to_thread(client.tasks.abort, uuid)
        assert await asyncio.gather(*waiting.values()) == ["Cancelled"] * 20

    while_waiting(uuids, story)


@pytest.mark.parametrize("cap", [1, 7])
def test_all_objects_with_a_tag_are_told_under_a_cap(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, cap: int, no_sweeps: None
) -> None:
    qarnot.cap_searches(cap)
    tag = f"airflow-lineage:cap-{cap}"
    uuids = set(submit(client, pool, 20, tags=(*OURS, tag)))

    async def wait() -> None:
        async with subscribe("qarnot_default", "task", tag, is_tag=True, interval=3600) as waiter:
            told = {(await waiter.next(PATIENCE)).uuid for _ in range(20)}
        assert told == uuids

    asyncio.run(wait())


# ---- clocks


@pytest.fixture
def skew(qarnot: LocalQarnot) -> Iterator[Callable[[float, str], None]]:
    """Shows wrong times of an object, until the test ends: in the future, it would stay among the changes."""
    skewed: list[str] = []

    def skew(seconds: float, uuid: str) -> None:
        skewed.append(uuid)
        qarnot.skew_clock(seconds, uuid=uuid)

    yield skew
    for uuid in skewed:
        with suppress(RuntimeError):  # it may have gone with its pool
            qarnot.skew_clock(0, uuid=uuid)


Skew = Callable[[float, str], None]


async def seen_soon(client: QarnotClient, uuid: str, waiting: dict[str, asyncio.Task[str]]) -> None:
    """The end of *uuid* is seen in one of the next rounds."""
    await asyncio.to_thread(client.tasks.abort, uuid)
    async with asyncio.timeout(PATIENCE):
        assert await waiting[uuid] == "Cancelled"


@pytest.mark.parametrize("ahead", [3, 3600])
def test_an_object_with_a_time_in_the_future_hides_no_change(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, no_sweeps: None, skew: Skew, ahead: int
) -> None:
    uuids = submit(client, pool, 4)
    skew(ahead, uuids[0])

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        await seen_soon(client, uuids[1], waiting)
        skew(ahead, uuids[2])
        await seen_soon(client, uuids[2], waiting)
        await seen_soon(client, uuids[3], waiting)
        await seen_soon(client, uuids[0], waiting)

    while_waiting(uuids, story)


def test_an_object_whose_time_is_in_the_future_may_be_the_only_one(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, no_sweeps: None, skew: Skew
) -> None:
    uuids = submit(client, pool, 1)
    skew(3600, uuids[0])

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        await seen_soon(client, uuids[0], waiting)

    while_waiting(uuids, story)


@pytest.mark.parametrize("seconds", [-3, -3600, 3600])
def test_a_server_clock_that_is_set_hides_no_change(
    private: Callable[[], tuple[LocalQarnot, QarnotClient, str]], no_sweeps: None, seconds: int
) -> None:
    qarnot, client, pool = private()
    uuids = submit(client, pool, 4)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        await seen_soon(client, uuids[0], waiting)
        qarnot.step_clock(seconds)
        await seen_soon(client, uuids[1], waiting)
        qarnot.step_clock(-seconds)
        await seen_soon(client, uuids[2], waiting)
        await seen_soon(client, uuids[3], waiting)

    while_waiting(uuids, story)


def test_changes_between_two_rounds_after_the_clock_was_set_back_are_polled_again(
    private: Callable[[], tuple[LocalQarnot, QarnotClient, str]], no_sweeps: None
) -> None:
    qarnot, client, pool = private()
    uuids = submit(client, pool, 1)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        asked_at = shared._changes_requested_at
        await until(lambda: shared._changes_requested_at > asked_at)
        qarnot.step_clock(-60)
        await seen_soon(client, uuids[0], waiting)

    # The change is older than the overlap when the next round comes.
    while_waiting(uuids, story, interval=4 * poller.OVERLAP.total_seconds())


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[LocalQarnot, QarnotClient, str]]]:
    """Starts a server whose clock only this test sets."""
    from contextlib import ExitStack

    from airflow_qarnot_pool.api.specs import PoolSpec
    from tests.operators.conftest import connect

    with ExitStack() as stack:

        def start() -> tuple[LocalQarnot, QarnotClient, str]:
            server = stack.enter_context(LocalQarnot(boot_seconds=0.1, close_seconds=0.1))
            connect(server, monkeypatch)
            client = stack.enter_context(QarnotClient(server.url, server.token))
            return server, client, client.pools.create(PoolSpec(name="p", instance_count=1))

        yield start


def test_a_part_whose_clock_is_two_seconds_behind_is_heard_in_time(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, no_sweeps: None, skew: Skew
) -> None:

    uuids = submit(client, pool, 6)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        for uuid in uuids:
            begun = shared.rounds
            await until(lambda begun=begun: shared.rounds > begun)  # type: ignore[misc]
            skew(-2, uuid)
            await seen_soon(client, uuid, waiting)

    while_waiting(uuids, story)


def test_changes_while_a_response_is_under_way_are_polled_again(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, no_sweeps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is the time before the request: the server may have made its answer right then."""
    monkeypatch.setattr(poller, "OVERLAP", timedelta())
    uuids = submit(client, pool, 2)

    async def story(shared: Poller, waiting: dict[str, asyncio.Task[str]]) -> None:
        # A newer transition than any before, so that the mark is near the server's time.
        await seen_soon(client, uuids[0], waiting)
        # The end is among the changes of the rounds that follow for up to two seconds; they ask for their number.
        counted = "/tasks/summaries/paginate"
        await until(lambda: counted not in [one["path"] for one in qarnot.requests()[-8:]])
        qarnot.clear_requests()
        qarnot.faults([{"kind": "delay", "seconds": 4, "times": 1, **SEARCH}])
        await until(lambda: searches(qarnot) == 1)
        await asyncio.sleep(1.5)  # the resolution of the server's times is one second
        await seen_soon(client, uuids[1], waiting)

    while_waiting(uuids, story)


# ---- who has been told


def test_one_who_joins_while_others_are_told_is_told_everything(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    tag = "airflow-lineage:joins"
    uuids = set(submit(client, pool, 5 * poller.WAKE_BATCH, tags=(*OURS, tag)))

    async def told(count: int, first: Callable[[], None] = lambda: None) -> set[str]:
        found: set[str] = set()
        async with subscribe("qarnot_default", "task", tag, is_tag=True, interval=3600) as waiter:
            while len(found) < count:
                found.add((await waiter.next(PATIENCE)).uuid)
                first()
        return found

    async def wait() -> None:
        late: list[asyncio.Task[set[str]]] = []

        def join() -> None:
            if not late:
                late.append(asyncio.create_task(told(len(uuids))))

        assert await told(len(uuids), join) == uuids
        assert await late[0] == uuids

    asyncio.run(wait())
