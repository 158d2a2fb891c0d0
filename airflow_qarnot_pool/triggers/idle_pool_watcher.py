"""Start DAGs for pools that cost money and have nothing to do."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.parameters.validation import Duration
from airflow_qarnot_pool.triggers.watcher import QarnotWatcher, checked_tag, seconds

if TYPE_CHECKING:
    from airflow_qarnot_pool.triggers.watch_poller import WatchSubscriber
    from airflow_qarnot_pool.triggers.watermark import Item


class QarnotPoolIdleWatcher(QarnotWatcher):
    """Report pools with a tag that have run for some time without a Qarnot task.

    Each event has ``tag``, ``idle_for`` in seconds, and ``pools``, a list of ``{uuid, name, shortname, idle_since}``.
    A pool is reported once for each time that it is idle.

    All watchers of a connection share one search for pools, and one for the Qarnot tasks of those that are idle.

    :param tag: tag of the pools.
    :param idle_for: time without a Qarnot task that is queued or runs.
    :param existing: also report pools that are idle when the watcher first runs.
    """

    items = "pools"
    time = "idle_since"

    def __init__(
        self, *, tag: str, idle_for: Duration = timedelta(minutes=10), existing: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(existing=existing, **kwargs)
        self.tag = checked_tag(tag)
        self.idle_for = seconds("idle_for", idle_for)

    def _scope(self) -> dict[str, Any]:
        return {"tag": self.tag, "idle_for": self.idle_for}

    @property
    def _lateness(self) -> int:
        return super()._lateness + math.ceil(self.idle_for / 60)

    def _subscribe(self) -> WatchSubscriber:
        from airflow_qarnot_pool.triggers.event_pollers import watch_tag

        return watch_tag(self.qarnot_conn_id, "idle_pool", self.tag, self.poll_interval, self._accepts)

    def _accepts(self, item: Item, now: datetime) -> bool:
        return (now - datetime.fromisoformat(item["idle_since"])).total_seconds() >= self.idle_for
