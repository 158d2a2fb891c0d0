"""Room under the account's quota of objects: which finished ones may be deleted, and deleting as many as are needed.

Finished objects count against the quota until they are deleted. Nothing that this provider creates is deleted by the
server before its time to live is over: only its Airflow task knows whether the outcome has been read. The process
that meets a full quota makes room itself. An object may go if its outcome is recorded:

* by Airflow: the task instance has ended for good, so that no later try reads the object;
* by a record on Qarnot (:mod:`airflow_qarnot_pool.ownership.records`), which is written right before the deletion.

:func:`disposal_of_task` and :func:`disposal_of_pool` decide, without I/O; :class:`QuotaRoom` asks and deletes.
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
    MAX_RUN_COST_LABEL,
    OWNER_TAG,
    RECORDABLE_LABEL,
    SPECS_LABEL,
    UNAWAITED_LABEL,
    is_ours,
    label,
    namespace_tag,
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

#: States in which a task instance never runs again by itself.
FINAL_TASK_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
#: States of a DAG run in which none of its tasks runs any more.
FINISHED_RUN_STATES = frozenset({"success", "failed"})
#: State of a task instance that Airflow does not know, or that could not be asked for.
UNKNOWN_STATE = "unknown"
#: Share of a quota above which the reaper deletes finished objects, and the share that it leaves.
TIDY_FROM, TIDY_TO = 0.8, 0.6
#: How often a creation is tried again after room was made: another process may have taken the room.
MAX_CREATE_ATTEMPTS = 3
#: Number of objects looked at in one page.
_PAGE_SIZE = 100
#: Maximum number of pages that are looked at.
_MAX_PAGES = 50
#: Number of deletions at a time.
_MAX_WORKERS = 16
#: How long ago a Qarnot task may have ended for its end to matter to the reaper.
_USE_RELEVANT_FOR = timedelta(days=2)


class Disposal(Enum):
    """How an object may be deleted."""

    #: At once.
    FORGET = "forget"
    #: After its outcome is recorded.
    RECORD = "record"
    #: Not at all.
    KEEP = "keep"


def disposal_of_task(
    task: Task, state: str | None, is_run_finished: Callable[[], bool], me: TaskInstanceIdentity | None
) -> Disposal:
    """Decide how a finished Qarnot task of our namespace may be deleted.

    :param state: state of its Airflow task instance. None: cleared. :data:`UNKNOWN_STATE`: Airflow did not tell it.
    :param is_run_finished: tells whether its DAG run has ended.
    :param me: the life that needs the room.
    """
    if label(task.labels, "role"):
        return Disposal.FORGET  # a warm-up: the end of one is never read
    snapshot = RemoteSnapshot.of(task)
    # An item of a fan-out has no output to log, and a digest tells whether the specs are still the same.
    is_item = snapshot.item is not None and SPECS_LABEL in task.labels
    keeps_no_more = is_item or RECORDABLE_LABEL in task.labels
    if me is not None and OWNER_TAG + me.owner in task.tags:
        if snapshot.lineage != me.lineage:
            return Disposal.FORGET
        # A failure has been read by the try that it failed; the number of its generation is still needed.
        return Disposal.RECORD if keeps_no_more or snapshot.usability is Usability.DEAD else Disposal.KEEP
    if state in FINAL_TASK_STATES:
        return Disposal.FORGET if UNAWAITED_LABEL not in task.labels or is_run_finished() else Disposal.KEEP
    if snapshot.usability is Usability.SUCCEEDED and keeps_no_more and UNAWAITED_LABEL not in task.labels:
        return Disposal.RECORD
    return Disposal.KEEP


def disposal_of_pool(pool: Pool, state: str | None) -> Disposal:
    """Decide how a closed pool of our namespace may be deleted. *state*: of the task instance that made it."""
    if label(pool.labels, "shared"):
        return Disposal.RECORD
    if state not in FINAL_TASK_STATES and state not in (None, "up_for_retry", UNKNOWN_STATE):
        return Disposal.KEEP  # the wait for it may still have to see how it ended
    if state == UNKNOWN_STATE and pool.state == states.PoolState.FAILURE:
        return Disposal.KEEP
    return Disposal.RECORD if MAX_RUN_COST_LABEL in pool.labels else Disposal.FORGET


def free_places(account: Account, kind: Kind) -> int | None:
    """Return how many more objects of *kind* the account may have; None if it names no limit."""
    pairs = [_objects(account, kind), _running(account, kind)]
    known = [most - count for most, count in pairs if most is not None and count is not None]
    return max(0, min(known)) if known else None


def _objects(account: Account, kind: Kind) -> tuple[int | None, int | None]:
    """The quota of objects of *kind*, finished ones included, and how many there are."""
    if kind == "pool":
        return account.max_pool, account.pool_count
    return account.max_task, account.task_count


def _running(account: Account, kind: Kind) -> tuple[int | None, int | None]:
    """The quota of running objects of *kind*, and how many there are."""
    if kind == "pool":
        return account.max_running_pool, account.running_pool_count
    return account.max_running_task, account.running_task_count


def is_full(account: Account, kind: Kind) -> bool:
    """Whether the quota of objects, and not that of running ones, may be what is reached."""
    most, count = _objects(account, kind)
    return most is None or count is None or count >= most


def is_busy(account: Account, kind: Kind) -> bool:
    """Whether the quota of running objects is reached, so that deleting finished ones is of no use."""
    most, count = _running(account, kind)
    return most is not None and count is not None and count >= most


class AirflowStates:
    """The states of task instances and DAG runs, as Airflow tells them to a worker or triggerer.

    :param ask: runs a question where Airflow can be asked.
    """

    def __init__(self, ask: Callable[[Callable[[], Any]], Any] = lambda question: question()) -> None:
        self._ask = ask
        self._known: dict[tuple[str, str], dict[str, dict[str, str | None]]] = {}
        self._runs: dict[tuple[str, str], bool] = {}
        self._reachable = True

    def learn(self, found: Iterable[Pool | Task]) -> None:
        """Ask for the states of all task instances that made *found*: one question for each Airflow task."""
        runs: dict[tuple[str, str], set[str]] = {}
        for one in found:
            dag_id, run_id, task_id = (label(one.labels, name) for name in ("dag_id", "run_id", "task_id"))
            if dag_id and run_id and task_id:
                known = self._known.get((dag_id, task_id), {})
                if run_id not in known:
                    runs.setdefault((dag_id, task_id), set()).add(run_id)
        for (dag_id, task_id), run_ids in runs.items():
            told = self._told(partial(_task_states, dag_id, task_id, sorted(run_ids))) or {}
            known = self._known.setdefault((dag_id, task_id), {})
            known.update({run_id: told.get(run_id, {}) for run_id in run_ids})

    def of(self, found: Pool | Task) -> str | None:
        """Return the state of the task instance that made *found*."""
        dag_id, run_id, task_id, index = (
            label(found.labels, name) or "" for name in ("dag_id", "run_id", "task_id", "map_index")
        )
        told = self._known.get((dag_id, task_id), {}).get(run_id, {})
        name = task_id if index in ("", "-1") else f"{task_id}_{index}"
        return told.get(name, UNKNOWN_STATE)

    def is_run_finished(self, found: Pool | Task) -> bool:
        """Whether the DAG run that made *found* is known to have ended."""
        run = run_of(found)
        if run not in self._runs:
            self._runs[run] = self._told(partial(dag_run_state, *run)) in FINISHED_RUN_STATES
        return self._runs[run]

    def _told(self, question: Callable[[], Any]) -> Any:
        if not self._reachable:
            return None
        try:
            return self._ask(question)
        except Exception as error:  # of Airflow's, or there is none in this process
            self._reachable = False
            log.debug("Airflow cannot be asked for the states of its tasks: %s", error)
            return None


def _task_states(dag_id: str, task_id: str, run_ids: list[str]) -> dict[str, dict[str, str | None]]:
    told = runtime_task_instance().get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=run_ids)
    return {
        run_id: {
            name: None if state is None else str(getattr(state, "value", state))
            for name, state in by_task.items()
        }
        for run_id, by_task in told.items()
    }


class QuotaRoom:
    """Makes room for objects of one namespace.

    :param identity: the life that needs the room.
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

    def wrap_create(self, kind: Kind, create: Callable[[Any], str]) -> Callable[[Any], str]:
        """Return *create* with room made, and another try, when the quota of *kind* is full."""

        def created(spec: Any) -> str:
            for _ in range(MAX_CREATE_ATTEMPTS):
                try:
                    return create(spec)
                except QarnotQuotaError as error:
                    if not self.is_about_count(kind, error) or not self.make_room(kind):
                        raise
            return create(spec)

        return created

    @staticmethod
    def is_about_count(kind: Kind, error: QarnotQuotaError) -> bool:
        """Whether the refusal may be about the number of objects of *kind*."""
        return error.quota in (None, f"{kind}s")

    def make_room(self, kind: Kind, need: int = 1) -> int:
        """Delete finished objects until there is room for *need*; return for how many there is, 0 if none.

        A failure of Qarnot's here only means that no room was made.
        """
        try:
            account = self.client.account.info()
            if not is_full(account, kind) or is_busy(account, kind):
                return free_places(account, kind) or 0
            freed = self._make_room(kind, need)
        except QarnotError as error:
            log.warning("No room could be made under the account's quota of %ss: %s", kind, error)
            return 0
        if freed:
            log.info("Deleted %d finished %ss to make room under the quota", freed, NOUNS[kind])
        return freed

    def tidy(self, kind: Kind) -> int:
        """Delete what Airflow has recorded, down to :data:`TIDY_TO`, if the quota is almost full; return how many.

        Other users of the account, who may delete none of our objects, find room then.
        """
        account = self.client.account.info()
        most, count = _objects(account, kind)
        if not most or count is None or count <= most * TIDY_FROM:
            return 0
        need = math.ceil(count - most * TIDY_TO)
        found = (one for one, way in self._ways(kind) if way is Disposal.FORGET)
        return self._delete(kind, list(islice(found, need)))

    def can_make_room(self, kind: Kind) -> bool:
        """Whether there is a finished object that may be deleted."""
        return any(way is not Disposal.KEEP for _, way in self._ways(kind))

    def record_and_delete(self, tasks: Sequence[Task]) -> list[Task]:
        """Record and delete these finished Qarnot tasks of one owner; return those that are gone."""
        gone = self._recorded(tasks)
        self._delete("task", gone)
        return gone

    # --- what may go

    def _ways(self, kind: Kind) -> Iterator[tuple[Pool | Task, Disposal]]:
        """Every finished object of the namespace, the oldest first, and how it may be deleted."""
        resource: Any = self.client.pools if kind == "pool" else self.client.tasks
        over = states.POOL_TERMINAL if kind == "pool" else states.TASK_TERMINAL
        wanted = filters.and_(
            filters.equal("Tags", namespace_tag(self.namespace)), filters.in_("State", sorted(over))
        )
        airflow = self._airflow or AirflowStates()
        found = iter(resource.iterate(wanted, limit=_PAGE_SIZE, order_by="creationDate"))
        for _ in range(_MAX_PAGES):
            page = list(islice(found, _PAGE_SIZE))
            ours = [
                one
                for one in page
                if is_ours(one, self.namespace) and usability_of(one) is not Usability.LIVE
            ]
            airflow.learn(ours)
            for one in ours:
                state = airflow.of(one)
                if kind == "pool":
                    yield one, disposal_of_pool(one, state)
                else:
                    yield (
                        one,
                        disposal_of_task(one, state, partial(airflow.is_run_finished, one), self.identity),
                    )
            if len(page) < _PAGE_SIZE:
                return

    def _make_room(self, kind: Kind, need: int) -> int:
        forget: list[Any] = []
        record: list[Any] = []
        for one, way in self._ways(kind):
            if way is Disposal.FORGET:
                forget.append(one)
            elif way is Disposal.RECORD:
                record.append(one)
            if len(forget) == need:
                break
        freed = self._delete(kind, forget)
        for group in _by_owner(record):
            if freed >= need:
                break
            group = group[: need - freed]
            try:
                freed += self._delete(kind, self._noted(group) if kind == "pool" else self._recorded(group))
            except QarnotError as error:
                log.warning("%d finished %ss are kept: %s", len(group), NOUNS[kind], error)
        return freed

    def _recorded(self, tasks: Sequence[Task]) -> list[Task]:
        """Record how these Qarnot tasks of one owner ended; return those that may go."""
        owner = _owner(tasks[0]) if tasks else ""
        if not owner:
            return []
        try:
            return records.write_outcomes(self.client, self.namespace, owner, tasks)
        except QarnotQuotaError:
            if not self._drop_records():
                raise
        return records.write_outcomes(self.client, self.namespace, owner, tasks)

    def _drop_records(self) -> int:
        """Delete records that no task instance will read; return how many."""
        airflow = self._airflow or AirflowStates()
        found = records.pool_creators(self.client, self.namespace)
        airflow.learn(found)
        useless = [maker for maker in found if airflow.of(maker) in FINAL_TASK_STATES]
        for maker in useless:
            records.delete_outcomes(self.client, _owner(maker))
        return len(useless)

    def _noted(self, pools: Sequence[Pool]) -> list[Pool]:
        """Record what outlives these pools: the name they are shared under, or their cost."""
        for pool in pools:
            if shared := label(pool.labels, "shared"):
                records.record_shared_name(self.client, self.namespace, pool.uuid, shared)
            else:
                record_pool_cost(self.client, self.namespace, pool)
        return list(pools)

    # --- deleting

    def _delete(self, kind: Kind, found: Sequence[Pool | Task]) -> int:
        if not found:
            return 0
        if kind == "task":
            self._note_use(found)
        resource: Any = self.client.pools if kind == "pool" else self.client.tasks

        def delete(uuid: str) -> bool:
            with suppress(QarnotNotFoundError):
                resource.delete(uuid)
                return True
            return False

        uuids = [one.uuid for one in found]
        if len(uuids) == 1:
            return int(delete(uuids[0]))
        with ThreadPoolExecutor(max_workers=min(len(uuids), _MAX_WORKERS)) as threads:
            return sum(threads.map(delete, uuids))

    def _note_use(self, tasks: Sequence[Any]) -> None:
        """Record when the open pools of these Qarnot tasks were last used."""
        since = datetime.now(UTC) - _USE_RELEVANT_FOR
        last: dict[str, datetime] = {}
        for task in tasks:
            ended = task.end_date or task.state_transition_time or task.creation_date
            if task.pool and ended and ended > max(since, _noted_until.get(task.pool, since)):
                last[task.pool] = max(ended, last.get(task.pool, ended))
        if not last:
            return
        for pool in self.client.pools.search_all(filters.in_("Uuid", sorted(last)), fields=("State",)):
            if pool.uuid in last and usability_of(pool) is Usability.LIVE:
                records.record_use(self.client, self.namespace, pool.uuid, last[pool.uuid])
            _noted_until[pool.uuid] = last.get(pool.uuid, since) + records.USE_PRECISION


#: Until when the use of a pool is recorded well enough, as far as this process knows.
_noted_until: dict[str, datetime] = {}


def record_pool_cost(client: QarnotClient, namespace: str, pool: Pool, cost: float | None = None) -> None:
    """Record what a pool with ``max_run_cost`` has cost, so that it counts after the pool is deleted, too.

    :param cost: in euros; None: Qarnot is asked.
    :raises QarnotError: the cost is not known, or cannot be recorded.
    """
    if MAX_RUN_COST_LABEL in pool.labels and not label(pool.labels, "shared"):
        cost = client.pools.credits(pool.uuid) if cost is None else cost
        records.record_cost(client, namespace, run_of(pool), pool.uuid, cost)


def _owner(found: Pool | Task) -> str:
    return next((tag[len(OWNER_TAG) :] for tag in found.tags if tag.startswith(OWNER_TAG)), "")


def _by_owner(found: Iterable[Any]) -> list[list[Any]]:
    """Group by owner, the largest group first, as one record holds many; successes first in each."""
    groups: dict[str, list[Any]] = {}
    for one in found:
        groups.setdefault(_owner(one), []).append(one)
    for group in groups.values():
        group.sort(key=lambda one: usability_of(one) is not Usability.SUCCEEDED)
    return sorted(groups.values(), key=len, reverse=True)


__all__ = [
    "AirflowStates",
    "Disposal",
    "QuotaRoom",
    "disposal_of_pool",
    "disposal_of_task",
    "free_places",
    "is_full",
    "record_pool_cost",
]
