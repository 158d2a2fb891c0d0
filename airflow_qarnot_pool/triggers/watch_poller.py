"""One poll for all watchers of a bucket, or of the Qarnot tasks or pools of a connection."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from airflow_qarnot_pool.triggers.poller import WAKE_BATCH, Poller, Subscriber, Subscription
from airflow_qarnot_pool.triggers.watch import Watch
from airflow_qarnot_pool.triggers.watermark import Item


@dataclass(eq=False, slots=True)
class WatchSubscriber(Subscriber):
    """One watcher. Its updates are ``Found``."""

    #: The search of the next poll, which the watcher replaces before each wait.
    watch: Watch | None = None
    #: Returns whether the watcher reports an item.
    accepts: Callable[[Item], bool] | None = None


class Search(NamedTuple):
    """What one watcher searches in a poll.

    :param key: key of its subscription, such as a prefix.
    """

    key: str
    watch: Watch
    accepts: Callable[[Item], bool] | None


class WatchPoller(Poller):
    """Poller whose rounds search for all watchers in the same responses."""

    def _delay(self) -> float:
        return self._interval()

    async def _round(self) -> None:
        self.rounds += 1
        await self._poll(list(self.subscriptions.values()))

    async def _poll(self, subscriptions: list[Subscription]) -> None:
        """Poll once, and notify the watchers for which there is something new."""
        watching = [
            (subscriber, Search(subscriber.key, subscriber.watch, subscriber.accepts))
            for subscription in subscriptions
            for subscriber in subscription.subscribers
            # A watcher that has not taken the result of an earlier poll gets no more.
            if isinstance(subscriber, WatchSubscriber) and subscriber.watch and not subscriber.is_behind
        ]
        if not watching:
            return
        with self._deferring_errors():
            await self._request(partial(self._search_for, [search for _, search in watching]))
            for subscription in subscriptions:
                subscription.mark_polled()
            for number, (subscriber, search) in enumerate(watching, 1):
                if (found := search.watch.result()) is not None:
                    subscriber.deliver(found)  # type: ignore[arg-type]
                if number % WAKE_BATCH == 0:
                    await asyncio.sleep(0)

    @abstractmethod
    def _search_for(self, searches: Sequence[Search]) -> None:
        """Begin each search, and offer it what Qarnot has. Runs in the thread of the poll."""
