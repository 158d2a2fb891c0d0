"""The thread of the executor: no call of the scheduler is lost, or waits for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from airflow_qarnot_pool.executors import background
from airflow_qarnot_pool.executors.background import LoopThread

PATIENCE = 30.0


class Worker:
    """Ends when it is told to."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.thread = LoopThread(self.run, "worker")

    async def run(self) -> None:
        self.end = asyncio.Event()
        await self.end.wait()

    def call(self, *numbers: int) -> None:
        for number in numbers:
            self.thread.call(self.calls.append, number)

    def stop(self) -> None:
        self.thread.call(lambda: self.end.set())
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive


def test_calls_come_in_order_also_after_the_end_of_the_thread() -> None:
    worker = Worker()
    worker.call(1, 2)
    worker.stop()
    worker.call(3)
    worker.stop()
    assert worker.calls == [1, 2, 3]


def test_a_thread_that_cannot_start_keeps_the_calls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_many(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    worker = Worker()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", too_many)
        worker.call(1)
    assert "can't start new thread" in caplog.text
    worker.thread.ensure()
    worker.stop()
    assert worker.calls == [1]


def test_a_thread_that_dies_at_its_start_keeps_the_calls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_file(main: Any) -> None:
        main.close()
        raise OSError("Too many open files")

    worker = Worker()
    with monkeypatch.context() as patch:
        patch.setattr(background.asyncio, "run", no_file)
        worker.call(1)
        worker.thread.join(PATIENCE)
    assert "Too many open files" in caplog.text
    worker.thread.ensure()
    worker.stop()
    assert worker.calls == [1]
