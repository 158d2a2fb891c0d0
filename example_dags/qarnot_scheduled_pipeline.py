"""A pipeline that runs every morning: its stages hand files to each other in a bucket.

The work starts as soon as one of two nodes is up (`ready_when`). Airflow's object storage (`ObjectStoragePath`, which
needs the `[storage]` extra) writes the inputs to the day's bucket. Each stage reads the bucket and writes to it. The
report reads its result there. `archive` is submitted without a wait, and a sensor waits for its end while the report is
written.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, AssetAlias, ObjectStoragePath, chain, task

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

BUCKET = "sales-{{ dag_run.run_after | ds_nodash }}"
STORAGE = "qarnot://qarnot_default@"


@task
def prices(bucket: str) -> None:
    """Put the day's input into the bucket."""
    inputs = ObjectStoragePath(f"{STORAGE}{bucket}/inputs/")
    inputs.mkdir(parents=True, exist_ok=True)
    (inputs / "prices.txt").write_text("".join(f"{price}\n" for price in range(1, 101)))


@task
def report(figures: Any) -> int:
    """Log the duration and the result of the day's computation."""
    best = ObjectStoragePath(f"{STORAGE}{figures['result_bucket']}/best.txt").read_text()
    logging.getLogger(__name__).info(
        "%s of %s instances succeeded; best: %s", figures["succeeded"], figures["instances"], best
    )
    return int(best)


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
    with QarnotPoolGroup("nodes", instance_count=2, ready_when=1, pool_spec={"tags": ["sales"]}) as nodes:
        extract = QarnotRunTaskOperator(
            task_id="extract",
            command="sh -c 'grep ${INSTANCE_ID}$ prices.txt > sales-${INSTANCE_ID}.txt'",
            instance_count=2,
            resource_buckets=[{"bucket": BUCKET, "prefix": "inputs/", "strip_prefix": "inputs/"}],
            result_bucket=BUCKET,
        )
        compute = QarnotRunTaskOperator(
            task_id="compute",
            command="sh -c 'sort -n sales-*.txt | tail -1 | tee best.txt'",
            resource_buckets=[BUCKET],
            result_bucket=BUCKET,
            # DAGs with schedule=[AssetAlias("sales")] start when the day's result is there.
            outlets=[AssetAlias("sales")],
        )
        archive = QarnotRunTaskOperator(
            task_id="archive",
            command="sh -c 'tar czf sales.tar.gz sales-*.txt best.txt'",
            resource_buckets=[BUCKET],
            result_bucket=BUCKET,
            wait_for_completion=False,
        )
        archived = QarnotTaskSensor(task_id="archived", qarnot_task=archive.output)
        chain(extract, compute, archive, archived)

    # The pool opens after the task on an Airflow worker, because idle nodes would be billed during it.
    prices(BUCKET) >> nodes
    report(compute.output)
