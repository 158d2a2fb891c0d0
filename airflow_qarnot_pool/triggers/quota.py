"""Wait until the account has room for one more object."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_qarnot_pool.api.errors import QarnotCredentialsError, QarnotError
from airflow_qarnot_pool.api.limits import stored_moment
from airflow_qarnot_pool.conditions import Ending, Kind, Outcome
from airflow_qarnot_pool.identity import FORMAT
from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account

log = logging.getLogger(__name__)

#: Seconds after which it is tried again in any case: room may have come and gone before the first look.
TRY_AGAIN_AFTER = 60.0


def freed(before: Account, now: Account, kind: Kind) -> bool:
    """Whether something ended or went since *before*.

    Not whether the counts are below their limits: finished objects count until they are deleted, and the ones
    we make are deleted by the server as soon as their place is needed.
    """
    if kind == "pool":
        pairs = [(before.pool_count, now.pool_count), (before.running_pool_count, now.running_pool_count)]
    else:
        pairs = [(before.task_count, now.task_count), (before.running_task_count, now.running_task_count)]
    return any(then is not None and later is not None and later < then for then, later in pairs)


class QarnotQuotaTrigger(BaseTrigger):
    """Fire when the account may have room again, or when the time to wait is over; the operator then tries.

    :param kind: "pool" or "task".
    :param poll_interval: seconds between two looks at the account.
    :param deadline: ISO time at which it fires in any case.
    :param carry: handed back in the event, for the operator that resumes.
    """

    def __init__(
        self,
        *,
        qarnot_conn_id: str,
        kind: Kind,
        poll_interval: float,
        deadline: str,
        carry: dict[str, Any] | None = None,
        format: int = FORMAT,
    ) -> None:
        super().__init__()
        self.qarnot_conn_id = qarnot_conn_id
        self.kind = kind
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.carry = carry or {}
        self.format = format

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "qarnot_conn_id": self.qarnot_conn_id,
                "kind": self.kind,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "carry": self.carry,
                "format": self.format,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await room(self.qarnot_conn_id, self.kind, self.poll_interval, self.deadline)
        yield TriggerEvent({"status": "met", "deadline": self.deadline, "carry": self.carry})


class QarnotWarmUpRoomTrigger(QarnotPoolTrigger):
    """Wait until the account has room for the warm-up of the pool ``uuid``, which a kill closes meanwhile."""

    async def _wait(self) -> Outcome:
        assert self.deadline is not None
        await room(self.qarnot_conn_id, "task", self.poll_interval, self.deadline)
        return Outcome(ending=Ending.MET, uuid=self.uuid, carry={**self.carry, "room_until": self.deadline})


async def room(conn_id: str, kind: Kind, poll_interval: float, deadline: str) -> None:
    """Wait until something of *kind* has ended or gone, a while has passed, or *deadline* has come."""
    begun = datetime.now(UTC)
    ends = min(stored_moment(deadline), begun + timedelta(seconds=TRY_AGAIN_AFTER))
    before: Account | None = None
    while (left := (ends - datetime.now(UTC)).total_seconds()) > 0:
        try:
            account = await _account(conn_id)
            if before is not None and freed(before, account, kind):
                return
            before = before or account
        except QarnotCredentialsError:
            return  # the operator meets the same answer, and raises it
        except QarnotError as error:
            log.info("Could not ask for the account's quota, asking again: %s", error)
        # Many may wait for one place: without jitter all of them would ask for it at once.
        await asyncio.sleep(min(left, poll_interval * random.uniform(1, 2)))


async def _account(conn_id: str) -> Account:
    from airflow.sdk import BaseHook

    from airflow_qarnot_pool.hooks.settings import ConnectionSettings

    settings = ConnectionSettings.of(await BaseHook.aget_connection(conn_id))
    return await asyncio.to_thread(lambda: settings.client(retries=0).account.info())
