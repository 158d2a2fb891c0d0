"""A pool that is warm when the run starts, and that stays for the next run if that is soon.

`open_ahead` makes a second DAG, which opens the pool of the first one ahead of each scheduled run, by the boot that was
seen before. With `linger` the last run keeps the pool if the idle nodes cost less until the next run than a boot, and
the ten cents that a run without a boot is worth here. If the run does not come, Qarnot shuts down the nodes after
`keep_warm`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.ahead import open_ahead
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

with (
    DAG(
        "qarnot_on_time",
        description="Forecasts that are due every five minutes by day",
        doc_md=__doc__,
        schedule="*/5 6-19 * * *",
        start_date=datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=1,
        tags=["qarnot"],
        default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    ) as dag,
    QarnotPoolGroup(
        "nodes", shared="forecasts", instance_count=2, keep_warm=timedelta(minutes=10), linger=0.10
    ),
):
    QarnotRunTaskOperator(task_id="forecast", command="echo region ${INSTANCE_ID}", instance_count=2)

open_ahead(dag, lead=timedelta(minutes=5))
