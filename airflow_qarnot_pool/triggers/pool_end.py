"""Notify waits for Qarnot tasks that their pool has ended, because Qarnot may leave tasks queued on it.

All waits on one pool share one subscription to it. It costs an occasional poll of the connection's pools, and no
request for each wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotDeletedError, QarnotError, QarnotUnknownStateError
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.triggers.poller import subscribe
from airflow_qarnot_pool.waiting.conditions import POOL_POLL_INTERVALS, STRANDED_INTERVALS

if TYPE_CHECKING:
    from airflow_qarnot_pool.triggers.poller import Subscriber

log = logging.getLogger(__name__)


class PoolEnd:
    """The subscription to one pool, shared by the waits for Qarnot tasks on it."""

    def __init__(self, key: tuple[int, str, str], interval: float) -> None:
        self._key = key
        self._interval = interval
        self._subscribers: set[Subscriber] = set()
        # An empty context, because its log lines belong to the triggerer and not to the first trigger.
        self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    @property
    def closed(self) -> bool:
        """Whether it has stopped."""
        return self._task.done()

    def add(self, subscriber: Subscriber) -> None:
        """Notify *subscriber*, too."""
        self._subscribers.add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Stop notifying *subscriber*, and stop polling after the last one."""
        self._subscribers.discard(subscriber)
        if not self._subscribers:
            self._task.cancel()
            if _ends.get(self._key) is self:
                del _ends[self._key]

    async def _run(self) -> None:
        _, _, pool = self._key
        state = await self._end()
        while True:
            # Qarnot gets some time to cancel the queued tasks. A wait that joins later allows the same time.
            await asyncio.sleep(STRANDED_INTERVALS * self._interval)
            for subscriber in list(self._subscribers):
                subscriber.deliver(QarnotPoolEndedError(f"its pool {pool} is {state}", kind="pool", ref=pool))

    async def _end(self) -> str:
        """Wait until the pool accepts no more tasks, and return its state."""
        _, conn_id, pool = self._key
        every = POOL_POLL_INTERVALS * self._interval
        while True:
            await asyncio.sleep(
                every
            )  # most waits are shorter, and the pool has just accepted their Qarnot task
            try:
                async with subscribe(conn_id, "pool", pool, interval=every, follows_age=False) as subscriber:
                    while True:
                        snapshot = await subscriber.next(None)
                        if not states.accepts_tasks(snapshot.state):
                            return snapshot.state
            except QarnotDeletedError:
                return "deleted"
            except QarnotUnknownStateError as error:
                log.info("%s", error)
            except QarnotError as error:
                log.warning("Could not poll pool %s of awaited Qarnot tasks: %s", pool, error)


_ends: dict[tuple[int, str, str], PoolEnd] = {}


class PoolEnds:
    """Context manager that has *subscriber* raise ``QarnotPoolEndedError`` once one of *pools* has ended.

    It raises the error repeatedly. Thousands are open at a time, so it is no generator.

    :param interval: seconds between polls of the wait. Pools are polled less often.
    """

    __slots__ = ("_conn_id", "_interval", "_joined", "_pools", "_subscriber")

    def __init__(self, conn_id: str, pools: Sequence[str], subscriber: Subscriber, interval: float) -> None:
        self._conn_id, self._pools, self._subscriber, self._interval = conn_id, pools, subscriber, interval
        self._joined: tuple[PoolEnd, ...] = ()

    def __enter__(self) -> None:
        loop = id(asyncio.get_running_loop())
        self._joined = tuple(self._join((loop, self._conn_id, pool)) for pool in self._pools)

    def _join(self, key: tuple[int, str, str]) -> PoolEnd:
        end = _ends.get(key)
        if end is None or end.closed:
            end = _ends[key] = PoolEnd(key, self._interval)
        end.add(self._subscriber)
        return end

    def __exit__(self, *_: object) -> None:
        for end in self._joined:
            end.remove(self._subscriber)
