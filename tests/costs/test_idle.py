"""What idle nodes are put down to, and the setting that would have avoided it: a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.costs.idle import (
    IdleCause,
    IdleTime,
    PoolPhase,
    classify_idle_time,
    idle_time_of,
)
from airflow_qarnot_pool.costs.model import Cost, PoolCost, TaskUsage
from airflow_qarnot_pool.ownership.identity import RunKey

T0 = datetime(2026, 1, 1, tzinfo=UTC)
RUN = RunKey("dag", "run")


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def work(begin: float, end: float, instances: int = 1, **fields: Any) -> TaskUsage:
    seconds = (end - begin) * instances
    return TaskUsage(
        uuid=f"{begin}",
        run=RUN,
        seconds=seconds,
        created=at(begin),
        ended=at(end),
        instances=instances,
        **fields,
    )


def stage(*works: TaskUsage, paid: float, size: int = 4, ended: float = 1000, **fields: Any) -> PoolPhase:
    per_node = fields.get("slots_per_node", 1)
    used = sum(one.seconds for one in works) / per_node
    return PoolPhase(paid=paid, used=used, size=size, created=at(0), ended=at(ended), work=works, **fields)


TEN_MINUTES = timedelta(minutes=10)
CASES = {
    "nothing idle": (stage(work(0, 1000, 4), paid=4000), {}, None, 0),
    "too little to speak of": (
        stage(work(0, 10, 4), paid=48, ended=12),
        {IdleCause.TAIL: 8},
        None,
        0,
    ),
    "a fixed pool left open after its work": (
        stage(work(0, 500, 4), paid=4000),
        {IdleCause.TAIL: 2000},
        "keep_warm=",
        2000,
    ),
    "a pool that cools down, closed late": (
        stage(work(0, 100, 4), paid=2800, keep_warm=TEN_MINUTES),
        {IdleCause.TAIL: 2400},
        "Closing the pool earlier",
        2400,
    ),
    "opened long before its work": (
        stage(work(600, 1000, 4), paid=4000),
        {IdleCause.HEAD: 2400},
        "Opening the pool later",
        2400,
    ),
    "nothing ran at all": (stage(paid=4000), {IdleCause.HEAD: 4000}, "Opening the pool later", 4000),
    "a long pause in the middle": (
        stage(work(0, 100, 4), work(900, 1000, 4), paid=4000),
        {IdleCause.GAPS: 3200},
        "keep_warm=",
        3200,
    ),
    "the same, and it cools down": (
        stage(work(0, 100, 4), work(900, 1000, 4), paid=3200, keep_warm=TEN_MINUTES),
        {IdleCause.GAPS: 2400},
        "A shorter keep_warm",
        2400,
    ),
    "twice the slots that were ever wanted": (
        stage(work(0, 1000, 2), paid=4000),
        {IdleCause.SIZE: 2000},
        "instance_count=2",
        2000,
    ),
    "the same with four slots a node": (
        stage(work(0, 1000, 6), paid=4000, size=16, slots_per_node=4),
        {IdleCause.SIZE: 2500},
        "instance_count=8",
        2500,
    ),
    "one straggler": (
        stage(work(0, 100, 4), work(100, 1000, 1), paid=4000),
        {IdleCause.UNEVEN: 2700},
        "keep_warm=",
        2700,
    ),
    "a boot that took its time": (
        stage(work(500, 1000, 4), paid=3500, warm_up=1500),
        {IdleCause.WARM_UP: 1500},
        "warm_up=False",
        1500,
    ),
    "more demand than slots is no negative idleness": (
        stage(work(0, 500, 4), work(0, 1000, 4), paid=6000, ended=1500),
        {},
        None,
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_causes_and_the_setting(name: str) -> None:
    facts, causes, setting, saves = CASES[name]
    found = classify_idle_time(facts)
    assert found.idle == max(0, facts.paid - facts.used)
    assert {cause: round(seconds) for cause, seconds in found.causes.items()} == causes
    assert (found.setting is None) is (setting is None)
    assert setting is None or (found.setting is not None and found.setting.startswith(setting))
    assert round(found.saves) == saves
    assert sum(found.causes.values()) <= found.idle + 1e-6


def test_written_for_people() -> None:
    facts, *_ = CASES["twice the slots that were ever wanted"]
    assert str(classify_idle_time(facts)) == (
        "2000 of 4000 node-seconds paid were idle (50%): about 2000 more slots than work. "
        "instance_count=2 would have saved about 2000"
    )
    unexplained = IdleTime(paid=31, idle=26, causes={IdleCause.GAPS: 12, IdleCause.HEAD: 7})
    assert str(unexplained).endswith(
        "about 7 before the first task, about 7 for other reasons, such as boots"
    )
    assert str(classify_idle_time(CASES["nothing idle"][0])) == "0 of 4000 node-seconds paid were idle (0%)"
    assert classify_idle_time(facts).to_json() == {
        "paid": 4000,
        "idle": 2000,
        "share": 0.5,
        "causes": {"more slots than work": 2000},
        "setting": "instance_count=2",
        "saves": 2000,
    }


def test_the_warm_up_is_no_use() -> None:
    cost = Cost(node_seconds=100, used_node_seconds=40)
    pool = PoolCost(
        uuid="p",
        name="p",
        opened_by=RUN,
        cost=cost,
        size=2,
        created=at(0),
        work=(work(0, 20, 2, role="warm-up"), work(20, 40, 2)),
    )
    found = idle_time_of(pool, at(50))
    assert found is not None
    assert (found.idle, found.causes) == (60, {IdleCause.WARM_UP: 40, IdleCause.TAIL: 20})
    unknown = PoolCost(uuid="p", name="p", opened_by=RUN, cost=Cost(node_seconds=None))
    assert idle_time_of(unknown) is None
