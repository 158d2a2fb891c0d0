"""What a run costs and may cost, where workers and triggerers are processes of their own."""

from __future__ import annotations

import re

from tests.stack.world import Run, World


def not_tried_again(run: Run, pool: str, task: str = "work", map_index: int = -1) -> None:
    """It failed for what *pool* has cost, with tries left. Airflow itself may have lost a try before, when busy."""
    found = run.instance(task, map_index)
    assert found["state"] == "failed"
    assert found["try_number"] <= found["max_tries"]
    error = rf"QarnotCostLimitError.*Pool {pool} has cost 0\.7\d+ EUR.* max_cost of 0\.5000 EUR"
    said = [name for name, text in run.worker_logs(task, map_index).items() if re.search(error, text)]
    assert said == [f"attempt={found['try_number']}.log"]


def test_a_pool_over_its_limit_is_closed_and_its_tasks_are_not_tried_again(world: World) -> None:
    run = world.run("pool_with_limit", "over_its_limit", lane="dear")
    for n in range(2):
        run.wait_watched(map_index=n)
    (pool,) = run.pools()
    # Two nodes cost 0.72 EUR in an hour.
    run.lane.qarnot.advance_clock(3600)
    run.wait_all_pools("Closed")
    assert run.wait_end() == "failed"
    for n in range(2):
        not_tried_again(run, pool.uuid, map_index=n)
    assert run.instance("stop")["state"] == "success"
    account = run.lane.qarnot.get_account()["pools"][pool.uuid]
    assert account["nodesUp"] == 0


def test_a_pool_over_its_limit_is_closed_while_nothing_waits_on_it(world: World) -> None:
    run = world.run("pool_with_limit_between", "over_its_limit_between", lane="between")
    run.wait_state("running", task="between")
    (pool,) = run.pools()
    run.lane.qarnot.advance_clock(3600)
    # The triggerer in which the first task had waited goes on watching.
    run.wait_all_pools("Closed")
    assert run.instance("between")["state"] == "running"
    run.open_gate()
    assert run.wait_end() == "failed"
    not_tried_again(run, pool.uuid, "after")
    assert len(run.tasks()) == 1, "nothing is submitted to a pool over its limit"


def test_workers_and_triggerers_send_their_metrics(world: World) -> None:
    run = world.run("mapped_3", "metrics")
    for n in range(3):
        run.wait_watched(map_index=n)
    # From a task process, and from a triggerer, where Airflow sets up other stats than those providers use.
    for name in (
        "qarnot.claims.fresh_submit",
        "qarnot.requests",
        "qarnot.poll.waiters",
        "qarnot.poll.duration",
    ):
        run.wait(lambda name=name: name in world.statsd.seen(), f"the metric {name}")
    run.open_gate()
    run.wait_end()
