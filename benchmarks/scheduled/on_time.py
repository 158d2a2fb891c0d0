"""The DAGs of ``benchmarks.on_time``, which run every few minutes, some seconds after one another.

The environment variable ``ON_TIME`` holds their number and parameters as JSON.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.ahead import open_ahead
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

PLAN: dict[str, Any] = json.loads(os.environ["ON_TIME"])
GAP = PLAN["minutes"] * 60 // PLAN["dags"]

for number in range(PLAN["dags"]):
    minute, second = divmod(number * GAP, 60)
    group = {
        "shared": f"pool{number}",
        "instance_count": 2,
        "keep_warm": timedelta(seconds=PLAN["keep_warm"]),
    }
    dag = DAG(f"due{number}", schedule=f"{minute}-59/{PLAN['minutes']} * * * * {second}", catchup=False)
    with dag, QarnotPoolGroup("nodes", **group):
        QarnotRunTaskOperator(task_id="work", command="date +%s.%N", log_output=False)
    globals()[dag.dag_id] = dag
    if number < PLAN["ahead"]:
        open_ahead(dag, lead=timedelta(seconds=PLAN["lead"]))
