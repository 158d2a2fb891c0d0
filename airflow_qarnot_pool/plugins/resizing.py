"""Decide how the size of a pool changes when somebody resizes it on the Pools page. Pure functions.

Qarnot cannot change ``instanceCount``, nor close a pool once it is idle. It can replace the scaling policies. A
``Fixed`` policy sets the number of slots. A ``ManagedTasksQueue`` policy with a minimum of 0 releases nodes without
work. Its name tells the reaper whether to close the pool then, see
:func:`~airflow_qarnot_pool.ownership.termination.idle_close_policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from airflow_qarnot_pool.api.models import ElasticProperty, Pool
from airflow_qarnot_pool.api.parts import (
    AlwaysPeriod,
    Elastic,
    FixedPolicy,
    ManagedTasksQueuePolicy,
    Period,
    Policy,
    Scaling,
)
from airflow_qarnot_pool.api.states import accepts_tasks
from airflow_qarnot_pool.ownership.termination import idle_close_policy
from airflow_qarnot_pool.plugins.phases import phase_of, target_slots

MAX_SLOTS = 5_000
#: Limits of the idle time after which a node is released.
MIN_IDLE, MAX_IDLE = timedelta(minutes=1), timedelta(days=1)
#: Name of the policy of a pool that was resized.
POLICY_NAME = "pools-page"
#: How long a node of a pool of fixed size has no work before it is released, if the pool is to be closed when idle.
RELEASED_AFTER = timedelta(minutes=5)


def obstacle_of(pool: Pool) -> str | None:
    """Return why the pool cannot be resized; None if it can."""
    if phase_of(pool) not in ("booting", "open") or not accepts_tasks(pool.state):
        return f"The pool is {pool.state}"
    policies = pool.scaling.policies if pool.scaling else ()
    if len(policies) > 1:
        return f"The pool has {len(policies)} scaling policies. Change them in its DAG"
    if policies and not isinstance(policies[0], (FixedPolicy, ManagedTasksQueuePolicy)):
        return "This release does not know the scaling policy of the pool. Change it in its DAG"
    return None


def obstacle_to_idle_close(pool: Pool) -> str | None:
    """Return why the pool cannot be marked as one that is closed when it is idle; None if it can."""
    if pool.elastic and pool.elastic.is_elastic and not pool.scaling:
        return "The pool is elastic, and has no policy whose name tells the reaper. Release its idle nodes by a resize"
    return obstacle_of(pool)


def max_slots_of(pool: Pool) -> int:
    """Return the maximum number of slots of the pool: that of its policy or of its elasticity, else its size."""
    if pool.scaling:
        sizes = [
            getattr(policy, "max_total_slots", None) or getattr(policy, "slots_count", None) or 0
            for policy in pool.scaling.policies
        ]
        return max(sizes, default=0) or target_slots(pool)
    if pool.elastic and pool.elastic.is_elastic:
        return pool.elastic.max_total_slots or target_slots(pool)
    return target_slots(pool)


def resized(pool: Pool, slots: int, idle: timedelta | None) -> dict[str, Any]:
    """Return the settings of the pool with another size, as :meth:`PoolResource.update` takes them.

    :param slots: number of slots, or the maximum of a pool that follows its load.
    :param idle: release nodes that have had no work for so long, all of them. None: as before.
    """
    if pool.elastic and pool.elastic.is_elastic and not pool.scaling:
        return {"elastic": _elastic(pool.elastic, slots, idle)}
    policy = pool.scaling.policies[0] if pool.scaling else FixedPolicy(slots_count=slots, name=POLICY_NAME)
    name = policy.name or POLICY_NAME
    if isinstance(policy, ManagedTasksQueuePolicy):
        bounds = _bounds(policy.min_total_slots, policy.min_idle_slots, slots, idle)
        changed: Policy = replace(policy, **bounds, min_idle_time=idle or policy.min_idle_time)
    elif idle is None:
        changed = FixedPolicy(slots_count=slots, name=name, enabled_periods=_periods(policy))
    else:
        changed = ManagedTasksQueuePolicy(
            name=name,
            max_total_slots=slots,
            min_idle_time=idle,
            scaling_factor=1,
            enabled_periods=_periods(policy),
        )
    return {"scaling": Scaling(policies=[changed])}


def closing_when_idle(pool: Pool, wanted: bool) -> Scaling:
    """Return the scaling with which idle nodes go and the reaper closes the idle pool. Not *wanted*: it keeps it."""
    name = idle_close_policy(pool.uuid) if wanted else POLICY_NAME
    policy = pool.scaling.policies[0] if pool.scaling else None
    if isinstance(policy, ManagedTasksQueuePolicy):
        if wanted:
            idle = min(policy.min_idle_time, RELEASED_AFTER)
            policy = replace(policy, min_total_slots=0, min_idle_slots=0, min_idle_time=idle)
        return Scaling(policies=[replace(policy, name=name)])
    released = ManagedTasksQueuePolicy(
        name=name,
        max_total_slots=max(1, max_slots_of(pool)),
        min_idle_time=RELEASED_AFTER,
        scaling_factor=1,
        enabled_periods=(AlwaysPeriod(),) if policy is None else _periods(policy),
    )
    return Scaling(policies=[released])


def _elastic(present: ElasticProperty, slots: int, idle: timedelta | None) -> Elastic:
    kept = {
        name: value
        for name in ("resize_period", "ramp_resize_factor", "min_idle_time")
        if (value := getattr(present, name)) is not None
    }
    bounds = _bounds(present.min_total_slots or 0, present.min_idle_slots or 0, slots, idle)
    return Elastic(**{**kept, **bounds, **({"min_idle_time": idle} if idle else {})})


def _bounds(minimum: int, spare: int, slots: int, idle: timedelta | None) -> dict[str, Any]:
    """Return the bounds of a pool that follows its load. Nodes that stay without work are none if *idle* is given."""
    if idle is not None:
        minimum = spare = 0
    return {
        "min_total_slots": min(minimum, slots),
        "max_total_slots": slots,
        "min_idle_slots": min(spare, slots),
    }


def _periods(policy: Policy) -> Sequence[Period]:
    return policy.enabled_periods if isinstance(policy, FixedPolicy) else (AlwaysPeriod(),)
