"""Whether the last user keeps a shared pool for the next run: the sums, and what bounds them."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.sizing.linger import LingerFacts, decide_linger, time_to_zero

MINUTE = timedelta(minutes=1)
#: Four nodes at a cent a node-minute. A boot costs four node-minutes of waiting, 4 cents.
FACTS = LingerFacts(
    gap=2 * MINUTE, keep_warm=10 * MINUTE, nodes=4, worth=0.05, price=0.01 / 60, boot_node_seconds=240.0
)
#: By the case: changed facts, whether the pool is kept, and a part of the reason.
CASES: dict[str, tuple[dict[str, Any], bool, str]] = {
    "8 cents of idle nodes for 9 cents": ({}, True, "cost 0.0800 EUR, and no boot is worth 0.0900 EUR"),
    "12 cents of idle nodes for 9 cents": ({"gap": 3 * MINUTE}, False, "cost 0.1200 EUR"),
    "exactly as much": ({"gap": timedelta(seconds=135)}, True, "cost 0.0900 EUR"),
    "only if it is cheaper than a boot": ({"worth": 0.0}, False, "worth 0.0400 EUR"),
    "cheaper than a boot": ({"worth": 0.0, "gap": MINUTE}, True, "cost 0.0400 EUR"),
    "no boot is on record": ({"boot_node_seconds": 0.0}, False, "worth 0.0500 EUR"),
    "the run is due": ({"gap": timedelta(), "worth": 0.0}, True, "cost 0.0000 EUR"),
    "at the end of keep_warm": ({"gap": 10 * MINUTE, "worth": 1.0}, True, "cost 0.4000 EUR"),
    "after keep_warm, whatever it is worth": (
        {"gap": 11 * MINUTE, "worth": 100.0},
        False,
        "shut down in 600 s",
    ),
    "before its nodes are gone, at the last moment": (
        {"idle": 8 * MINUTE, "worth": 1.0},
        True,
        "cost 0.0800 EUR",
    ),
    "after its nodes are gone": ({"idle": 9 * MINUTE, "worth": 100.0}, False, "shut down in 60 s"),
    "its nodes are about to go": ({"idle": 11 * MINUTE, "gap": timedelta()}, False, "shut down in 0 s"),
    "no next run": ({"gap": None}, False, "no next run"),
    "nothing shuts down its nodes": ({"keep_warm": None}, False, "nothing but its end"),
    "tasks remain on it": ({"is_busy": True, "worth": 100.0}, False, "unfinished Qarnot tasks"),
    "its nodes are gone": ({"nodes": 0}, False, "none of its nodes"),
    "its price is unknown": ({"price": None, "worth": 100.0}, False, "price"),
    "it costs nothing so far": ({"price": 0.0, "worth": 0.0}, True, "cost 0.0000 EUR"),
}


@pytest.mark.parametrize(("changes", "keeps", "reason"), CASES.values(), ids=CASES)
def test_a_pool_is_kept_if_that_costs_less_than_a_boot(
    changes: dict[str, Any], keeps: bool, reason: str
) -> None:
    decision = decide_linger(dataclasses.replace(FACTS, **changes))
    assert decision.keeps is keeps
    assert reason in decision.reason


@pytest.mark.parametrize("minutes", range(20))
@pytest.mark.parametrize("worth", [0.0, 0.1, 10.0])
def test_a_run_that_does_not_come_costs_at_most_keep_warm(minutes: int, worth: float) -> None:
    decision = decide_linger(dataclasses.replace(FACTS, gap=minutes * MINUTE, worth=worth))
    assert decision.at_most == pytest.approx(0.4 if decision.keeps else 0.0)


def test_time_that_nodes_were_idle_already_costs_nothing_more() -> None:
    assert decide_linger(dataclasses.replace(FACTS, idle=8 * MINUTE)).at_most == pytest.approx(0.08)


def managed(**fields: Any) -> dict[str, Any]:
    policy = {
        "type": "ManagedTasksQueue",
        "name": "p",
        "maxTotalSlots": 4,
        "minIdleTimeSeconds": 600,
        **fields,
    }
    return {"scaling": {"policies": [policy]}}


FIXED = {"type": "Fixed", "slotsCount": 0, "name": "none"}
ELASTIC = {"isElastic": True, "minTotalSlots": 0, "minIdleSlots": 0, "minIdleTimeSeconds": 90}
#: Pools, and the seconds after which Qarnot shuts down their idle nodes.
POOLS: dict[str, tuple[dict[str, Any], float | None]] = {
    "of a fixed size": ({"instanceCount": 4}, None),
    "managed": (managed(), 600),
    "managed, with a minimum": (managed(minTotalSlots=1), None),
    "managed, with a free slot": (managed(minIdleSlots=1), None),
    "managed at times": ({"scaling": {"policies": [FIXED, *managed()["scaling"]["policies"]]}}, None),
    "elastic": ({"elasticProperty": ELASTIC}, 90),
    "elastic, with a minimum": ({"elasticProperty": {**ELASTIC, "minTotalSlots": 1}}, None),
    "elastic settings that are off": ({"elasticProperty": {**ELASTIC, "isElastic": False}}, None),
}


@pytest.mark.parametrize(("fields", "seconds"), POOLS.values(), ids=POOLS)
def test_only_pools_that_scale_to_zero_linger(fields: dict[str, Any], seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert time_to_zero(Pool.from_json({"uuid": "p", **fields})) == expected
