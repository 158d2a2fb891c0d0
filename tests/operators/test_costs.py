"""Costs of pools, tasks and runs match the node-seconds that the local Qarnot itself counts."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.costs.model import Cost, sum_costs
from airflow_qarnot_pool.costs.queries import cost_of_pool, cost_of_run, cost_of_task
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.teardown_cost import COST_KEY
from airflow_qarnot_pool.ownership.identity import RunKey
from tests.crash.children import eventually
from tests.harness import FakeTI, run
from tests.operators.conftest import connect

create = partial(QarnotCreatePoolOperator, task_id="create", instance_count=2, retries=1)
task = partial(QarnotRunTaskOperator, task_id="work", retries=1, log_output=False)
close = partial(QarnotClosePoolOperator, task_id="close", wait_for_completion=True)
WORK = "sh -c 'sleep 0.2'"


def ti(run_id: str, task_id: str = "work", **fields: Any) -> FakeTI:
    return FakeTI(run_id=run_id, task_id=task_id, **{"max_tries": 1, **fields})


def account_of(qarnot: LocalQarnot, *pools: str) -> Cost:
    """What the local Qarnot's own account says of some pools."""
    account = qarnot.get_account()
    assert account["eurosPerNodeSecond"] == 0.0001
    mine = [account["pools"][uuid] for uuid in pools]
    seconds = sum(pool["nodeSeconds"] for pool in mine)
    assert seconds > 0
    return Cost(
        euros=sum(pool["creditsSpent"] for pool in mine),
        # 100 W a node, and 3 % of overhead.
        energy_wh=seconds * 100 / 3600 * 1.03,
        carbon_g=seconds * 100 / 3600 * 1.03 * 0.05,
        saved_g=None,
        node_seconds=seconds,
        used_node_seconds=None,
    )


def assert_matches(found: Cost, account: Cost) -> None:
    for name in ("euros", "energy_wh", "carbon_g", "node_seconds"):
        assert getattr(found, name) == pytest.approx(getattr(account, name), rel=1e-3, abs=1e-6), name


def test_a_run_costs_what_its_nodes_cost_after_a_retry_and_a_clear_too(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    first = run(create, ti(run_id, "create"))
    failing = partial(task, qarnot_pool=first, command=f"sh -c 'sleep 0.1; test -e {tmp_path}/mended'")
    with pytest.raises(QarnotTaskFailedError):
        run(failing, ti(run_id))
    (tmp_path / "mended").touch()
    run(failing, ti(run_id, try_number=2))
    # The user clears the task, and so its setup, which closes the first pool.
    second = run(create, ti(run_id, "create", try_number=2, max_tries=2))
    run(partial(failing, qarnot_pool=second), ti(run_id, try_number=3, max_tries=3))
    teardown = ti(run_id, "close")
    run(partial(close, qarnot_pool=second, report_cost=True), teardown)
    eventually(lambda: client.pools.get(first).state == "Closed")

    assert second != first
    cost = cost_of_run(client, "test", "dag", run_id)
    assert [pool.uuid for pool in cost.pools] == [first, second]
    assert_matches(cost.total, account_of(qarnot, first, second))
    assert cost.by_task()["work"] == cost.total
    report = teardown.xcoms[COST_KEY]
    assert_matches(Cost.from_json(report["run"]["total"]), account_of(qarnot, first, second))
    assert_matches(Cost.from_json(report["pool"]["cost"]), account_of(qarnot, second))


def test_used_and_idle_time_are_those_of_the_nodes(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    pool = run(partial(create, slots_per_node=2, instance_count=4), ti(run_id, "create"))
    run(partial(task, qarnot_pool=pool, command=WORK, instance_count=3), ti(run_id))
    run(partial(close, qarnot_pool=pool), ti(run_id, "close"))
    cost = cost_of_pool(client, pool).cost
    account = qarnot.get_account()["pools"][pool]
    assert cost.used_node_seconds is not None
    assert cost.idle_node_seconds is not None
    assert cost.used_node_seconds > 0.3
    # The account counts a slot from the moment it is given, execution begins a moment later.
    assert cost.used_node_seconds <= account["busySlotSeconds"] / 2 + 0.01
    assert cost.used_node_seconds == pytest.approx(account["busySlotSeconds"] / 2, abs=0.5)
    assert cost.used_node_seconds + cost.idle_node_seconds == pytest.approx(account["nodeSeconds"], abs=0.01)


def test_runs_that_share_a_pool_have_shares_that_add_up(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    one, two = f"{run_id}-1", f"{run_id}-2"
    pool = run(create, ti(one, "create"))
    results = [
        run(partial(task, qarnot_pool=pool, command="sh -c 'sleep 0.6'"), ti(one)),
        run(partial(task, qarnot_pool=pool, command="sh -c 'sleep 0.2'"), ti(two)),
        run(partial(task, qarnot_pool=pool, command="true", task_id="other"), ti(two, "other")),
    ]
    alone = run(partial(task, command=WORK, task_id="alone"), ti(two, "alone"))
    run(partial(close, qarnot_pool=pool), ti(one, "close"))

    first = cost_of_run(client, "test", "dag", one).total
    second = cost_of_run(client, "test", "dag", two)
    assert_matches(first + second.pools[0].share_of(RunKey("dag", two)), account_of(qarnot, pool))
    seconds = [result["execution_seconds"] for result in results]
    whole = account_of(qarnot, pool).euros or 0.0
    assert first.euros == pytest.approx(whole * seconds[0] / sum(seconds), rel=0.01)
    of_tasks = [cost_of_task(client, result["uuid"]) for result in results]
    assert_matches(sum_costs(of_tasks), account_of(qarnot, pool))
    # A Qarnot task with nodes of its own is all its run's.
    own = cost_of_task(client, alone["uuid"])
    assert own.euros
    assert second.by_task()["alone"] == own
    assert second.total.euros == pytest.approx(
        sum(cost.euros or 0 for cost in of_tasks[1:]) + own.euros, rel=1e-3
    )


def test_the_teardown_closes_first_and_tells_afterwards(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = run(create, ti(run_id, "create"))
    run(partial(task, qarnot_pool=pool, command=WORK), ti(run_id))
    qarnot.clear_requests()
    teardown = ti(run_id, "close")
    run(partial(close, qarnot_pool=pool, wait_for_completion=False), teardown)
    asked = [f"{one['method']} {one['path']}".replace(pool, "u") for one in qarnot.requests()]
    assert asked == [
        "POST /pools/u/close",
        "GET /pools/u",
        "GET /credits/v1/pools/u/credits",
        "GET /carbon/v1/pools/u/carbon-facts",
        "GET /pools/u/tasks",
    ]
    said = capsys.readouterr().out
    assert f"Pool {pool} has cost 0.000" in said
    assert "node-seconds paid were idle" in said
    assert COST_KEY not in teardown.xcoms


@pytest.mark.parametrize("kind", ["status", "reset", "garbage"])
def test_a_cost_that_cannot_be_found_out_spoils_nothing(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = run(create, ti(run_id, "create"))
    qarnot.faults([{"method": "GET", "path": "credits|/tasks$", "times": 100, "kind": kind, "status": 500}])
    teardown = ti(run_id, "close")
    assert run(partial(close, qarnot_pool=pool, report_cost=True), teardown) == pool
    assert client.pools.get(pool).state == "Closed"
    assert COST_KEY not in teardown.xcoms
    assert f"What pool {pool} has cost could not be found out" in capsys.readouterr().out


def test_a_pool_that_is_gone_has_no_cost_to_tell(qarnot: LocalQarnot, run_id: str) -> None:
    gone = "00000000-0000-4000-8000-000000000000"
    assert run(partial(close, qarnot_pool=gone, wait_for_completion=False), ti(run_id, "close")) == gone


def test_savings_are_against_the_data_centre_of_the_connection(
    qarnot: LocalQarnot,
    client: QarnotClient,
    server: LocalQarnot,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(server, monkeypatch, reference_datacenter="AWS Frankfurt")
    pool = run(create, ti(run_id, "create"))
    qarnot.clear_requests()
    teardown = ti(run_id, "close")
    run(partial(close, qarnot_pool=pool, report_cost=True), teardown)
    assert teardown.xcoms[COST_KEY]["reference"] == "AWS Frankfurt"
    facts = client.pools.carbon_facts(pool, "AWS Frankfurt")
    assert facts.equivalent_datacenter_name == "AWS Frankfurt"
    assert teardown.xcoms[COST_KEY]["pool"]["cost"]["saved_g"] == pytest.approx(
        facts.saved_carbon_footprint_compute_heat, abs=1e-3
    )


def test_an_account_that_may_not_see_credits_still_has_the_rest(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    qarnot.faults([{"method": "GET", "path": "/credits/", "times": 1, "kind": "status", "status": 403}])
    cost = cost_of_pool(client, pool).cost
    assert cost.euros is None
    assert cost.carbon_g is not None


def test_a_run_before_this_one_is_not_listed(qarnot: LocalQarnot, client: QarnotClient, run_id: str) -> None:
    pool = client.pools.create(
        PoolSpec(
            name="old",
            instance_count=1,
            tags=["airflow-namespace:test"],
            labels={"airflow.dag_id": "dag", "airflow.run_id": run_id},
        )
    )
    now = datetime.now(UTC)
    found = cost_of_run(client, "test", "dag", run_id, since=now)
    assert [one.uuid for one in found.pools] == [pool]
    qarnot.advance_clock(3600)
    later = datetime.fromtimestamp(qarnot.get_clock()["now"], UTC)
    assert cost_of_run(client, "test", "dag", run_id, since=later).pools == ()
    client.pools.delete(pool)
