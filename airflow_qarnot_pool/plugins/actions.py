"""What users can do with a pool on the Pools page: close now or when idle, resize. Each runs in the user's request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.api.states import TASK_TERMINAL, TaskState
from airflow_qarnot_pool.costs.model import is_warm_up
from airflow_qarnot_pool.ownership.identity import RunKey, label, run_of
from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES
from airflow_qarnot_pool.ownership.shared_pool import holders_of
from airflow_qarnot_pool.ownership.termination import closes_when_idle, end
from airflow_qarnot_pool.plugins import airflow_db
from airflow_qarnot_pool.plugins.phases import is_closable, load_of, word_of
from airflow_qarnot_pool.plugins.queries import REQUEST_LIMITS, get_own_pool, settings_of
from airflow_qarnot_pool.plugins.resizing import (
    closing_when_idle,
    obstacle_of,
    obstacle_to_idle_close,
    resized,
)
from airflow_qarnot_pool.plugins.rows import MAX_USERS, RunFacts
from airflow_qarnot_pool.plugins.texts import clean_label, clean_line, plural, run_link

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task

#: Maximum number of Airflow tasks that the preview of a close names for each DAG run.
MAX_NAMES = 5
_UNFINISHED = [state for state in TaskState if state not in TASK_TERMINAL]


class NotResizableError(Exception):
    """The pool cannot be resized. The message says why."""


class PoolActions:
    """The actions on the pools of a connection."""

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._lock = threading.Lock()
        #: Pools with a request to close under way, because two clicks must not make two entries in the audit log.
        self._closing: set[str] = set()

    def preview_close(self, uuid: str) -> dict[str, Any]:
        """Return what a close of the pool would do. Takes three requests, or two if the pool is not shared."""
        settings = settings_of(self.conn_id)
        with settings.client(**REQUEST_LIMITS) as client:
            pool = get_own_pool(client, uuid, settings.namespace)
            on_pool = filters.and_(filters.equal("PoolUuid", uuid), filters.in_("State", _UNFINISHED))
            tasks = client.tasks.search_all(on_pool, fields=("State", "Labels"))
            holders = holders_of(client, pool) if label(pool.labels, "shared") is not None else set()
        runs = airflow_db.run_facts({*holders, *map(run_of, tasks), run_of(pool)})
        return describe_close(pool, tasks, holders, runs)

    def close(self, uuid: str, audit: Callable[[Pool], None]) -> bool:
        """Close the pool, and return whether it was open. *audit* is called before the request, for an open pool only.

        :raises QarnotError: the pool does not exist, or Qarnot does not close it.
        """
        with self._lock:
            if uuid in self._closing:
                return False
            self._closing.add(uuid)
        try:
            settings = settings_of(self.conn_id)
            with settings.client(**REQUEST_LIMITS) as client:
                pool = get_own_pool(client, uuid, settings.namespace)
                if not is_closable(pool):
                    return False
                audit(pool)
                end(client.pools, uuid)
                return True
        finally:
            with self._lock:
                self._closing.discard(uuid)

    def close_when_idle(self, uuid: str, wanted: bool, audit: Callable[[Pool], None]) -> bool:
        """Let the reaper close the pool once it is idle, or no more. Return whether that is a change.

        :raises NotResizableError: the pool ends, or its DAG has to change it.
        :raises QarnotError: the pool does not exist, or Qarnot refuses it.
        """
        settings = settings_of(self.conn_id)
        with settings.client(**REQUEST_LIMITS) as client:
            pool = get_own_pool(client, uuid, settings.namespace)
            if closes_when_idle(pool) is wanted and is_closable(pool):
                return False
            if obstacle := obstacle_to_idle_close(pool):
                raise NotResizableError(obstacle)
            audit(pool)
            client.pools.set_scaling(uuid, closing_when_idle(pool, wanted))
            return True

    def resize(self, uuid: str, slots: int, idle: timedelta | None, audit: Callable[[Pool], None]) -> None:
        """Change the number of slots of the pool, and let idle nodes go.

        :raises NotResizableError: the pool ends, or its DAG has to change it.
        :raises QarnotError: the pool does not exist, or Qarnot refuses the size.
        """
        settings = settings_of(self.conn_id)
        with settings.client(**REQUEST_LIMITS) as client:
            pool = get_own_pool(client, uuid, settings.namespace)
            if obstacle := obstacle_of(pool):
                raise NotResizableError(obstacle)
            audit(pool)
            client.pools.update(uuid, **resized(pool, slots, idle))


def describe_close(
    pool: Pool, tasks: Iterable[Task], holders: Iterable[RunKey], runs: Mapping[tuple[str, str], RunFacts]
) -> dict[str, Any]:
    """Return what a close of *pool* would do.

    :param tasks: the unfinished Qarnot tasks on it.
    :param holders: the DAG runs that have opened it and not released it.
    :param runs: the DAG runs that Airflow knows.
    """
    names: dict[RunKey, list[tuple[str, int]]] = {}
    for task in tasks:
        if not is_warm_up(label(task.labels, "role")):
            names.setdefault(run_of(task), []).append(_airflow_task(task))
    work = {run: len(each) for run, each in names.items()}
    holding = {run for run in holders if run in runs and runs[run].state not in FINISHED_RUN_STATES}
    users = sorted(({*work, *holding} - {RunKey("", "")}), key=lambda run: (-work.get(run, 0), run))
    busy, queued = load_of(pool)
    return {
        "name": clean_line(pool.name or pool.uuid),
        "word": word_of(pool, has_worked=True),
        "ready": pool.ready_slots,
        "running": busy,
        "queued": queued,
        "users": [
            {
                "dag_id": clean_label(run.dag_id),
                "run_id": clean_label(run.run_id),
                "run_state": runs[run].state if run in runs else None,
                "link": run_link(*run),
                "unfinished": work.get(run, 0),
                "tasks": _listed(names.get(run, ())),
                "holds": run in holding,
            }
            for run in users[:MAX_USERS]
        ],
        "user_count": len(users),
        "closable": is_closable(pool),
        "text": _executor_text(sum(work.values()), len(users))
        if label(pool.labels, "executor") is not None
        else _close_text(sum(work.values()), len(users), len(holding)),
    }


def _airflow_task(task: Task) -> tuple[str, int]:
    """Return the id of the Airflow task of a Qarnot task, and the index of a mapped one."""
    index = parse_number(label(task.labels, "map_index"))
    return clean_line(label(task.labels, "task_id") or ""), -1 if index is None else index


def _listed(tasks: Iterable[tuple[str, int]]) -> list[str]:
    named = sorted({task for task in tasks if task[0]})[:MAX_NAMES]
    return [name if index < 0 else f"{name} [{index}]" for name, index in named]


def _executor_text(unfinished: int, users: int) -> str:
    """Return what happens to the Airflow tasks on a pool of the executor."""
    another = "QarnotExecutor opens another pool for its next task."
    if not unfinished:
        return f"Nothing runs on it. {another}"
    verb = "is" if unfinished == 1 else "are"
    return (
        f"{plural(unfinished, 'Airflow task')} of {plural(users, 'DAG run')} {verb} cancelled. Those that run fail, "
        f"or are retried. Those that wait are queued again. {another}"
    )


def _close_text(unfinished: int, users: int, holding: int) -> str:
    """Return what happens to the work on the pool, in one or two sentences."""
    if unfinished:
        verb = "is" if unfinished == 1 else "are"
        owners = f" of {plural(users, 'DAG run')}" if users else ""
        text = (
            f"{plural(unfinished, 'unfinished Qarnot task')}{owners} {verb} cancelled. "
            "The Airflow tasks fail or are retried."
        )
    else:
        text = "Nothing runs on it."
    if holding:
        verb = "has" if holding == 1 else "have"
        text += f" {plural(holding, 'DAG run')} {verb} it open, and may open another one."
    return text
