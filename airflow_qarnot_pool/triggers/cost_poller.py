"""One watch for all subscribers over what their pool, and their DAG run, may cost.

A round asks once for each watched pool, however many triggers wait on it (and for a run's limit once for each of the
run's pools). What reaches its limit is closed here and now: Airflow's workers may all be busy.

A pool costs while nothing waits on it, too. So its watch goes on when its last subscriber has left, until it closes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api.errors import QarnotNotFoundError, QarnotProtocolError, QarnotRefusedError
from airflow_qarnot_pool.costs.limits import (
    CostLimit,
    LimitCheck,
    LimitLevel,
    check_limits,
    may_still_cost,
)
from airflow_qarnot_pool.costs.spending import close_pools, spending_of
from airflow_qarnot_pool.triggers.poller import (
    MAX_CREDENTIAL_ROUNDS,
    POLLERS,
    Poller,
    Subscriber,
    Subscription,
    subscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class CostPoller(Poller):
    """The shared watch of one connection. Its subscriptions are :class:`CostLimit` objects as JSON."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._settled: dict[str, float] = {}
        self._reported_unknown = False
        self._levels: dict[str, LimitLevel] = {}
        #: Watches that nobody waits for any more, and the interval that the last who did had asked for.
        self._orphans: dict[str, float] = {}

    def add(self, subscriber: Subscriber) -> None:
        super().add(subscriber)
        self._orphans.pop(subscriber.key, None)

    def remove(self, subscriber: Subscriber) -> None:
        subscription = self.subscriptions[subscriber.key]
        super().remove(subscriber)
        if subscriber.key not in self.subscriptions and json.loads(subscriber.key)["kind"] == "pool":
            # Whether there is anything to watch the next round tells. One that was over its limit is closed again
            # there, should that have failed.
            self.subscriptions[subscriber.key], self._orphans[subscriber.key] = (
                subscription,
                subscriber.interval,
            )

    def _interval(self) -> float:
        return min([*self._intervals, *self._orphans.values()], default=1.0)

    def _pause_after(self, error: Exception) -> float:
        pause = super()._pause_after(error)
        if self._refused >= MAX_CREDENTIAL_ROUNDS:
            # There is nobody whom that could fail.
            for key in list(self._orphans):
                self._forget(key)
        return pause

    async def _still_open(self, subscription: Subscription, watched: CostLimit) -> bool:
        """Whether to watch on what nobody waits for; forgets it otherwise."""
        assert self._client is not None
        others = [
            CostLimit.from_kwargs(json.loads(key)) for key in self.subscriptions if key != subscription.key
        ]
        try:
            pool = await self._request(partial(self._client.pools.get, watched.uuid))
        except QarnotNotFoundError:
            pool = None
        if subscription.subscribers or (pool is not None and may_still_cost(watched, pool, others)):
            return True
        self._forget(subscription.key)
        return False

    def _forget(self, key: str) -> None:
        self.subscriptions.pop(key, None)
        self._orphans.pop(key, None)
        self._levels.pop(key, None)
        self.stop_if_idle()

    async def _round(self) -> None:
        self.rounds += 1
        await self._poll(list(self.subscriptions.values()))

    async def _poll(self, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            with self._deferring_errors():
                await self._check_limit(subscription)

    async def _check_limit(self, subscription: Subscription) -> None:
        """See what is spent, tell who waits, and end what is over its limit."""
        watched = CostLimit.from_kwargs(json.loads(subscription.key))
        assert self._client is not None
        if subscription.key in self._orphans and not await self._still_open(subscription, watched):
            return
        try:
            spent = await self._request(partial(spending_of, self._client, watched, self._settled))
        except (QarnotRefusedError, QarnotProtocolError) as error:
            if not self._reported_unknown:
                log.error(
                    "What %s %s costs cannot be found out, so its limit is not watched: %s",
                    watched.kind,
                    watched.uuid,
                    error,
                )
            self._reported_unknown = True
            return
        verdict = check_limits(watched, spent)
        if verdict.level > LimitLevel.FINE:
            # The subscribers first: a Qarnot task that ends with its pool must not look cancelled by a stranger.
            for subscriber in subscription.subscribers:
                subscriber.deliver(verdict)  # type: ignore[arg-type]
        if verdict.level > self._levels.get(subscription.key, LimitLevel.FINE):
            name = "exceeded" if verdict.level is LimitLevel.OVER else "warnings"
            metrics.incr(f"budget.{name}", kind=watched.kind, dag_id=watched.dag_id)
        self._levels[subscription.key] = verdict.level
        subscription.mark_polled()
        if verdict.level is LimitLevel.OVER:
            log.error("%s", verdict.message)
            # Shielded, as those who were told leave now, and the event loop may end with the last of them.
            client = self._client.limited(retries=3, deadline=60.0)
            await asyncio.shield(
                self.loop.run_in_executor(self._thread, partial(close_pools, client, watched, verdict))
            )


POLLERS["cost"] = CostPoller


async def wait_until_over_limit(
    conn_id: str, watched: CostLimit, interval: float, warn: Callable[[str], None]
) -> LimitCheck:
    """Return when a limit is reached, and what reached it was told to end; *warn* is called once before."""
    key = json.dumps(watched.to_kwargs(), sort_keys=True)
    warned = False
    async with subscribe(conn_id, "cost", key, interval=interval) as subscriber:
        while True:
            verdict: LimitCheck = await subscriber.next(None)  # type: ignore[assignment]
            if verdict.level is LimitLevel.OVER:
                return verdict
            if not warned:
                warned = True
                warn(verdict.message)
