"""The state of a pool and of a Qarnot task in the words of the Pools page. Pure functions."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_qarnot_pool.api.errors import QarnotUnknownStateError
from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.parts import FixedPolicy
from airflow_qarnot_pool.api.states import Phase, PoolState, TaskState, parse_task_state, pool_phase

GROUPS = {
    TaskState.SUBMITTED: "queued",
    TaskState.PARTIALLY_DISPATCHED: "queued",
    TaskState.FULLY_DISPATCHED: "queued",
    TaskState.PARTIALLY_EXECUTING: "running",
    TaskState.FULLY_EXECUTING: "running",
    TaskState.UPLOADING_RESULTS: "running",
    TaskState.DOWNLOADING_RESULTS: "running",
    TaskState.PENDING_CANCEL: "running",
    TaskState.SUCCESS: "succeeded",
    TaskState.FAILURE: "failed",
    TaskState.CANCELLED: "cancelled",
    TaskState.PENDING_DELETE: "cancelled",
}
UNFINISHED = ("queued", "running")
_PHASES = {
    Phase.TRANSIENT: "booting",
    Phase.LIVE: "open",
    Phase.ENDING: "closing",
    Phase.TERMINAL: "closed",
}


def phase_of(pool: Pool) -> str:
    """Return ``booting``, ``open``, ``closing``, ``closed``, ``failed`` or ``unknown``."""
    try:
        phase = pool_phase(pool.state)
    except QarnotUnknownStateError:
        return "unknown"
    return "failed" if pool.state == PoolState.FAILURE else _PHASES[phase]


def is_open(pool: Pool) -> bool:
    """Return whether the pool may still cost money."""
    return phase_of(pool) not in ("closed", "failed")


def ended_at(pool: Pool) -> datetime | None:
    """Return when the pool has ended. None while it may cost money. Qarnot may leave out the end of a failed pool."""
    return None if is_open(pool) else pool.end_date or pool.state_transition_time


def is_closable(pool: Pool) -> bool:
    """Return whether a request to close the pool would change anything. A state that is not known may be open."""
    return phase_of(pool) in ("booting", "open", "unknown")


def word_of(pool: Pool, has_worked: bool) -> str:
    """Return the phase in a plain word: an open pool is ``empty``, ``busy``, ``ready`` or ``idle``.

    :param has_worked: whether a Qarnot task has been finished on it.
    """
    phase = phase_of(pool)
    if phase != "open":
        return phase
    if not pool.ready_slots:
        return "empty"
    if load_of(pool)[0]:
        return "busy"
    return "idle" if has_worked else "ready"


def load_of(pool: Pool) -> tuple[int, int]:
    """Return the number of slots with work and of instances that wait for one.

    Qarnot reports the sum of the two. Instances wait only if no slot is free.
    """
    unfinished = max(0, pool.queued_or_running_task_instances_count or 0)
    busy = min(pool.ready_slots, unfinished)
    return busy, unfinished - busy


def group_of(state: str) -> str:
    """Return the group in which a Qarnot task in *state* is counted."""
    try:
        return GROUPS[parse_task_state(state)]
    except QarnotUnknownStateError:
        return "running"


def target_slots(pool: Pool) -> int:
    """Return the number of slots that the pool should have now, according to the server."""
    if pool.target_running_instance_count is not None:
        return pool.target_running_instance_count
    return pool.instance_count or pool.total_slot_capacity or 0


def keep_warm_of(pool: Pool) -> timedelta | None:
    """Return how long an idle node of a pool that follows its load stays, or None for a pool of fixed size."""
    if pool.scaling:
        if all(isinstance(policy, FixedPolicy) for policy in pool.scaling.policies):
            return None
        times = [getattr(policy, "min_idle_time", None) for policy in pool.scaling.policies]
        return max((time for time in times if isinstance(time, timedelta)), default=timedelta())
    if pool.elastic and pool.elastic.is_elastic:
        return pool.elastic.min_idle_time or timedelta()
    return None
