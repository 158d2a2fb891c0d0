"""The DAGs of the distributed tests, of the soak and of the load: a pool, and a fan of short work on it.

What a run does is told by its conf: ``seconds`` that every Qarnot task lasts, or a ``gate``, a file that somebody
has locked: they last until it is given up. Labels of the Qarnot tasks name their run, and the local Qarnot's account
of them is what the tests judge by.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

COMMAND = (
    "{% if dag_run.conf.get('gate') %}flock --shared {{ dag_run.conf['gate'] }} true"
    "{% else %}sleep {{ dag_run.conf.get('seconds', 1) }}{% endif %}"
)

#: Qarnot tasks of a run: a mapped fan of so many, one, and so many from one Airflow task.
FAN, MANY = 3, 2


def dag(name: str) -> DAG:
    defaults = {"retries": 20, "retry_delay": timedelta(seconds=1)}
    return DAG(name, schedule=None, max_active_runs=64, max_active_tasks=6000, default_args=defaults)


def work() -> None:
    """A mapped fan, then one task that waits on the worker, and many commands in one Airflow task."""
    fan = QarnotRunTaskOperator.partial(task_id="fan", command=COMMAND).expand(
        constants=[{"N": str(n)} for n in range(FAN)]
    )
    fan >> [
        QarnotRunTaskOperator(task_id="on_worker", command=COMMAND, deferrable=False),
        QarnotRunTasksOperator(task_id="many", commands=[COMMAND] * MANY),
    ]


with dag("own_pool"), QarnotPoolGroup("group", instance_count=2, slots_per_node=2):
    work()

for name in ("shared_pool", "shared_pool_too"):
    with (
        dag(name),
        QarnotPoolGroup(
            "group", shared="spread", instance_count=4, slots_per_node=4, keep_warm=timedelta(minutes=2)
        ),
    ):
        work()
