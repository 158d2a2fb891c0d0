"""Pools that cool down by themselves, with no Airflow alive.

A managed pool has one scaling policy: no node without demand, the asked size as soon as there is some, and
``keep_warm`` of idleness before a node goes. One Qarnot task, the *warm-up*, is the demand that boots all of
it: as many instances as slots, each asleep until all run or no longer than the boot may take. (Quick no-ops
would all run on the first node to boot; a forgotten sleep ends by itself; a ``Weekly`` floor would come back
every week.)
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_qarnot_pool.identity import with_suffix

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import Scaling, TaskSpec

#: Longest that the nodes of a warm-up may take to boot, unless ``wait_timeout`` is shorter.
BOOT_DEADLINE = timedelta(minutes=30)
#: The part of the Airflow task instance's identity that the warm-up task carries.
WARM_UP = "warm-up"
#: What a trigger carries back when the warm-up ended before the pool was ready.
COLD = "cold"


def cooling_down(size: int, keep_warm: timedelta) -> Scaling:
    """The scaling of a managed pool of *size* slots."""
    from airflow_qarnot_pool.api.specs import ManagedTasksQueuePolicy, Scaling

    return Scaling(
        policies=[
            ManagedTasksQueuePolicy(
                name="keep-warm",
                min_total_slots=0,
                max_total_slots=size,
                min_idle_slots=0,
                min_idle_time=keep_warm,
                scaling_factor=1,
            )
        ]
    )


def warm_up(name: str, pool: str, size: int, limit: timedelta | None) -> TaskSpec:
    """The Qarnot task whose demand boots all of *pool*."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    longest = min(limit or BOOT_DEADLINE, BOOT_DEADLINE)
    return TaskSpec(
        name=with_suffix(name, " (warm-up)"),
        pool=pool,
        instance_count=size,
        command=f"sleep {max(1, int(longest.total_seconds()))}",
    )
