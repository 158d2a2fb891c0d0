"""The DAGs of the distributed tests, of the soak and of the load: a pool, and a little short work on it.

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

#: Qarnot tasks of a mapped fan, and of one Airflow task.
FAN, MANY = 2, 2

#: What the runs of each DAG do. Every Airflow task costs seconds of CPU, so no run does everything.
WORK = {"own_pool": ("fan",), "shared_pool": ("on_worker", "many"), "shared_pool_too": ("many",)}


def dag(name: str) -> DAG:
    # An api-server that is away costs a try every few seconds; to come back it may need minutes on a busy machine.
    defaults = {"retries": 30, "retry_delay": timedelta(seconds=5)}
    return DAG(name, schedule=None, max_active_runs=64, max_active_tasks=6000, default_args=defaults)


def work(name: str) -> None:
    """A mapped fan, one task that waits on the worker, or many commands in one Airflow task."""
    if "fan" in WORK[name]:
        QarnotRunTaskOperator.partial(task_id="fan", command=COMMAND).expand(
            constants=[{"N": str(n)} for n in range(FAN)]
        )
    if "on_worker" in WORK[name]:
        QarnotRunTaskOperator(task_id="on_worker", command=COMMAND, deferrable=False)
    if "many" in WORK[name]:
        QarnotRunTasksOperator(task_id="many", commands=[COMMAND] * MANY)


with dag("own_pool"), QarnotPoolGroup("group", instance_count=2, slots_per_node=2):
    work("own_pool")

for name in ("shared_pool", "shared_pool_too"):
    with (
        dag(name),
        QarnotPoolGroup(
            "group", shared="spread", instance_count=4, slots_per_node=4, keep_warm=timedelta(minutes=2)
        ),
    ):
        work(name)
