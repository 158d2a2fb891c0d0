"""All of Airflow is killed and does not come back. The last test: there is no deployment any more afterwards."""

from __future__ import annotations

import signal
from datetime import timedelta

from tests.stack.world import World

ALONE = True


def test_a_pool_kept_warm_cools_down_when_all_of_airflow_is_gone(world: World) -> None:
    run = world.run("group", "airflow_gone", lane="clock")
    qarnot = run.lane.qarnot
    run.wait_tasks("live", "live")
    (pool,) = run.pools()
    for component in world.airflow.components:
        world.airflow.signal(component, signal.SIGKILL)
    run.open_gate()
    run.wait_tasks("Success", "Success")
    assert [one for one in qarnot.nodes() if one["pool"] == pool.uuid]
    qarnot.advance_clock(timedelta(minutes=15).total_seconds())
    assert not [one for one in qarnot.nodes() if one["pool"] == pool.uuid]
    spent = qarnot.get_account()["pools"][pool.uuid]["nodeSeconds"]
    qarnot.advance_clock(timedelta(days=6).total_seconds())
    assert qarnot.get_account()["pools"][pool.uuid]["nodeSeconds"] == spent
