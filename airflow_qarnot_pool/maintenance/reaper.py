"""Close pools that are no longer needed, and abort Qarnot tasks without a pool that are no longer needed.

The reaper is the last line of defence: DAG runs that time out skip their teardown tasks, and Airflow may be down for
hours. It also enforces the cost limits that are stored on a pool, even if no task waits for the pool.
:func:`decide_reap` is pure. :func:`reap` reads from Qarnot and from a function that knows the DAG runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError, QarnotNotFoundError
from airflow_qarnot_pool.costs.limits import LimitLevel, check_limits, limits_from_labels
from airflow_qarnot_pool.costs.queries import UNKNOWN_FIGURE
from airflow_qarnot_pool.costs.spending import spending_of
from airflow_qarnot_pool.ownership import records
from airflow_qarnot_pool.ownership.decisions import Usability, usability_of
from airflow_qarnot_pool.ownership.identity import RunKey, is_ours, label, namespace_tag, run_of
from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES, QuotaRoom
from airflow_qarnot_pool.ownership.shared_pool import user_of
from airflow_qarnot_pool.ownership.termination import closes_when_idle, end

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.tasks import TaskResource
    from airflow_qarnot_pool.waiting.conditions import Kind

log = logging.getLogger(__name__)

#: Returns the state of a DAG run (dag_id, run_id); None if the run does not exist.
RunState = Callable[[str, str], str | None]
#: Returns the state of the DAG run that created an object; None if the run does not exist.
StateOf = Callable[["Pool | Task"], str | None]
#: Kinds of objects, each with a separate quota.
KINDS: tuple[Kind, ...] = ("task", "pool")
#: States in which a Qarnot task may cost.
_UNFINISHED = [state for state in states.TaskState if state not in states.TASK_TERMINAL]


class ReapAction(StrEnum):
    """The action for one pool or Qarnot task."""

    KEEP = "keep"
    CLOSE = "close"
    ABORT = "abort"
    DELETE = "delete"


@dataclass(frozen=True, kw_only=True)
class ReapLimits:
    """Maximum lifetimes.

    ``grace_period`` spares the pools of runs whose teardown may still run, and of runs that are unknown or not known
    yet.
    """

    grace_period: timedelta = timedelta(minutes=15)
    idle_timeout: timedelta = timedelta(hours=1)
    delete_finished_after: timedelta = timedelta(days=8)


@dataclass(frozen=True, kw_only=True)
class ReapDecision:
    """The action for a pool, and the reason for the report."""

    action: ReapAction
    reason: str
    over_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class PoolFacts:
    """The facts about one pool at one moment. A Qarnot task without a pool is described as a busy pool."""

    usability: Usability
    created: datetime
    ended: datetime | None
    shared: bool
    run: str
    run_state: str | None
    unfinished_instances: int
    #: Time of the last use: the last end of a Qarnot task, or creation of an unfinished one.
    idle_since: datetime
    #: The message if the pool has reached a cost limit.
    over_limit: str = ""
    #: Another user of the pool, such as an unfinished DAG run with Qarnot tasks on it. Not looked up if the DAG run of
    #: the pool is unfinished, or if nothing is unfinished on a shared pool.
    used_by: str = ""
    #: Whether somebody wants it closed once it is idle, whoever has it open.
    closes_when_idle: bool = False


#: How long a pool must be idle that is closed when it is idle. A DAG run pauses for a moment between two tasks.
WANTED_IDLE = timedelta(minutes=5)
#: The reason for which an ended object is kept, which a report for people may leave out.
HAS_ENDED = "it has ended"


def decide_reap(facts: PoolFacts, limits: ReapLimits, now: datetime) -> ReapDecision:
    """Decide about one pool, or Qarnot task without a pool, that this provider created in our namespace."""
    if facts.usability is Usability.ENDING:
        return ReapDecision(action=ReapAction.KEEP, reason="it is ending already")
    if facts.usability is Usability.DEAD:
        if facts.ended is not None and now - facts.ended > limits.delete_finished_after:
            reason = f"it ended at {facts.ended:%Y-%m-%d %H:%M}"
            return ReapDecision(action=ReapAction.DELETE, reason=reason)
        return ReapDecision(action=ReapAction.KEEP, reason=HAS_ENDED)
    if facts.over_limit:
        return ReapDecision(action=ReapAction.CLOSE, reason=facts.over_limit, over_limit=True)
    idle = timedelta() if facts.unfinished_instances > 0 else now - facts.idle_since
    if facts.closes_when_idle and idle > min(WANTED_IDLE, limits.idle_timeout):
        reason = f"it was to be closed when idle, and has been idle since {facts.idle_since:%Y-%m-%d %H:%M}"
        return ReapDecision(action=ReapAction.CLOSE, reason=reason)
    if facts.used_by:
        return ReapDecision(action=ReapAction.KEEP, reason=f"it is used by {facts.used_by}")
    if (unneeded := _why_unneeded(facts, limits, now, idle)) is not None:
        return ReapDecision(action=ReapAction.CLOSE, reason=unneeded)
    return ReapDecision(action=ReapAction.KEEP, reason=_why_kept(facts))


def _why_kept(facts: PoolFacts) -> str:
    """Return why a pool without another user is kept."""
    if facts.shared:
        return f"it is shared, and its last use was at {facts.idle_since:%Y-%m-%d %H:%M}"
    return f"its DAG run is {facts.run_state or 'not known yet'}"


def _why_unneeded(facts: PoolFacts, limits: ReapLimits, now: datetime, idle: timedelta) -> str | None:
    """Return why a pool that has no other user is closed: no DAG run needs it, or it is idle. None: it is kept."""
    idle_for_long = f"it has been idle since {facts.idle_since:%Y-%m-%d %H:%M}"
    if facts.shared:
        # An idle one may be held by a run between two tasks, so only the idle timeout closes it.
        if facts.unfinished_instances > 0 and now - facts.idle_since > limits.grace_period:
            return "only Qarnot tasks of finished or unknown DAG runs are left on it"
        return idle_for_long if idle > limits.idle_timeout else None
    age = now - facts.created
    # Work that still runs for a finished run belongs to no task. It spares the pool no longer than the grace period.
    unused = age if facts.unfinished_instances > 0 else idle
    if facts.run_state in FINISHED_RUN_STATES and unused > limits.grace_period:
        return f"its DAG run {facts.run} has finished ({facts.run_state})"
    if facts.run_state is None and age > limits.grace_period:
        return f"there is no DAG run {facts.run}"
    return idle_for_long if idle > limits.idle_timeout else None


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
    """The findings and actions of the reaper. :meth:`to_json` is the XCom."""

    namespace: str
    dry_run: bool
    #: Entries of pools.
    entries: list[ReapEntry] = field(default_factory=list)
    #: Entries of unfinished Qarnot tasks without a pool.
    tasks: list[ReapEntry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    #: Number of finished objects that were deleted because a quota is almost full.
    tidied: int = 0
    #: Totals for metrics.
    open_pools: int = 0
    slots_requested: int = 0
    slots_ready: int = 0

    def count(self, pool: Pool) -> None:
        """Add *pool* to the totals."""
        if usability_of(pool) is Usability.LIVE:
            self.open_pools += 1
            self.slots_requested += pool.target_running_instance_count or pool.instance_count or 0
            self.slots_ready += pool.ready_slots

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON.

        ``{namespace, dry_run, closed, deleted, kept, aborted, tidied, pools: [entry], tasks: [entry],
        failures: [text]}``. ``kept`` counts pools, and ``pools`` has those that had not ended. ``tidied`` counts
        finished objects that were deleted because a quota was almost full. In a dry run, the other counts are of the
        actions that would be taken.
        """
        entries = [*self.entries, *self.tasks]
        counts = {
            name: sum(entry.action == action and (entry.done or self.dry_run) for entry in entries)
            for name, action in (
                ("closed", ReapAction.CLOSE),
                ("deleted", ReapAction.DELETE),
                ("aborted", ReapAction.ABORT),
            )
        }
        counts["kept"] = sum(entry.action == ReapAction.KEEP for entry in self.entries)
        return {
            "namespace": self.namespace,
            "dry_run": self.dry_run,
            **counts,
            # Qarnot keeps ended pools for days, and each run of the reaper stores its report.
            "pools": [asdict(entry) for entry in self.entries if entry.reason != HAS_ENDED],
            "tasks": [asdict(entry) for entry in self.tasks],
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
    state_of: StateOf | None = None,
) -> ReapReport:
    """Check all objects of *namespace* that this provider created and that may cost, and end unneeded ones.

    These are all pools, and all unfinished Qarnot tasks without a pool that an Airflow task waits for. An object and
    its DAG run are checked again right before it is ended. An error with one object does not stop the others.

    :param state_of: for a source of states that can tell the DAG run of an object from another one with its ids. None:
        *run_state* with these ids.
    :raises QarnotInvalidSpecError: the namespace is not explicit. Another deployment's pools would look like ours.
    """
    if not namespace:
        raise QarnotInvalidSpecError(
            "The reaper needs an explicit namespace: set it in the connection (or [qarnot] namespace), so that "
            "it cannot take another deployment's pools for its own",
            field="namespace",
        )
    report = ReapReport(namespace=namespace, dry_run=dry_run)
    state_of = state_of or (lambda remote: run_state(*run_of(remote)))
    reaper = _Reaper(client, run_state, state_of, limits or ReapLimits(), now, report)
    try:
        reaper.reap_pools()
    except QarnotError:
        reaper.reap_standalone_tasks()
        raise
    reaper.reap_standalone_tasks()
    if not dry_run:
        reaper.tidy_quotas()
    count_reaped(reaper.report)
    return reaper.report


@dataclass(frozen=True)
class _Reaper:
    """The I/O of one run of the reaper."""

    client: QarnotClient
    run_state: RunState
    state_of: StateOf
    limits: ReapLimits
    now: Callable[[], datetime]
    report: ReapReport

    @property
    def _side_client(self) -> QarnotClient:
        """The client for requests that are not always needed, because one service of Qarnot may be down for hours."""
        return self.client.limited(retries=1, deadline=10.0)

    def reap_pools(self) -> None:
        """Check all pools."""
        namespace = self.report.namespace
        tagged = self.client.pools.iterate(filters.equal("Tags", namespace_tag(namespace)))
        pools = [pool for pool in tagged if is_ours(pool, namespace)]
        run_started = _first_creation_by_run(pools)
        for pool in pools:
            with self._collecting_failure("Pool", pool.uuid):
                self.report.count(pool)
                facts_of = partial(self._pool_facts, run_started=run_started.get(run_of(pool)))
                entry = self._reap_one(self.client.pools, pool, facts_of)
                self.report.entries.append(self._logged("Pool", entry))

    def reap_standalone_tasks(self) -> None:
        """Check all unfinished Qarnot tasks without a pool that an Airflow task waits for."""
        for task in self._standalone_tasks():
            with self._collecting_failure("Qarnot task", task.uuid):
                facts_of = partial(_standalone_task_facts, state_of=self.state_of)
                entry = self._reap_one(self.client.tasks, task, facts_of)
                self.report.tasks.append(self._logged("Qarnot task", entry))

    def tidy_quotas(self) -> None:
        """Delete recorded objects if a quota is almost full."""
        for kind in KINDS:
            with self._collecting_failure("Finished objects", f"of namespace {self.report.namespace}"):
                self.report.tidied += QuotaRoom(self.client, self.report.namespace).tidy(kind)

    def _standalone_tasks(self) -> list[Task]:
        namespace = self.report.namespace
        unfinished = filters.and_(
            filters.equal("Tags", namespace_tag(namespace)), filters.in_("State", _UNFINISHED)
        )
        tasks: list[Task] = []
        with self._collecting_failure("Qarnot tasks", f"of namespace {namespace}"):
            tasks = list(self.client.tasks.iterate(unfinished))
        return [
            task
            for task in tasks
            if not task.pool and is_ours(task, namespace) and label(task.labels, "detached") is None
        ]

    @contextmanager
    def _collecting_failure(self, noun: str, which: str) -> Iterator[None]:
        """Record an error, because it must not stop the checks of the others."""
        try:
            yield
        except Exception as error:  # includes errors of Airflow
            log.error("%s %s could not be checked or cleaned up: %s", noun, which, error)
            self.report.failures.append(f"{which}: {error}")

    def _logged(self, noun: str, entry: ReapEntry) -> ReapEntry:
        log.log(
            logging.DEBUG if entry.action == ReapAction.KEEP else logging.INFO,
            "%s %s (%s): %s%s, because %s",
            noun,
            entry.uuid,
            entry.name,
            "would " if self.report.dry_run else "",
            entry.action,
            entry.reason,
        )
        return entry

    def _reap_one(
        self, resource: PoolResource | TaskResource, remote: Any, facts_of: Callable[[Any], PoolFacts]
    ) -> ReapEntry:
        done = False
        try:
            decision = decide_reap(facts_of(remote), self.limits, self.now())
            if decision.action is not ReapAction.KEEP and not self.report.dry_run:
                # Time has passed since the listing, and a cleared run may use the object again.
                planned = decision.action
                decision = decide_reap(facts_of(resource.get(remote.uuid)), self.limits, self.now())
                if decision.action is planned:
                    self._carry_out(resource, remote, decision)
                    done = True
        except QarnotNotFoundError:
            decision = ReapDecision(action=ReapAction.KEEP, reason="it is deleted by now")
        action = decision.action
        if action is ReapAction.CLOSE and resource.kind == "task":
            action = ReapAction.ABORT
        return ReapEntry(
            uuid=remote.uuid,
            name=remote.name,
            dag_id=label(remote.labels, "dag_id"),
            run_id=label(remote.labels, "run_id"),
            action=str(action),
            reason=decision.reason,
            done=done,
        )

    def _carry_out(self, resource: PoolResource | TaskResource, remote: Any, decision: ReapDecision) -> None:
        if decision.action is ReapAction.DELETE:
            resource.delete(remote.uuid)
            return
        end(resource, remote.uuid)
        if decision.over_limit:
            metrics.incr("cost_limit.exceeded", kind="pool", dag_id=label(remote.labels, "dag_id"))

    def _pool_facts(self, pool: Pool, run_started: datetime | None) -> PoolFacts:
        facts = _own_facts(pool)
        if facts.usability is not Usability.LIVE:
            return facts
        run_state = None if facts.shared else self.state_of(pool)
        is_needed = facts.shared or _is_unfinished(run_state)
        used_by = ""
        if not is_needed or (facts.shared and facts.unfinished_instances > 0):
            used_by = user_of(self.client, pool, self._is_run_unfinished)
        facts = replace(
            facts,
            run_state=run_state,
            used_by=used_by,
            idle_since=self._idle_since(pool, facts.created, is_needed=is_needed or bool(used_by)),
        )
        if decide_reap(facts, self.limits, self.now()).action is ReapAction.CLOSE:
            return facts  # whatever it has cost, which cannot always be read
        return replace(facts, over_limit=self._over_limit(pool, run_started))

    def _is_run_unfinished(self, dag_id: str, run_id: str) -> bool:
        return _is_unfinished(self.run_state(dag_id, run_id))

    def _over_limit(self, pool: Pool, run_started: datetime | None) -> str:
        """Return the message if *pool* has reached a limit that is stored on it. An unknown cost reaches no limit."""
        limit = limits_from_labels(pool, run_started)
        if limit is None:
            return ""
        try:
            check = check_limits(limit, spending_of(self._side_client, limit))
        except QarnotError as error:
            unchecked = f"its limit on cost was not checked, because its cost could not be read: {error}"
            log.warning("Pool %s: %s", pool.uuid, unchecked)
            if not isinstance(error, UNKNOWN_FIGURE):
                self.report.failures.append(f"{pool.uuid}: {unchecked}")
            return ""
        return check.message.removesuffix("; it was closed") if check.level is LimitLevel.OVER else ""

    def _idle_since(self, pool: Pool, created: datetime, *, is_needed: bool) -> datetime:
        """Return the time since which *pool* is idle.

        The Qarnot tasks that show its use may be deleted. Our processes record the use before they delete. If nothing
        shows any use, a pool that is needed counts as idle only from the first run of the reaper that finds it idle,
        because other programs may delete, too.
        """
        ends = [task.end_date or task.creation_date for task in self.client.pools.tasks(pool.uuid)]
        uses = [time for time in ends if time is not None]
        since = max([created, *uses])
        if pool.queued_or_running_task_instances_count or self.now() - since <= self.limits.grace_period:
            return since
        recorded = self._recorded_use(pool, is_needed=is_needed)
        if recorded.used is not None:
            uses.append(recorded.used)
            since = max(since, recorded.used)
        if uses or not is_needed:
            return since
        if recorded.idle_since is not None:
            return max(since, recorded.idle_since)
        if not self.report.dry_run:
            records.record_idle(self.client, self.report.namespace, pool.uuid, self.now())
        return self.now()

    def _recorded_use(self, pool: Pool, *, is_needed: bool) -> records.LastUse:
        """Return the records about the use of *pool*. If no DAG run needs it, unreadable ones count as none."""
        try:
            return records.last_use_of(self._side_client, pool.uuid)
        except QarnotError as error:
            if is_needed:
                raise
            log.warning("Could not read when pool %s, which no DAG run needs, was used: %s", pool.uuid, error)
            return records.LastUse()


def _own_facts(pool: Pool) -> PoolFacts:
    """Return the facts that the pool itself shows."""
    dag_id, run_id = run_of(pool)
    usability = usability_of(pool)
    created = pool.creation_date or datetime.now(UTC)
    return PoolFacts(
        usability=usability,
        created=created,
        ended=pool.end_date or (pool.state_transition_time if usability is Usability.DEAD else None),
        shared=label(pool.labels, "shared") is not None,
        run=f"{dag_id} {run_id}",
        run_state=None,
        unfinished_instances=pool.queued_or_running_task_instances_count or 0,
        idle_since=created,
        closes_when_idle=closes_when_idle(pool),
    )


def _is_unfinished(run_state: str | None) -> bool:
    return run_state is not None and run_state not in FINISHED_RUN_STATES


def _first_creation_by_run(pools: Iterable[Pool]) -> dict[RunKey, datetime]:
    """Return the creation time of the first pool of each DAG run."""
    first: dict[RunKey, datetime] = {}
    for pool in pools:
        if pool.creation_date:
            first[run_of(pool)] = min(pool.creation_date, first.get(run_of(pool), pool.creation_date))
    return first


def _standalone_task_facts(task: Task, state_of: StateOf) -> PoolFacts:
    """Return the facts about a Qarnot task without a pool, which is never idle or shared."""
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
        run_state=state_of(task) if usability is Usability.LIVE else None,
        unfinished_instances=1,
        idle_since=created,
    )


def count_reaped(report: ReapReport) -> None:
    """Emit the metrics of one run of the reaper."""
    counts = report.to_json()
    if not report.dry_run:
        metrics.incr("pools.reaped", counts["closed"], namespace=report.namespace)
        metrics.incr("tasks.reaped", counts["aborted"], namespace=report.namespace)
    tags = {"namespace": report.namespace}
    metrics.gauge("pools.open", report.open_pools, **tags)
    metrics.gauge("slots.requested", report.slots_requested, **tags)
    metrics.gauge("slots.ready", report.slots_ready, **tags)
