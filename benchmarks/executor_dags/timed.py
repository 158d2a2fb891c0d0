"""The DAGs of ``benchmarks.executor``: mapped tasks that return when their first line ran.

The environment variable ``EXECUTOR_DAGS`` holds the executor, the number of tasks and how many of them
may be queued or run at once by DAG, as JSON.
"""

from __future__ import annotations

import json
import os
import time

from airflow.sdk import DAG, task

for dag_id, (executor, count, at_once) in json.loads(os.environ["EXECUTOR_DAGS"]).items():
    with DAG(
        dag_id,
        schedule=None,
        default_args={"executor": executor, "retries": 0},
        # Airflow's default of 16 would bound the run.
        max_active_tasks=at_once,
    ):

        @task
        def work(index: int) -> float:
            return time.time()

        work.expand(index=list(range(count)))
