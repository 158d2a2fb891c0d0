"""One poll for all watchers of a bucket, or of the Qarnot tasks or pools of a connection.

The keys of subscriptions are what watchers have in common, such as a prefix or a tag.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple

from airflow_qarnot_pool.triggers.poller import WAKE_BATCH, Poller, Subscriber, Subscription
from airflow_qarnot_pool.triggers.watch import Watch
from airflow_qarnot_pool.triggers.watermark import Item

#: Returns whether a watcher reports an item, at a time on the service's clock.
Accepts = Callable[[Item, datetime], bool]


@dataclass(eq=False, slots=True)
class WatchSubscriber(Subscriber):
    """One watcher. Its updates are ``Found``."""

    #: The search of the next poll, which the watcher replaces before each wait.
    watch: Watch | None = None
    accepts: Accepts | None = None


class Search(NamedTuple):
    """What one watcher searches in a poll.

    :param key: key of its subscription, such as a prefix.
    :param is_new: whether it has not been polled before.
    """

    key: str
    watch: Watch
    accepts: Accepts | None
    is_new: bool

    def offer(self, item: Item, time: datetime) -> None:
        """Keep *item* of *time* if it is new to the watcher, and the watcher reports it."""
        if self.accepts is None or self.accepts(item, self.watch.now):
            self.watch.offer(item, time)


class WatchPoller(Poller):
    """Poller whose rounds search for all watchers in the same responses."""

    def _delay(self) -> float:
        return self._interval()

    async def _round(self) -> None:
        self.rounds += 1
        await self._poll(list(self.subscriptions.values()))

    async def _poll(self, subscriptions: list[Subscription]) -> None:
        """Poll once, and notify the watchers for which there is something new."""
        watching = [pair for subscription in subscriptions for pair in _searches_of(subscription)]
        if not watching:
            return
        with self._deferring_errors():
            await self._request(partial(self._search_for, [search for _, search in watching]))
            for subscriber, _ in watching:
                subscriber.new = False
            for subscription in subscriptions:
                # Not those that have joined meanwhile.
                subscription.mark_polled(())
            for number, (subscriber, search) in enumerate(watching, 1):
                if (found := search.watch.result()) is not None:
                    subscriber.deliver(found)  # type: ignore[arg-type]
                if number % WAKE_BATCH == 0:
                    await asyncio.sleep(0)

    @abstractmethod
    def _search_for(self, searches: Sequence[Search]) -> None:
        """Start each search, and offer it what Qarnot has. Runs in the thread of the poll."""


def _searches_of(subscription: Subscription) -> list[tuple[WatchSubscriber, Search]]:
    return [
        (subscriber, Search(subscriber.key, subscriber.watch, subscriber.accepts, subscriber.new))
        for subscriber in subscription.subscribers
        # A watcher that has not taken the result of an earlier poll gets no more.
        if isinstance(subscriber, WatchSubscriber) and subscriber.watch and not subscriber.is_behind
    ]
