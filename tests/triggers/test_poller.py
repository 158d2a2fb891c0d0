"""One poll for all waiters, against the local Qarnot."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.exceptions import QarnotCredentialsError, QarnotDeletedError, QarnotRefusedError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership.identity import namespace_tag
from airflow_qarnot_pool.triggers import poller
from airflow_qarnot_pool.triggers.poller import subscribe
from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger
from airflow_qarnot_pool.waiting import intervals
from airflow_qarnot_pool.waiting.conditions import Condition


@pytest.fixture(autouse=True)
def fixed_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll at the interval that the test gives; ``test_intervals.py`` has the tests of the other one."""
    monkeypatch.setenv("AIRFLOW__QARNOT__MIN_POLL_INTERVAL", "3600")


OURS = (namespace_tag("test"),)
INTERVAL = 0.1
PATIENCE = 120.0


def submit(
    client: QarnotClient, pool: str, count: int, command: str = "sleep 600", tags: Any = OURS
) -> list[str]:
    specs = [TaskSpec(name=f"t{n}", pool=pool, command=command, tags=tags) for n in range(count)]
    return [str(item.uuid) for item in client.tasks.create_many(specs)]


def searches(qarnot: LocalQarnot) -> int:
    return sum(one["path"] == "/tasks/search" for one in qarnot.requests())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


async def state_of(uuid: str, *states: str, interval: float = INTERVAL) -> str:
    """Wait for one of *states* through the shared poll."""
    async with subscribe("qarnot_default", "task", uuid, interval=interval) as waiter:
        while True:
            look = await waiter.next(PATIENCE)
            if look.state in states:
                return str(look.state)


def rounds_cost(qarnot: LocalQarnot, uuids: list[str]) -> float:
    """Searches per round while these wait and nothing changes, sweeps left out."""

    async def measure() -> float:
        waiting = [asyncio.create_task(state_of(uuid, "Cancelled")) for uuid in uuids]
        await until(lambda: len(list(poller.pollers())) == 1)
        (shared,) = poller.pollers()
        await until(lambda: sum(bool(entry.last) for entry in shared.subscriptions.values()) == len(uuids))
        begun, asked = shared.rounds, searches(qarnot)
        await until(lambda: shared.rounds >= begun + 8)
        cost = (searches(qarnot) - asked) / (shared.rounds - begun)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return cost

    return asyncio.run(measure())


def test_idle_rounds_cost_the_same_however_many_wait(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    uuids = submit(client, pool, 120)
    few, many = rounds_cost(qarnot, uuids[:2]), rounds_cost(qarnot, uuids)
    assert few <= 1.5
    assert many <= 1.5


def test_a_search_that_shows_all_that_is_awaited_is_not_checked_for_completeness(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    (uuid,) = submit(client, pool, 1)

    async def wait() -> str:
        waiting = asyncio.create_task(state_of(uuid, "Cancelled"))
        await until(lambda: searches(qarnot) >= 2)
        client.tasks.abort(uuid)
        return await waiting

    assert asyncio.run(wait()) == "Cancelled"
    assert "/tasks/summaries/paginate" not in [one["path"] for one in qarnot.requests()]


def test_everybody_gets_their_own_answer(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    good, bad = submit(client, pool, 8, "true"), submit(client, pool, 3, "false")

    async def wait() -> list[str]:
        return await asyncio.gather(*(state_of(uuid, "Success", "Failure") for uuid in good + bad))

    assert asyncio.run(wait()) == ["Success"] * 8 + ["Failure"] * 3
    assert list(poller.pollers()) == []


def test_a_waiter_that_joins_late_gets_its_answer_at_once(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    (slow,) = submit(client, pool, 1)
    (quick,) = submit(client, pool, 1, "true")

    async def wait() -> str:
        first = asyncio.create_task(state_of(slow, "Cancelled", interval=3600))
        await until(lambda: searches(qarnot) >= 1)
        await until(lambda: client.tasks.get(quick).state == "Success")
        # The poll sleeps for an hour; only the arrival of a waiter can wake it.
        state = await state_of(quick, "Success", interval=3600)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return state

    assert asyncio.run(wait()) == "Success"


def test_two_waiters_of_one_object(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    (uuid,) = submit(client, pool, 1, "true")

    async def wait() -> list[str]:
        return await asyncio.gather(state_of(uuid, "Success"), state_of(uuid, "Success"))

    assert asyncio.run(wait()) == ["Success", "Success"]


def test_a_second_waiter_is_told_what_the_first_one_was(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    (uuid,) = submit(client, pool, 1)

    async def wait() -> tuple[str, str, bool]:
        await until(lambda: client.tasks.get(uuid).state == "FullyExecuting")
        async with subscribe("qarnot_default", "task", uuid, interval=3600) as first:
            told = await first.next(PATIENCE)
            # Nothing changes between the two, and the poll sleeps for an hour.
            async with subscribe("qarnot_default", "task", uuid, interval=3600) as second:
                late = await second.next(PATIENCE)
                try:
                    await first.next(0)
                except TimeoutError:
                    return str(told.state), str(late.state), False
                return str(told.state), str(late.state), True

    told, late, again = asyncio.run(wait())
    assert told == late
    assert not again


def test_objects_of_others_are_swept(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    (uuid,) = submit(client, pool, 1, "sh -c 'sleep 0.5'", tags=())
    assert asyncio.run(state_of(uuid, "Success")) == "Success"


def test_a_deleted_object_is_an_error_of_its_waiter_only(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 2)
    gone, stays = submit(client, pool, 2)

    async def wait() -> str:
        waiting = [asyncio.create_task(state_of(uuid, "Success", "Cancelled")) for uuid in (gone, stays)]
        await until(
            lambda: any(entry.last for one in poller.pollers() for entry in one.subscriptions.values())
        )
        await asyncio.to_thread(client.tasks.delete, gone)
        with pytest.raises(QarnotDeletedError, match=gone):
            await waiting[0]
        assert not waiting[1].done()
        await asyncio.to_thread(client.tasks.abort, stays)
        return await waiting[1]

    assert asyncio.run(wait()) == "Cancelled"


@pytest.mark.parametrize("status", [403, 500])
def test_an_object_that_cannot_be_had_keeps_no_other_from_being_looked_at(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, status: int
) -> None:
    """Its state is withheld, and searches do not show it any more."""
    withheld, stays = submit(client, pool, 2)
    client.tasks.delete(withheld)
    qarnot.faults([{"method": "GET", "path": f"^/tasks/{withheld}$", "kind": "status", "status": status}])

    async def wait() -> str:
        first = asyncio.ensure_future(state_of(withheld, "Success"))
        asked = {"method": "GET", "path": f"/tasks/{withheld}", "status": status}
        await until(lambda: any(asked.items() <= one.items() for one in qarnot.requests()))
        second = asyncio.ensure_future(state_of(stays, "Success", "Cancelled"))
        await until(
            lambda: any(entry.last for one in poller.pollers() for entry in one.subscriptions.values())
        )
        await asyncio.to_thread(client.tasks.abort, stays)
        state = await second
        if status == 403:
            with pytest.raises(QarnotRefusedError):
                await first
        else:
            await asyncio.sleep(0)
            assert not first.done()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        return state

    assert asyncio.run(wait()) == "Cancelled"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "reset"},
        {"kind": "lost"},
        {"kind": "garbage"},
    ],
    ids=lambda fault: str(fault.get("status", fault["kind"])),
)
def test_a_transient_error_never_fails_a_waiter(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, fault: dict[str, Any]
) -> None:
    (uuid,) = submit(client, pool, 1, "true")
    qarnot.faults([{"method": "POST", "path": "^/tasks/search$", "times": 3, **fault}])
    assert asyncio.run(state_of(uuid, "Success")) == "Success"


def test_a_server_that_asks_for_hours_is_asked_again_sooner(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "MAX_RETRY_AFTER", 0.5)
    (uuid,) = submit(client, pool, 1, "true")
    fault = {"kind": "status", "status": 503, "retry_after": 7200, "times": 1}
    qarnot.faults([{"method": "POST", "path": "^/tasks/search$", **fault}])
    assert asyncio.run(state_of(uuid, "Success")) == "Success"


def test_a_large_filter_that_is_refused_shrinks(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = submit(client, pool, 12, "true")
    most = 3
    search = poller.Poller._search

    def strict(self: poller.Poller, wanted: list[str]) -> Any:
        if len(wanted) > most:
            from airflow_qarnot_pool.api.errors import QarnotRefusedError

            raise QarnotRefusedError("too many values", status=400)
        return search(self, wanted)

    monkeypatch.setattr(poller.Poller, "_search", strict)

    async def wait() -> list[str]:
        return await asyncio.gather(*(state_of(uuid, "Success") for uuid in uuids))

    assert asyncio.run(wait()) == ["Success"] * 12


def test_a_server_that_cannot_filter_by_time_is_swept(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    (uuid,) = submit(client, pool, 1, "sh -c 'sleep 0.5'")

    from airflow_qarnot_pool.api.errors import QarnotRefusedError
    from airflow_qarnot_pool.api.resource import Resource

    search = Resource.search

    def strict(self: Any, filter: Any = None, **options: Any) -> Any:
        if filter and "StateTransitionTime" in str(filter):
            raise QarnotRefusedError("unknown field StateTransitionTime", status=400)
        return search(self, filter, **options)

    monkeypatch.setattr(Resource, "search", strict)
    assert asyncio.run(state_of(uuid, "Success")) == "Success"


def test_more_changes_than_one_answer_holds(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    uuids = submit(client, pool, 40, "true")

    async def wait() -> list[str]:
        return await asyncio.gather(*(state_of(uuid, "Success") for uuid in uuids))

    qarnot.cap_searches(5)
    try:
        assert asyncio.run(wait()) == ["Success"] * 40
    finally:
        qarnot.cap_searches(None)


def test_credentials_that_change_are_picked_up(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uuid,) = submit(client, pool, 1, "true")
    right = os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", right.replace(qarnot.token, "an-old-token"))

    async def wait() -> str:
        waiting = asyncio.create_task(state_of(uuid, "Success"))
        await until(lambda: any(one["status"] == 401 for one in qarnot.requests()))
        monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", right)
        return await waiting

    assert asyncio.run(wait()) == "Success"


def test_a_token_that_stays_wrong_fails_the_waiters(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uuid,) = submit(client, pool, 1)
    wrong = os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"].replace(qarnot.token, "a-wrong-token")
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", wrong)
    with pytest.raises(QarnotCredentialsError):
        asyncio.run(state_of(uuid, "Success"))


def test_cancelled_waiters_leave_nothing_behind(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    uuids = submit(client, pool, 20)

    async def wait() -> int:
        waiting = [asyncio.create_task(state_of(uuid, "Success")) for uuid in uuids]
        await until(lambda: bool(poller._pollers))
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(wait()) == 0
    assert list(poller.pollers()) == []


def test_a_finished_instance_is_a_change_for_a_wait_that_counts_them_and_costs_no_request(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def no_query(self: poller.Poller) -> bool:
        raise AssertionError("a query for changes is another request, and shows only the last seconds")

    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    monkeypatch.setattr(poller.Poller, "_poll_changes", no_query)
    command = f"sh -c 'while [ ! -e {tmp_path}/$INSTANCE_ID ]; do sleep 0.05; done'"
    # The pool has two slots, so the state is the same when the first of four has finished.
    spec = TaskSpec(name="four", pool=pool, command=command, instance_count=4, tags=OURS)
    uuid = client.tasks.create(spec)

    async def wait() -> tuple[int, int]:
        await until(lambda: client.tasks.get(uuid).running_instance_count == 2)
        async with subscribe(
            "qarnot_default", "task", uuid, interval=INTERVAL, counts_instances=True
        ) as waiter:
            assert (await waiter.next(PATIENCE)).state == "PartiallyExecuting"
            (tmp_path / "0").touch()
            while len((polled := await waiter.next(PATIENCE)).completed_instances) < 1:
                pass
            assert polled.state == "PartiallyExecuting"
            (shared,) = poller.pollers()
            return shared.rounds, searches(qarnot)

    rounds, requests = asyncio.run(wait())
    # The first poll is that of the new subscription.
    assert requests <= rounds + 1
    client.tasks.abort(uuid)


def test_many_objects_of_one_owner_are_one_topic(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    uuids = set(submit(client, pool, 30, "true", tags=(*OURS, "airflow-lineage:ours")))

    async def wait() -> set[str]:
        done: set[str] = set()
        async with subscribe(
            "qarnot_default", "task", "airflow-lineage:ours", is_tag=True, interval=INTERVAL
        ) as waiter:
            while len(done) < len(uuids):
                look = await waiter.next(PATIENCE)
                if look.state == "Success":
                    done.add(look.uuid)
        return done

    assert asyncio.run(wait()) == uuids


def test_a_burst_is_asked_for_once(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them changed in the same second; the rounds after that must not bring them again and again."""
    monkeypatch.setattr(poller, "OVERLAP", timedelta(seconds=0.2))
    uuids = submit(client, pool, 40)
    brought: list[int] = []
    tell = poller.Poller._notify

    async def counting(self: poller.Poller, found: Any) -> None:
        found = list(found)
        brought.append(len(found))
        await tell(self, found)

    monkeypatch.setattr(poller.Poller, "_notify", counting)

    async def wait() -> None:
        waiting = [asyncio.create_task(state_of(uuid, "Cancelled")) for uuid in uuids]
        # Times have a resolution of one second, so the burst is behind after one or two.
        await until(lambda: brought[-4:] == [0, 0, 0, 0])
        await asyncio.to_thread(client.tasks.abort, uuids[7])
        await waiting[7]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(wait())


def test_a_change_between_the_first_look_and_the_first_round_is_seen(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SWEEP_EVERY", 10_000)
    (uuid,) = submit(client, pool, 1)

    async def wait() -> str:
        waiting = asyncio.create_task(state_of(uuid, "Cancelled", interval=4.0))
        await until(
            lambda: any(entry.last for one in poller.pollers() for entry in one.subscriptions.values())
        )
        await asyncio.to_thread(client.tasks.abort, uuid)
        return await waiting

    assert asyncio.run(wait()) == "Cancelled"


def trigger_of(
    uuid: str, *targets: str, interval: float = INTERVAL, passed: bool = True
) -> QarnotTaskTrigger:
    """The trigger of a sensor."""
    condition = Condition(kind="task", targets=targets, accept_passed=passed)
    return QarnotTaskTrigger(
        qarnot_conn_id="qarnot_default",
        uuid=uuid,
        condition=condition.to_kwargs(),
        poll_interval=interval,
        cancel_on_kill=False,
    )


async def first_event(trigger: QarnotTaskTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("the trigger ended without an event")


def test_a_state_that_came_and_went_between_two_looks_is_not_lost(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, tmp_path: Any
) -> None:
    """A sensor on FullyExecuting sees the task queued, and next time it looks the task is over."""
    # Two that hold both slots, until a file tells them to go.
    hold = f"sh -c 'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done'"
    submit(client, pool, 2, hold)
    (uuid,) = submit(client, pool, 1, "true")

    async def wait() -> dict[str, Any]:
        waiting = asyncio.create_task(first_event(trigger_of(uuid, "FullyExecuting", interval=3600)))
        await until(
            lambda: any(entry.last for one in poller.pollers() for entry in one.subscriptions.values())
        )
        (shared,) = poller.pollers()
        assert {entry.last.state for entry in shared.subscriptions.values() if entry.last} <= {
            "Submitted",
            "FullyDispatched",
        }
        (tmp_path / "go").touch()
        await until(lambda: client.tasks.get(uuid).state == "Success")
        # The next look comes with the next waiter, who makes the poll ask at once.
        shared.subscriptions[uuid].is_new = True
        shared._arrived.set()
        return await waiting

    event = asyncio.run(wait())
    assert (event["status"], event["state"]) == ("met", "Success")


def test_a_target_that_was_not_passed_on_the_way_is_not_made_up(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    (uuid,) = submit(client, pool, 1, "true")
    event = asyncio.run(first_event(trigger_of(uuid, "Failure")))
    assert event["status"] == "impossible"


@pytest.mark.parametrize(
    ("due", "now", "luck", "expected"),
    [
        pytest.param(100.0, 100.0, 0.0, 110.0, id="an interval later"),
        pytest.param(100.0, 100.0, 1.0, 109.0, id="jitter shortens it"),
        pytest.param(100.0, 103.0, 0.0, 110.0, id="how long the round took does not matter"),
        pytest.param(100.0, 103.0, 1.0, 109.0, id="with jitter neither"),
        pytest.param(100.0, 105.0, 0.0, 110.0, id="half an interval of rest is left"),
        pytest.param(100.0, 109.0, 0.0, 114.0, id="a long round is followed by rest"),
        pytest.param(100.0, 150.0, 0.0, 155.0, id="rounds missed are not made up for"),
    ],
)
def test_when_the_next_round_is_due(due: float, now: float, luck: float, expected: float) -> None:
    assert poller.next_due(due, now, 10.0, luck) == pytest.approx(expected)


def test_rounds_keep_their_interval_however_long_a_request_takes(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    """Requests take a third of the interval, and still rounds are due one interval after the other."""
    interval, took = 1.0, 0.3
    (uuid,) = submit(client, pool, 1)

    async def wait() -> list[float]:
        async with subscribe("qarnot_default", "task", uuid, interval=interval) as waiter:
            await waiter.next(PATIENCE)
            dues: list[float] = []
            qarnot.faults(
                [
                    {
                        "method": "POST",
                        "path": "^/tasks/search$",
                        "times": 100,
                        "kind": "delay",
                        "seconds": took,
                    }
                ]
            )
            following = poller.next_due

            def noting(due: float, *rest: float) -> float:
                dues.append(due)
                return following(due, *rest)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(poller, "next_due", noting)
                await until(lambda: len(dues) >= 5)
            return dues

    dues = asyncio.run(wait())
    apart = sorted(later - then for then, later in itertools.pairwise(dues))
    # A busy machine makes a round late, and rest is due after it; the schedule itself takes no longer.
    assert apart[0] <= interval + 1e-6


def test_a_waiter_that_joins_during_a_request_is_polled_right_after(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(client, pool, 2)
    asking, answer = threading.Event(), threading.Event()
    search = poller.Poller._search

    def slow(self: poller.Poller, uuids: list[str]) -> Any:
        asking.set()
        answer.wait(PATIENCE)
        return search(self, uuids)

    monkeypatch.setattr(poller.Poller, "_search", slow)

    async def wait() -> None:
        async with subscribe("qarnot_default", "task", first, interval=3600) as one:
            await until(asking.is_set)
            async with subscribe("qarnot_default", "task", second, interval=3600) as other:
                answer.set()
                await one.next(PATIENCE)
                await other.next(PATIENCE)

    asyncio.run(wait())


def test_one_who_wants_to_look_more_often_makes_all_look_so(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    patient, hasty = submit(client, pool, 2)

    async def wait() -> str:
        async with subscribe("qarnot_default", "task", patient, interval=3600) as one:
            await one.next(PATIENCE)
            waiting = asyncio.create_task(state_of(hasty, "Cancelled"))
            (shared,) = poller.pollers()
            await until(lambda: hasty in shared.subscriptions and bool(shared.subscriptions[hasty].last))
            await asyncio.to_thread(client.tasks.abort, hasty)
            state = await waiting
            # And no more when it has left.
            assert shared._interval() == 3600
            return state

    assert asyncio.run(wait()) == "Cancelled"


def test_each_waiter_gives_up_when_its_own_time_is_over(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    """One timer serves all: the shorter time that comes later, several at once, and the rest goes on."""
    uuids = submit(client, pool, 4)
    ended: list[str] = []

    async def one(uuid: str, seconds: float | None) -> None:
        async with subscribe("qarnot_default", "task", uuid, interval=3600) as waiter:
            await waiter.next(PATIENCE)
            with pytest.raises(TimeoutError):
                await waiter.next(seconds)
            ended.append(uuid)

    async def wait() -> None:
        times = (1.0, 0.3, 0.3, None)
        waiting = [
            asyncio.create_task(one(uuid, seconds)) for uuid, seconds in zip(uuids, times, strict=True)
        ]
        await until(lambda: len(ended) == 3)
        assert not waiting[3].done()
        waiting[3].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(wait())
    assert set(ended[:2]) == {uuids[1], uuids[2]}
    assert ended[2] == uuids[0]


def test_a_crowd_is_woken_a_few_at_a_time(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    """Each that is woken has something to log; the event loop has its turn in between."""
    (uuid,) = submit(client, pool, 1)
    crowd = 5 * poller.WAKE_BATCH
    told: list[int] = []  # at which turn of the event loop
    turn = 0

    async def one() -> None:
        async with subscribe("qarnot_default", "task", uuid, interval=3600) as waiter:
            await waiter.next(PATIENCE)
            told.append(turn)

    async def wait() -> None:
        nonlocal turn
        waiting = [asyncio.create_task(one()) for _ in range(crowd)]
        while len(told) < crowd:
            turn += 1
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)

    asyncio.run(asyncio.wait_for(wait(), PATIENCE))
    assert max(told.count(one) for one in set(told)) <= poller.WAKE_BATCH


def test_all_back_off_together(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    """However many wait, a server that asks for patience hears of them once in a while, as if they were one."""
    uuids = submit(client, pool, 30, "true")
    qarnot.clear_requests()
    qarnot.faults(
        [
            {
                "method": "POST",
                "path": "^/tasks/search$",
                "times": 3,
                "kind": "status",
                "status": 429,
                "retry_after": 1,
            }
        ]
    )

    async def wait() -> list[str]:
        return await asyncio.gather(*(state_of(uuid, "Success") for uuid in uuids))

    assert asyncio.run(wait()) == ["Success"] * 30
    asked = [one for one in qarnot.requests() if one["path"] == "/tasks/search"]
    assert [one["status"] for one in asked[:4]] == [429, 429, 429, 200]
    assert all(later["at"] - then["at"] >= 1.0 for then, later in itertools.pairwise(asked[:4]))


def test_threads_and_connections_go_with_the_last_waiter(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    (uuid,) = submit(client, pool, 1, "true")
    assert asyncio.run(state_of(uuid, "Success")) == "Success"

    def polling() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith("qarnot-poll")]

    for one in polling():
        one.join(PATIENCE)
    assert polling() == []


def test_log_lines_belong_to_the_trigger_that_writes_them_and_the_polls_to_none(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow tells log lines apart by context variables, which the shared poll must not have from its first waiter."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    lines: list[tuple[str, str]] = []

    class Recorder:
        def __init__(self, speaker: str) -> None:
            self.speaker = speaker

        def __getattr__(self, level: str) -> Callable[..., None]:
            return lambda *_, **__: lines.append((self.speaker, who.get()))

    monkeypatch.setattr(poller, "log", Recorder("poll"))
    monkeypatch.setattr(QarnotTaskTrigger, "log", property(lambda self: Recorder(self.uuid)))
    uuids = submit(client, pool, 2, "true")
    qarnot.faults(
        [{"method": "POST", "path": "^/tasks/search$", "times": 1, "kind": "status", "status": 503}]
    )

    async def one(uuid: str) -> None:
        who.set(uuid)
        await first_event(trigger_of(uuid, "Success"))

    async def wait() -> None:
        await asyncio.gather(*(asyncio.create_task(one(uuid)) for uuid in uuids))

    asyncio.run(wait())
    assert {speaker for speaker, _ in lines} == {"poll", *uuids}
    assert all(bound == ("nobody" if speaker == "poll" else speaker) for speaker, bound in lines)


def test_pools_and_tasks_sensors_and_operators_share(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    """One poll for each kind, whoever waits: an operator's trigger and a sensor's."""
    uuids = submit(client, pool, 2)

    async def count() -> dict[str, int]:
        waiting = [asyncio.create_task(first_event(trigger_of(uuid, "Success"))) for uuid in uuids]
        waiting += [asyncio.create_task(first_event(trigger_of(uuids[0], "Cancelled", passed=False)))]
        async with subscribe("qarnot_default", "pool", pool, interval=INTERVAL) as waiter:
            await waiter.next(PATIENCE)
            kinds = {one.kind: len(one.subscriptions) for one in poller.pollers()}
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return kinds

    assert asyncio.run(count()) == {"task": 2, "pool": 1}
