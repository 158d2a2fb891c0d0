"""Pools and Qarnot tasks as Qarnot would report them, for tests of sizes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.costs.model import Cost, PoolCost, TaskUsage
from airflow_qarnot_pool.ownership.identity import RunKey

T0 = datetime(2026, 1, 1, tzinfo=UTC)
RUN = RunKey("dag", "run")
EUROS = 0.0001


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def task(task_id: str, created: float, ended: float | None, *seconds: float, **fields: Any) -> TaskUsage:
    """A Qarnot task of one instance, unless *seconds* has several."""
    each = seconds or ((ended or created) - created,)
    values: dict[str, Any] = {
        "uuid": f"{task_id} {created}",
        "run": RUN,
        "task_id": task_id,
        "seconds": sum(each),
        "instances": len(each),
        "instance_seconds": tuple(each),
        "created": at(created),
        "ended": None if ended is None else at(ended),
    }
    return TaskUsage(**{**values, **fields})


def pool(**fields: Any) -> Pool:
    """A pool of fixed size, unless *fields* of the API say otherwise."""
    return Pool.from_json({"uuid": "p", "state": "Closed", **fields})


def cooling(size: int, keep_warm: int, period: Any = None, **fields: Any) -> Pool:
    """A pool that scales down."""
    policy = {
        "type": "ManagedTasksQueue",
        "name": "queue",
        "minTotalSlots": 0,
        "maxTotalSlots": size,
        "minIdleSlots": 0,
        "minIdleTimeSeconds": keep_warm,
        "scalingFactor": 1.0,
        "enabledPeriods": [period or {"type": "Always"}],
    }
    return pool(scaling={"policies": [policy]}, **fields)


def cost(*work: TaskUsage, paid: float | None, ended: float = 1000, size: int = 2, **fields: Any) -> PoolCost:
    """The cost of a pool that was created at 0."""
    used = sum(one.seconds for one in work)
    values: dict[str, Any] = {
        "uuid": "p",
        "name": "p",
        "opened_by": RUN,
        "cost": Cost(euros=None if paid is None else paid * EUROS, node_seconds=paid, used_node_seconds=used),
        "size": size,
        "created": at(0),
        "ended": at(ended),
        "work": work,
    }
    return PoolCost(**{**values, **fields})
