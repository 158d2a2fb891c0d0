"""A backfill of many days on one pool, which another DAG uses, too.

Each day is a DAG run, and without `shared` each would boot a separate pool. Here all overlapping runs of both DAGs use
the pool `days`: the first opens it, and the last closes it. `max_active_runs` limits how many of them compete for its
slots. All DAGs that share a pool must give the same parameters, so they are in one place.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

DAYS: dict[str, Any] = {
    "shared": "days",
    "instance_count": 4,
    "warm_up": False,  # the first task boots the nodes that it needs
    "keep_warm": timedelta(minutes=15),
    "report_cost": True,  # this run's share of the pool, as XCom of close_pool
}
COMMON: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1),
    "catchup": False,
    "tags": ["qarnot"],
    "default_args": {"retries": 2, "retry_delay": timedelta(seconds=10)},
}

with (
    DAG(
        "qarnot_shared_pool",
        description="A pool for all days of a backfill",
        doc_md=__doc__,
        schedule="@daily",
        max_active_runs=8,
        **COMMON,
    ) as dag,
    QarnotPoolGroup("nodes", **DAYS),
):
    load = QarnotRunTaskOperator(task_id="load", command="echo the data of {{ dag_run.run_after | ds }}")
    model = QarnotRunTaskOperator.partial(task_id="model").expand(
        command=[f"echo region {region} on {{{{ dag_run.run_after | ds }}}}" for region in ("north", "south")]
    )
    load >> model

with DAG("qarnot_shared_pool_check", schedule="@weekly", **COMMON) as check, QarnotPoolGroup("nodes", **DAYS):
    QarnotRunTaskOperator(task_id="check", command="echo all is well")
