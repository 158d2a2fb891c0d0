"""A pool that follows its load: no node without work, up to two for the first task, up to five for the second.

The group does not wait for an elastic pool. The pool boots nodes when there is work, and gives them back when they have
been idle for `min_idle_time`. `raise_limit` changes the limits of the pool while it runs.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, chain

from airflow_qarnot_pool.api.specs import Elastic
from airflow_qarnot_pool.operators.pool import QarnotUpdatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

COMMAND = "sh -c 'echo instance $INSTANCE_ID of $INSTANCE_COUNT; sleep 1'"


def up_to(slots: int) -> Elastic:
    """Return limits for a pool that has at most *slots* slots."""
    return Elastic(
        max_total_slots=slots,
        resize_period=timedelta(seconds=90),
        ramp_resize_factor=0.9,
        min_idle_time=timedelta(minutes=2),
    )


with DAG(
    "qarnot_elastic_pool",
    description="A pool that grows and shrinks with its load",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    with QarnotPoolGroup("nodes", pool_spec={"elastic": up_to(2)}) as nodes:
        narrow = QarnotRunTaskOperator(task_id="narrow", command=COMMAND, instance_count=1)
        raise_limit = QarnotUpdatePoolOperator(
            task_id="raise_limit", qarnot_pool=nodes.pool, elastic=up_to(5)
        )
        wide = QarnotRunTaskOperator(task_id="wide", command=COMMAND, instance_count=5)
        chain(narrow, raise_limit, wide)
