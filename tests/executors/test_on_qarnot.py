"""The Qarnot task of a workload on a local Qarnot, without Airflow."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.executors import node
from airflow_qarnot_pool.executors.workload_task import task_of
from airflow_qarnot_pool.local import LocalQarnot
from tests.executors.test_workload_task import TOKEN, options, workload


def spec_of(name: str, **given: Any) -> Any:
    return task_of(workload(), name, options(**given), SimpleNamespace(image=None))


def test_qarnot_shows_no_token(qarnot: LocalQarnot, client: QarnotClient) -> None:
    pool = client.pools.create(PoolSpec(name="p", profile="docker-network", instance_count=1))
    spec = replace(spec_of("shown", python="python3"), pool=pool, profile=None)
    task = client.tasks.create(spec)
    while not states.is_terminal(client.tasks.get(task).state):
        time.sleep(0.02)
    told = [json.dumps(qarnot.call("GET", path)) for path in (f"/tasks/{task}", "/tasks", f"/pools/{pool}")]
    told += [json.dumps(qarnot.requests()), client.tasks.stdout(task, 0), client.tasks.stderr(task, 0)]
    # The Python of nodes in tests has no Airflow, and says so.
    assert "No module named" in told[-1]
    secrets = [value for key, value in spec.constants.items() if node.WORKLOAD in key]
    assert secrets
    for secret in (TOKEN, *secrets):
        assert not [text for text in told if secret in text]
    client.pools.delete(pool)


def test_a_task_with_a_dead_token_gets_no_node(qarnot: LocalQarnot, client: QarnotClient) -> None:
    qarnot.withhold_nodes(True)
    try:
        pool = client.pools.create(PoolSpec(name="p", profile="docker-network", instance_count=1))
        task = client.tasks.create(replace(spec_of("dead", token_seconds=66.5), pool=pool, profile=None))
        qarnot.advance_clock(59)
        assert not states.is_terminal(client.tasks.get(task).state)
        qarnot.advance_clock(2)
        ended = client.tasks.get(task)
        assert ended.state == "Failure"
        assert "queued for more than 60 s" in str(ended.errors[0].message)
    finally:
        qarnot.withhold_nodes(False)
        client.pools.delete(pool)
