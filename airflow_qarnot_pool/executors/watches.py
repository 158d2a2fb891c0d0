"""The Qarnot tasks whose ends the executor's thread waits for. One poller of the triggers shows all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_qarnot_pool.triggers.poller import Poller, PollKey, Subscriber

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task


@dataclass(eq=False, slots=True)
class CallbackSubscriber(Subscriber):
    """A subscriber of the poller that hands each update to a function, because nothing awaits it."""

    on_update: Callable[[Pool | Task | Exception], None] | None = None

    def deliver(self, update: Pool | Task | Exception) -> None:
        """Hand over *update*."""
        if self.on_update is not None:
            self.on_update(update)


class Watches:
    """All watches of an event loop, which alone may use this object."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._loop = asyncio.get_running_loop()
        self._poller: Poller | None = None

    def add(
        self, uuid: str, interval: float, on_update: Callable[[Pool | Task | Exception], None]
    ) -> CallbackSubscriber:
        """Watch the Qarnot task *uuid*, which is polled every *interval* seconds."""
        if self._poller is None or self._poller.closed:
            self._poller = Poller(self._conn_id, "task")
        scope = PollKey(id(self._loop), self._conn_id, "task", "executor")
        watch = CallbackSubscriber(scope, uuid, False, interval, False, on_update=on_update)
        self._poller.add(watch)
        return watch

    def remove(self, watch: CallbackSubscriber) -> None:
        """End a watch."""
        watch.on_update = None
        if self._poller is not None:
            # The poller may be going through its subscriptions.
            self._loop.call_soon(_unsubscribe, self._poller, watch)


def _unsubscribe(poller: Poller, watch: CallbackSubscriber) -> None:
    poller.remove(watch)
    poller.stop_if_idle()
