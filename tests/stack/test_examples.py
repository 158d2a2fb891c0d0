"""Every example runs on a real scheduler, and leaves its pool closed, or without nodes that stay on."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from tests.stack.conftest import EXAMPLES
from tests.stack.world import World

#: Less to do than a user would choose.
CONF: dict[str, dict[str, Any]] = {
    "qarnot_params": {"nodes": 1, "items": 2},
    "qarnot_taskflow": {"parts": 2, "darts": 1000},
    "qarnot_warm_pool": {"seconds": 0},
}
#: What they do for the pools of others has tests of its own.
WITHOUT_POOL = ("qarnot_cost_report", "qarnot_executor", "qarnot_maintenance")
#: Its Qarnot task runs on no pool.
LADDER = "qarnot_ladder"
#: Keeps its pool for the next scheduled run. Its nodes shut down by keep_warm.
LINGERS = "qarnot_on_time"


@pytest.mark.parametrize("example", sorted(file.stem for file in EXAMPLES.glob("qarnot_*.py")))
def test_example_on_a_real_scheduler(world: World, example: str) -> None:
    qarnot = world.lanes["default"].qarnot
    world.airflow.wait_dag(example)
    run_id = world.airflow.trigger(example, CONF.get(example, {}), f"on_a_scheduler_{example}")
    state = world.wait(lambda: world.database.end_state(example, run_id), f"the end of {example}")
    assert state == "success", world.database.story(example, run_id)
    if example in WITHOUT_POOL:
        return
    with QarnotClient(qarnot.url, qarnot.token) as client:
        work = [
            one
            for one in client.tasks.list()
            if one.labels.get("airflow.run_id") == run_id and not one.labels["airflow.role"]
        ]
        assert work
        assert {one.state for one in work} == {"Success"}
        (pool,) = {one.pool for one in work}
        if pool is None:
            assert example == LADDER
            return
        if example == LINGERS:
            scaling = client.pools.get(str(pool)).scaling
            assert scaling is not None
            assert [getattr(one, "min_total_slots", None) for one in scaling.policies] == [0]
            return
        world.wait(
            lambda: client.pools.get(str(pool)).state == "Closed", f"the pool of {example} to be closed"
        )
