"""The DAGs of ``benchmarks.dag_makespan``: each shape of work, done in each way.

The environment variable ``MAKESPAN`` holds both as JSON.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from airflow.sdk import DAG, BaseHook, chain, task

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

PLAN: dict[str, Any] = json.loads(os.environ["MAKESPAN"])


def floor(nodes: int, stages: list[int], seconds: float) -> None:
    """Airflow alone: tasks that sleep for as long as the boot and the work take, as many at a time as nodes."""

    @task
    def open_pool() -> str:
        time.sleep(PLAN["boot"])
        return "pool"

    @task
    def work(pool: str, part: int) -> None:
        time.sleep(seconds)

    @task
    def close_pool(pool: str) -> None:
        pass

    pool = open_pool()
    steps = [
        work.override(task_id=f"stage_{number}", max_active_tis_per_dagrun=nodes)
        .partial(pool=pool)
        .expand(part=list(range(count)))
        for number, count in enumerate(stages)
    ]
    chain(pool, *steps, close_pool(pool))


def connect() -> Any:
    """Return a connection of the official SDK."""
    import qarnot

    connection = BaseHook.get_connection("qarnot_default")
    return qarnot.connection.Connection(cluster_url=connection.host, client_token=connection.password)


def sdk(nodes: int, stages: list[int], seconds: float) -> None:
    """Python tasks that call the official SDK: ``run()`` of its task, and a loop until its pool is ready."""

    @task
    def open_pool() -> str:
        pool = connect().create_pool("warm", "docker-batch", nodes)
        pool.submit()
        while pool.state != "FullyExecuting":
            time.sleep(1)
            pool.update(True)
        return str(pool.uuid)

    @task
    def work(pool: str, part: int, stage: str) -> None:
        connection = connect()
        made = connection.create_task(f"{stage} {part}", connection.retrieve_pool(pool), 1)
        made.constants["DOCKER_CMD"] = f"sleep {seconds}"
        made.run()

    @task
    def close_pool(pool: str) -> None:
        connect().retrieve_pool(pool).close()

    pool = open_pool()
    steps = [
        work.override(task_id=f"stage_{number}")
        .partial(pool=pool, stage=f"stage_{number}")
        .expand(part=list(range(count)))
        for number, count in enumerate(stages)
    ]
    chain(pool, *steps, close_pool(pool))


def ours(nodes: int, stages: list[int], seconds: float, **options: Any) -> None:
    """Tasks in a QarnotPoolGroup."""
    with QarnotPoolGroup("pool", instance_count=nodes):
        chain(
            *(
                QarnotRunTaskOperator.partial(
                    task_id=f"stage_{number}", command=f"sleep {seconds}", **options
                ).expand(constants=[{"PART": str(part)} for part in range(count)])
                for number, count in enumerate(stages)
            )
        )


for shape, work in PLAN["shapes"].items():
    for way, options in PLAN["ways"].items():
        with DAG(f"{shape}.{way}", schedule=None, default_args={"retries": 0}):
            {"floor": floor, "sdk": sdk}.get(way, ours)(**work, **options)
