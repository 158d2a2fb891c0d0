"""The DAGs of the distributed tests, of the soak and of the load: a pool, and a fan of short work on it.

What a run does is told by its conf: ``seconds`` that every Qarnot task lasts. Every Qarnot task is tagged with
the run's id, and the local Qarnot's account of them is what the tests judge by.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

COMMON: dict[str, Any] = {"tags": ["{{ run_id }}"]}
COMMAND = "sleep {{ dag_run.conf.get('seconds', 1) }}"
FAN = 4


def dag(name: str) -> DAG:
    defaults = {"retries": 20, "retry_delay": timedelta(seconds=1)}
    return DAG(name, schedule=None, max_active_runs=64, max_active_tasks=6000, default_args=defaults)


def work() -> None:
    """A mapped fan, one task that waits on the worker, and many commands in one Airflow task."""
    fan = QarnotRunTaskOperator.partial(task_id="fan", command=COMMAND, **COMMON).expand(
        constants=[{"N": str(n)} for n in range(FAN)]
    )
    on_worker = QarnotRunTaskOperator(task_id="on_worker", command=COMMAND, deferrable=False, **COMMON)
    fan >> QarnotRunTasksOperator(task_id="many", commands=[COMMAND, COMMAND], **COMMON)
    fan >> on_worker


with dag("own_pool"), QarnotPoolGroup("group", instance_count=2, slots_per_node=2, **COMMON):
    work()
