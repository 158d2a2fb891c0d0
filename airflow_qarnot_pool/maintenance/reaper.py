"""Find what outlived its use: pools, to close them, and Qarnot tasks with nodes of their own, to abort them.

The last line of defence: DAG runs that time out skip their teardown tasks, and Airflow may be gone for hours. Limits
on cost that are written on a pool count here, too, whether anything waits for it or not.
Deciding is pure (:func:`decide_reap`); :func:`reap` asks Qarnot and whoever knows the DAG runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.costs.limits import LimitLevel, check_limits, limits_from_labels
from airflow_qarnot_pool.costs.spending import spending_of
from airflow_qarnot_pool.ownership import records
from airflow_qarnot_pool.ownership.decisions import Usability, usability_of
from airflow_qarnot_pool.ownership.identity import RunKey, is_ours, label, namespace_tag, run_of
from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES, QuotaRoom
from airflow_qarnot_pool.ownership.termination import end

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.tasks import TaskResource
    from airflow_qarnot_pool.waiting.conditions import Kind

log = logging.getLogger(__name__)

#: Answers for a (dag_id, run_id): the run's state, or None where there is no such run.
RunState = Callable[[str, str], str | None]


#: Kinds of objects, each with a quota of its own.
KINDS: tuple[Kind, ...] = ("task", "pool")
#: States in which a Qarnot task may cost.
_UNFINISHED = [state for state in states.TaskState if state not in states.TASK_TERMINAL]


class ReapAction(StrEnum):
    """What is done about one pool or Qarnot task."""

    KEEP = "keep"
    CLOSE = "close"
    ABORT = "abort"
    DELETE = "delete"


@dataclass(frozen=True, kw_only=True)
class ReapLimits:
    """How long things may last. ``grace_period`` spares runs whose teardown is at work, and runs not known (yet)."""

    grace_period: timedelta = timedelta(minutes=15)
    idle_timeout: timedelta = timedelta(hours=1)
    delete_finished_after: timedelta = timedelta(days=8)


@dataclass(frozen=True, kw_only=True)
class ReapDecision:
    """What to do about a pool, and why, in words for the report."""

    action: ReapAction
    reason: str
    over_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class PoolFacts:
    """What is known of one pool at one moment; a Qarnot task with nodes of its own is as one that is busy."""

    usability: Usability
    created: datetime
    ended: datetime | None
    shared: bool
    run: str
    run_state: str | None
    unfinished_instances: int
    idle_since: datetime
    #: What to say where it has reached a limit on its cost.
    over_limit: str = ""
    #: Another DAG run that is unfinished and has unfinished Qarnot tasks on it.
    used_by: str = ""


def decide_reap(facts: PoolFacts, limits: ReapLimits, now: datetime) -> ReapDecision:
    """Decide about one pool, or Qarnot task with nodes of its own, that this provider made in our namespace."""
    if facts.usability is Usability.ENDING:
        return ReapDecision(action=ReapAction.KEEP, reason="it is ending already")
    if facts.usability is Usability.DEAD:
        if facts.ended is not None and now - facts.ended > limits.delete_finished_after:
            return ReapDecision(
                action=ReapAction.DELETE, reason=f"it is over since {facts.ended:%Y-%m-%d %H:%M}"
            )
        return ReapDecision(action=ReapAction.KEEP, reason="it is over")
    if facts.over_limit:
        return ReapDecision(action=ReapAction.CLOSE, reason=facts.over_limit, over_limit=True)
    busy = facts.unfinished_instances > 0
    idle = timedelta() if busy else now - facts.idle_since
    if facts.used_by:
        return ReapDecision(action=ReapAction.KEEP, reason=f"DAG run {facts.used_by} works on it")
    if not facts.shared:
        # What still runs for a run that is over is nobody's, so it spares its pool no longer than the grace.
        quiet = now - facts.created if busy else idle
        if facts.run_state in FINISHED_RUN_STATES and quiet > limits.grace_period:
            return ReapDecision(
                action=ReapAction.CLOSE, reason=f"its DAG run {facts.run} is over ({facts.run_state})"
            )
        if facts.run_state is None and now - facts.created > limits.grace_period:
            return ReapDecision(action=ReapAction.CLOSE, reason=f"there is no DAG run {facts.run}")
    if idle > limits.idle_timeout:
        return ReapDecision(
            action=ReapAction.CLOSE, reason=f"it is idle since {facts.idle_since:%Y-%m-%d %H:%M}"
        )
    return ReapDecision(
        action=ReapAction.KEEP,
        reason="it is shared and in use"
        if facts.shared
        else f"its DAG run is {facts.run_state or 'not known yet'}",
    )


@dataclass(frozen=True, kw_only=True)
class ReapEntry:
    """One line of the report."""

    uuid: str
    name: str | None
    dag_id: str | None
    run_id: str | None
    action: str
    reason: str
    done: bool


@dataclass
class ReapReport:
    """What a reaping found and did; :meth:`to_json` is the XCom."""

    namespace: str
    dry_run: bool
    #: Of pools.
    entries: list[ReapEntry] = field(default_factory=list)
    #: Of Qarnot tasks with nodes of their own that are not over.
    tasks: list[ReapEntry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    #: Finished objects that were deleted because a quota is almost full.
    tidied: int = 0
    #: What was found, for metrics.
    open_pools: int = 0
    slots_requested: int = 0
    slots_ready: int = 0

    def count(self, pool: Pool) -> None:
        """Note what *pool* has and wants."""
        if usability_of(pool) is Usability.LIVE:
            self.open_pools += 1
            self.slots_requested += pool.target_running_instance_count or pool.instance_count or 0
            self.slots_ready += pool.ready_slots

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON.

        ``{namespace, dry_run, closed, deleted, kept, aborted, tidied, pools: [entry], tasks: [entry],
        failures: [text]}``. Those kept are pools. ``tidied`` counts finished objects that were deleted because a quota
        was almost full. The other counts are of what would be done in a dry run.
        """
        everything = [*self.entries, *self.tasks]
        counts = {
            name: sum(one.action == action and (one.done or self.dry_run) for one in everything)
            for name, action in (
                ("closed", ReapAction.CLOSE),
                ("deleted", ReapAction.DELETE),
                ("aborted", ReapAction.ABORT),
            )
        }
        counts["kept"] = sum(one.action == ReapAction.KEEP for one in self.entries)
        return {
            "namespace": self.namespace,
            "dry_run": self.dry_run,
            **counts,
            "pools": [asdict(one) for one in self.entries],
            "tasks": [asdict(one) for one in self.tasks],
            "tidied": self.tidied,
            "failures": self.failures,
        }


def reap(
    client: QarnotClient,
    namespace: str | None,
    run_state: RunState,
    limits: ReapLimits | None = None,
    *,
    dry_run: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ReapReport:
    """Look at all of *namespace* that this provider made and that may cost, and end what outlived its use.

    That is every pool, and every unfinished Qarnot task with nodes of its own that an Airflow task waits for. Looks
    again at it and its run right before ending it. A failure on one does not spare the others.

    :raises QarnotInvalidSpecError: without an explicit namespace: another deployment's pools would look like ours.
    """
    if not namespace:
        raise QarnotInvalidSpecError(
            "The reaper needs an explicit namespace: set it in the connection (or [qarnot] namespace), so that "
            "it cannot take another deployment's pools for its own",
            field="namespace",
        )
    limits = limits or ReapLimits()
    report = ReapReport(namespace, dry_run)
    found = list(client.pools.iterate(filters.equal("Tags", namespace_tag(namespace))))
    pools = [pool for pool in found if is_ours(pool, namespace)]
    began: dict[RunKey, datetime] = {}
    for pool in pools:
        if pool.creation_date:
            began[run_of(pool)] = min(pool.creation_date, began.get(run_of(pool), pool.creation_date))
    for pool in pools:
        with _collect_failure(report, "Pool", pool.uuid):
            report.count(pool)
            idle_since = _idle_since_reader(client, namespace, limits, now, note=not dry_run)
            facts = partial(
                _pool_facts, client, run_state=run_state, began=began.get(run_of(pool)), idle_since=idle_since
            )
            entry = _reap_one(client.pools, pool, facts, limits, dry_run, now)
            report.entries.append(_log_entry("Pool", entry, dry_run))
    for task in _standalone_tasks(client, namespace, report):
        with _collect_failure(report, "Qarnot task", task.uuid):
            facts = partial(_standalone_task_facts, run_state=run_state)
            entry = _reap_one(client.tasks, task, facts, limits, dry_run, now)
            report.tasks.append(_log_entry("Qarnot task", entry, dry_run))
    if not dry_run:
        for kind in KINDS:
            with _collect_failure(report, "Finished objects", f"of namespace {namespace}"):
                report.tidied += QuotaRoom(client, namespace).tidy(kind)
    count_reaped(report)
    return report


def _standalone_tasks(client: QarnotClient, namespace: str, report: ReapReport) -> list[Task]:
    """The unfinished Qarnot tasks with nodes of their own that somebody was to wait for."""
    unfinished = filters.and_(
        filters.equal("Tags", namespace_tag(namespace)), filters.in_("State", _UNFINISHED)
    )
    found: list[Task] = []
    with _collect_failure(report, "Qarnot tasks", f"of namespace {namespace}"):
        found = list(client.tasks.iterate(unfinished))
    return [
        task
        for task in found
        if not task.pool and is_ours(task, namespace) and label(task.labels, "detached") is None
    ]


@contextmanager
def _collect_failure(report: ReapReport, noun: str, which: str) -> Iterator[None]:
    """Note what fails: it must not spare the others."""
    try:
        yield
    except Exception as error:  # Airflow's own, too
        log.error("%s %s could not be looked after: %s", noun, which, error)
        report.failures.append(f"{which}: {error}")


def _log_entry(noun: str, entry: ReapEntry, dry_run: bool) -> ReapEntry:
    log.log(
        logging.DEBUG if entry.action == ReapAction.KEEP else logging.INFO,
        "%s %s (%s): %s%s, because %s",
        noun,
        entry.uuid,
        entry.name,
        "would " if dry_run else "",
        entry.action,
        entry.reason,
    )
    return entry


def _reap_one(
    resource: PoolResource | TaskResource,
    found: Any,
    facts: Callable[[Any], PoolFacts],
    limits: ReapLimits,
    dry_run: bool,
    now: Callable[[], datetime],
) -> ReapEntry:
    done = False
    try:
        judgement = decide_reap(facts(found), limits, now())
        if judgement.action is not ReapAction.KEEP and not dry_run:
            # Time has passed since the listing: a cleared run may use it again.
            again = decide_reap(facts(resource.get(found.uuid)), limits, now())
            if again.action is judgement.action:
                if again.action is ReapAction.CLOSE:
                    end(resource, found.uuid)
                    if again.over_limit:
                        metrics.incr("cost_limit.exceeded", kind="pool", dag_id=label(found.labels, "dag_id"))
                else:
                    resource.delete(found.uuid)
                done = True
            judgement = again
    except QarnotNotFoundError:
        judgement = ReapDecision(action=ReapAction.KEEP, reason="it is gone by now")
    action = judgement.action
    if action is ReapAction.CLOSE and resource.kind == "task":
        action = ReapAction.ABORT
    return ReapEntry(
        uuid=found.uuid,
        name=found.name,
        dag_id=label(found.labels, "dag_id"),
        run_id=label(found.labels, "run_id"),
        action=str(action),
        reason=judgement.reason,
        done=done,
    )


def _pool_facts(
    client: QarnotClient,
    pool: Pool,
    run_state: RunState,
    began: datetime | None,
    idle_since: Callable[[Pool, datetime, bool], datetime],
) -> PoolFacts:
    dag_id, run_id = run_of(pool)
    shared = label(pool.labels, "shared") is not None
    usability = usability_of(pool)
    created = pool.creation_date or datetime.now(UTC)
    state = None if shared or usability is not Usability.LIVE else run_state(dag_id, run_id)
    is_needed = shared or state not in (None, *FINISHED_RUN_STATES)
    used_by = "" if is_needed or usability is not Usability.LIVE else _used_by(client, pool, run_state)
    is_needed = is_needed or bool(used_by)
    return PoolFacts(
        usability=usability,
        created=created,
        ended=pool.end_date or (pool.state_transition_time if usability is Usability.DEAD else None),
        shared=shared,
        run=f"{dag_id} {run_id}",
        run_state=state,
        unfinished_instances=pool.queued_or_running_task_instances_count or 0,
        idle_since=idle_since(pool, created, is_needed) if usability is Usability.LIVE else created,
        over_limit=_over_limit(client, pool, began) if usability is Usability.LIVE else "",
        used_by=used_by,
    )


def _used_by(client: QarnotClient, pool: Pool, run_state: RunState) -> str:
    """Return a DAG run of our Airflow, other than the pool's own, that is unfinished and works on it; "" if none does.

    Any DAG may use a pool by its uuid or shortname. What no Airflow task made, or another deployment's did, is not
    known here, and ends with the pool.
    """
    here = filters.and_(filters.equal("PoolUuid", pool.uuid), filters.in_("State", _UNFINISHED))
    found = client.tasks.search_all(here, fields=("State", "Labels"))
    namespace = label(pool.labels, "namespace")
    runs = {
        run_of(task)
        for task in found
        if task.phase is not states.Phase.TERMINAL and label(task.labels, "namespace") == namespace
    }
    for dag_id, run_id in sorted(runs - {run_of(pool)}):
        if run_state(dag_id, run_id) not in (None, *FINISHED_RUN_STATES):
            return f"{dag_id} {run_id}"
    return ""


def _standalone_task_facts(task: Task, run_state: RunState) -> PoolFacts:
    """Of a Qarnot task with nodes of its own: never idle, and nobody else's."""
    dag_id, run_id = run_of(task)
    usability = {states.Phase.ENDING: Usability.ENDING, states.Phase.TERMINAL: Usability.DEAD}.get(
        task.phase, Usability.LIVE
    )
    created = task.creation_date or datetime.now(UTC)
    return PoolFacts(
        usability=usability,
        created=created,
        ended=None,  # its time to live deletes it
        shared=False,
        run=f"{dag_id} {run_id}",
        run_state=run_state(dag_id, run_id) if usability is Usability.LIVE else None,
        unfinished_instances=1,
        idle_since=created,
    )


def _over_limit(client: QarnotClient, pool: Pool, began: datetime | None) -> str:
    """What to say where *pool* has reached a limit that is written on it; an unknown cost reaches none."""
    watched = limits_from_labels(pool, began)
    if watched is None:
        return ""
    try:
        verdict = check_limits(watched, spending_of(client, watched))
    except (QarnotRefusedError, QarnotProtocolError) as error:
        log.warning(
            "What pool %s costs cannot be found out, so its limit is not watched: %s", pool.uuid, error
        )
        return ""
    return verdict.message.removesuffix("; it was closed") if verdict.level is LimitLevel.OVER else ""


def _idle_since_reader(
    client: QarnotClient, namespace: str, limits: ReapLimits, now: Callable[[], datetime], *, note: bool
) -> Callable[[Pool, datetime, bool], datetime]:
    """Return a function that tells since when a pool is idle.

    The Qarnot tasks that show its use may be deleted. Processes of ours record the use before they delete. If nothing
    shows any use, a pool that is needed counts as idle only from the first reaping that finds it so: others may delete,
    too.

    :param note: whether to record that a pool was found idle.
    """

    def idle_since(pool: Pool, created: datetime, is_needed: bool) -> datetime:
        ends = [task.end_date or task.creation_date for task in client.pools.tasks(pool.uuid)]
        shown = [one for one in ends if one is not None]
        since = max([created, *shown])
        if pool.queued_or_running_task_instances_count or now() - since <= limits.grace_period:
            return since
        use = records.last_use_of(client, pool.uuid)
        if use.used is not None:
            shown.append(use.used)
            since = max(since, use.used)
        if shown or not is_needed:
            return since
        if use.idle_since is not None:
            return max(since, use.idle_since)
        if note:
            records.record_idle(client, namespace, pool.uuid, now())
        return now()

    return idle_since


def count_reaped(report: ReapReport) -> None:
    """What the reaper found and did."""
    counts = report.to_json()
    if not report.dry_run:
        metrics.incr("pools.reaped", counts["closed"], namespace=report.namespace)
        metrics.incr("tasks.reaped", counts["aborted"], namespace=report.namespace)
    tags = {"namespace": report.namespace}
    metrics.gauge("pools.open", report.open_pools, **tags)
    metrics.gauge("slots.requested", report.slots_requested, **tags)
    metrics.gauge("slots.ready", report.slots_ready, **tags)
