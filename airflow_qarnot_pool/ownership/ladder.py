"""Choose the kind of nodes for each generation of a Qarnot task or pool: cheap first, sure in the end.

A *ladder* lists scheduling types, the cheapest first. Each entry is a *rung*. A generation that loses its nodes is
followed by one on the next rung. If another loss could break the deadline, the last rung is next.

All functions here are pure. They read the generations that exist on Qarnot. Every process therefore chooses the same
rung, also after a crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.limits import parsing_stored_state
from airflow_qarnot_pool.api.states import TaskState, parse_task_state

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

#: Seconds that are reserved for a boot and for seeing a loss. Qarnot says to expect about 3 minutes for a boot.
BOOT_SECONDS = 300.0
_NODE_LOST = re.compile(r"node.{0,80}?(lost|killed|unreachable|disconnected)", re.IGNORECASE)
#: What an error of a command says. "node" is also the name of one.
_COMMAND_FAILED = re.compile(
    r"node\.?js|\.[cm]?js\b|exit(ed|s)?\b|\bsignal|out.of.memory|\boom|\b1(37|43)\b", re.IGNORECASE
)
#: Maximum difference of two dates that have whole seconds.
_ONE_SECOND = timedelta(seconds=1)


def is_node_loss(task: Task) -> bool:
    """Return whether every failed instance failed because its node was lost.

    Qarnot publishes no list of its error codes, so this searches the text of the error.
    """
    failed = [instance for instance in task.completed_instances if not instance.succeeded]
    return bool(failed) and all(
        instance.error and _tells_node_loss(str(instance.error)) for instance in failed
    )


def _tells_node_loss(text: str) -> bool:
    if "preempt" in text.lower():
        return True
    return bool(_NODE_LOST.search(text)) and not _COMMAND_FAILED.search(text)


def is_lost(task: Task) -> bool:
    """Return whether *task* failed because of its nodes: it lost them, or ``max_time_queue`` passed without any."""
    if parse_task_state(task.state) is not TaskState.FAILURE:
        return False
    return is_node_loss(task) or is_queue_timeout(task)


def is_queue_timeout(task: Task) -> bool:
    """Return whether a failed Qarnot task had no node for its ``max_time_queue``."""
    return _queued_too_long(task) and _never_started(task)


def _queued_too_long(task: Task) -> bool:
    # An image that cannot be pulled, or a missing bucket, fails before the start, too. Other nodes do not help.
    if not task.max_time_queue or task.creation_date is None or task.end_date is None:
        return False
    return task.end_date - task.creation_date >= task.max_time_queue - _ONE_SECOND


def _never_started(task: Task) -> bool:
    # Other ranges have instances that failed in the queue, too.
    has_started = task.status is not None and bool(task.status.started_once_range)
    return not (task.completed_instances or task.executed_seconds or has_started)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The work of a Qarnot task, in seconds, and the time until its deadline.

    :param work: seconds of execution that the whole work takes.
    :param left: seconds until the deadline.
    """

    work: float
    left: float

    def allows_loss(self, executed: Iterable[float], interval: float | None) -> bool:
        """Return whether the work still ends in time if the next generation loses its nodes as late as it can.

        That generation then boots once, the one after it boots again, and the work since the last snapshot is computed
        twice.

        :param executed: seconds that each lost generation executed.
        :param interval: seconds between two snapshots; None if there are none, and each generation starts anew.
        """
        if interval is None:
            return self.left >= 2 * self.work + 2 * BOOT_SECONDS
        saved = sum(max(0.0, seconds - interval) for seconds in executed)
        at_risk = min(interval, self.work)
        # The estimate may be too low. The work since the last snapshot remains in any case.
        rest = max(self.work - saved, at_risk)
        return self.left >= rest + at_risk + 2 * BOOT_SECONDS


def work_of(task: Task) -> float:
    """Return the seconds that the longest instance of *task* executed; 0 if they are unknown."""
    times = [one.execution_time.total_seconds() for one in task.completed_instances if one.execution_time]
    return max(times, default=0.0) or task.executed_seconds or 0.0


def rung_of_task(spec: TaskSpec, earlier: Iterable[Task], estimate: Estimate | None) -> int:
    """Return the index in the ladder for the next generation of a Qarnot task.

    :param earlier: the generations of the lineage that exist.
    :param estimate: None if there is no deadline, or the work is unknown. Then only losses count.
    """
    last = len(spec.ladder) - 1
    lost = [task for task in earlier if is_lost(task)]
    if estimate is not None:
        executed = [task.executed_seconds or 0.0 for task in lost]
        if not estimate.allows_loss(executed, _interval(spec, lost)):
            return last
    return min(len(lost), last)


def _interval(spec: TaskSpec, lost: Sequence[Task]) -> float | None:
    """Return the seconds between two snapshots. Qarnot may raise the interval that was requested."""
    if spec.snapshot_every is None:
        return None
    intervals = [spec.snapshot_every, *(task.snapshot_interval for task in lost if task.snapshot_interval)]
    return max(intervals).total_seconds()


def on_rung(spec: TaskSpec, index: int) -> TaskSpec:
    """Return *spec* without its ladder, for a Qarnot task on this rung.

    On a pool the nodes are those of the pool, whose type a task cannot change.
    """
    return replace(spec, ladder=(), scheduling_type=None if spec.pool else spec.ladder[index])


def without_pool(spec: TaskSpec, pool: PoolSpec, rung: str) -> TaskSpec:
    """Return *spec* for separate nodes that have the container and the files of *pool*.

    :param rung: scheduling type of the nodes.
    """
    own = spec.all_constants()
    constants = {name: value for name, value in pool.all_constants().items() if name not in own}
    return replace(
        spec,
        pool=None,
        ladder=(),
        scheduling_type=rung,
        profile=pool.profile,
        constants={**constants, **spec.constants},
        resource_buckets=(*pool.resource_buckets, *spec.resource_buckets),
        forced_constants=(*pool.forced_constants, *spec.forced_constants),
        constraints={**pool.constraints, **spec.constraints},
        hardware_constraints=pool.hardware_constraints,
        secrets_access=pool.secrets_access,
        project=pool.project,
        privileges=spec.privileges or pool.privileges,
    )


def pool_on_rung(spec: PoolSpec, failed: int) -> PoolSpec:
    """Return *spec* without its ladder, for the pool that follows *failed* ones, which did not become ready."""
    index = min(failed, len(spec.ladder) - 1)
    return replace(spec, ladder=(), scheduling_type=spec.ladder[index])


def share_of_wait(deadline: datetime | None, rungs: int, now: datetime) -> datetime | None:
    """Return until when a pool may boot, if *rungs* share the time until the deadline equally."""
    return None if deadline is None else now + (deadline - now) / rungs


@dataclass(frozen=True, kw_only=True)
class Climb:
    """The generations that one try has lost: their number, and the seconds that they executed.

    A try submits at most as many generations as its ladder has rungs.
    """

    losses: int = 0
    executed: float = 0.0

    def after(self, lost: Task) -> Climb:
        """Return the climb after one more loss."""
        return Climb(losses=self.losses + 1, executed=self.executed + (lost.executed_seconds or 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form for the state of a wait."""
        return {"losses": self.losses, "executed": self.executed}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Climb:
        """Read the result of :meth:`to_json`."""
        with parsing_stored_state("The ladder of a wait"):
            return cls(losses=int(stored["losses"]), executed=float(stored["executed"]))
