"""Wait until the account has room for one more object."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_qarnot_pool.api.errors import QarnotCredentialsError, QarnotError
from airflow_qarnot_pool.conditions import Kind
from airflow_qarnot_pool.identity import FORMAT

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account


def has_room(account: Account, kind: Kind) -> bool:
    """Whether one more pool, or Qarnot task, fits; a limit that the account does not tell counts as room."""
    if kind == "pool":
        limits = [
            (account.pool_count, account.max_pool),
            (account.running_pool_count, account.max_running_pool),
        ]
    else:
        limits = [
            (account.task_count, account.max_task),
            (account.running_task_count, account.max_running_task),
        ]
    return all(used is None or not most or used < most for used, most in limits)


class QarnotQuotaTrigger(BaseTrigger):
    """Fire when the account has room again, or when the time to wait is over; the operator then tries again.

    :param kind: "pool" or "task".
    :param poll_interval: seconds between two looks at the account.
    :param deadline: ISO time at which it fires in any case.
    """

    def __init__(
        self, *, qarnot_conn_id: str, kind: Kind, poll_interval: float, deadline: str, format: int = FORMAT
    ) -> None:
        super().__init__()
        self.qarnot_conn_id = qarnot_conn_id
        self.kind = kind
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.format = format

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "qarnot_conn_id": self.qarnot_conn_id,
                "kind": self.kind,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "format": self.format,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        ends = datetime.fromisoformat(self.deadline)
        while datetime.now(UTC) < ends:
            left = (ends - datetime.now(UTC)).total_seconds()
            # Many may wait for one place: without jitter all of them would ask for it at once.
            await asyncio.sleep(max(0.0, min(left, self.poll_interval * random.uniform(1, 2))))
            try:
                if has_room(await self._account(), self.kind):
                    break
            except QarnotCredentialsError:
                break  # the operator meets the same answer, and raises it
            except QarnotError as error:
                self.log.info("Could not ask for the account's quota, asking again: %s", error)
        yield TriggerEvent({"status": "met", "deadline": self.deadline})

    async def _account(self) -> Account:
        from airflow.sdk import BaseHook

        from airflow_qarnot_pool.hooks.settings import ConnectionSettings

        settings = ConnectionSettings.of(await BaseHook.aget_connection(self.qarnot_conn_id))
        return await asyncio.to_thread(lambda: settings.client(retries=0).account.info())
