"""The three ways of ``benchmarks.fan_out`` to run many commands; sizes and pool come from the environment."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, task

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator

COMMANDS = int(os.environ.get("BENCH_COMMANDS", "10"))
MAPPED = int(os.environ.get("BENCH_MAPPED", "2"))
POOL = os.environ.get("BENCH_POOL", "none")
# SQLite loses a deferred task now and then.
AGAIN = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG("one_airflow_task", schedule=None, default_args=AGAIN, is_paused_upon_creation=False):
    QarnotRunTasksOperator(task_id="work", qarnot_pool=POOL, commands=["true"] * COMMANDS)

with DAG("expand", schedule=None, default_args=AGAIN, is_paused_upon_creation=False):
    QarnotRunTaskOperator.partial(task_id="work", qarnot_pool=POOL).expand(command=["true"] * MAPPED)

with DAG("sdk_mapped", schedule=None, default_args=AGAIN, is_paused_upon_creation=False):

    @task
    def work(command: str) -> str:
        """What the SDK's documentation shows."""
        import qarnot

        connection = qarnot.connection.Connection(
            cluster_url=os.environ["BENCH_URL"], client_token=os.environ["BENCH_TOKEN"]
        )
        one = connection.create_task("work", connection.retrieve_pool(POOL), 1)
        one.constants["DOCKER_CMD"] = command
        one.run()
        return str(one.state)

    work.expand(command=["true"] * MAPPED)
