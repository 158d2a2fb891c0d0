"""Make room under the account's quota of objects by deleting finished ones.

Finished objects count against the quota until they are deleted. The server deletes no object of this provider before
its time to live ends, because only the Airflow task knows whether the outcome has been read. The process that meets a
full quota makes room itself. An object may be deleted if its outcome is recorded:

* by Airflow: the task instance has reached a final state, and no later try reads the object;
* by a record on Qarnot (:mod:`airflow_qarnot_pool.ownership.records`), which is written right before the deletion.

:func:`disposal_of_task` and :func:`disposal_of_pool` decide without I/O. :class:`QuotaRoom` sends the requests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError, QarnotQuotaError
from airflow_qarnot_pool.ownership import records
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, usability_of
from airflow_qarnot_pool.ownership.identity import (
    KEPT_LABEL,
    MAX_RUN_COST_LABEL,
    OWNER_TAG,
    RECORDABLE_LABEL,
    SPECS_LABEL,
    UNAWAITED_LABEL,
    is_ours,
    label,
    namespace_tag,
    owner_of,
    run_of,
)
from airflow_qarnot_pool.ownership.liveness import dag_run_state
from airflow_qarnot_pool.version_compat import runtime_task_instance
from airflow_qarnot_pool.waiting.conditions import NOUNS

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Account, Pool, Task
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.waiting.conditions import Kind

log = logging.getLogger(__name__)

#: States in which a task instance never runs again unless a user clears it.
FINAL_TASK_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
#: States of a DAG run in which no task of it runs any more.
FINISHED_RUN_STATES = frozenset({"success", "failed"})
#: State of a task instance that is unknown to Airflow, or could not be read.
UNKNOWN_STATE = "unknown"
#: Share of a quota above which the reaper deletes finished objects, and the share that it keeps.
TIDY_FROM, TIDY_TO = 0.8, 0.6
#: Number of objects in one page of a search.
_PAGE_SIZE = 100
#: Maximum number of pages of a search, because an account may have any number of finished objects.
_MAX_PAGES = 50
#: Maximum number of concurrent deletions.
_MAX_WORKERS = 16
#: Maximum age of the end of a Qarnot task that the reaper still needs.
_USE_RELEVANT_FOR = timedelta(days=2)


class Disposal(Enum):
    """How an object may be deleted."""

    #: Immediately.
    FORGET = "forget"
    #: After its outcome is recorded.
    RECORD = "record"
    #: Never.
    KEEP = "keep"


def disposal_of_task(
    task: Task, state: str | None, is_run_finished: Callable[[], bool], identity: TaskInstanceIdentity | None
) -> Disposal:
    """Decide how a finished Qarnot task of our namespace may be deleted.

    :param state: state of its Airflow task instance. None: cleared. :data:`UNKNOWN_STATE`: it could not be read.
    :param is_run_finished: returns whether its DAG run has finished.
    :param identity: the lineage that needs the room.
    """
    if label(task.labels, "role"):
        return Disposal.FORGET  # the end of a warm-up is never read
    snapshot = RemoteSnapshot.of(task)
    is_recordable = _is_recordable(task, snapshot)
    if identity is not None and OWNER_TAG + identity.owner in task.tags:
        return _disposal_of_own_task(snapshot, identity, is_recordable, is_kept=KEPT_LABEL in task.labels)
    is_awaited = UNAWAITED_LABEL not in task.labels
    if state in FINAL_TASK_STATES or _is_of_an_earlier_start(task, identity):
        return Disposal.FORGET if is_awaited or is_run_finished() else Disposal.KEEP
    if snapshot.usability is Usability.SUCCEEDED and is_recordable and is_awaited:
        return Disposal.RECORD
    return Disposal.KEEP


def _is_recordable(task: Task, snapshot: RemoteSnapshot) -> bool:
    # An item of a fan-out has no output to log, and a digest shows whether the specs are unchanged.
    is_item = snapshot.index is not None and SPECS_LABEL in task.labels
    return is_item or RECORDABLE_LABEL in task.labels


def _is_of_an_earlier_start(remote: Pool | Task, identity: TaskInstanceIdentity | None) -> bool:
    """Return whether *remote* is from before the DAG run of *identity* had finished and was cleared.

    Each cleared Airflow task of the run has a new lineage since, so none of them reads how *remote* ended. A state does
    not tell: it is None after a clear, and also after Airflow has reset a task that was to resume.
    """
    if identity is None or run_of(remote) != (identity.dag_id, identity.run_id):
        return False
    return "" < (label(remote.labels, "run_started") or "") < identity.run_started


def _disposal_of_own_task(
    snapshot: RemoteSnapshot, identity: TaskInstanceIdentity, is_recordable: bool, *, is_kept: bool
) -> Disposal:
    """Decide about a Qarnot task that belongs to the task instance that needs the room."""
    if snapshot.lineage != identity.lineage:
        return Disposal.FORGET
    if is_kept:
        return Disposal.KEEP
    # The try that failed has read the failure. Only the number of its generation is still needed.
    return Disposal.RECORD if is_recordable or snapshot.usability is Usability.DEAD else Disposal.KEEP


def disposal_of_pool(pool: Pool, state: str | None, identity: TaskInstanceIdentity | None = None) -> Disposal:
    """Decide how a closed pool of our namespace may be deleted, given the *state* of the task that created it.

    :param identity: the lineage that needs the room.
    """
    if label(pool.labels, "shared"):
        return Disposal.RECORD
    # A task instance that needs room for a new pool waits for none of its earlier ones.
    is_own = identity is not None and OWNER_TAG + identity.owner in pool.tags
    if not is_own and not _is_of_an_earlier_start(pool, identity) and _may_be_awaited(pool, state):
        return Disposal.KEEP
    return Disposal.RECORD if MAX_RUN_COST_LABEL in pool.labels else Disposal.FORGET


def _may_be_awaited(pool: Pool, state: str | None) -> bool:
    """Return whether a wait may still have to read how *pool* ended."""
    if state == UNKNOWN_STATE:
        return pool.state == states.PoolState.FAILURE
    return state not in FINAL_TASK_STATES and state not in (None, "up_for_retry")


def free_places(account: Account, kind: Kind) -> int | None:
    """Return how many more objects of *kind* the account may have; None if it names no limit."""
    quotas = [_objects(account, kind), _running(account, kind)]
    free = [limit - count for limit, count in quotas if limit is not None and count is not None]
    return max(0, min(free)) if free else None


def _objects(account: Account, kind: Kind) -> tuple[int | None, int | None]:
    """Return the quota of objects of *kind*, finished ones included, and their number."""
    if kind == "pool":
        return account.max_pool, account.pool_count
    return account.max_task, account.task_count


def _running(account: Account, kind: Kind) -> tuple[int | None, int | None]:
    """Return the quota of running objects of *kind*, and their number."""
    if kind == "pool":
        return account.max_running_pool, account.running_pool_count
    return account.max_running_task, account.running_task_count


def is_full(account: Account, kind: Kind) -> bool:
    """Return whether the quota of objects, as opposed to that of running objects, may be reached."""
    limit, count = _objects(account, kind)
    return limit is None or count is None or count >= limit


def is_busy(account: Account, kind: Kind) -> bool:
    """Return whether the quota of running objects is reached. Then deleting finished ones does not help."""
    limit, count = _running(account, kind)
    return limit is not None and count is not None and count >= limit


class AirflowStates:
    """Cache of the states of task instances and DAG runs, read through Airflow's API for workers and triggerers.

    :param call: calls a function in a context in which Airflow's API is available.
    """

    def __init__(self, call: Callable[[Callable[[], Any]], Any] = lambda function: function()) -> None:
        self._call = call
        self._known: dict[tuple[str, str], dict[str, dict[str, str | None]]] = {}
        self._runs: dict[tuple[str, str], bool] = {}
        self._reachable = True

    def read(self, remotes: Iterable[Pool | Task]) -> None:
        """Read the states of all task instances that created *remotes*, with one call for each Airflow task."""
        runs: dict[tuple[str, str], set[str]] = {}
        for remote in remotes:
            dag_id, run_id, task_id = (label(remote.labels, name) for name in ("dag_id", "run_id", "task_id"))
            if dag_id and run_id and task_id and run_id not in self._known.get((dag_id, task_id), {}):
                runs.setdefault((dag_id, task_id), set()).add(run_id)
        for (dag_id, task_id), run_ids in runs.items():
            by_run = self._try(partial(_task_states, dag_id, task_id, sorted(run_ids))) or {}
            known = self._known.setdefault((dag_id, task_id), {})
            known.update({run_id: by_run.get(run_id, {}) for run_id in run_ids})

    def of(self, remote: Pool | Task) -> str | None:
        """Return the state of the task instance that created *remote*."""
        dag_id, run_id, task_id, index = (
            label(remote.labels, name) or "" for name in ("dag_id", "run_id", "task_id", "map_index")
        )
        by_name = self._known.get((dag_id, task_id), {}).get(run_id, {})
        name = task_id if index in ("", "-1") else f"{task_id}_{index}"
        return by_name.get(name, UNKNOWN_STATE)

    def is_run_finished(self, remote: Pool | Task) -> bool:
        """Return whether the DAG run that created *remote* is known to have finished."""
        run = run_of(remote)
        if run not in self._runs:
            self._runs[run] = self._try(partial(dag_run_state, *run)) in FINISHED_RUN_STATES
        return self._runs[run]

    def _try(self, function: Callable[[], Any]) -> Any:
        if not self._reachable:
            return None
        try:
            return self._call(function)
        except Exception as error:  # an error of Airflow, or Airflow does not run in this process
            self._reachable = False
            log.debug("Could not read the states of Airflow tasks: %s", error)
            return None


def _task_states(dag_id: str, task_id: str, run_ids: list[str]) -> dict[str, dict[str, str | None]]:
    by_run = runtime_task_instance().get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=run_ids)
    return {
        run_id: {
            name: None if state is None else str(getattr(state, "value", state))
            for name, state in by_task.items()
        }
        for run_id, by_task in by_run.items()
    }


class QuotaRoom:
    """Make room under the quota for objects of one namespace.

    :param identity: the lineage that needs the room.
    """

    def __init__(
        self,
        client: QarnotClient,
        namespace: str,
        identity: TaskInstanceIdentity | None = None,
        airflow: AirflowStates | None = None,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.identity = identity
        self._airflow = airflow

    def make_room(self, kind: Kind, refusal: QarnotQuotaError, need: int = 1) -> int:
        """Delete finished objects until *need* more fit, and return how many more fit; 0 if none.

        An error of Qarnot only means that no room was made.

        :param refusal: may be about another quota than the number of objects of *kind*. Then no room is made.
        """
        if refusal.quota not in (None, f"{kind}s"):
            return 0
        try:
            account = self.client.account.info()
            if not is_full(account, kind) or is_busy(account, kind):
                return free_places(account, kind) or 0
            freed = self._make_room(kind, need)
        except QarnotError as error:
            log.warning("Could not make room under the account's quota of %ss: %s", NOUNS[kind], error)
            return 0
        if freed:
            log.info("Deleted %d finished %ss to make room under the quota", freed, NOUNS[kind])
        return freed

    def tidy(self, kind: Kind) -> int:
        """Delete objects that Airflow has recorded, if the quota is almost full, and return their number.

        The quota is then :data:`TIDY_TO` full. This makes room for other users of the account, who cannot delete our
        objects.
        """
        account = self.client.account.info()
        limit, count = _objects(account, kind)
        if not limit or count is None or count <= limit * TIDY_FROM:
            return 0
        need = math.ceil(count - limit * TIDY_TO)
        forgettable = (remote for remote, disposal in self._disposals(kind) if disposal is Disposal.FORGET)
        return self._delete(kind, list(islice(forgettable, need)))

    def can_make_room(self, kind: Kind) -> bool:
        """Return whether a finished object may be deleted."""
        return any(disposal is not Disposal.KEEP for _, disposal in self._disposals(kind))

    def record_and_delete(self, tasks: Sequence[Task]) -> list[Task]:
        """Record and delete these finished Qarnot tasks of one owner, and return the deleted ones."""
        recorded = self._record_outcomes(tasks)
        self._delete("task", recorded)
        return recorded

    # --- choosing and recording

    def _disposals(self, kind: Kind) -> Iterator[tuple[Pool | Task, Disposal]]:
        """Yield every finished object of the namespace with its disposal, the oldest first."""
        resource: Any = self.client.pools if kind == "pool" else self.client.tasks
        terminal = states.POOL_TERMINAL if kind == "pool" else states.TASK_TERMINAL
        finished = filters.and_(
            filters.equal("Tags", namespace_tag(self.namespace)), filters.in_("State", sorted(terminal))
        )
        airflow = self._airflow or AirflowStates()
        remotes = iter(resource.iterate(finished, limit=_PAGE_SIZE, order_by="creationDate"))
        for _ in range(_MAX_PAGES):
            page = list(islice(remotes, _PAGE_SIZE))
            ours = [
                remote
                for remote in page
                if is_ours(remote, self.namespace) and usability_of(remote) is not Usability.LIVE
            ]
            airflow.read(ours)
            for remote in ours:
                state = airflow.of(remote)
                if kind == "pool":
                    yield remote, disposal_of_pool(remote, state, self.identity)
                else:
                    is_run_finished = partial(airflow.is_run_finished, remote)
                    yield remote, disposal_of_task(remote, state, is_run_finished, self.identity)
            if len(page) < _PAGE_SIZE:
                return

    def _make_room(self, kind: Kind, need: int) -> int:
        forget: list[Any] = []
        record: list[Any] = []
        for remote, disposal in self._disposals(kind):
            if disposal is Disposal.FORGET:
                forget.append(remote)
            elif disposal is Disposal.RECORD:
                record.append(remote)
            if len(forget) == need:
                break
        freed = self._delete(kind, forget)
        for group in _by_owner(record):
            if freed >= need:
                break
            group = group[: need - freed]
            try:
                recorded = self._record_pools(group) if kind == "pool" else self._record_outcomes(group)
                freed += self._delete(kind, recorded)
            except QarnotError as error:
                log.warning("%d finished %ss are kept: %s", len(group), NOUNS[kind], error)
        return freed

    def _record_outcomes(self, tasks: Sequence[Task]) -> list[Task]:
        """Record how these Qarnot tasks of one owner ended, and return those that may be deleted."""
        owner = owner_of(tasks[0]) if tasks else ""
        if not owner:
            return []
        try:
            return records.write_outcomes(self.client, self.namespace, owner, tasks)
        except QarnotQuotaError:
            if not self._drop_records():
                raise
        return records.write_outcomes(self.client, self.namespace, owner, tasks)

    def _drop_records(self) -> int:
        """Delete records that no task instance will read, and return their number."""
        airflow = self._airflow or AirflowStates()
        owners = records.recorded_owners(self.client, self.namespace)
        airflow.read(owners)
        final = [owner for owner in owners if airflow.of(owner) in FINAL_TASK_STATES]
        for owner in final:
            records.delete_outcomes(self.client, owner_of(owner))
        return len(final)

    def _record_pools(self, pools: Sequence[Pool]) -> list[Pool]:
        """Record the facts that are needed after these pools are deleted: their shared name, or their cost."""
        for pool in pools:
            if shared := label(pool.labels, "shared"):
                records.record_shared_name(self.client, self.namespace, pool.uuid, shared)
            else:
                record_pool_cost(self.client, self.namespace, pool)
        return list(pools)

    # --- deleting

    def _delete(self, kind: Kind, remotes: Sequence[Pool | Task]) -> int:
        if not remotes:
            return 0
        if kind == "task":
            self._record_use(remotes)
        resource: Any = self.client.pools if kind == "pool" else self.client.tasks

        def delete(uuid: str) -> bool:
            with suppress(QarnotNotFoundError):
                resource.delete(uuid)
                return True
            return False

        uuids = [remote.uuid for remote in remotes]
        if len(uuids) == 1:
            return int(delete(uuids[0]))
        with ThreadPoolExecutor(max_workers=min(len(uuids), _MAX_WORKERS)) as threads:
            return sum(threads.map(delete, uuids))

    def _record_use(self, tasks: Sequence[Any]) -> None:
        """Record when the open pools of these Qarnot tasks were last used."""
        since = datetime.now(UTC) - _USE_RELEVANT_FOR
        last = _last_use(tasks, since)
        if not last:
            return
        for pool in self.client.pools.search_all(filters.in_("Uuid", sorted(last)), fields=("State",)):
            if pool.uuid in last and usability_of(pool) is Usability.LIVE:
                records.record_use(self.client, self.namespace, pool.uuid, last[pool.uuid])
            _recorded_until[pool.uuid] = last.get(pool.uuid, since) + records.USE_PRECISION


#: Time by pool up to which this process knows its use to be recorded.
_recorded_until: dict[str, datetime] = {}


def _last_use(tasks: Iterable[Any], since: datetime) -> dict[str, datetime]:
    """Return the last end of a Qarnot task by pool, of ends after *since* that are not recorded yet."""
    last: dict[str, datetime] = {}
    for task in tasks:
        ended = task.end_date or task.state_transition_time or task.creation_date
        if task.pool and ended and ended > max(since, _recorded_until.get(task.pool, since)):
            last[task.pool] = max(ended, last.get(task.pool, ended))
    return last


def record_pool_cost(client: QarnotClient, namespace: str, pool: Pool, cost: float | None = None) -> None:
    """Record the cost of a pool with ``max_run_cost``, because it still counts after the pool is deleted.

    :param cost: in euros; None: read it from Qarnot.
    :raises QarnotError: the cost is unknown, or cannot be recorded.
    """
    if MAX_RUN_COST_LABEL in pool.labels and not label(pool.labels, "shared"):
        cost = client.pools.credits(pool.uuid) if cost is None else cost
        records.record_cost(client, namespace, run_of(pool), pool.uuid, cost)


def _by_owner(remotes: Iterable[Any]) -> list[list[Any]]:
    """Group by owner. The largest group is first, because one record holds many objects. Successes are first in it."""
    groups: dict[str, list[Any]] = {}
    for remote in remotes:
        groups.setdefault(owner_of(remote), []).append(remote)
    for group in groups.values():
        group.sort(key=lambda remote: usability_of(remote) is not Usability.SUCCEEDED)
    return sorted(groups.values(), key=len, reverse=True)
