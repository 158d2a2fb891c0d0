"""A pipeline that runs every morning: its stages hand files to each other in a bucket.

The pool boots while Airflow goes on (`wait_for_completion=False`), and a sensor lets the work start as soon as two
nodes are there. Each stage writes to the day's bucket; the next one reads it. `archive` is submitted without being
waited for, and a sensor picks up its end while the report is written.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, chain, task

from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor

BUCKET = "sales-{{ dag_run.run_after | ds_nodash }}"


@task
def report(figures: Any) -> None:
    """Tell what the day's computation took."""
    logging.getLogger(__name__).info(
        "%(succeeded)s of %(instances)s instances succeeded, results are in %(result_bucket)s", figures
    )


with DAG(
    "qarnot_scheduled_pipeline",
    description="Daily: extract and compute on a pool, with results in a bucket",
    doc_md=__doc__,
    schedule="30 5 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["qarnot"],
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "execution_timeout": timedelta(hours=2),
    },
) as dag:
    open_pool = QarnotCreatePoolOperator(
        task_id="open_pool", instance_count=2, wait_for_completion=False, tags=["sales"]
    ).as_setup()
    close_pool = QarnotClosePoolOperator(task_id="close_pool", qarnot_pool=open_pool.output).as_teardown(
        setups=open_pool
    )
    pool_ready = QarnotPoolSensor(
        task_id="pool_ready",
        qarnot_pool=open_pool.output,
        ready_slots=2,
        wait_timeout=timedelta(minutes=30),
    )

    extract = QarnotRunTaskOperator(
        task_id="extract",
        qarnot_pool=open_pool.output,
        command="sh -c 'seq ${INSTANCE_ID} 2 100 > sales-${INSTANCE_ID}.txt'",
        instance_count=2,
        result_bucket=BUCKET,
    )
    compute = QarnotRunTaskOperator(
        task_id="compute",
        qarnot_pool=open_pool.output,
        command="sh -c 'sort -n sales-*.txt | tail -1 | tee best.txt'",
        resource_buckets=[BUCKET],
        result_bucket=BUCKET,
    )
    archive = QarnotRunTaskOperator(
        task_id="archive",
        qarnot_pool=open_pool.output,
        command="sh -c 'tar czf sales.tar.gz sales-*.txt best.txt'",
        resource_buckets=[BUCKET],
        result_bucket=BUCKET,
        wait_for_completion=False,
    )
    archived = QarnotTaskSensor(task_id="archived", qarnot_task=archive.output)

    chain(open_pool, pool_ready, extract, compute, archive, archived, close_pool)
    chain(compute, report(compute.output))
