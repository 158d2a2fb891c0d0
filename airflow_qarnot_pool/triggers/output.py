"""The output of a Qarnot task in the log of the Airflow task, while that is deferred and the instances still write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotNotFoundError
from airflow_qarnot_pool.identity import Life
from airflow_qarnot_pool.transcript import STREAMS, Transcript
from airflow_qarnot_pool.triggers.base import own_xcom, store_xcom
from airflow_qarnot_pool.triggers.keys import OUTPUT_KEY

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: Outputs fetched at the same time by all triggers of a process; each is in memory while it is read.
AT_A_TIME = 4
#: Instances up to which an output is followed: what is known of each goes into an XCom.
MOST_INSTANCES = 100
#: A look at a large output takes long; then there are fewer of them.
REST = 10
#: Lines written at once; then the other triggers have their turn.
LINES_AT_ONCE = 200


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="qarnot-output")


class Follower:
    """Writes the new lines of a Qarnot task's output to a log, at an interval, for as long as it is let.

    How far it is, it stores as an XCom before it writes: should the triggerer be killed and another take over,
    that one goes on there. A log line on its way in that very moment is the only one that can get lost.

    :param conn_id: connection of the Qarnot task. :param interval: seconds between two looks.
    :param live: ``Transcript.to_json()`` of nothing, and ``secrets_of``, a connection whose password is to be masked.
    :param life: the task instance; None where there is nothing to store with.
    """

    def __init__(
        self, conn_id: str, live: Mapping[str, Any], interval: float, life: Life | None, log: Any
    ) -> None:
        self.transcript = Transcript.from_json(live)
        self._secrets_of = live.get("secrets_of")
        self._conn_id, self._interval, self._life, self._log = conn_id, interval, life, log
        self._client: QarnotClient | None = None
        self._runs = asyncio.Event()
        self._writing = asyncio.Lock()
        self._stores = life is not None
        self._told = False

    def runs(self) -> None:
        """The Qarnot task has begun to run: before that it has nothing to say."""
        self._runs.set()

    async def follow(self) -> None:
        """Follow the output until cancelled."""
        loop = asyncio.get_running_loop()
        await self._go_on()
        await self._runs.wait()
        while True:
            begun = loop.time()
            try:
                await self._look()
            except QarnotNotFoundError:
                pass  # it is gone, or not there yet: that is for those who watch its state
            except Exception as error:
                self._client = None  # the token may be another one now
                if not self._told:
                    self._log.warning("The output could not be fetched, and is tried again: %s", error)
                self._told = True
            if len({instance for _, instance in self.transcript.places}) > MOST_INSTANCES:
                self._log.info(
                    "More than %d instances write: the rest of the output comes when all are done",
                    MOST_INSTANCES,
                )
                return
            pause = max(self._interval, REST * (loop.time() - begun))
            await asyncio.sleep(pause * random.uniform(0.95, 1.05))

    async def stop(self, following: asyncio.Task[None]) -> None:
        """End :meth:`follow`, but not while it writes."""
        try:
            async with self._writing:
                pass
        finally:
            following.cancel()
        await asyncio.wait([following])

    async def _go_on(self) -> None:
        """Go on where a triggerer before this one was."""
        if self._life is None:
            return
        try:
            stored = await own_xcom(self._life, OUTPUT_KEY)
        except Exception as error:
            self._cannot_store(error)
            return
        if isinstance(stored, Mapping) and stored.get("uuid") == self.transcript.uuid:
            self.transcript = Transcript.from_json(stored)
            self._log.info("The output goes on here after what another triggerer has written of it")

    async def _look(self) -> None:
        if self._client is None:
            self._client = await self._connect()
        after, lines = await asyncio.get_running_loop().run_in_executor(
            _threads(), _read, self._client, self.transcript
        )
        self._told = False
        if not lines:
            self.transcript = after
            return
        async with self._writing:
            try:
                await self._store(after)
            finally:
                # Also when cancelled: it is stored as written, and nobody else will write it.
                self.transcript = after
                await self._write(lines)

    async def _write(self, lines: list[str]) -> None:
        cancelled: asyncio.CancelledError | None = None
        for number, line in enumerate(lines):
            if number and number % LINES_AT_ONCE == 0 and cancelled is None:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as error:
                    cancelled = error
            self._log.info("%s", line)
        if cancelled is not None:
            raise cancelled

    async def _connect(self) -> QarnotClient:
        from airflow.sdk import BaseHook

        from airflow_qarnot_pool.hooks.settings import ConnectionSettings

        if self._secrets_of:
            await BaseHook.aget_connection(str(self._secrets_of))  # which masks its password
        settings = ConnectionSettings.of(await BaseHook.aget_connection(self._conn_id))
        # The next look is soon enough.
        return await asyncio.to_thread(lambda: settings.client(retries=0))

    async def _store(self, transcript: Transcript) -> None:
        if not self._stores or self._life is None:
            return
        try:
            await store_xcom(self._life, OUTPUT_KEY, transcript.to_json())
        except Exception as error:
            self._cannot_store(error)

    def _cannot_store(self, error: Exception) -> None:
        self._stores = False
        self._log.warning(
            "How far the output is written cannot be stored (%s: %s): if the triggerer is restarted now, lines "
            "will be here twice",
            type(error).__name__,
            error,
        )


def _read(client: QarnotClient, transcript: Transcript) -> tuple[Transcript, list[str]]:
    """Look at both streams. Runs in a thread."""
    from airflow_qarnot_pool.output import fetch

    said: list[str] = []
    for stream in STREAMS:
        text = fetch(client, transcript.uuid, stream, transcript.instance)
        transcript, lines = transcript.read(stream, text)
        said += lines
    return transcript, said
