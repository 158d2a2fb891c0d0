"""Follow the output of a running Qarnot task and write it to the log of the Airflow task, which is deferred."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseHook

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError, shortened
from airflow_qarnot_pool.logs.channel import wait_until_flushed
from airflow_qarnot_pool.logs.checkpoint import Offset, WriterLease, rewrite_notice, with_timestamps
from airflow_qarnot_pool.logs.cursor import STREAMS, LogCursor
from airflow_qarnot_pool.logs.writer import OUTPUT_DEADLINE, fetch, write
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.xcoms import OUTPUT_KEY, position_key
from airflow_qarnot_pool.triggers.airflow_requests import finished, read_settings
from airflow_qarnot_pool.triggers.base import own_xcom, store_xcom
from airflow_qarnot_pool.waiting.intervals import Backoff

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: Maximum number of outputs that all triggers of a process fetch at the same time. Each of them is in memory.
MAX_READERS = 4
#: Maximum number of instances whose output is followed, because an XCom stores the position of each.
MAX_INSTANCES = 100
#: Minimum pause as a multiple of the time that a read takes, so large outputs are read less often.
READ_TIME_FACTOR = 10
#: Number of lines that are written before the other triggers run.
LINE_BATCH = 200
#: Maximum seconds to wait for pending log lines when the wait ends. The worker rewrites any that are unconfirmed.
FLUSH_TIMEOUT = 5.0
CHECKPOINT_FAILED = (
    "Airflow did not store how far the output is written (%s), so no more of it is written until Airflow stores it "
    "or the Qarnot task is done"
)

_numbers = itertools.count(1)
T = TypeVar("T")


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_READERS, thread_name_prefix="qarnot-output")


@cache
def _process_name(pid: int) -> str:
    """Return a name of this process, which shows that two followers of one log are triggers of one process."""
    return secrets.token_hex(4)


class _CheckpointNotStored(Exception):
    """Airflow's API did not store or return a checkpoint."""


class _LeaseLost(Exception):
    """Another follower writes this output now."""


class LogFollower:
    """Writes the new lines of a Qarnot task's output to a log, at an interval, until it is stopped.

    It stores, as an XCom, the lines that it is about to write. It writes them, waits until the triggerer's parent,
    which writes the files, has read them, and stores that they are written. So whenever it stops, the next writer
    knows which lines are in the log for certain and which may be. Before each write it checks that no other follower
    has acquired the lease, and each follower has its own checkpoint. So of two followers at once either the older one
    stops, or the younger one knows which lines the older one was about to write. The steps of one read:

    ============================================= =====================================================
    stopped, or lease lost                        effect on the lines
    ============================================= =====================================================
    before the checkpoint is stored               not written yet; the next writer writes them
    from then until they are stored as written    announced, and written again with their first time
    after that                                    in the log
    ============================================= =====================================================

    :param conn_id: connection of the Qarnot task.
    :param follow_logs: ``LogCursor.to_json()`` before the first line, and ``secrets_of``, a connection whose password
        is masked in the log.
    :param interval: seconds between reads.
    :param identity: the task instance, or None if there is no place to store checkpoints.
    """

    def __init__(
        self,
        conn_id: str,
        follow_logs: Mapping[str, Any],
        interval: float,
        identity: TaskInstanceIdentity | None,
        log: Any,
    ) -> None:
        self.position = Offset(cursor=LogCursor.from_json(follow_logs))
        self._secrets_of = follow_logs.get("secrets_of")
        self._conn_id, self._interval, self._identity, self._log = conn_id, interval, identity, log
        self._triggerer = _process_name(os.getpid())
        self._me = f"{self._triggerer}.{next(_numbers)}"
        self._client: QarnotClient | None = None
        self._runs = asyncio.Event()
        self._writing = asyncio.Lock()
        self._has_lease = identity is None
        self._last: float | None = None
        self._reported: set[type[Exception]] = set()

    def to_json(self) -> dict[str, Any]:
        """Return the position and the name of this follower."""
        return {**self.position.to_json(), "follower": self._me}

    def mark_running(self) -> None:
        """Start reading. A Qarnot task has no output before it runs."""
        self._runs.set()

    async def follow(self) -> None:
        """Follow the output until cancelled."""
        clock, backoff = asyncio.get_running_loop().time, Backoff()
        try:
            await self._acquire_lease()  # before there is output, because Airflow may take some time
        except _CheckpointNotStored as error:
            self._warn_once(error, CHECKPOINT_FAILED)
        await self._runs.wait()
        while True:
            started, reading = clock(), 0.0
            try:
                await self._acquire_lease()
                reading = await self._write_new_lines()
                backoff.record_response()
            except QarnotNotFoundError:
                pass  # deleted, or not visible yet; the trigger that polls its state handles that
            except _LeaseLost:
                return
            except _CheckpointNotStored as error:
                self._warn_once(error, CHECKPOINT_FAILED)
            except Exception as error:
                backoff.record_failure(error)
                self._client = None  # the token may have been replaced
                self._warn_once(error, "The output could not be fetched, and is tried again: %s")
            if len({instance for _, instance in self.position.cursor.places}) > MAX_INSTANCES:
                self._log.info(
                    "More than %d instances write, so the rest of the output follows when all are done",
                    MAX_INSTANCES,
                )
                return
            pause = pause_after(self._interval, clock() - started, reading)
            pause = backoff.delay(pause, shortest=pause)
            await asyncio.sleep(pause * random.uniform(0.95, 1.05))

    async def stop(self, following: asyncio.Task[None]) -> None:
        """Cancel :meth:`follow`, after pending lines are written if that does not take long."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT), self._writing:
                pass
        except TimeoutError:
            pass  # the checkpoint lists these lines as unconfirmed
        finally:
            following.cancel()
        await asyncio.wait([following])

    def _warn_once(self, error: Exception, message: str) -> None:
        if type(error) not in self._reported:
            self._log.warning(message, shortened(str(error), 1000))
        self._reported.add(type(error))

    # --- the steps of a read

    async def _acquire_lease(self) -> None:
        """Become the writer of this output, and continue after the lines of the previous one."""
        if self._has_lease:
            return
        lease = WriterLease.from_json(await self._read_checkpoint(OUTPUT_KEY))
        others = [follower for follower in lease.followers if follower != self._me]
        await self._store_checkpoint(OUTPUT_KEY, lease.acquired_by(self._me).to_json())
        position = await self._last_position(others)
        if position is not None and position.cursor.uuid == self.position.cursor.uuid:
            self.position = Offset(cursor=position.cursor, batches=position.batches)
            self._log.info("The output continues here after the lines that another triggerer has written")
            if position.doubtful:
                self._log.warning("%s", rewrite_notice(position.doubtful))
        self._has_lease = True

    async def _last_position(self, followers: list[str]) -> Offset | None:
        """Return the position of the newest of *followers* that has stored one, and warn of lines that may be gone."""
        newest: Offset | None = None
        for follower in reversed(followers):
            checkpoint = await self._read_checkpoint(position_key(follower))
            if checkpoint is None:
                continue
            try:
                position = Offset.from_json(checkpoint)
            except QarnotError as error:
                self._log.warning("%s Lines may be here twice", error)
                continue
            newest = newest or position
            if follower.startswith(self._triggerer) and position.written:
                self._log.warning(
                    "This triggerer has written up to %d lines of output to this log before. They may be gone, "
                    "because Airflow starts the log of a triggerer anew when a wait returns to it",
                    position.written,
                )
        return newest

    async def _write_new_lines(self) -> float:
        """Write the new lines. Return the seconds that reading the output took."""
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._client = await self._connect()
        before, started = self.position, loop.time()
        after, lines = await loop.run_in_executor(_threads(), _read, self._client, before.cursor)
        reading = loop.time() - started
        self._reported.clear()
        if not lines:
            self.position = replace(before, cursor=after)
            return reading
        async with self._writing:
            stamped, batches = with_timestamps(lines, before.batches, self._last, time.time())
            await self._store_position(replace(before, batches=batches))
            await self._check_lease()
            for number, line in enumerate(stamped):
                if number and number % LINE_BATCH == 0:
                    await asyncio.sleep(0)
                write(self._log, line)
            self._last = time.time()
            await wait_until_flushed(self._log)
            self.position = Offset(cursor=after, written=before.written + len(lines))
            # Airflow's parent process answers this request after it has handled all that it had read before.
            await self._store_position(self.position)
        return reading

    async def _check_lease(self) -> None:
        """Raise :class:`_LeaseLost` if this is no longer the follower that writes."""
        if self._identity is None:
            return
        lease = WriterLease.from_json(await self._read_checkpoint(OUTPUT_KEY))
        if lease.holder == self._me:
            return
        # Without any follower the task was cleared, and its new try has its own log.
        if lease.followers and self._me not in lease.followers and self.position.written:
            self._log.warning(
                "Another triggerer writes the output and did not know of this one: up to %d lines of the output may "
                "be in the log twice",
                self.position.written,
            )
        raise _LeaseLost

    async def _store_position(self, position: Offset) -> None:
        await self._store_checkpoint(position_key(self._me), position.to_json())

    async def _store_checkpoint(self, key: str, value: Any) -> None:
        if self._identity is not None:
            await _checked(store_xcom(self._identity, key, value))

    async def _read_checkpoint(self, key: str) -> Any:
        return None if self._identity is None else await _checked(own_xcom(self._identity, key))

    async def _connect(self) -> QarnotClient:
        if self._secrets_of:
            await finished(BaseHook.aget_connection(str(self._secrets_of)))  # which masks its password
        settings = await read_settings(self._conn_id)
        # No retries, because the next read is soon enough.
        return await asyncio.to_thread(lambda: settings.client(retries=0))


async def _checked(request: Awaitable[T]) -> T:
    try:
        return await request
    except Exception as error:
        raise _CheckpointNotStored(f"{type(error).__name__}: {error}") from error


def pause_after(interval: float, seconds: float, reading: float) -> float:
    """Return the seconds until the next read, after one that took *seconds*, *reading* of them for the output."""
    return max(interval, seconds, READ_TIME_FACTOR * reading)


def _read(client: QarnotClient, cursor: LogCursor) -> tuple[LogCursor, list[str]]:
    """Read both streams. Runs in a thread."""
    new_lines: list[str] = []
    for stream in STREAMS:
        text = fetch(client, cursor.uuid, stream, cursor.instance, OUTPUT_DEADLINE)
        cursor, lines = cursor.read(stream, text)
        new_lines += lines
    return cursor, new_lines
