"""One warm pool for twelve tasks in three stages.

`open_pool` is a setup task and `close_pool` its teardown. The pool is closed even if the work between them fails, and
clearing a task opens a new pool for it. Only the first task waits for nodes to boot. The others run on warm nodes, four
at a time. A task that finds all four busy waits for a free one.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, chain

from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

SCRIPT = """sh -c 'echo "{stage} $PART in $PWD"; sleep {{{{ params.seconds }}}}; echo done'"""

with DAG(
    "qarnot_warm_pool",
    description="One warm pool shared by twelve tasks",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    params={"seconds": Param(5, type="number", minimum=0, title="Seconds that each task works")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    open_pool = QarnotCreatePoolOperator(task_id="open_pool", instance_count=4).as_setup()
    close_pool = QarnotClosePoolOperator(
        task_id="close_pool", qarnot_pool=open_pool.output, wait_for_completion=True, report_cost=True
    ).as_teardown(setups=open_pool)

    # One Qarnot task for each part. Mapped tasks also need an edge to the teardown.
    stages = [
        QarnotRunTaskOperator.partial(
            task_id=stage, qarnot_pool=open_pool.output, command=SCRIPT.format(stage=stage)
        ).expand(constants=[{"PART": str(part + 1)} for part in range(parts)])
        for stage, parts in {"fetch": 4, "simulate": 6, "report": 2}.items()
    ]
    chain(open_pool, *stages, close_pool)
