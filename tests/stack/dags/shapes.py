"""The DAGs of the tests with a real Airflow. What they do is told by the conf of their runs:

- ``gate``: a file; every Qarnot task runs until the test gives up its lock on it;
- ``conn``: the connection, of which each leads to a local Qarnot of its own;
- ``halts``: moment -> file; the first process to reach the moment makes the file and stays there.
"""

from __future__ import annotations

import fcntl
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

CONN = "{{ dag_run.conf['conn'] }}"
TAGGED = {"tags": ["{{ run_id }}"]}
TASK: dict[str, Any] = {"qarnot_conn_id": CONN, "task_spec": TAGGED}
POOL: dict[str, Any] = {"qarnot_conn_id": CONN, "pool_spec": TAGGED}
WORK: dict[str, Any] = {
    **TASK,
    "task_id": "work",
    "command": "flock --shared {{ dag_run.conf['gate'] }} true",
}


def dag(name: str, **kwargs: Any) -> DAG:
    defaults = {"retries": 2, "retry_delay": timedelta(seconds=1)}
    return DAG(name, schedule=None, max_active_runs=16, default_args=defaults, **kwargs)


def halt(context: Any, moment: str) -> None:
    """Stay here to be killed, if the run's conf says so and no earlier process has been here."""
    file = (context["dag_run"].conf.get("halts") or {}).get(moment)
    if file is None:
        return
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return
    while True:
        time.sleep(0.1)


class HaltingTask(QarnotRunTaskOperator):
    """Can be made to stand still between the Qarnot task's creation and the deferral."""

    def execute(self, context: Any) -> Any:
        self._context_of_this_try = context
        return super().execute(context)

    def defer(self, **kwargs: Any) -> Any:
        halt(self._context_of_this_try, "before the deferral")
        return super().defer(**kwargs)


# --- one Qarnot task, on nodes of its own

for name, options in {
    "deferred": {},
    "on_worker": {"deferrable": False},
    "deferred_patiently": {"retries": 50},
    "left_running": {"cancel_on_kill": False},
    "execution_timeout": {"execution_timeout": timedelta(seconds=20), "retries": 0},
    "wait_timeout": {"wait_timeout": timedelta(seconds=5), "retries": 0},
}.items():
    with dag(name):
        HaltingTask(**{**WORK, **options})

#: Writes a line now and then, and the API token, which only a careless command would.
SPEAKING = (
    "sh -c 'echo token {{ conn.get(dag_run.conf.conn).password }}; n=0; "
    "until flock --nonblock --shared {{ dag_run.conf.gate }} true; do echo line $n; n=$((n+1)); sleep 0.3; done'"
)
with dag("live"):
    QarnotRunTaskOperator(**{**WORK, "command": SPEAKING}, log_output="live")

for count in (3, 12):
    with dag(f"mapped_{count}"):
        QarnotRunTaskOperator.partial(**WORK).expand(constants=[{"N": str(n)} for n in range(count)])

with dag("two"):
    QarnotRunTaskOperator(**WORK)
    QarnotRunTaskOperator(**{**TASK, "task_id": "quick", "command": "true"})

with dag("many"):
    many = {name: value for name, value in WORK.items() if name != "command"}
    QarnotRunTasksOperator(**many, commands=[WORK["command"]] * 3)


# --- a pool, work on it, its end


def pooled(name: str, **options: Any) -> None:
    with dag(name):
        start = QarnotCreatePoolOperator(**{**POOL, "task_id": "start", "instance_count": 2, **options})
        work = QarnotRunTaskOperator.partial(**WORK, qarnot_pool=start.output).expand(
            constants=[{"N": "0"}, {"N": "1"}]
        )
        conn = {"qarnot_conn_id": CONN}
        stop = QarnotClosePoolOperator(task_id="stop", qarnot_pool=start.output, **conn)
        start.as_setup() >> work >> stop.as_teardown(setups=start)


pooled("pool")
pooled("pool_on_worker", deferrable=False)
pooled("pool_with_limit", max_cost=0.5)
pooled("pool_never_ready", wait_timeout=timedelta(seconds=4), retries=1)


def pass_the_gate(gate: str) -> None:
    """What an Airflow task does that needs no pool: here, wait for the test."""
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)


with dag("pool_with_limit_between"):
    opened = QarnotCreatePoolOperator(**{**POOL, "task_id": "start", "instance_count": 2, "max_cost": 0.5})
    # Long enough to be deferred, because the limit is checked between waits only by a triggerer that has waited.
    before = QarnotRunTaskOperator(
        **{**TASK, "task_id": "before", "command": "sleep 8"}, qarnot_pool=opened.output
    )
    between = PythonOperator(
        task_id="between", python_callable=pass_the_gate, op_args=["{{ dag_run.conf['gate'] }}"]
    )
    after = QarnotRunTaskOperator(
        **{**TASK, "task_id": "after", "command": "true"}, qarnot_pool=opened.output
    )
    closed = QarnotClosePoolOperator(task_id="stop", qarnot_pool=opened.output, qarnot_conn_id=CONN)
    opened.as_setup() >> before >> between >> after >> closed.as_teardown(setups=opened)

for name, options in {
    "group": {},
    "group_of_timed_out_run": {"dagrun_timeout": timedelta(days=1)},
}.items():
    with (
        dag(name, **options),
        QarnotPoolGroup(
            "group", instance_count=2, prefix_group_id=False, keep_warm=timedelta(minutes=10), **POOL
        ),
    ):
        QarnotRunTaskOperator.partial(**WORK).expand(constants=[{"N": "0"}, {"N": "1"}])

SHARED: dict[str, Any] = {
    "qarnot_conn_id": CONN,
    "shared": "stress",
    "instance_count": 4,
    "warm_up": False,
    "prefix_group_id": False,
}
with dag("shared_one"), QarnotPoolGroup("group", **SHARED):
    QarnotRunTaskOperator(**WORK)
with dag("shared_mapped"), QarnotPoolGroup("group", **SHARED):
    QarnotRunTaskOperator.partial(**WORK).expand(constants=[{"N": "0"}, {"N": "1"}])
with dag("shared_many"), QarnotPoolGroup("group", **SHARED):
    QarnotRunTasksOperator(**many, commands=[WORK["command"]] * 3)

with dag("reap"):
    QarnotReapOperator(task_id="reap", qarnot_conn_id=CONN, grace_period=timedelta())
