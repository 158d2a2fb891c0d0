"""The follower of outputs stays within its bounds, whatever the outputs are."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from airflow_qarnot_pool.transcript import Place, Transcript
from airflow_qarnot_pool.triggers import output
from airflow_qarnot_pool.triggers.output import AT_A_TIME, MOST_INSTANCES, Follower


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str, *values: Any) -> None:
        self.said.append(text % values)

    warning = info


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: Follower) -> Any:
        return object()

    monkeypatch.setattr(Follower, "_connect", connect)


def follower(log: Log | None = None) -> Follower:
    made = Follower("qarnot_default", Transcript(uuid="u").to_json(), 0.01, None, log or Log())
    made.runs()
    return made


def test_few_outputs_are_fetched_at_a_time_and_not_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    fetching: set[str] = set()
    go = threading.Event()

    def read(client: Any, transcript: Transcript) -> tuple[Transcript, list[str]]:
        fetching.add(threading.current_thread().name)
        assert go.wait(60)
        return transcript, []

    monkeypatch.setattr(output, "_read", read)

    async def many() -> None:
        following = [asyncio.create_task(follower().follow()) for _ in range(3 * AT_A_TIME)]
        try:
            while output._threads()._work_queue.qsize() + len(fetching) < 3 * AT_A_TIME:
                await asyncio.sleep(0.01)
            assert len(fetching) == AT_A_TIME
            assert all(name.startswith("qarnot-output") for name in fetching)
        finally:
            go.set()
            for one in following:
                one.cancel()
            await asyncio.wait(following)

    asyncio.run(many())


def test_more_instances_than_an_xcom_should_hold_are_followed_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    places = {("stdout", instance): Place(1, (1,)) for instance in range(MOST_INSTANCES + 1)}
    monkeypatch.setattr(
        output, "_read", lambda _, transcript: (Transcript(uuid="u", places=places), ["line"])
    )
    one = follower(log)
    asyncio.run(asyncio.wait_for(one.follow(), 60))
    assert log.said[0] == "line"
    assert "the rest of the output comes when all are done" in log.said[1]
    assert len(one.transcript.to_json()["places"]) == MOST_INSTANCES + 1


def test_all_lines_are_written_even_when_it_is_cancelled_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored as written by then, so nobody else would write them."""
    log = Log()
    lines = [str(n) for n in range(5 * output.LINES_AT_ONCE)]
    monkeypatch.setattr(output, "_read", lambda _, transcript: (transcript, lines))

    async def cancelled() -> None:
        following = asyncio.create_task(follower(log).follow())
        while not log.said:
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait([following])
        assert following.cancelled()

    asyncio.run(cancelled())
    assert log.said == lines
