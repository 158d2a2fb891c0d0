"""What the Pools page asks of Qarnot and of Airflow's database, for one connection.

Used by one thread at a time (the cache's), but for :meth:`Fetcher.close_pool`, which keeps nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

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
#: Seconds between two readings of all tasks; in between only what changed is asked for.
FULL_READ_INTERVAL = 300.0
#: The server's clock has a resolution of 1 s.
OVERLAP = timedelta(seconds=2)
#: Pools whose cost is asked for in one round, and the seconds after which it is asked for again.
FIGURES_PER_ROUND = 4
FIGURES_MAX_AGE = 30.0
SHOWN_FOR = 60.0
#: Bills lag behind: until then the cost of a pool that is over is asked for again.
COST_FINAL_AFTER = timedelta(minutes=10)
#: Tasks shown in the detail of a pool.
MAX_TASKS = 200
#: Seconds for one request: nobody waits for it, but the next one does.
REQUEST_LIMITS = {"retries": 1, "timeout": 10.0, "deadline": 20.0}


def settings_of(conn_id: str) -> ConnectionSettings:
    """The connection as the api-server reads it: from its secrets backends, environment and database."""
    from airflow.models.connection import Connection

    return ConnectionSettings.of(Connection.get_connection_from_secrets(conn_id))


def run_states(runs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The states of DAG runs, from Airflow's database; those that do not exist are missing."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select, tuple_

    wanted, found = sorted(set(runs)), {}
    with create_session() as session:
        for start in range(0, len(wanted), 200):
            chunk = wanted[start : start + 200]
            query = select(DagRun.dag_id, DagRun.run_id, DagRun.state).where(
                tuple_(DagRun.dag_id, DagRun.run_id).in_(chunk)
            )
            for dag_id, run_id, state in session.execute(query):
                found[dag_id, run_id] = str(getattr(state, "value", state))
    return found


def describe_error(error: Exception) -> str:
    """What the page says of an error. Nothing of an unknown one, as it may hold what is not for everybody."""
    if isinstance(error, QarnotError):
        return str(error)
    if type(error).__name__ == "AirflowNotFoundException":
        return (
            "There is no such connection. Create one of type Qarnot, or name another in "
            "[qarnot] pools_page_connections."
        )
    return f"{type(error).__name__}; the log of the api-server says more."


class Fetcher:
    """Answers the cache of one connection: the list of pools, or (by its uuid) one pool in full."""

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._settings: ConnectionSettings | None = None
        self._client: QarnotClient | None = None
        self._pools: dict[str, Pool] = {}
        #: None until all have been read once.
        self._notes: dict[str, rows.TaskRow] | None = None
        self._mark: datetime | None = None
        self._swept_at = float("-inf")
        self._histories: dict[str, rows.ObservedHistory] = {}
        self._figures: dict[str, rows.PoolFigures] = {}
        self._figures_at: dict[str, float] = {}
        #: Pools somebody has in front of him, and when: written by any thread, read by the cache's.
        self.shown: dict[str, float] = {}

    def __call__(self, key: str, first: Callable[[Any], None] = lambda value: None) -> Any:
        settings, client = self._connect()
        return self._list(settings, client, first) if key == LIST else self._detail(settings, client, key)

    def _connect(self) -> tuple[ConnectionSettings, QarnotClient]:
        """The client of the connection as it is now; what another account said is forgotten."""
        settings = settings_of(self.conn_id)
        if self._client is None or settings != self._settings:
            if self._client is not None:
                self._client.close()
                self._pools, self._notes, self._histories, self._mark = {}, None, {}, None
                self._figures, self._figures_at = {}, {}
            self._settings, self._client = settings, settings.client(**REQUEST_LIMITS)
        return settings, self._client

    # --- the list

    def _list(
        self, settings: ConnectionSettings, client: QarnotClient, first: Callable[[Any], None]
    ) -> list[dict[str, Any]]:
        tagged = filters.equal("Tags", namespace_tag(settings.namespace))
        found = client.pools.search_all(tagged, fields=POOL_FIELDS)
        now = datetime.now(UTC)
        self._pools = {pool.uuid: pool for pool in found if is_ours(pool, settings.namespace)}
        self._histories = {
            uuid: rows.updated_history(self._histories.get(uuid), pool, now)
            for uuid, pool in self._pools.items()
        }
        # Reading thousands of Qarnot tasks takes its time, and so does refreshing for costs: who looks for the first
        # time sees what is there already.
        begins = self._notes is None
        if begins:
            first(rows.build_rows(self._page_data(settings, self._pools.values(), now)))
        self._read_tasks(client, tagged)
        if begins:
            first(rows.build_rows(self._page_data(settings, self._pools.values(), now)))
        self._read_figures(client, settings.reference_datacenter)
        return rows.build_rows(self._page_data(settings, self._pools.values(), now))

    def _page_data(self, settings: ConnectionSettings, pools: Iterable[Pool], now: datetime) -> rows.PageData:
        pools = list(pools)
        by_pool: dict[str, list[rows.TaskRow]] = defaultdict(list)
        for note in (self._notes or {}).values():
            by_pool[note.pool].append(note)
        owners = [(label(pool.labels, "dag_id"), label(pool.labels, "run_id")) for pool in pools]
        return rows.PageData(
            now=now,
            connection=self.conn_id,
            pools=pools,
            tasks=None if self._notes is None else by_pool,
            runs=run_states((dag_id, run_id) for dag_id, run_id in owners if dag_id and run_id),
            figures=self._figures,
            histories=self._histories,
            console_url=settings.console_url,
        )

    def _read_tasks(self, client: QarnotClient, tagged: filters.Filter) -> None:
        """Bring the notes up to date: what changed since the last look, and now and then all there is."""
        notes, mark = self._notes, self._mark
        if notes is None or mark is None or time.monotonic() - self._swept_at > FULL_READ_INTERVAL:
            found = self._tasks(client, tagged)
            notes, self._swept_at = {}, time.monotonic()
        else:
            changed = filters.and_(tagged, filters.ge("StateTransitionTime", mark - OVERLAP))
            try:
                found = self._tasks(client, changed)
            except QarnotRefusedError:
                return  # no filter on times here: the next sweep will tell
        self._mark = next_mark(mark, (task.state_transition_time for task in found), client.transport.dated)
        for task in found:
            moved = task.state_transition_time
            if task.pool and label(task.labels, "role") != WARM_UP_ROLE:
                notes[task.uuid] = rows.TaskRow(
                    task.pool,
                    rows.group_of(task.state),
                    moved,
                    label(task.labels, "dag_id"),
                    label(task.labels, "run_id"),
                )
        self._notes = notes

    def _tasks(self, client: QarnotClient, wanted: filters.Filter) -> list[Task]:
        return client.tasks.search_all(wanted, fields=TASK_FIELDS)

    # --- what it costs

    def _read_figures(self, client: QarnotClient, reference: str | None) -> None:
        """Ask what some pools cost: those somebody looks at first, then those not asked about for longest."""
        for uuid in self._figures.keys() - self._pools.keys():
            del self._figures[uuid]
            self._figures_at.pop(uuid, None)
        for uuid in figures_due(self._pools, self._figures, self._figures_at, self.shown, time.monotonic()):
            try:
                self._read_figure(client, self._pools[uuid], reference)
            except QarnotUnavailableError:
                return  # the pools themselves are more important, and the next round comes soon

    def _read_figure(
        self, client: QarnotClient, pool: Pool, reference: str | None, tasks: Iterable[Task] | None = None
    ) -> None:
        # Before it is known: one that cannot be read waits its turn like every other.
        self._figures_at[pool.uuid] = time.monotonic()
        euros, euros_stay = _figure(lambda: client.pools.credits(pool.uuid))
        carbon, carbon_stays = _figure(lambda: client.pools.carbon_facts(pool.uuid, reference))
        if tasks is None and self._has_several_runs(pool):
            tasks, _ = _figure(lambda: client.pools.tasks(pool.uuid))
        self._figures[pool.uuid] = rows.PoolFigures(
            euros=euros,
            carbon=carbon,
            at=datetime.now(UTC),
            final=_is_settled(pool) and euros_stay and carbon_stays,
            shares=None if tasks is None else rows.shares_of(pool, tasks),
        )

    def _has_several_runs(self, pool: Pool) -> bool:
        """Whether its cost is shared out, or may be."""
        if label(pool.labels, "shared") is not None:
            return True
        notes = (note for note in (self._notes or {}).values() if note.pool == pool.uuid)
        return len(rows.runs_of(pool, notes)) > 1

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
                f"Pool {pool.uuid} was not made by this provider in the namespace {settings.namespace!r}",
                kind="pool",
                ref=pool.uuid,
                remedy="Look at it in the Qarnot console.",
            )

    def pool_to_close(self, uuid: str) -> Pool:
        """The pool as it is now.

        :raises QarnotNotFoundError: there is none, or it is not of this namespace.
        """
        settings = settings_of(self.conn_id)
        with settings.client(**REQUEST_LIMITS) as client:
            pool = client.pools.get(uuid)
        self._refuse_foreign(pool, settings)
        return pool

    def close_pool(self, uuid: str) -> None:
        """Close it; closed, closing and gone are fine."""
        from airflow_qarnot_pool.ownership.termination import end

        with settings_of(self.conn_id).client(**REQUEST_LIMITS) as client:
            end(client.pools, uuid)


def figures_due(
    pools: Mapping[str, Pool],
    figures: Mapping[str, rows.PoolFigures],
    asked_at: Mapping[str, float],
    shown: Mapping[str, float],
    now: float,
) -> list[str]:
    """Whose cost to ask for now: at most ``FIGURES_PER_ROUND`` pools."""
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


def _figure(ask: Callable[[], T]) -> tuple[T | None, bool]:
    """A figure of one pool, and whether there is no more to learn of it. None where it is not known.

    Not every account may see it, the pool may be deleted by now, and an answer may be without a number, as long as
    Qarnot has none: that is no reason to show nothing of the other pools. An outage is, and is raised.
    """
    try:
        return ask(), True
    except (QarnotRefusedError, QarnotNotFoundError):
        return None, True
    except (QarnotProtocolError, QarnotCreditsError):
        return None, False


def _is_settled(pool: Pool) -> bool:
    """Whether what it has cost will not change any more."""
    ended = pool.end_date or pool.state_transition_time
    return not rows.is_open(pool) and ended is not None and datetime.now(UTC) - ended > COST_FINAL_AFTER


def next_mark(
    mark: datetime | None, moved: Iterable[datetime | None], dated: tuple[datetime, float] | None
) -> datetime | None:
    """Return the newest transition that is known; None if the server's clock was set back, so that all are read again.

    :param moved: the transitions of the tasks just read; those in the server's future do not count.
    :param dated: the server's date, in the response that they came in.
    """
    latest = dated[0] + OVERLAP if dated is not None else None
    if mark is not None and latest is not None and mark > latest:
        return None
    times = [one for one in (mark, *moved) if one is not None and (latest is None or one <= latest)]
    return max(times, default=None)
