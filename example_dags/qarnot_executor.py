"""Ordinary Airflow tasks on the nodes of a pool, with QarnotExecutor.

`simulate` is an ordinary Python function with two arguments of any task: `executor` and `executor_config`. Its four
copies share the warm pool of the deployment, and the other tasks stay on Airflow's workers. An Airflow without
QarnotExecutor cannot load a DAG that names it. So this DAG asks the configuration, and all its tasks run on workers
there. A DAG of your own needs only `executor="QarnotExecutor"`.
"""

from __future__ import annotations

from datetime import timedelta
from random import Random
from statistics import mean
from typing import Any

from airflow.configuration import conf
from airflow.sdk import DAG, task

HAS_EXECUTOR = "QarnotExecutor" in conf.get_mandatory_value("core", "executor")

with DAG(
    "qarnot_executor",
    description="Ordinary tasks on nodes, if Airflow has QarnotExecutor",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:

    @task
    def seeds() -> list[int]:
        """Return a seed for each copy of `simulate`."""
        return [1, 2, 3, 4]

    @task(
        executor="QarnotExecutor" if HAS_EXECUTOR else None,
        executor_config={"pool": "airflow"},  # the pool of [qarnot_executor]; its option `pools` adds others
    )
    def simulate(seed: int) -> float:
        """Estimate pi from random points in a square."""
        random = Random(seed)
        inside = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(100_000))
        return 4 * inside / 100_000

    @task
    def average(estimates: Any) -> float:
        """Return the mean of all estimates."""
        return float(mean(estimates))

    average(simulate.expand(seed=seeds()))
