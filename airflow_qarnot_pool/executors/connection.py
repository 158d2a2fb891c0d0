"""The connection of the executor's thread, and the threads that send its requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.triggers.airflow_requests import AIRFLOW_TIMEOUT, read_settings
from airflow_qarnot_pool.triggers.poller import CONNECTION_MAX_AGE
from airflow_qarnot_pool.version_compat import AirflowNotFoundException

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

T = TypeVar("T")

#: Maximum seconds of a request with its retries. The rounds send it again.
REQUEST_DEADLINE = 20.0


class ExecutorConnection:
    """Reads the connection again from time to time, because tokens are replaced. For one event loop at a time.

    The three kinds of requests do not wait for each other: those that submit and abort, those that no submission waits
    for, and the look-ups that a scheduler waits for.
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._client: QarnotClient | None = None
        self._read_at = float("-inf")
        #: As last read; None before that.
        self.last: ConnectionSettings | None = None

    def open(self) -> None:
        """Start the threads."""
        self._sending, self._reading, self._finding = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"qarnot-executor-{name}")
            for name in ("send", "read", "find")
        )

    def close(self) -> None:
        """End the threads, without waiting for their requests."""
        for threads in (self._sending, self._reading, self._finding):
            threads.shutdown(wait=False, cancel_futures=True)

    def expire(self) -> None:
        """Let the next request read the connection again."""
        self._read_at = float("-inf")

    @property
    def settings(self) -> ConnectionSettings:
        """The settings of the last :meth:`client`."""
        assert self.last is not None, "client() comes first"
        return self.last

    async def client(self) -> QarnotClient:
        """Return the client.

        :raises QarnotInvalidSpecError: there is no such connection.
        """
        if self._client is None or time.monotonic() - self._read_at > CONNECTION_MAX_AGE:
            settings = await self._read_settings()
            if settings != self.last or self._client is None:
                timeout = min(settings.timeout, REQUEST_DEADLINE)
                make = partial(settings.client, retries=1, deadline=REQUEST_DEADLINE, timeout=timeout)
                self._client = await self.send(make)
            self.last, self._read_at = settings, time.monotonic()
        return self._client

    async def _read_settings(self) -> ConnectionSettings:
        try:
            return await asyncio.wait_for(read_settings(self._conn_id), AIRFLOW_TIMEOUT)
        except AirflowNotFoundException:
            raise QarnotInvalidSpecError(
                f"[qarnot_executor] conn_id names no connection, got {self._conn_id!r}",
                field="conn_id",
                remedy="Add a connection of type qarnot, or correct the option.",
            ) from None

    async def send(self, request: Callable[[], T]) -> T:
        """Send a request that submits or aborts."""
        return await asyncio.get_running_loop().run_in_executor(self._sending, request)

    async def read(self, request: Callable[[], T]) -> T:
        """Send a request that no submission waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, request)

    async def find(self, request: Callable[[], T]) -> T:
        """Send a request that a scheduler waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._finding, request)
