"""Watchers in this process, with stores whose writes outlive a kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_qarnot_pool.triggers import watermark_stores
from airflow_qarnot_pool.triggers.watcher import QarnotWatcher
from airflow_qarnot_pool.triggers.watermark import Watermark

PATIENCE = 60.0


class MemoryStore:
    """The state store of an asset, and Airflow's database of events."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []

    async def load(self, key: str) -> Any:
        return json.loads(self.values.get(key, "null"))

    async def save(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)

    def store_event(self, payload: dict[str, Any]) -> None:
        """Do in one step what the listener does in a transaction (see test_watermark_listener.py)."""
        change = payload["watermark"]
        mark = Watermark.from_json(json.loads(self.values[change["key"]]))
        assert mark is not None
        items, mark = mark.report(payload[change["items"]], change["time"], change["floor"])
        self.values[change["key"]] = json.dumps(mark.to_json())
        self.events.append({**payload, change["items"]: items})


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()
    monkeypatch.setattr(watermark_stores, "stores_of", lambda trigger: [store])
    return store


class Running:
    """A watcher that runs, and the events that the triggerer has received and not stored yet."""

    def __init__(self, watcher: QarnotWatcher) -> None:
        path, kwargs = watcher.serialize()
        assert path.endswith(type(watcher).__name__)
        self.watcher = type(watcher)(**json.loads(json.dumps(kwargs)))
        self.received: list[dict[str, Any]] = []
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for event in self.watcher.run():
            self.received.append(event.payload)
            self._arrived.set()
            await asyncio.sleep(0)

    async def next(self) -> dict[str, Any]:
        """Return the next event."""
        async with asyncio.timeout(PATIENCE):
            while not self.received:
                self._arrived.clear()
                waiting = asyncio.create_task(self._arrived.wait())
                await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self._task.done():
                    self._task.result()
        return self.received.pop(0)

    async def kill(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def running(watcher: QarnotWatcher) -> AsyncIterator[Running]:
    run = Running(watcher)
    try:
        yield run
    finally:
        await run.kill()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
