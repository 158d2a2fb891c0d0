"""Several tasks on each node: eight slots on two nodes.

With `slots_per_node` an instance of the pool is a slot, and four of them share a node. Use it for many small tasks:
sixteen instances run eight at a time, at the price of two nodes. Each instance gets its share of the node.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, chain

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

with DAG(
    "qarnot_multi_slot_pool",
    description="Several tasks on each node of a pool",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    with QarnotPoolGroup("nodes", instance_count=8, slots_per_node=4):
        # One Airflow task, one Qarnot task, sixteen instances: INSTANCE_ID tells them apart.
        render = QarnotRunTaskOperator(
            task_id="render",
            command="sh -c 'echo frame $INSTANCE_ID of $INSTANCE_COUNT; sleep 1'",
            instance_count=16,
            task_spec={"retry": 1},
        )
        # You can also choose the ids.
        some_again = QarnotRunTaskOperator(
            task_id="some_again",
            command="sh -c 'echo frame $INSTANCE_ID again'",
            task_spec={"ranges": "0-2,7"},
        )
        chain(render, some_again)
