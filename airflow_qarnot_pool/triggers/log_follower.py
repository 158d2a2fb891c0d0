"""The output of a Qarnot task in the log of the Airflow task, while that is deferred and the instances still write."""

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

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError, shortened
from airflow_qarnot_pool.logs.channel import wait_until_flushed
from airflow_qarnot_pool.logs.checkpoint import (
    Offset,
    WriterLease,
    rewrite_notice,
    with_timestamps,
)
from airflow_qarnot_pool.logs.cursor import STREAMS, LogCursor
from airflow_qarnot_pool.logs.writer import write
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.xcoms import OUTPUT_KEY, position_key
from airflow_qarnot_pool.triggers.base import own_xcom, store_xcom

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: Outputs fetched at the same time by all triggers of a process; each is in memory while it is read.
MAX_READERS = 4
#: Instances up to which an output is followed: what is known of each goes into an XCom.
MAX_INSTANCES = 100
#: To read a large output takes long; then it is read less often.
READ_TIME_FACTOR = 10
#: Lines written at once; then the other triggers have their turn.
LINE_BATCH = 200
#: Seconds that the end of a wait gives to lines on their way; whoever resumes writes what then is in doubt.
FLUSH_TIMEOUT = 5.0
CHECKPOINT_FAILED = (
    "How far the output is written could not be noted with Airflow (%s), so no more of it is written until it can, "
    "or the Qarnot task is done"
)

_numbers = itertools.count(1)
T = TypeVar("T")


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_READERS, thread_name_prefix="qarnot-output")


@cache
def _process_name(pid: int) -> str:
    """A name of this process: its triggers that write to one log can be told by it."""
    return secrets.token_hex(4)


class _CheckpointNotStored(Exception):
    """Airflow's API did not take or give a note."""


class _LeaseLost(Exception):
    """Another follower writes this output now."""


class LogFollower:
    """Writes the new lines of a Qarnot task's output to a log, at an interval, for as long as it is let.

    It notes, as an XCom, what it is about to write; writes it; waits until the triggerer's parent, which writes the
    files, has read it; and notes that it is written. In whichever moment it ends, whoever takes over knows which
    lines are there for certain and which may be. Before it writes it looks whether somebody has taken over, and each
    follower has a note of its own: so of two at once either the older one stops, or the younger one knows what the
    older one was about to write. The steps of one look:

    ====================================== =====================================================
    ended or taken over                    what becomes of the lines
    ====================================== =====================================================
    before the note is stored              nobody has written them; the next one does
    then, until it is noted as written     announced, and written again with the time they had
    after that                             they are in the log
    ====================================== =====================================================

    :param conn_id: connection of the Qarnot task. :param interval: seconds between two looks.
    :param live: ``LogCursor.to_json()`` of nothing, and ``secrets_of``, a connection whose password is to be masked.
    :param identity: the task instance; None where there is nothing to store with.
    """

    def __init__(
        self,
        conn_id: str,
        live: Mapping[str, Any],
        interval: float,
        identity: TaskInstanceIdentity | None,
        log: Any,
    ) -> None:
        self.position = Offset(cursor=LogCursor.from_json(live))
        self._secrets_of = live.get("secrets_of")
        self._conn_id, self._interval, self._identity, self._log = conn_id, interval, identity, log
        self._triggerer = _process_name(os.getpid())
        self._me = f"{self._triggerer}.{next(_numbers)}"
        self._client: QarnotClient | None = None
        self._runs = asyncio.Event()
        self._writing = asyncio.Lock()
        self._begun = identity is None
        self._last: float | None = None
        self._told: set[type[Exception]] = set()

    def to_json(self) -> dict[str, Any]:
        """How far it is, and who says so."""
        return {**self.position.to_json(), "follower": self._me}

    def runs(self) -> None:
        """The Qarnot task has begun to run: before that it has nothing to say."""
        self._runs.set()

    async def follow(self) -> None:
        """Follow the output until cancelled."""
        clock = asyncio.get_running_loop().time
        try:
            await self._begin()  # while there is nothing to write yet, as Airflow may take its time
        except _CheckpointNotStored as error:
            self._tell(error, CHECKPOINT_FAILED)
        await self._runs.wait()
        while True:
            begun, reading = clock(), 0.0
            try:
                await self._begin()
                reading = await self._look()
            except QarnotNotFoundError:
                pass  # it is gone, or not there yet: that is for those who watch its state
            except _LeaseLost:
                return
            except _CheckpointNotStored as error:
                self._tell(error, CHECKPOINT_FAILED)
            except Exception as error:
                self._client = None  # the token may be another one now
                self._tell(error, "The output could not be fetched, and is tried again: %s")
            if len({instance for _, instance in self.position.cursor.places}) > MAX_INSTANCES:
                self._log.info(
                    "More than %d instances write: the rest of the output comes when all are done",
                    MAX_INSTANCES,
                )
                return
            pause = pause_after(self._interval, clock() - begun, reading)
            await asyncio.sleep(pause * random.uniform(0.95, 1.05))

    async def stop(self, following: asyncio.Task[None]) -> None:
        """End :meth:`follow`; not while lines are on their way, as far as that does not take long."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT), self._writing:
                pass
        except TimeoutError:
            pass  # noted as in doubt
        finally:
            following.cancel()
        await asyncio.wait([following])

    def _tell(self, error: Exception, words: str) -> None:
        if type(error) not in self._told:
            self._log.warning(words, shortened(str(error), 1000))
        self._told.add(type(error))

    # --- the steps of a look

    async def _begin(self) -> None:
        """Go on where a follower before this one was, and let it know."""
        if self._begun:
            return
        claim = WriterLease.from_json(await self._read_note(OUTPUT_KEY))
        others = [one for one in claim.followers if one != self._me]
        await self._store_note(OUTPUT_KEY, claim.acquired_by(self._me).to_json())
        position = claim.earlier
        for one in reversed(others):
            note = await self._read_note(position_key(one))
            if note is None:
                continue
            try:
                before = Offset.from_json(note)
            except QarnotError as error:
                self._log.warning("%s Lines may be here twice", error)
                continue
            position = position or before
            if one.startswith(self._triggerer) and before.written:
                self._log.warning(
                    "This triggerer has written up to %d lines of output to this log before. They may be gone: "
                    "Airflow begins the log of a triggerer anew when a wait comes back to it",
                    before.written,
                )
        if position is not None and position.cursor.uuid == self.position.cursor.uuid:
            self.position = Offset(cursor=position.cursor, batches=position.batches)
            self._log.info("The output goes on here after what another triggerer has written of it")
            if position.doubtful:
                self._log.warning("%s", rewrite_notice(position.doubtful))
        self._begun = True

    async def _look(self) -> float:
        """Write what is new; returns how many seconds it took to read the output."""
        clock = asyncio.get_running_loop().time
        if self._client is None:
            self._client = await self._connect()
        at, begun = self.position, clock()
        after, lines = await asyncio.get_running_loop().run_in_executor(
            _threads(), _read, self._client, at.cursor
        )
        reading = clock() - begun
        self._told.clear()
        if not lines:
            self.position = replace(at, cursor=after)
            return reading
        async with self._writing:
            said, batches = with_timestamps(lines, at.batches, self._last, time.time())
            await self._note(replace(at, batches=batches))
            await self._holds()
            for number, one in enumerate(said):
                if number and number % LINE_BATCH == 0:
                    await asyncio.sleep(0)
                write(self._log, one)
            self._last = time.time()
            await wait_until_flushed(self._log)
            self.position = Offset(cursor=after, written=at.written + len(lines))
            # Airflow's parent process answers this after it has done with all that it had read before.
            await self._note(self.position)
        return reading

    async def _holds(self) -> None:
        """Look whether this is still the one that writes."""
        if self._identity is None:
            return
        claim = WriterLease.from_json(await self._read_note(OUTPUT_KEY))
        if claim.holder == self._me:
            return
        # Without any the task was cleared: its new try has a log of its own.
        if claim.followers and self._me not in claim.followers and self.position.written:
            self._log.warning(
                "Another triggerer has taken over without knowing of this one: up to %d lines of the output may "
                "be in the log twice",
                self.position.written,
            )
        raise _LeaseLost

    async def _note(self, position: Offset) -> None:
        await self._store_note(position_key(self._me), position.to_json())

    async def _store_note(self, key: str, value: Any) -> None:
        if self._identity is not None:
            await _checked(store_xcom(self._identity, key, value))

    async def _read_note(self, key: str) -> Any:
        return None if self._identity is None else await _checked(own_xcom(self._identity, key))

    async def _connect(self) -> QarnotClient:
        from airflow.sdk import BaseHook

        from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

        if self._secrets_of:
            await BaseHook.aget_connection(str(self._secrets_of))  # which masks its password
        settings = ConnectionSettings.of(await BaseHook.aget_connection(self._conn_id))
        # The next look is soon enough.
        return await asyncio.to_thread(lambda: settings.client(retries=0))


async def _checked(request: Awaitable[T]) -> T:
    try:
        return await request
    except Exception as error:
        raise _CheckpointNotStored(f"{type(error).__name__}: {error}") from error


def pause_after(interval: float, look: float, reading: float) -> float:
    """Seconds until the next look, after one that took so long, *reading* of it for the output itself."""
    return max(interval, look, READ_TIME_FACTOR * reading)


def _read(client: QarnotClient, cursor: LogCursor) -> tuple[LogCursor, list[str]]:
    """Look at both streams. Runs in a thread."""
    from airflow_qarnot_pool.logs.writer import fetch

    said: list[str] = []
    for stream in STREAMS:
        text = fetch(client, cursor.uuid, stream, cursor.instance)
        cursor, lines = cursor.read(stream, text)
        said += lines
    return cursor, said
