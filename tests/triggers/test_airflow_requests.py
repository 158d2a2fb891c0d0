"""A trigger that ends leaves no request to Airflow behind, which would meet the next task of ``dag.test()``."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import BaseHook

from airflow_qarnot_pool.logs.cursor import LogCursor
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.triggers import airflow_requests
from airflow_qarnot_pool.triggers.airflow_requests import in_thread, read_settings
from airflow_qarnot_pool.triggers.log_follower import LogFollower
from airflow_qarnot_pool.version_compat import AirflowNotFoundException
from tests.harness import life_of


class HeldRequest:
    """A request to Airflow that gets its response when :meth:`answer` is called."""

    def __init__(self) -> None:
        self.finished = False
        self._started, self._answered = threading.Event(), threading.Event()

    def send(self, *_: Any) -> Any:
        self._started.set()
        assert self._answered.wait(60)
        self.finished = True
        raise KeyError("there is none")

    async def started(self) -> None:
        assert await asyncio.to_thread(self._started.wait, 60)

    def answer(self) -> None:
        self._answered.set()


async def _check_that_it_waits(task: asyncio.Task[Any], request: HeldRequest) -> None:
    try:
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
    finally:
        request.answer()
    await asyncio.wait([task])
    assert request.finished


def test_a_cancelled_call_returns_after_its_thread_has_finished() -> None:
    async def case() -> None:
        request = HeldRequest()
        call = asyncio.create_task(in_thread(request.send))
        await request.started()
        call.cancel()
        await _check_that_it_waits(call, request)
        assert call.cancelled()

    asyncio.run(case())


def test_a_cancelled_read_of_a_connection_returns_after_its_thread_has_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = HeldRequest()

    async def get_connection(conn_id: str) -> Any:
        from asgiref.sync import sync_to_async

        return await sync_to_async(request.send)(conn_id)

    monkeypatch.setattr(BaseHook, "aget_connection", get_connection)

    async def case() -> None:
        reading = asyncio.create_task(read_settings("qarnot_default"))
        await request.started()
        reading.cancel()
        await _check_that_it_waits(reading, request)
        assert reading.cancelled()

    asyncio.run(case())


def test_the_settings_of_the_last_read_serve_while_a_connection_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Airflow reports a secrets backend that fails as a connection that is not found."""
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT", raising=False)
    with pytest.raises(AirflowNotFoundException):
        asyncio.run(read_settings("qarnot_default"))
    connection = {"conn_type": "qarnot", "host": "https://a.example", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    settings = asyncio.run(read_settings("qarnot_default"))
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT")
    assert asyncio.run(read_settings("qarnot_default")) == settings
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps({**connection, "host": "https://b.example"}))
    assert asyncio.run(read_settings("qarnot_default")) != settings


def test_a_call_that_hangs_delays_a_cancellation_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_requests, "AIRFLOW_TIMEOUT", 0.01)

    async def case() -> None:
        request = HeldRequest()
        call = asyncio.create_task(in_thread(request.send))
        await request.started()
        call.cancel()
        try:
            await asyncio.wait([call], timeout=60)
            assert call.cancelled()
            assert not request.finished
        finally:
            request.answer()

    asyncio.run(case())


@pytest.mark.parametrize("name", ["get_direct", "set_direct"])
def test_a_log_follower_stops_after_its_request_has_finished(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    request = HeldRequest()
    none: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr(xcoms, "get_direct", none)
    monkeypatch.setattr(xcoms, "set_direct", none)
    monkeypatch.setattr(xcoms, name, request.send)
    identity = life_of(task_id="task")
    follower = LogFollower("qarnot_default", LogCursor(uuid="u").to_json(), 0.01, identity, None)

    async def case() -> None:
        following = asyncio.create_task(follower.follow())
        await request.started()
        stopping = asyncio.create_task(follower.stop(following))
        await _check_that_it_waits(stopping, request)
        assert following.cancelled()

    asyncio.run(case())
