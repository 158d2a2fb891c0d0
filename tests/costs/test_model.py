"""Arithmetic of costs: shares, sums, what is not known, how it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.costs.model import (
    Cost,
    PoolCost,
    RunCost,
    TaskUsage,
    execution_cost,
    sum_costs,
    to_fractions,
)
from airflow_qarnot_pool.ownership.identity import RunKey

A, B, NOBODY = RunKey("dag", "a"), RunKey("dag", "b"), RunKey("", "")
COST = Cost(euros=1.2, energy_wh=60.0, carbon_g=3.0, saved_g=9.0, node_seconds=1200, used_node_seconds=900)


def work(run: RunKey, seconds: float, **fields: Any) -> TaskUsage:
    return TaskUsage(uuid=f"{run.run_id}-{seconds}", run=run, seconds=seconds, **fields)


def pool(*works: TaskUsage, cost: Cost = COST, opened_by: RunKey = A) -> PoolCost:
    return PoolCost(uuid="p", name="pool", opened_by=opened_by, cost=cost, work=works)


@pytest.mark.parametrize(
    ("works", "shares"),
    [
        ((), {A: 1.0}),
        ((work(A, 10),), {A: 1.0}),
        ((work(A, 30), work(B, 10)), {A: 0.75, B: 0.25}),
        ((work(A, 30), work(A, 30), work(B, 20)), {A: 0.75, B: 0.25}),
        ((work(B, 10),), {B: 1.0}),
        ((work(A, 0), work(B, 0)), {A: 0.5, B: 0.5}),
        ((work(A, 10), work(NOBODY, 30)), {A: 0.25, NOBODY: 0.75}),
        ((work(A, 500, role="warm-up"), work(B, 10)), {B: 1.0}),
        ((work(A, 500, role="warm-up"),), {A: 1.0}),
        # One that was cancelled in the queue, and others that wait there.
        ((work(B, 0, has_run=False),), {A: 1.0, B: 0.0}),
        ((work(A, 0, has_run=False), work(B, 0, has_run=False)), {A: 1.0, B: 0.0}),
        ((work(A, 0, has_run=False), work(B, 0)), {A: 0.0, B: 1.0}),
    ],
    ids=lambda value: "",
)
def test_a_pool_is_shared_by_execution_seconds_and_the_shares_add_up(
    works: tuple[TaskUsage, ...], shares: dict[RunKey, float]
) -> None:
    by_run = pool(*works).by_run()
    assert {run: cost.euros for run, cost in by_run.items()} == pytest.approx(
        {run: 1.2 * share for run, share in shares.items()}
    )
    whole = sum_costs(by_run.values())
    for name in ("euros", "energy_wh", "carbon_g", "saved_g", "node_seconds", "used_node_seconds"):
        assert getattr(whole, name) == pytest.approx(getattr(COST, name))


def test_a_run_pays_on_a_pool_of_the_executor_what_it_executes_whatever_is_deleted_by_now() -> None:
    """1,200 node-seconds of two slots each were paid. Some of their tasks are deleted, and the rest was idle."""
    works = (work(A, 240, task_id="x"), work(B, 120), work(B, 1, role="warm-up"), work(B, 0, has_run=False))
    cost = replace(COST, used_node_seconds=180)
    found = replace(pool(*works, cost=cost, opened_by=NOBODY), is_of_executor=True, slots_per_node=2)
    by_run = found.by_run()
    assert {run: share.euros for run, share in by_run.items()} == pytest.approx(
        {A: 0.12, B: 0.06, NOBODY: 1.02}
    )
    assert {run: share.idle_node_seconds for run, share in by_run.items()} == pytest.approx(
        {A: 0, B: 0, NOBODY: 1020}
    )
    assert sum_costs(by_run.values()).to_json() == pytest.approx(cost.to_json())
    fewer = replace(found, work=works[:1])
    assert fewer.share_of(A).euros == pytest.approx(0.12)
    assert RunCost(run=A, pools=(fewer,)).by_task()["x"].euros == pytest.approx(0.12)


QUEUED = {"uuid": "t", "state": "Submitted", "status": None}
CANCELLED = {"cancelledRange": "0-1", "failedRange": "0-1", "failedOnlyRange": "", "executionTimeSec": 0.0}
RAN = {
    "it waits in the queue": (QUEUED, False),
    "it was cancelled in the queue": ({**QUEUED, "status": CANCELLED}, False),
    "it has started": ({**QUEUED, "status": {"startedOnceRange": "0"}}, True),
    "it was cancelled while it ran": ({**QUEUED, "status": {**CANCELLED, "executionTimeSec": 0.2}}, True),
    "it succeeded in no time": ({**QUEUED, "status": {"succeededRange": "0", "executionTimeSec": 0.0}}, True),
    "it failed in no time": ({**QUEUED, "status": {"executedRange": "0", "failedRange": "0"}}, True),
}


@pytest.mark.parametrize(("body", "ran"), RAN.values(), ids=RAN)
def test_whether_a_qarnot_task_has_run(body: dict[str, Any], ran: bool) -> None:
    assert TaskUsage.of(Task.from_json(body)).has_run is ran


def test_a_run_has_its_share_of_each_pool_and_all_of_what_ran_alone() -> None:
    shared = pool(work(A, 30, task_id="x"), work(B, 10, task_id="x"))
    own = pool(work(A, 1, task_id="x"), work(A, 2, task_id="y", map_index=3))
    run = RunCost(run=A, pools=(shared, own), standalone=((work(A, 5, task_id="z"), Cost(euros=0.5)),))
    assert run.total.euros == pytest.approx(0.9 + 1.2 + 0.5)
    by_task = {task: cost.euros for task, cost in run.by_task().items()}
    assert by_task == pytest.approx({"x": 0.9 + 0.4, "y": 0.8, "z": 0.5})
    assert RunCost(run=B, pools=(shared,)).total.euros == pytest.approx(0.3)
    assert RunCost(run=A, pools=(pool(),)).by_task() == {"": COST}


def test_the_unknown_stays_unknown_and_nothing_is_nothing() -> None:
    assert sum_costs([]) == Cost(euros=0.0)
    half_known = sum_costs([COST, Cost(euros=1.0, carbon_g=None)])
    assert half_known.euros == pytest.approx(2.2)
    assert half_known.carbon_g is None
    assert half_known.share(0.5).carbon_g is None
    assert half_known.idle_node_seconds == 300
    assert Cost(node_seconds=None).idle_node_seconds is None
    # What is used can be measured a little longer than what was paid.
    assert Cost(node_seconds=1.0, used_node_seconds=1.1).idle_node_seconds == 0.0


def test_there_and_back_through_json() -> None:
    for cost in (COST, Cost(), Cost(euros=None, node_seconds=None)):
        assert Cost.from_json(cost.to_json()) == cost
    assert COST.to_json()["idle_node_seconds"] == 300
    assert RunCost(run=A, pools=(pool(work(A, 1, task_id="x")),)).to_json()["tasks"] == {"x": COST.to_json()}


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (COST, "1.20 EUR, 60 Wh, 3 g CO2e, 9 g CO2e saved"),
        (Cost(euros=0.01234, energy_wh=0.5, carbon_g=None, saved_g=None), "0.0123 EUR, 0.5 Wh"),
        (
            Cost(euros=1234.5, energy_wh=12345.6, carbon_g=1234.5, saved_g=0.1234),
            "1234.50 EUR, 12.35 kWh, 1.23 kg CO2e, 0.123 g CO2e saved",
        ),
        (Cost(euros=None, energy_wh=None, carbon_g=None, saved_g=None), "an unknown number of EUR"),
    ],
)
def test_written_for_people(cost: Cost, text: str) -> None:
    assert str(cost) == text


def test_fractions_of_nothing_are_equal() -> None:
    assert to_fractions({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert to_fractions({}) == {}


EXECUTIONS: dict[str, tuple[Cost, float | None, int, Cost]] = {
    "a quarter of the node-seconds": (
        COST,
        300.0,
        1,
        Cost(euros=0.3, energy_wh=15.0, carbon_g=0.75, saved_g=2.25, node_seconds=300, used_node_seconds=300),
    ),
    "slots of a node": (
        COST,
        1200.0,
        4,
        Cost(euros=0.3, energy_wh=15.0, carbon_g=0.75, saved_g=2.25, node_seconds=300, used_node_seconds=300),
    ),
    "figures of the pool that come late": (
        Cost(euros=1.0, node_seconds=10.0),
        20.0,
        1,
        Cost(euros=1.0, node_seconds=20.0, used_node_seconds=20.0),
    ),
    "no figures yet": (
        Cost(euros=0.0, node_seconds=0.0),
        5.0,
        1,
        Cost(
            euros=None, energy_wh=None, carbon_g=None, saved_g=None, node_seconds=5.0, used_node_seconds=5.0
        ),
    ),
    "unknown seconds": (
        COST,
        None,
        1,
        Cost(
            euros=None, energy_wh=None, carbon_g=None, saved_g=None, node_seconds=None, used_node_seconds=None
        ),
    ),
}


@pytest.mark.parametrize(("cost", "seconds", "slots", "expected"), EXECUTIONS.values(), ids=EXECUTIONS)
def test_execution_costs_its_part_of_the_paid_node_seconds(
    cost: Cost, seconds: float | None, slots: int, expected: Cost
) -> None:
    assert execution_cost(cost, seconds, slots).to_json() == expected.to_json()
