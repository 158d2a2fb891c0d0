"""Requests of the Pools page to Qarnot, for one connection.

One thread at a time uses a :class:`Fetcher`, that of the cache. The actions of users (:mod:`.actions`) run in others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from airflow.models.connection import Connection

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotCreditsError,
    QarnotError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.costs.model import is_warm_up
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
from airflow_qarnot_pool.ownership.identity import (
    RunKey,
    is_ours,
    label,
    namespace_tag,
    run_of,
)
from airflow_qarnot_pool.plugins import airflow_db, details, history, pictures, rows
from airflow_qarnot_pool.plugins.cache import LIST, MAX_DETAILS
from airflow_qarnot_pool.plugins.listing import Listing
from airflow_qarnot_pool.plugins.output import read_tail
from airflow_qarnot_pool.plugins.phases import UNFINISHED, ended_at, group_of, is_open
from airflow_qarnot_pool.plugins.sizes import Sizes

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
    "MultiSlotsSettings",
    "ExecutionTime",
)
TASK_FIELDS = ("State", "StateTransitionTime", "PoolUuid", "Labels", "Errors")
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
#: How long after the end of a Qarnot task its output is read again, because a replica may lag.
OUTPUT_FINAL_AFTER = timedelta(minutes=1)
#: Limits of one request. No viewer waits for it, but the next request does.
REQUEST_LIMITS = {"retries": 1, "timeout": 10.0, "deadline": 20.0}


def settings_of(conn_id: str) -> ConnectionSettings:
    """Return the settings of a connection from the secrets backends, environment and database of the api-server."""
    return ConnectionSettings.of(Connection.get_connection_from_secrets(conn_id))


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
    """Fetches the list of pools, the detail of a pool or the output of a Qarnot task, for the cache of a connection.

    Its keys are ``LIST``, the uuid of a pool, and :func:`output_key`.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._settings: ConnectionSettings | None = None
        self._client: QarnotClient | None = None
        #: When pools were last displayed, by uuid. Written by any thread, read by that of the cache.
        self.shown: dict[str, float] = {}
        self._listing = Listing()
        self._closings = rows.Closings({}, {})
        self._forget()

    def _forget(self) -> None:
        """Forget the data of another account."""
        self._pools: dict[str, Pool] = {}
        #: None before the first read.
        self._task_rows: dict[str, rows.TaskRow] | None = None
        self._mark: datetime | None = None
        self._swept_at = float("-inf")
        self._histories: dict[str, history.ObservedHistory] = {}
        self._figures: dict[str, rows.PoolFigures] = {}
        self._figures_at: dict[str, float] = {}
        #: Observed starts of nodes and instances, by pool.
        self._starts: dict[str, pictures.Starts] = {}
        self._sizes = Sizes()
        #: Outputs that no longer change, by uuid of the pool and of the task.
        self._outputs: dict[tuple[str, str], TaskOutput] = {}
        #: Replaced as a whole, because other threads read it.
        self._account = pictures.AccountHistory()

    def __call__(self, key: str, first: Callable[[Any], None] = lambda value: None) -> Any:
        """Return the value of *key*, and pass parts of the first list to *first*."""
        settings, client = self._connect()
        if key == LIST:
            return self._list(settings, client, first)
        uuid, _, task = key.partition("/")
        return self._output(settings, client, uuid, task) if task else self._detail(settings, client, uuid)

    def account(self) -> dict[str, Any]:
        """Return the picture of the account of the last day, from earlier polls. This sends no request."""
        return pictures.account_history(self._account, list(self._pools.values()), datetime.now(UTC))

    def _connect(self) -> tuple[ConnectionSettings, QarnotClient]:
        """Return the current settings and their client, and forget the data of another account."""
        settings = settings_of(self.conn_id)
        if self._client is None or settings != self._settings:
            if self._client is not None:
                self._client.close()
                self._forget()
            self._settings, self._client = settings, settings.client(**REQUEST_LIMITS)
        return settings, self._client

    # --- the list

    def _list(
        self, settings: ConnectionSettings, client: QarnotClient, first: Callable[[Any], None]
    ) -> Listing:
        tagged = filters.equal("Tags", namespace_tag(settings.namespace))
        pools = client.pools.search_all(tagged, fields=POOL_FIELDS)
        now = datetime.now(UTC)
        self._pools = {pool.uuid: pool for pool in pools if is_ours(pool, settings.namespace)}
        self._histories = {
            uuid: history.updated_history(self._histories.get(uuid), pool, now)
            for uuid, pool in self._pools.items()
        }
        self._closings = airflow_db.closings()
        # Reading thousands of Qarnot tasks and the costs takes time. The first viewer sees the parts that are ready.
        is_first = self._task_rows is None
        if is_first:
            first(self._updated_listing(settings, now))
        self._read_tasks(client, tagged)
        if is_first:
            first(self._updated_listing(settings, now))
        self._read_figures(client, settings.reference_datacenter)
        euros = {uuid: figures.euros for uuid, figures in self._figures.items()}
        self._account = self._account.updated(self._pools.values(), euros, now)
        return self._updated_listing(settings, now)

    def _updated_listing(self, settings: ConnectionSettings, now: datetime) -> Listing:
        tasks = None if self._task_rows is None else self._task_rows.values()
        page = self._page_data(settings, self._pools.values(), tasks, now)
        self._listing = self._listing.updated(rows.build_rows(page))
        return self._listing

    def _page_data(
        self,
        settings: ConnectionSettings,
        pools: Iterable[Pool],
        tasks: Iterable[rows.TaskRow] | None,
        now: datetime,
    ) -> rows.PageData:
        pools = list(pools)
        by_pool: dict[str, list[rows.TaskRow]] = defaultdict(list)
        for task in tasks or ():
            by_pool[task.pool].append(task)
        owners = [run_of(pool) for pool in pools]
        return rows.PageData(
            now=now,
            connection=self.conn_id,
            pools=pools,
            all_pools=list({**self._pools, **{pool.uuid: pool for pool in pools}}.values()),
            tasks=None if tasks is None else by_pool,
            runs=airflow_db.run_facts((dag_id, run_id) for dag_id, run_id in owners if dag_id and run_id),
            figures=self._figures,
            histories=self._histories,
            closings=self._closings,
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
            if task.pool and (row := task_row(task.pool, task)):
                task_rows[task.uuid] = row
        self._task_rows = task_rows

    def _tasks(self, client: QarnotClient, condition: filters.Filter) -> list[Task]:
        return client.tasks.search_all(condition, fields=TASK_FIELDS)

    # --- costs

    def _read_figures(self, client: QarnotClient, reference: str | None) -> None:
        """Read the cost of some pools: first the displayed ones, then those with the oldest figures."""
        for uuid in self._figures.keys() - self._pools.keys():
            del self._figures[uuid]
        for uuid in self._figures_at.keys() - self._pools.keys():  # also those whose first read failed
            del self._figures_at[uuid]
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
        now = datetime.now(UTC)
        self._figures[pool.uuid] = rows.PoolFigures(
            euros=euros,
            carbon=carbon,
            final=_is_settled(pool) and euros_final and carbon_final,
            shares=None if tasks is None else rows.shares_of(pool, tasks),
            slot_hour=rows.slot_hour_of(pool, euros),
        )
        observed = self._histories.get(pool.uuid) or history.updated_history(None, pool, now)
        self._histories[pool.uuid] = history.with_cost(observed, euros, now)

    def _has_several_runs(self, pool: Pool) -> bool:
        """Return whether several DAG runs share the cost of the pool, or may share it."""
        if label(pool.labels, "shared") is not None:
            return True
        tasks = (task for task in (self._task_rows or {}).values() if task.pool == pool.uuid)
        return len(rows.runs_of(pool, tasks)) > 1

    # --- one pool

    def _detail(self, settings: ConnectionSettings, client: QarnotClient, uuid: str) -> details.PoolDetail:
        pool = get_own_pool(client, uuid, settings.namespace)
        now = datetime.now(UTC)
        self._histories[uuid] = history.updated_history(self._histories.get(uuid), pool, now)
        tasks = client.pools.tasks(uuid)
        if figures_due({uuid: pool}, self._figures, self._figures_at, {}, time.monotonic()):
            with suppress(QarnotUnavailableError):
                self._read_figure(client, pool, settings.reference_datacenter, tasks)
        starts = self._starts.setdefault(uuid, {})
        pictures.observe_starts(starts, pool)
        for task in tasks:
            pictures.observe_starts(starts, task)
        while len(self._starts) > MAX_DETAILS:
            del self._starts[next(iter(self._starts))]
        task_rows = [row for task in tasks if (row := task_row(uuid, task))]
        [entry] = rows.build_rows(self._page_data(settings, [pool], task_rows, now))
        figures = self._figures.get(uuid)
        sizes = self._sizes.of(pool, tasks, figures.euros if figures else None)
        states = airflow_db.instance_states(details.newest_instances(tasks))
        return details.build_detail(entry, pool, tasks, self._histories[uuid], starts, sizes, states)

    def _output(
        self, settings: ConnectionSettings, client: QarnotClient, uuid: str, task_uuid: str
    ) -> TaskOutput:
        if final := self._outputs.get((uuid, task_uuid)):
            return final
        task = client.tasks.get(task_uuid)
        if task.pool != uuid or not is_ours(task, settings.namespace):
            raise QarnotNotFoundError(
                f"Pool {uuid} has no Qarnot task {task_uuid} of this Airflow", kind="task", ref=task_uuid
            )
        streams = {name: read_tail(client, task_uuid, name) for name in ("stdout", "stderr")}
        output = TaskOutput(run_of(task), streams)
        ended = task.end_date or task.state_transition_time
        if (
            group_of(task.state) not in UNFINISHED
            and ended
            and datetime.now(UTC) - ended > OUTPUT_FINAL_AFTER
        ):
            self._outputs[uuid, task_uuid] = output
            while len(self._outputs) > MAX_DETAILS:
                del self._outputs[next(iter(self._outputs))]
        return output


def task_row(pool: str, task: Task) -> rows.TaskRow | None:
    """Return the row of a Qarnot task on a pool. None for a warm-up, which does no work."""
    if is_warm_up(label(task.labels, "role")):
        return None
    return rows.TaskRow(
        pool,
        group_of(task.state),
        task.state_transition_time,
        label(task.labels, "dag_id"),
        label(task.labels, "run_id"),
        label(task.labels, "task_id"),
        error_of(task),
    )


def error_of(task: Task) -> str | None:
    """Return the start of the first error of a Qarnot task that has failed."""
    if not task.errors or group_of(task.state) != "failed":
        return None
    return str(task.errors[0])[: rows.MAX_ERROR]


def output_key(uuid: str, task: str) -> str:
    """Return the key of the output of a Qarnot task on a pool."""
    return f"{uuid}/{task}"


class TaskOutput(NamedTuple):
    """The output of a Qarnot task, and the DAG run that it belongs to."""

    run: RunKey
    streams: Mapping[str, Mapping[str, Any]]


def get_own_pool(client: QarnotClient, uuid: str, namespace: str) -> Pool:
    """Return a pool that this provider created.

    :raises QarnotNotFoundError: the pool does not exist, or has another namespace.
    """
    pool = client.pools.get(uuid)
    if not is_ours(pool, namespace):
        raise QarnotNotFoundError(
            f"Pool {pool.uuid} was not created by this provider in the namespace {namespace!r}",
            kind="pool",
            ref=pool.uuid,
            remedy="Open it in the Qarnot console.",
        )
    return pool


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
            not is_open(pools[uuid]),
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
    ended = ended_at(pool)
    return ended is not None and datetime.now(UTC) - ended > COST_FINAL_AFTER


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
