"""What a record tells of the demand on a pool: a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_qarnot_pool.sizing.demand import Demand, SizeRule, WarmUpTask, demand_of, upstreams_of
from tests.sizing.pools import RUN, at, cooling, cost, pool, task

CHAIN = upstreams_of("dag", {"a": ["b"], "b": ["c"], "c": []})
FORK = upstreams_of("dag", {"a": ["b", "c"], "b": [], "c": []})
BESIDE = upstreams_of("dag", {"a": ["b"], "b": [], "x": ["y"], "y": []})


def demand(*work: Any, of: Any = None, upstreams: Any = None, paid: float = 1900, **fields: Any) -> Demand:
    found = demand_of(of or pool(), cost(*work, paid=paid, **fields), upstreams, at(2000))
    assert found is not None
    return found


def causes(found: Demand) -> dict[str, tuple[dict[str, int], float]]:
    """The causes and the delay of each work, by task id."""
    return {
        str(work.key[1]): ({key[1] or "any": count for key, count in work.causes}, work.delay)
        for work in found.works
    }


def test_upstreams_are_those_through_others_too() -> None:
    assert {("dag", "a"): frozenset(), ("dag", "b"): {"a"}, ("dag", "c"): {"a", "b"}} == CHAIN


CAUSES = {
    "a chain": (
        (task("a", 60, 100), task("b", 103, 200), task("c", 230, 300)),
        CHAIN,
        {"a": ({}, 60), "b": ({"a": 1}, 3), "c": ({"a": 1, "b": 1}, 30)},
    ),
    "a chain without its DAG": (
        (task("a", 60, 100), task("b", 103, 200), task("c", 230, 300)),
        None,
        {"a": ({}, 60), "b": ({"any": 1}, 3), "c": ({"any": 2}, 30)},
    ),
    "branches side by side": (
        (task("a", 60, 100), task("x", 60, 101), task("b", 102, 200), task("y", 103, 200)),
        BESIDE,
        {"a": ({}, 60), "x": ({}, 60), "b": ({"a": 1}, 2), "y": ({"x": 1}, 2)},
    ),
    "branches side by side without their DAG": (
        (task("a", 60, 100), task("x", 60, 101), task("b", 102, 200), task("y", 103, 200)),
        None,
        {"a": ({}, 60), "x": ({}, 60), "b": ({"any": 2}, 1), "y": ({"any": 2}, 2)},
    ),
    "a fork": (
        (task("a", 60, 100), task("b", 101, 200), task("c", 101, 150)),
        FORK,
        {"a": ({}, 60), "b": ({"a": 1}, 1), "c": ({"a": 1}, 1)},
    ),
    "an end in the same second": (
        (task("a", 60, 100), task("b", 100, 200)),
        CHAIN,
        {"a": ({}, 60), "b": ({"a": 1}, 0)},
    ),
}


@pytest.mark.parametrize(("work", "upstreams", "expected"), CAUSES.values(), ids=CAUSES)
def test_a_submission_follows_ends(work: Any, upstreams: Any, expected: Any) -> None:
    assert causes(demand(*work, upstreams=upstreams)) == expected


def test_the_next_command_of_a_task_follows_an_end_of_the_task_itself() -> None:
    work = [task("a", 60, 100), task("a", 60, 120), task("a", 101, 140), task("a", 122, 150)]
    found = demand(*work, upstreams=CHAIN)
    assert [(dict(one.causes), one.delay) for one in found.works] == [
        ({}, 60),
        ({}, 60),
        ({(RUN, "a"): 1}, 1),
        ({(RUN, "a"): 2}, 2),
    ]


def test_mapped_copies_that_were_submitted_together_follow_no_end() -> None:
    found = demand(task("a", 60, 62, 1), task("a", 63, 100), upstreams=CHAIN, of=cooling(2, 60))
    assert [work.causes for work in found.works] == [(), ((((RUN, "a")), 1),)]
    found = demand(task("a", 3, 5, 1), task("a", 6, 100), upstreams=CHAIN, of=cooling(2, 60))
    assert [work.causes for work in found.works] == [(), ()]


BOOTS = {
    "a fixed size pays from the boots on": ((task("a", 60, 100),), pool(), {"paid": 1900}, (50.0,)),
    "a warm-up runs from the boots on": (
        (task("open", 1, 71, 10, 20, role="warm-up"), task("a", 75, 100)),
        cooling(2, 60),
        {},
        (50.0, 60.0),
    ),
    "the slots of a node boot together": (
        (task("open", 1, 71, 10, 10, 20, 20, role="warm-up"), task("a", 75, 100)),
        cooling(4, 60),
        {"size": 4, "slots_per_node": 2},
        (50.0, 60.0),
    ),
    "the first work waits for a boot": ((task("a", 5, 105, 60),), cooling(2, 60), {}, (40.0,)),
}


@pytest.mark.parametrize(("work", "of", "fields", "expected"), BOOTS.values(), ids=BOOTS)
def test_boots_are_found(work: Any, of: Any, fields: Any, expected: Any) -> None:
    assert demand(*work, of=of, **fields).boots == expected


def test_the_warm_up_tells_when_the_pool_was_ready() -> None:
    all_ran = demand(task("open", 1, 71, 10, 20, role="warm-up"), task("a", 75, 100), of=cooling(2, 60))
    assert all_ran.warm_up == WarmUpTask(at=1, lag=10, waits_for_all=True)
    assert all_ran.works[0].delay == 75 - 71
    one_ran = demand(task("open", 1, 71, 20, role="warm-up"), task("a", 75, 100), of=cooling(2, 60))
    assert one_ran.warm_up == WarmUpTask(at=1, lag=20, waits_for_all=False)


def test_the_rule_is_that_of_the_pool() -> None:
    assert demand(task("a", 60, 100)).rule == SizeRule()
    assert demand(task("a", 60, 100), of=cooling(2, 90)).rule.keep_warm == 90
    elastic = {"isElastic": True, "maxTotalSlots": 2, "minIdleTimeSeconds": 30, "resizePeriod": 20}
    rule = demand(task("a", 60, 100), of=pool(elasticProperty=elastic)).rule
    assert (rule.keep_warm, rule.period, rule.ticks) == (30, 20, True)


NONE = {
    "no work": ((), pool(), {}),
    "a task that has not ended": ((task("a", 60, None, 40),), pool(), {}),
    "a task that failed": ((task("a", 60, 100, has_succeeded=False),), pool(), {}),
    "a task that was cancelled in the queue": (
        (task("a", 60, 100), task("b", 101, 110, 0, has_run=False, has_succeeded=False)),
        pool(),
        {},
    ),
    "too many instances": ((task("a", 60, 100, *[1.0] * 2001),), pool(), {}),
    "an unknown size": ((task("a", 60, 100),), pool(), {"size": None}),
    "several policies": (
        (task("a", 60, 100),),
        pool(scaling={"policies": [{"type": "Fixed", "slotsCount": 1, "name": name} for name in "ab"]}),
        {},
    ),
    "a policy of some hours": (
        (task("a", 60, 100),),
        cooling(
            2,
            60,
            period={
                "type": "Weekly",
                "name": "day",
                "days": ["Monday"],
                "startTimeUtc": "08:00:00",
                "endTimeUtc": "09:00:00",
            },
        ),
        {},
    ),
    "times beyond any run": ((task("a", 60, 100, 1e9),), pool(), {}),
    "times that are no numbers": ((task("a", 60, 100, float("nan")),), pool(), {}),
    "a size beyond any pool": ((task("a", 60, 100),), pool(), {"size": 10**9}),
    "instances beyond any array": (
        (task("a", 60, 100, instance_seconds=(), instances=10**9),),
        pool(),
        {},
    ),
    "a policy of another type": (
        (task("a", 60, 100),),
        pool(scaling={"policies": [{"type": "Lunar", "name": "moon"}]}),
        {},
    ),
}


@pytest.mark.parametrize(("work", "of", "fields"), NONE.values(), ids=NONE)
def test_a_record_that_tells_no_demand_yields_none(work: Any, of: Any, fields: Any) -> None:
    assert demand_of(of, cost(*work, paid=1900, **fields), None, at(2000)) is None


def test_a_retry_that_succeeded_completes_its_task() -> None:
    found = demand(task("a", 60, 100, has_succeeded=False), task("a", 105, 200))
    assert len(found.works) == 2


ENDS = {
    "a closed pool": (pool(), 1000.0),
    "a pool that is closing": (pool(state="Closing", stateTransitionTime="2026-01-01T00:05:00Z"), 300.0),
    "a pool that has been closing": (
        pool(previousState="Closing", previousStateTransitionTime="2026-01-01T00:05:00Z"),
        300.0,
    ),
}


@pytest.mark.parametrize(("of", "ended"), ENDS.values(), ids=ENDS)
def test_a_pool_is_paid_until_it_begins_to_close(of: Any, ended: float) -> None:
    assert demand(task("a", 60, 100), of=of, paid=500).tail == ended - 100


def test_a_pool_that_is_open_has_no_end() -> None:
    still = replace(cost(task("a", 60, 100), paid=500), ended=None)
    found = demand_of(pool(state="FullyExecuting"), still, None, at(2000))
    assert found is not None
    assert found.tail == 1900
