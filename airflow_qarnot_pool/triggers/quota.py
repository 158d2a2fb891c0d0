"""Wait until the account has room for one more object."""

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

from airflow_qarnot_pool.api.errors import QarnotCredentialsError, QarnotError
from airflow_qarnot_pool.api.limits import stored_moment
from airflow_qarnot_pool.ownership.identity import FORMAT_VERSION
from airflow_qarnot_pool.triggers.age import TriggerAge
from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger
from airflow_qarnot_pool.waiting.conditions import EndReason, Kind, WaitResult

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account

log = logging.getLogger(__name__)

#: Seconds, for each that waits, after which one tries in any case: the account may not show the quota that is full.
TRY_AGAIN_AFTER = 60.0
#: Seconds for which one look at the account serves all that wait for its room.
_MIN_POLL_INTERVAL = 0.2
#: Maximum number of poll intervals that a wait begins with after several refusals.
_MAX_EXTRA_INTERVALS = 7
#: Seconds that Airflow's answer to one question may take.
_AIRFLOW_TIMEOUT = 30.0


def has_more_room(before: Account, now: Account, kind: Kind) -> bool:
    """Whether there is more room than *before*. Of use where the account names no limit, or another one is full."""
    if kind == "pool":
        pairs = [(before.pool_count, now.pool_count), (before.running_pool_count, now.running_pool_count)]
    else:
        pairs = [(before.task_count, now.task_count), (before.running_task_count, now.running_task_count)]
    return any(then is not None and later is not None and later < then for then, later in pairs)


def try_probability(places: int | None, waiters: int, *, more: bool) -> float:
    """Return the chance with which each of *waiters* should try now, so that about as many try as find room.

    :param places: how many objects there is room for; None if the account does not tell.
    :param more: there is more room than when this one began to wait.
    """
    if places is None:
        return 1.0 if more else 0.0
    return min(1.0, places / max(1, waiters))


class QarnotQuotaTrigger(BaseTrigger):
    """Fire when the account may have room again, or when the time to wait is over; the operator then tries.

    :param kind: "pool" or "task".
    :param poll_interval: seconds between two looks at the account.
    :param deadline: ISO time at which it fires in any case.
    :param refusals: how often in a row the quota was full already; this waits longer each time.
    :param resume_state: handed back in the event, for the operator that resumes.
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
        super().__init__()
        self.qarnot_conn_id = qarnot_conn_id
        self.kind = kind
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.refusals = refusals
        self.resume_state = resume_state or {}
        self.version = version

    def serialize(self) -> tuple[str, dict[str, Any]]:
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
        # Before it looks: by the time it may fire, room that it has seen would be taken.
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
    """Wait until the account has room for the warm-up of the pool ``uuid``, which a kill closes meanwhile."""

    async def _wait(self) -> WaitResult:
        assert self.deadline is not None
        await wait_for_room(self.qarnot_conn_id, "task", self.poll_interval, self.deadline)
        return WaitResult(
            ending=EndReason.MET,
            uuid=self.uuid,
            resume_state={**self.resume_state, "room_until": self.deadline},
        )


class _QuotaWaiters:
    """All in this process that wait for room for one kind of object on one connection, and their shared look."""

    def __init__(self) -> None:
        self.waiters = 0
        self._looked_at = -math.inf
        self._account: Account | None = None
        self._places: int | None = None

    async def look(self, conn_id: str, kind: Kind, interval: float) -> tuple[Account | None, int | None]:
        """Return the account and how many places it has, as one of the waiters saw them a moment ago.

        :raises QarnotError: if this one had to ask.
        """
        if time.monotonic() - self._looked_at >= max(_MIN_POLL_INTERVAL, interval / 2):
            self._looked_at = time.monotonic()
            self._account, self._places = await _request_places(conn_id, kind)
        return self._account, self._places


_quota_waiters: dict[tuple[str, Kind], _QuotaWaiters] = {}


async def wait_for_room(
    conn_id: str, kind: Kind, poll_interval: float, deadline: str, refusals: int = 0
) -> None:
    """Wait until a try is worth it, a while has passed, or *deadline* has come.

    Many may wait for one place. Each asked for it with a worker's slice would cost more than the place is worth, so
    about as many go as there are places, and a place counts that a finished object would give up.
    """
    begun, ends = datetime.now(UTC), stored_moment(deadline)
    lobby = _quota_waiters.setdefault((conn_id, kind), _QuotaWaiters())
    before: Account | None = None
    lobby.waiters += 1
    try:
        while True:
            # Of many waiters one tries in vain now and then, and not each.
            patience = timedelta(seconds=TRY_AGAIN_AFTER * lobby.waiters)
            left = (min(ends, begun + patience) - datetime.now(UTC)).total_seconds()
            if left <= 0:
                return
            # Jitter, as many may have begun to wait at the same moment. After a refusal in spite of places that the
            # account shows, another quota may be full.
            pause = poll_interval * (random.uniform(0.5, 1.5) + min(2**refusals - 1, _MAX_EXTRA_INTERVALS))
            refusals = 0
            await asyncio.sleep(min(left, pause))
            try:
                account, places = await lobby.look(conn_id, kind, poll_interval)
            except QarnotCredentialsError:
                return  # the operator meets the same answer, and raises it
            except QarnotError as error:
                log.info("Could not ask for the account's quota, asking again: %s", error)
                continue
            if account is None:
                continue
            more = before is not None and has_more_room(before, account, kind)
            if random.random() < try_probability(places, lobby.waiters, more=more):
                return
            before = before or account
    finally:
        lobby.waiters -= 1


async def _request_places(conn_id: str, kind: Kind) -> tuple[Account, int | None]:
    """Return the account, and how many objects there is room for; one more if a finished object may be deleted."""
    from airflow.sdk import BaseHook

    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
    from airflow_qarnot_pool.ownership.quota import (
        AirflowStates,
        QuotaRoom,
        free_places,
        is_busy,
        is_full,
    )
    from airflow_qarnot_pool.triggers.base import in_thread

    settings = ConnectionSettings.of(await BaseHook.aget_connection(conn_id))
    loop = asyncio.get_running_loop()

    def ask(question: Callable[[], Any]) -> Any:
        # Only this loop may talk to Airflow.
        return asyncio.run_coroutine_threadsafe(in_thread(question), loop).result(_AIRFLOW_TIMEOUT)

    def look() -> tuple[Account, int | None]:
        client = settings.client(retries=0)
        account = client.account.info()
        free = free_places(account, kind)
        if free == 0 and is_full(account, kind) and not is_busy(account, kind):
            free = int(QuotaRoom(client, settings.namespace, airflow=AirflowStates(ask)).can_make_room(kind))
        return account, free

    return await asyncio.to_thread(look)
