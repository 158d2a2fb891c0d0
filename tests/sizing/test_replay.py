"""Replays whose result can be worked out by hand: a table."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_qarnot_pool.ownership.identity import RunKey
from airflow_qarnot_pool.sizing.demand import Demand, Key, SizeRule, WarmUpTask, Work
from airflow_qarnot_pool.sizing.replay import replay

RUN = RunKey("dag", "run")
COOLING = SizeRule(keep_warm=60)


def key(task_id: str) -> Key:
    return RUN, task_id


def work(task_id: str, *seconds: float, after: dict[str, int] | None = None, delay: float = 0.0) -> Work:
    causes = tuple((key(above), count) for above, count in (after or {}).items())
    return Work(seconds, key(task_id), causes, delay)


def demand(*works: Work, **fields: Any) -> Demand:
    return Demand(works=works, **{"size": 2, "boots": (50.0,), **fields})


FAN = [work("a", 100.0) for _ in range(4)]
CASES = {
    "a fan on one node": (demand(*FAN), 1, 50 + 400, 400),
    "a fan on two nodes": (demand(*FAN), 2, 50 + 200, 400),
    "a fan on more nodes than work": (demand(*FAN), 5, 50 + 100, 500),
    "a fixed pool pays until it is closed": (demand(*FAN, tail=30), 2, 250, 460),
    "four slots on a node": (demand(*FAN, slots_per_node=4), 4, 150, 100),
    "the last node has fewer slots": (demand(*FAN, slots_per_node=3), 4, 150, 200),
    "an array": (demand(work("a", 30.0, 20.0, 10.0)), 2, 50 + 30, 60),
    "a stage follows the last end": (
        demand(work("a", 100.0), work("a", 100.0), work("b", 10.0, after={"a": 2}, delay=5)),
        1,
        50 + 200 + 5 + 10,
        215,
    ),
    "a stage moves with the size": (
        demand(work("a", 100.0), work("a", 100.0), work("b", 10.0, after={"a": 2}, delay=5)),
        2,
        50 + 100 + 5 + 10,
        2 * 115,
    ),
    "a branch does not wait for the other one": (
        demand(work("a", 10.0), work("x", 100.0), work("b", 10.0, after={"a": 1}, delay=2)),
        2,
        50 + 100,
        200,
    ),
    "nodes that boot on demand": (demand(*FAN, rule=COOLING), 2, 250, 400),
    "nodes that go after keep_warm": (demand(*FAN, rule=COOLING, tail=500), 2, 250, 520),
    "a node that goes in a gap boots again": (
        demand(work("a", 100.0), work("b", 10.0, after={"a": 1}, delay=90), rule=COOLING),
        1,
        50 + 100 + 90 + 50 + 10,
        160 + 10,
    ),
    "a warm-up boots all nodes before the work": (
        demand(work("a", 100.0, delay=5), rule=COOLING, warm_up=WarmUpTask(at=1, lag=2)),
        2,
        1 + 50 + 2 + 5 + 100,
        # Both are up from 51 on. One goes 60 s after the warm-up ended at 53.
        (158 - 51) + (113 - 51),
    ),
    "the fullest node takes the next work": (
        demand(
            work("a", 300.0),
            work("b", 300.0, delay=5),
            rule=COOLING,
            slots_per_node=2,
            warm_up=WarmUpTask(at=0, lag=0),
        ),
        4,
        50 + 5 + 300,
        (355 - 50) + 60,
    ),
    "the slowest boot decides when all nodes are ready": (
        demand(work("a", 10.0), rule=COOLING, warm_up=WarmUpTask(at=0, lag=0), boots=(20.0, 40.0)),
        2,
        40 + 10,
        30 + 10,
    ),
    "the fastest boot decides when one node is ready": (
        demand(
            work("a", 10.0),
            rule=COOLING,
            warm_up=WarmUpTask(at=0, lag=0, waits_for_all=False),
            boots=(20.0, 40.0),
        ),
        2,
        20 + 10,
        10,
    ),
    "a ramp adds a share of the size in each step": (
        demand(work("a", *[100.0] * 4), rule=SizeRule(keep_warm=600, factor=0.5, period=90)),
        4,
        # Two nodes are up at 50, two more are requested at 90 and up at 140.
        90 + 50 + 100,
        2 * 190 + 2 * 100,
    ),
}


@pytest.mark.parametrize(("given", "size", "seconds", "node_seconds"), CASES.values(), ids=CASES)
def test_a_replay_follows_the_rules(given: Any, size: int, seconds: float, node_seconds: float) -> None:
    run = replay(given, size)
    assert run.seconds == pytest.approx(seconds)
    assert run.node_seconds == pytest.approx(node_seconds)
