"""A Qarnot task that ends right after its Airflow task has deferred costs no try of it."""

from __future__ import annotations

from collections import Counter

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from tests.stack.world import World

ALONE = True
COUNT = 200


def test_200_fast_tasks_succeed_without_a_retry(world: World) -> None:
    """Airflow's scheduler fails a task whose trigger fires before it has read that the first process has ended."""
    lane, run_id = world.lanes["plain"], "fast"
    client = QarnotClient(lane.qarnot.url, lane.qarnot.token)
    pool = client.pools.create(PoolSpec(name="fast", instance_count=20))
    world.airflow.trigger("fast", {"conn": lane.conn_id, "pool": pool}, run_id)
    world.wait(lambda: world.database.end_state("fast", run_id), "the end of the fast tasks")
    instances = world.airflow.task_instances("fast", run_id)
    lost = world.airflow.api("GET", "eventLogs", dag_id="fast", event="state mismatch")["event_logs"]
    assert [one["extra"] for one in lost] == []
    assert Counter(one["state"] for one in instances) == {"success": COUNT}
    assert {one["try_number"] for one in instances} == {1}
    made = Counter(one.state for one in client.tasks.list(tags=[run_id]))
    assert made == {"Success": COUNT}
    client.pools.delete(pool)
