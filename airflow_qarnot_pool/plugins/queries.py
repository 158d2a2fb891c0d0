"""Requests of the Pools page to Qarnot and to Airflow's database, for one connection.

One thread at a time uses a :class:`Fetcher`, that of the cache. Only :meth:`Fetcher.pool_to_close` and
:meth:`Fetcher.close_pool` run in others, and keep no state.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.models.connection import Connection
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select, tuple_

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotCreditsError,
    QarnotError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, is_ours, label, namespace_tag
from airflow_qarnot_pool.ownership.termination import end
from airflow_qarnot_pool.plugins import rows
from airflow_qarnot_pool.plugins.cache import LIST

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task

T = TypeVar("T")

POOL_FIELDS = (
    "Name",
    "Shortname",
    "State",
    "PreviousState",
    "StateTransitionTime",
    "PreviousStateTransitionTime",
    "CreationDate",
    "EndDate",
    "Errors",
    "Tags",
    "Labels",
    "InstanceCount",
    "RunningInstanceCount",
    "TargetRunningInstanceCount",
    "TotalSlotCapacity",
    "QueuedOrRunningTaskInstancesCount",
    "ElasticProperty",
    "Scaling",
)
TASK_FIELDS = ("State", "StateTransitionTime", "PoolUuid", "Labels")
#: Seconds between two reads of all tasks. Only changes are read in between.
FULL_READ_INTERVAL = 300.0
#: Overlap of two reads of changes, because the server's clock has a resolution of 1 s.
OVERLAP = timedelta(seconds=2)
#: Maximum number of pools whose cost is read in one round, and the seconds after which it is read again.
FIGURES_PER_ROUND = 4
FIGURES_MAX_AGE = 30.0
#: Seconds for which a pool counts as displayed after a request of its page.
SHOWN_FOR = 60.0
#: How long after its end the cost of a pool is read again, because bills lag behind.
COST_FINAL_AFTER = timedelta(minutes=10)
#: Maximum number of Qarnot tasks in the detail of a pool.
MAX_TASKS = 200
#: Limits of one request. No viewer waits for it, but the next request does.
REQUEST_LIMITS = {"retries": 1, "timeout": 10.0, "deadline": 20.0}


def settings_of(conn_id: str) -> ConnectionSettings:
    """Return the settings of a connection from the secrets backends, environment and database of the api-server."""
    return ConnectionSettings.of(Connection.get_connection_from_secrets(conn_id))


def run_states(runs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the states of the DAG runs that exist, from Airflow's database."""
    keys, states = sorted(set(runs)), {}
    with create_session() as session:
        for start in range(0, len(keys), 200):
            chunk = keys[start : start + 200]
            query = select(DagRun.dag_id, DagRun.run_id, DagRun.state).where(
                tuple_(DagRun.dag_id, DagRun.run_id).in_(chunk)
            )
            for dag_id, run_id, state in session.execute(query):
                states[dag_id, run_id] = str(getattr(state, "value", state))
    return states


def describe_error(error: Exception) -> str:
    """Return the text that the page shows for an error. An unknown one is not shown, because it may hold secrets."""
    if isinstance(error, QarnotError):
        return str(error)
    if type(error).__name__ == "AirflowNotFoundException":
        return (
            "There is no such connection. Create one of type Qarnot, or name another in "
            "[qarnot] pools_page_connections."
        )
    return f"{type(error).__name__}; see the log of the api-server."


class Fetcher:
    """Fetches the list of pools, or (by its uuid) the detail of one pool, for the cache of a connection."""

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._settings: ConnectionSettings | None = None
        self._client: QarnotClient | None = None
        self._pools: dict[str, Pool] = {}
        #: None before the first read.
        self._task_rows: dict[str, rows.TaskRow] | None = None
        self._mark: datetime | None = None
        self._swept_at = float("-inf")
        self._histories: dict[str, rows.ObservedHistory] = {}
        self._figures: dict[str, rows.PoolFigures] = {}
        self._figures_at: dict[str, float] = {}
        #: When pools were last displayed, by uuid. Written by any thread, read by that of the cache.
        self.shown: dict[str, float] = {}

    def __call__(self, key: str, first: Callable[[Any], None] = lambda value: None) -> Any:
        """Return the value of *key*, and pass parts of the first list to *first*."""
        settings, client = self._connect()
        return self._list(settings, client, first) if key == LIST else self._detail(settings, client, key)

    def _connect(self) -> tuple[ConnectionSettings, QarnotClient]:
        """Return the current settings and their client, and forget the data of another account."""
        settings = settings_of(self.conn_id)
        if self._client is None or settings != self._settings:
            if self._client is not None:
                self._client.close()
                self._pools, self._task_rows, self._histories, self._mark = {}, None, {}, None
                self._figures, self._figures_at = {}, {}
            self._settings, self._client = settings, settings.client(**REQUEST_LIMITS)
        return settings, self._client

    # --- the list

    def _list(
        self, settings: ConnectionSettings, client: QarnotClient, first: Callable[[Any], None]
    ) -> list[dict[str, Any]]:
        tagged = filters.equal("Tags", namespace_tag(settings.namespace))
        pools = client.pools.search_all(tagged, fields=POOL_FIELDS)
        now = datetime.now(UTC)
        self._pools = {pool.uuid: pool for pool in pools if is_ours(pool, settings.namespace)}
        self._histories = {
            uuid: rows.updated_history(self._histories.get(uuid), pool, now)
            for uuid, pool in self._pools.items()
        }
        # Reading thousands of Qarnot tasks and the costs takes time. The first viewer sees the parts that are ready.
        is_first = self._task_rows is None
        if is_first:
            first(rows.build_rows(self._page_data(settings, self._pools.values(), now)))
        self._read_tasks(client, tagged)
        if is_first:
            first(rows.build_rows(self._page_data(settings, self._pools.values(), now)))
        self._read_figures(client, settings.reference_datacenter)
        return rows.build_rows(self._page_data(settings, self._pools.values(), now))

    def _page_data(self, settings: ConnectionSettings, pools: Iterable[Pool], now: datetime) -> rows.PageData:
        pools = list(pools)
        by_pool: dict[str, list[rows.TaskRow]] = defaultdict(list)
        for task in (self._task_rows or {}).values():
            by_pool[task.pool].append(task)
        owners = [(label(pool.labels, "dag_id"), label(pool.labels, "run_id")) for pool in pools]
        return rows.PageData(
            now=now,
            connection=self.conn_id,
            pools=pools,
            tasks=None if self._task_rows is None else by_pool,
            runs=run_states((dag_id, run_id) for dag_id, run_id in owners if dag_id and run_id),
            figures=self._figures,
            histories=self._histories,
            console_url=settings.console_url,
        )

    def _read_tasks(self, client: QarnotClient, tagged: filters.Filter) -> None:
        """Update the rows of Qarnot tasks with the changes since the last read, or, less often, with all tasks."""
        task_rows, mark = self._task_rows, self._mark
        if task_rows is None or mark is None or time.monotonic() - self._swept_at > FULL_READ_INTERVAL:
            tasks = self._tasks(client, tagged)
            task_rows, self._swept_at = {}, time.monotonic()
        else:
            changed = filters.and_(tagged, filters.ge("StateTransitionTime", mark - OVERLAP))
            try:
                tasks = self._tasks(client, changed)
            except QarnotRefusedError:
                return  # the server has no filter on times; the next full read shows the changes
        self._mark = next_mark(mark, (task.state_transition_time for task in tasks), client.transport.dated)
        for task in tasks:
            if task.pool and label(task.labels, "role") != WARM_UP_ROLE:
                task_rows[task.uuid] = rows.TaskRow(
                    task.pool,
                    rows.group_of(task.state),
                    task.state_transition_time,
                    label(task.labels, "dag_id"),
                    label(task.labels, "run_id"),
                )
        self._task_rows = task_rows

    def _tasks(self, client: QarnotClient, condition: filters.Filter) -> list[Task]:
        return client.tasks.search_all(condition, fields=TASK_FIELDS)

    # --- costs

    def _read_figures(self, client: QarnotClient, reference: str | None) -> None:
        """Read the cost of some pools: first the displayed ones, then those with the oldest figures."""
        for uuid in self._figures.keys() - self._pools.keys():
            del self._figures[uuid]
            self._figures_at.pop(uuid, None)
        for uuid in figures_due(self._pools, self._figures, self._figures_at, self.shown, time.monotonic()):
            try:
                self._read_figure(client, self._pools[uuid], reference)
            except QarnotUnavailableError:
                return  # the list itself is more important, and the next round comes soon

    def _read_figure(
        self, client: QarnotClient, pool: Pool, reference: str | None, tasks: Iterable[Task] | None = None
    ) -> None:
        # Before the requests, because a pool whose cost cannot be read must not block the others.
        self._figures_at[pool.uuid] = time.monotonic()
        euros, euros_final = _figure(lambda: client.pools.credits(pool.uuid))
        carbon, carbon_final = _figure(lambda: client.pools.carbon_facts(pool.uuid, reference))
        if tasks is None and self._has_several_runs(pool):
            tasks, _ = _figure(lambda: client.pools.tasks(pool.uuid))
        self._figures[pool.uuid] = rows.PoolFigures(
            euros=euros,
            carbon=carbon,
            at=datetime.now(UTC),
            final=_is_settled(pool) and euros_final and carbon_final,
            shares=None if tasks is None else rows.shares_of(pool, tasks),
        )

    def _has_several_runs(self, pool: Pool) -> bool:
        """Return whether several DAG runs share the cost of the pool, or may share it."""
        if label(pool.labels, "shared") is not None:
            return True
        tasks = (task for task in (self._task_rows or {}).values() if task.pool == pool.uuid)
        return len(rows.runs_of(pool, tasks)) > 1

    # --- one pool

    def _detail(self, settings: ConnectionSettings, client: QarnotClient, uuid: str) -> dict[str, Any]:
        pool = client.pools.get(uuid)
        self._refuse_foreign(pool, settings)
        now = datetime.now(UTC)
        observed = self._histories[uuid] = rows.updated_history(self._histories.get(uuid), pool, now)
        tasks = client.pools.tasks(uuid)
        if figures_due({uuid: pool}, self._figures, self._figures_at, {}, time.monotonic()):
            with suppress(QarnotUnavailableError):
                self._read_figure(client, pool, settings.reference_datacenter, tasks)
        row = rows.build_rows(self._page_data(settings, [pool], now))[0]
        return rows.build_detail(row, pool, tasks, observed, MAX_TASKS)

    def _refuse_foreign(self, pool: Pool, settings: ConnectionSettings) -> None:
        if not is_ours(pool, settings.namespace):
            raise QarnotNotFoundError(
                f"Pool {pool.uuid} was not created by this provider in the namespace {settings.namespace!r}",
                kind="pool",
                ref=pool.uuid,
                remedy="Open it in the Qarnot console.",
            )

    def pool_to_close(self, uuid: str) -> Pool:
        """Return the current state of the pool.

        :raises QarnotNotFoundError: the pool does not exist, or has another namespace.
        """
        settings = settings_of(self.conn_id)
        with settings.client(**REQUEST_LIMITS) as client:
            pool = client.pools.get(uuid)
        self._refuse_foreign(pool, settings)
        return pool

    def close_pool(self, uuid: str) -> None:
        """Close the pool. It may be closing, closed or deleted already."""
        with settings_of(self.conn_id).client(**REQUEST_LIMITS) as client:
            end(client.pools, uuid)


def figures_due(
    pools: Mapping[str, Pool],
    figures: Mapping[str, rows.PoolFigures],
    asked_at: Mapping[str, float],
    shown: Mapping[str, float],
    now: float,
) -> list[str]:
    """Return the pools whose cost to read now, at most ``FIGURES_PER_ROUND``."""
    due = [
        uuid
        for uuid in pools
        if not (uuid in figures and figures[uuid].final) and now - asked_at.get(uuid, -1e9) > FIGURES_MAX_AGE
    ]
    due.sort(
        key=lambda uuid: (
            now - shown.get(uuid, -1e9) > SHOWN_FOR,
            not rows.is_open(pools[uuid]),
            asked_at.get(uuid, -1e9),
        )
    )
    return due[:FIGURES_PER_ROUND]


def _figure(request: Callable[[], T]) -> tuple[T | None, bool]:
    """Return a figure of one pool, or None if it is unknown, and whether it is final.

    Not every account may see it, the pool may be deleted, and a response has no number as long as Qarnot has none. The
    other pools are still shown then. A 404 is not final, because a replica may lag. An outage is raised.
    """
    try:
        return request(), True
    except QarnotRefusedError:
        return None, True
    except (QarnotNotFoundError, QarnotProtocolError, QarnotCreditsError):
        return None, False


def _is_settled(pool: Pool) -> bool:
    """Return whether the cost of the pool can no longer change."""
    ended = pool.end_date or pool.state_transition_time
    return not rows.is_open(pool) and ended is not None and datetime.now(UTC) - ended > COST_FINAL_AFTER


def next_mark(
    mark: datetime | None, moved: Iterable[datetime | None], dated: tuple[datetime, float] | None
) -> datetime | None:
    """Return the time of the newest transition, or None if the server's clock was set back and all must be read again.

    :param moved: transitions of the tasks just read. Those in the server's future do not count.
    :param dated: the server's date in the response that contained them.
    """
    latest = dated[0] + OVERLAP if dated is not None else None
    if mark is not None and latest is not None and mark > latest:
        return None
    times = [each for each in (mark, *moved) if each is not None and (latest is None or each <= latest)]
    return max(times, default=None)
