"""Wait until the account's quota allows one more object."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_qarnot_pool.api.errors import QarnotCredentialsError
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.ownership.identity import FORMAT_VERSION
from airflow_qarnot_pool.ownership.quota import AirflowStates, QuotaRoom, free_places, is_busy, is_full
from airflow_qarnot_pool.triggers.age import TriggerAge
from airflow_qarnot_pool.triggers.airflow_requests import AIRFLOW_TIMEOUT, in_thread, read_settings
from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger
from airflow_qarnot_pool.waiting.conditions import EndReason, Kind, WaitResult
from airflow_qarnot_pool.waiting.intervals import Backoff

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account

log = logging.getLogger(__name__)

#: Seconds, per waiting task, after which it tries in any case, because the account may not show the full quota.
TRY_AGAIN_AFTER = 60.0
#: Minimum seconds between polls of the account, which all waiting tasks share.
_MIN_POLL_INTERVAL = 0.2
#: Maximum number of extra poll intervals at the start of a wait that follows several refusals.
_MAX_EXTRA_INTERVALS = 7


def has_more_room(before: Account, now: Account, kind: Kind) -> bool:
    """Return whether fewer objects exist than *before*. It helps if the account shows no limit or not the full one."""
    if kind == "pool":
        pairs = [(before.pool_count, now.pool_count), (before.running_pool_count, now.running_pool_count)]
    else:
        pairs = [(before.task_count, now.task_count), (before.running_task_count, now.running_task_count)]
    return any(then is not None and later is not None and later < then for then, later in pairs)


def try_probability(places: int | None, waiters: int, *, more: bool) -> float:
    """Return the probability with which each of *waiters* tries now, which makes about as many try as there are places.

    :param places: number of objects that the quota still allows, or None if the account does not show it.
    :param more: whether there is more room than at the start of the wait.
    """
    if places is None:
        return 1.0 if more else 0.0
    return min(1.0, places / max(1, waiters))


class QarnotQuotaTrigger(BaseTrigger):
    """Fire when the account may have room again or the deadline has passed. The operator then tries.

    :param kind: "pool" or "task".
    :param poll_interval: seconds between polls of the account.
    :param deadline: ISO time at which it fires in any case.
    :param refusals: number of refusals in a row. The wait grows with it.
    :param resume_state: returned in the event, for the operator that resumes.
    """

    def __init__(
        self,
        *,
        qarnot_conn_id: str,
        kind: Kind,
        poll_interval: float,
        deadline: str,
        refusals: int = 0,
        resume_state: dict[str, Any] | None = None,
        version: int = FORMAT_VERSION,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.qarnot_conn_id = qarnot_conn_id
        self.kind = kind
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.refusals = refusals
        self.resume_state = resume_state or {}
        self.version = version

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the keyword arguments, from which Airflow makes the trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "qarnot_conn_id": self.qarnot_conn_id,
                "kind": self.kind,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "refusals": self.refusals,
                "resume_state": self.resume_state,
                "version": self.version,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        # Before the first poll, because room that a poll shows would be taken by the time this may fire.
        await TriggerAge(self).reached()
        await wait_for_room(self.qarnot_conn_id, self.kind, self.poll_interval, self.deadline, self.refusals)
        yield TriggerEvent(
            {
                "status": "met",
                "deadline": self.deadline,
                "refusals": self.refusals,
                "resume_state": self.resume_state,
            }
        )


class QarnotWarmUpRoomTrigger(QarnotPoolTrigger):
    """Wait until the quota allows the warm-up of the pool ``uuid``. A kill during the wait closes the pool."""

    async def _wait(self) -> WaitResult:
        assert self.deadline is not None
        await wait_for_room(self.qarnot_conn_id, "task", self.poll_interval, self.deadline)
        return WaitResult(
            ending=EndReason.MET,
            uuid=self.uuid,
            resume_state={**self.resume_state, "room_until": self.deadline},
        )


class _QuotaWaiters:
    """Number of tasks in this process that wait for one quota of a connection, and the poll that they share."""

    def __init__(self) -> None:
        self.waiters = 0
        self._polled_at = -math.inf
        self._poll: asyncio.Task[tuple[Account, int | None]] | None = None
        self._backoff = Backoff()

    async def poll(self, conn_id: str, kind: Kind, interval: float) -> tuple[Account, int | None]:
        """Return the account and its number of free places, from a poll that began a moment ago.

        The error of a failed poll serves for longer, so all tasks back off together.

        :raises QarnotError: the poll failed.
        """
        age = time.monotonic() - self._polled_at
        serves_for = self._backoff.delay(max(_MIN_POLL_INTERVAL, interval / 2))
        if self._poll is None or (self._poll.done() and age >= serves_for):
            self._polled_at = time.monotonic()
            self._poll = asyncio.create_task(_request_places(conn_id, kind))
            self._poll.add_done_callback(self._record)
        return await asyncio.shield(self._poll)

    def _record(self, poll: asyncio.Task[tuple[Account, int | None]]) -> None:
        if poll.cancelled():
            return
        error = poll.exception()
        if isinstance(error, Exception):
            # Retry-After counts from the response.
            self._polled_at = time.monotonic()
            self._backoff.record_failure(error)
        else:
            self._backoff.record_response()

    def stop(self) -> None:
        """Cancel the poll, for which no task waits any more."""
        if self._poll is not None:
            self._poll.cancel()


_quota_waiters: dict[tuple[str, Kind], _QuotaWaiters] = {}


async def wait_for_room(
    conn_id: str, kind: Kind, poll_interval: float, deadline: str, refusals: int = 0
) -> None:
    """Wait until a try is worthwhile, some time has passed, or *deadline* has come.

    Many tasks may wait for one place. A try of each of them, with a slot on a worker, would cost more than the place is
    worth. So about as many tasks try as there are places, including the place of a finished object that can be deleted.
    """
    started, ends = datetime.now(UTC), parse_stored_time(deadline)
    waiting = _quota_waiters.setdefault((conn_id, kind), _QuotaWaiters())
    before: Account | None = None
    waiting.waiters += 1
    try:
        while True:
            # One of many waiting tasks tries in vain from time to time, and not each of them.
            patience = timedelta(seconds=TRY_AGAIN_AFTER * waiting.waiters)
            seconds_left = (min(ends, started + patience) - datetime.now(UTC)).total_seconds()
            if seconds_left <= 0:
                return
            # Jitter, because many tasks may have started to wait at the same moment. If a try was refused although the
            # account shows places, another quota may be full.
            pause = poll_interval * (random.uniform(0.5, 1.5) + min(2**refusals - 1, _MAX_EXTRA_INTERVALS))
            refusals = 0
            await asyncio.sleep(min(seconds_left, pause))
            try:
                account, places = await waiting.poll(conn_id, kind, poll_interval)
            except Exception as error:  # also of Airflow, about the connection
                log.info("Could not read the account's quota, reading it again: %s", error)
                # An operator that tries gets the same response to an invalid token, and raises it.
                is_final = isinstance(error, QarnotCredentialsError)
                if is_final and random.random() < try_probability(1, waiting.waiters, more=False):
                    return
                continue
            more = before is not None and has_more_room(before, account, kind)
            if random.random() < try_probability(places, waiting.waiters, more=more):
                return
            before = before or account
    finally:
        waiting.waiters -= 1
        if not waiting.waiters:
            # The next tasks poll anew, maybe in another event loop.
            del _quota_waiters[conn_id, kind]
            waiting.stop()


async def _request_places(conn_id: str, kind: Kind) -> tuple[Account, int | None]:
    """Return the account and its number of free places, which is 1 if a finished object can be deleted for one."""
    settings = await read_settings(conn_id)
    loop = asyncio.get_running_loop()

    def ask(question: Callable[[], Any]) -> Any:
        # Only this event loop may send requests to Airflow.
        return asyncio.run_coroutine_threadsafe(in_thread(question), loop).result(AIRFLOW_TIMEOUT)

    def poll() -> tuple[Account, int | None]:
        client = settings.client(retries=0)
        account = client.account.info()
        free = free_places(account, kind)
        if free == 0 and is_full(account, kind) and not is_busy(account, kind):
            free = int(QuotaRoom(client, settings.namespace, airflow=AirflowStates(ask)).can_make_room(kind))
        return account, free

    return await asyncio.to_thread(poll)
