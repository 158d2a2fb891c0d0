"""Tasks that wait for one quota share their polls."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotCredentialsError, QarnotUnavailableError
from airflow_qarnot_pool.triggers import quota

INTERVAL = 10.0


class Account:
    """Answers each poll when :meth:`answer` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.polls: list[asyncio.Future[Any]] = []

    async def request_places(self, conn_id: str, kind: str) -> Any:
        self.polls.append(asyncio.get_running_loop().create_future())
        return await self.polls[-1]

    async def answer(self, places: int | Exception) -> None:
        if isinstance(places, Exception):
            self.polls[-1].set_exception(places)
        else:
            self.polls[-1].set_result((SimpleNamespace(), places))
        await turns_of_the_loop()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account()
    monkeypatch.setattr(quota, "_request_places", account.request_places)
    monkeypatch.setattr(quota, "time", SimpleNamespace(monotonic=lambda: account.now))
    return account


async def turns_of_the_loop() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def polling(waiting: quota._QuotaWaiters, number: int) -> list[asyncio.Task[Any]]:
    tasks = [
        asyncio.create_task(waiting.poll("qarnot_default", "task", INTERVAL))  # type: ignore[arg-type]
        for _ in range(number)
    ]
    await turns_of_the_loop()
    return tasks


def places_of(tasks: list[asyncio.Task[Any]]) -> list[int | None]:
    return [task.result()[1] if task.done() else None for task in tasks]


def test_tasks_that_poll_at_once_get_the_response_of_one_poll(account: Account) -> None:
    async def case() -> None:
        tasks = await polling(quota._QuotaWaiters(), 3)
        await account.answer(2)
        assert places_of(tasks) == [2, 2, 2]
        assert len(account.polls) == 1

    asyncio.run(case())


def test_no_task_gets_the_response_of_an_old_poll_while_a_new_one_is_sent(account: Account) -> None:
    """The account was empty an hour ago, and all tasks would try in vain."""

    async def case() -> None:
        waiting = quota._QuotaWaiters()
        first = await polling(waiting, 1)
        await account.answer(100)
        assert places_of(first) == [100]
        account.now = 3600.0
        later = await polling(waiting, 3)
        assert places_of(later) == [None, None, None]
        await account.answer(0)
        assert places_of(later) == [0, 0, 0]

    asyncio.run(case())


def test_a_response_serves_for_half_an_interval(account: Account) -> None:
    async def case() -> None:
        waiting = quota._QuotaWaiters()
        await polling(waiting, 1)
        await account.answer(1)
        account.now = INTERVAL / 2 - 0.1
        assert places_of(await polling(waiting, 1)) == [1]
        account.now = INTERVAL / 2
        assert places_of(await polling(waiting, 1)) == [None]
        await account.answer(0)
        assert len(account.polls) == 2

    asyncio.run(case())


def test_all_tasks_wait_for_as_long_as_the_service_asks(account: Account) -> None:
    async def case() -> None:
        waiting = quota._QuotaWaiters()
        first = await polling(waiting, 2)
        account.now = 20.0
        await account.answer(QarnotUnavailableError(status=429, retry_after=300.0))
        account.now = 319.0
        later = await polling(waiting, 2)
        assert {type(task.exception()) for task in first + later} == {QarnotUnavailableError}
        assert len(account.polls) == 1
        account.now = 320.0
        last = await polling(waiting, 1)
        assert len(account.polls) == 2
        await account.answer(1)
        assert places_of(last) == [1]
        account.now += INTERVAL / 2
        await polling(waiting, 1)
        assert len(account.polls) == 3

    asyncio.run(case())


def test_a_cancelled_task_leaves_the_poll_to_the_others(account: Account) -> None:
    async def case() -> None:
        first, second = await polling(quota._QuotaWaiters(), 2)
        first.cancel()
        await turns_of_the_loop()
        await account.answer(1)
        assert first.cancelled()
        assert places_of([second]) == [1]

    asyncio.run(case())


async def waiters(monkeypatch: pytest.MonkeyPatch, number: int) -> list[asyncio.Task[None]]:
    """Tasks that poll once, at once. The first of them would try if it may try with a probability of 0.1."""
    pauses, draws = (
        itertools.chain([0.0] * number, itertools.repeat(1.0)),
        itertools.chain([0.05], itertools.repeat(0.5)),
    )
    chance = SimpleNamespace(uniform=lambda low, high: next(pauses), random=lambda: next(draws))
    monkeypatch.setattr(quota, "random", chance)
    deadline = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    tasks = [
        asyncio.create_task(quota.wait_for_room("qarnot_default", "task", 60.0, deadline))
        for _ in range(number)
    ]
    await turns_of_the_loop()
    return tasks


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        pytest.param(QarnotUnavailableError("down"), 0, id="an outage"),
        pytest.param(RuntimeError("the connection cannot be read"), 0, id="an outage of Airflow"),
        pytest.param(QarnotCredentialsError("401"), 1, id="an invalid token"),
    ],
)
def test_a_failed_poll_lets_no_crowd_try(
    account: Account, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    async def case() -> None:
        tasks = await waiters(monkeypatch, 10)
        await account.answer(error)
        assert sum(task.done() for task in tasks) == tries
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(case())


def test_the_last_task_that_waits_ends_the_poll_and_leaves_nothing_behind(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def case() -> None:
        tasks = await waiters(monkeypatch, 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turns_of_the_loop()
        assert account.polls[-1].cancelled()
        assert quota._quota_waiters == {}

    asyncio.run(case())
