"""Start DAGs for Qarnot tasks that have ended, from any program."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import short_repr
from airflow_qarnot_pool.api.states import TASK_TERMINAL, TaskState
from airflow_qarnot_pool.triggers.poller import SWEEP_EVERY
from airflow_qarnot_pool.triggers.watcher import QarnotWatcher, checked_tag

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_qarnot_pool.triggers.watch_poller import WatchSubscriber
    from airflow_qarnot_pool.triggers.watermark import Item


class QarnotTaskWatcher(QarnotWatcher):
    """Report Qarnot tasks with a tag when they have ended, from any program of the account.

    Each event has ``tag``, ``states`` and ``tasks``, a list of ``{uuid, name, shortname, state, pool, ended}``.

    All watchers of a connection share one search.

    :param tag: tag of the Qarnot tasks.
    :param states: one state or several of ``Success``, ``Failure`` and ``Cancelled``. None means all of them.
    """

    items = "tasks"
    time = "ended"

    def __init__(self, *, tag: str, states: str | Iterable[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tag = checked_tag(tag)
        self.states = sorted(TASK_TERMINAL) if states is None else _checked_states(states)

    def _scope(self) -> dict[str, Any]:
        return {"tag": self.tag, "states": self.states}

    @property
    def _lateness(self) -> int:
        # A round looks back a minute only. What comes later is found by the next sweep.
        return super()._lateness + math.ceil(SWEEP_EVERY * self.poll_interval / 60)

    def _subscribe(self) -> WatchSubscriber:
        from airflow_qarnot_pool.triggers.event_pollers import watch_tag

        return watch_tag(self.qarnot_conn_id, "task_event", self.tag, self.poll_interval, self._accepts)

    def _accepts(self, item: Item, _: datetime) -> bool:
        return item["state"] in self.states


def _checked_states(states: str | Iterable[str]) -> list[str]:
    by_name = {state.lower(): str(state) for state in TASK_TERMINAL}
    names = [states] if isinstance(states, str) else states
    try:
        found = sorted({by_name[str(name).lower()] for name in names})
    except (KeyError, TypeError):
        found = []
    if not found:
        raise QarnotInvalidSpecError(
            f"states must be states in which a Qarnot task has ended, got {short_repr(states)}",
            field="states",
            remedy=f"Give some of {', '.join(sorted(TaskState(state) for state in TASK_TERMINAL))}.",
        )
    return found
