"""One shared check of cost limits for all subscribers of a connection.

A round requests the cost once for each limited pool, however many triggers wait on it. The limit of a DAG run takes one
request for each of the run's pools. Pools over their limit are closed here at once, because Airflow's workers may all
be busy.

A pool costs money even if nothing waits on it. So its limit is checked after its last subscriber has left, too, until
the pool closes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api.errors import (
    QarnotCreditsError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
)
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
from airflow_qarnot_pool.waiting.polling import get_confirmed

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class CostPoller(Poller):
    """Poller of cost limits. The keys of its subscriptions are :class:`CostLimit` objects as JSON."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._settled: dict[str, float] = {}
        self._reported_unknown = False
        self._levels: dict[str, LimitLevel] = {}
        #: Subscriptions without subscribers, and the interval of the last subscriber.
        self._orphans: dict[str, float] = {}

    def add(self, subscriber: Subscriber) -> None:
        """Check the limit of *subscriber*, too."""
        super().add(subscriber)
        self._orphans.pop(subscriber.key, None)

    def remove(self, subscriber: Subscriber) -> None:
        """Remove *subscriber*, and keep checking the limit of its pool."""
        subscription = self.subscriptions[subscriber.key]
        super().remove(subscriber)
        if subscriber.key not in self.subscriptions and json.loads(subscriber.key)["kind"] == "pool":
            # The next round finds out whether the pool is open. If it exceeds its limit and closing it has failed,
            # that round closes it again.
            self.subscriptions[subscriber.key], self._orphans[subscriber.key] = (
                subscription,
                subscriber.interval,
            )

    def _interval(self) -> float:
        return min([*self._intervals, *self._orphans.values()], default=1.0)

    def _delay(self) -> float:
        return self._interval()

    def _pause_after(self, error: Exception) -> float:
        pause = super()._pause_after(error)
        if self._refused >= MAX_CREDENTIAL_ROUNDS:
            # They have no subscribers that the error could fail.
            for key in list(self._orphans):
                self._forget(key)
        return pause

    async def _still_open(self, subscription: Subscription, watched: CostLimit) -> bool:
        """Return whether a limit without subscribers still has to be checked, and forget it if not."""
        assert self._client is not None
        others = [
            CostLimit.from_kwargs(json.loads(key)) for key in self.subscriptions if key != subscription.key
        ]
        try:
            pool = await self._request(partial(get_confirmed, self._client.pools, watched.uuid))
        except QarnotNotFoundError as error:
            if error.foreign:
                raise
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
        """Request the cost, notify the subscribers, and close pools that exceed the limit."""
        limit = CostLimit.from_kwargs(json.loads(subscription.key))
        assert self._client is not None
        if subscription.key in self._orphans and not await self._still_open(subscription, limit):
            return
        try:
            spent = await self._request(partial(spending_of, self._client, limit, self._settled))
        except (QarnotRefusedError, QarnotCreditsError, QarnotProtocolError) as error:
            if not self._reported_unknown:
                log.error(
                    "Could not read the cost of %s %s, so its limit is not enforced: %s",
                    limit.kind,
                    limit.uuid,
                    error,
                )
            self._reported_unknown = True
            return
        check = check_limits(limit, spent)
        if check.level > LimitLevel.FINE:
            # Subscribers first, because a Qarnot task that ends with its pool must not seem cancelled by a user.
            for subscriber in subscription.subscribers:
                subscriber.deliver(check)  # type: ignore[arg-type]
        self._record_level(subscription.key, limit, check.level)
        subscription.mark_polled()
        if check.level is LimitLevel.OVER:
            log.error("%s", check.message)
            # Shielded, because the notified subscribers leave now and the event loop may end with the last of them.
            client = self._client.limited(retries=3, deadline=60.0)
            await asyncio.shield(
                self.loop.run_in_executor(self._thread, partial(close_pools, client, limit, check))
            )

    def _record_level(self, key: str, limit: CostLimit, level: LimitLevel) -> None:
        if level > self._levels.get(key, LimitLevel.FINE):
            name = "exceeded" if level is LimitLevel.OVER else "warnings"
            metrics.incr(f"cost_limit.{name}", kind=limit.kind, dag_id=limit.dag_id)
        self._levels[key] = level


POLLERS["cost"] = CostPoller


async def wait_until_over_limit(
    conn_id: str, watched: CostLimit, interval: float, warn: Callable[[str], None]
) -> LimitCheck:
    """Return the check that exceeds the limit, once the close of its pools is requested. Call *warn* once before."""
    key = json.dumps(watched.to_kwargs(), sort_keys=True)
    warned = False
    async with subscribe(conn_id, "cost", key, interval=interval) as subscriber:
        while True:
            check: LimitCheck = await subscriber.next(None)  # type: ignore[assignment]
            if check.level is LimitLevel.OVER:
                return check
            if not warned:
                warned = True
                warn(check.message)
