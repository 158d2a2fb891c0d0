"""The size that a pool is given on the Pools page: tables, no server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.ownership.termination import closes_when_idle
from airflow_qarnot_pool.plugins.resizing import (
    closing_when_idle,
    max_slots_of,
    obstacle_of,
    obstacle_to_idle_close,
    resized,
)

FIXED = {"type": "Fixed", "name": "f", "slotsCount": 4}
MANAGED = {
    "type": "ManagedTasksQueue",
    "name": "keep-warm",
    "minTotalSlots": 2,
    "maxTotalSlots": 4,
    "minIdleSlots": 1,
    "minIdleTimeSeconds": 600,
    "scalingFactor": 1,
}
ELASTIC = {
    "isElastic": True,
    "minTotalSlots": 2,
    "maxTotalSlots": 4,
    "minIdleSlots": 0,
    "resizePeriod": 90,
    "rampResizeFactor": 0.4,
    "minIdleTimeSeconds": 60,
}


def pool(*policies: Any, state: str = "FullyExecuting", **fields: Any) -> Pool:
    scaling = {"scaling": {"policies": list(policies)}} if policies else {}
    return Pool.from_json({"uuid": "u", "state": state, "instanceCount": 4, **scaling, **fields})


NO_IDLE = {"minTotalSlots": 0, "minIdleSlots": 0, "minIdleTimeSeconds": 300}


@pytest.mark.parametrize(
    ("found", "slots", "idle", "expected"),
    [
        (pool(), 2, None, {"type": "Fixed", "slotsCount": 2, "name": "pools-page"}),
        (pool(), 2, 300, {"type": "ManagedTasksQueue", "maxTotalSlots": 2, **NO_IDLE, "scalingFactor": 1.0}),
        (pool(FIXED), 9, None, {"type": "Fixed", "slotsCount": 9, "name": "f"}),
        (pool(FIXED), 9, 300, {"type": "ManagedTasksQueue", "maxTotalSlots": 9, "name": "f", **NO_IDLE}),
        (pool(MANAGED), 8, None, {**MANAGED, "maxTotalSlots": 8}),
        (pool(MANAGED), 1, None, {**MANAGED, "maxTotalSlots": 1, "minTotalSlots": 1}),
        (pool(MANAGED), 8, 300, {**MANAGED, "maxTotalSlots": 8, **NO_IDLE}),
    ],
)
def test_policies(found: Pool, slots: int, idle: int | None, expected: dict[str, Any]) -> None:
    made = resized(found, slots, None if idle is None else timedelta(seconds=idle))
    [policy] = made["scaling"].to_json()["policies"]
    assert {name: policy.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (pool(targetRunningInstanceCount=3), 3),
        (pool(FIXED, targetRunningInstanceCount=3), 4),
        (pool({**MANAGED, "maxTotalSlots": 50}, targetRunningInstanceCount=2), 50),
        (pool(elasticProperty={**ELASTIC, "maxTotalSlots": 50}, targetRunningInstanceCount=2), 50),
        (pool(elasticProperty={"isElastic": True}, targetRunningInstanceCount=2), 2),
        (pool({"type": "Martian", "name": "m"}, targetRunningInstanceCount=2), 2),
    ],
)
def test_the_maximum_of_a_pool_is_not_its_size_of_the_moment(found: Pool, expected: int) -> None:
    assert max_slots_of(found) == expected


def test_an_elastic_pool_stays_elastic() -> None:
    """Qarnot takes only one of the two."""
    grown = resized(pool(elasticProperty=ELASTIC), 8, None)
    assert (grown.keys(), grown["elastic"].to_json()) == ({"elastic"}, {**ELASTIC, "maxTotalSlots": 8})
    idle = resized(pool(elasticProperty=ELASTIC), 8, timedelta(minutes=5))["elastic"].to_json()
    assert {name: idle[name] for name in NO_IDLE} == NO_IDLE


@pytest.mark.parametrize(
    ("found", "obstacle"),
    [
        (pool(), None),
        (pool(state="Submitted"), None),
        (pool(MANAGED), None),
        (pool(state="Closing"), "The pool is Closing"),
        (pool(state="Closed"), "The pool is Closed"),
        (pool(state="Molten"), "The pool is Molten"),
        (pool(MANAGED, {**FIXED, "name": "other"}), "2 scaling policies"),
        (pool({"type": "Martian", "name": "m"}), "does not know the scaling policy"),
    ],
)
def test_pools_that_cannot_be_resized(found: Pool, obstacle: str | None) -> None:
    for said in (obstacle_of(found), obstacle_to_idle_close(found)):
        assert said is None if obstacle is None else obstacle in (said or "")


def test_an_elastic_pool_has_no_policy_to_name() -> None:
    """Qarnot refuses one together with its settings."""
    elastic = pool(elasticProperty=ELASTIC)
    assert obstacle_of(elastic) is None
    assert "elastic" in (obstacle_to_idle_close(elastic) or "")


@pytest.mark.parametrize(
    ("found", "maximum", "idle"),
    [
        (pool(), 4, 300),
        (pool(FIXED), 4, 300),
        (pool(MANAGED), 4, 300),
        (pool({**MANAGED, "minIdleTimeSeconds": 60}), 4, 60),
        (pool({**FIXED, "slotsCount": 0}, targetRunningInstanceCount=0), 1, 300),
    ],
)
def test_a_pool_that_is_closed_when_idle_releases_its_nodes_and_can_be_kept(
    found: Pool, maximum: int, idle: int
) -> None:
    def after(wanted: bool, before: Pool) -> Pool:
        scaling = closing_when_idle(before, wanted).to_json()
        return Pool.from_json({"uuid": "u", "state": "FullyExecuting", "scaling": scaling})

    marked = after(True, found)
    [policy] = marked.scaling.to_json()["policies"]  # type: ignore[union-attr]
    expected = {**NO_IDLE, "minIdleTimeSeconds": idle, "maxTotalSlots": maximum}
    assert {name: policy[name] for name in expected} == expected
    assert closes_when_idle(marked)
    # Another size does not change the wish.
    resize = resized(marked, 9, None)["scaling"].to_json()
    assert closes_when_idle(Pool.from_json({"uuid": "u", "state": "FullyExecuting", "scaling": resize}))
    kept = after(False, marked)
    assert not closes_when_idle(kept)
    [policy] = kept.scaling.to_json()["policies"]  # type: ignore[union-attr]
    assert {name: policy[name] for name in expected} == expected
