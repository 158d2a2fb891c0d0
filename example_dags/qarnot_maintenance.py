"""Close pools that outlived their use, every ten minutes.

This is the last resort: a DAG run that times out skips its teardown tasks, and a DAG may be deleted while its pool is
up. It handles only pools that this provider created in the connection's namespace, so the connection must have one.
Trigger it by hand with `report_only` to see its decisions without their effects.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param

from airflow_qarnot_pool.operators.reap import QarnotReapOperator

with DAG(
    "qarnot_maintenance",
    description="Close pools that outlived their use",
    doc_md=__doc__,
    schedule=timedelta(minutes=10),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["qarnot"],
    params={"report_only": Param(False, type="boolean", title="Report only", description="Close nothing")},
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
) as dag:
    QarnotReapOperator(
        task_id="reap",
        grace_period=timedelta(minutes=15),
        idle_timeout=timedelta(hours=1),
        report_only="{{ params.report_only }}",
    )
