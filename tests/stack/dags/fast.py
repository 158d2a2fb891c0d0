"""Many Airflow tasks whose Qarnot tasks end at once or soon, with no retry that would hide a lost one."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

COUNT = 200

with DAG("fast", schedule=None, default_args={"retries": 0}):
    QarnotRunTaskOperator.partial(
        task_id="work",
        qarnot_conn_id="{{ dag_run.conf['conn'] }}",
        qarnot_pool="{{ dag_run.conf['pool'] }}",
        task_spec={"tags": ["{{ run_id }}"]},
    ).expand(command=[f"sleep {0.5 * (number % 7)}" for number in range(COUNT)])
