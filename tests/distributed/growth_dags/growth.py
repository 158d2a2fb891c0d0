"""The same DAG with Qarnot and without, each on a queue (and so a worker) of its own: ``tools.worker_growth``."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

SECONDS = 1
#: Airflow tasks of a run that wait in a triggerer, which makes two slices on a worker, and that wait on the worker.
DEFERRED, ON_WORKER = 3, 2


class Wait(BaseOperator):
    """Waits as the Qarnot operators do, for the time alone."""

    def __init__(self, *, n: int, deferrable: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n, self.deferrable = n, deferrable

    def execute(self, context: Any) -> None:
        if self.deferrable:
            self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=SECONDS)), method_name="resumed")
        time.sleep(SECONDS)

    def resumed(self, context: Any, event: Any = None) -> str:
        return str(event)


for name in ("ours", "plain"):
    with DAG(name, schedule=None, default_args={"queue": name, "retries": 3}):
        for task_id, deferrable, count in (("deferred", True, DEFERRED), ("on_worker", False, ON_WORKER)):
            if name == "ours":
                QarnotRunTaskOperator.partial(
                    task_id=task_id,
                    qarnot_pool="{{ dag_run.conf['pool'] }}",
                    command=f"sleep {SECONDS}",
                    deferrable=deferrable,
                ).expand(constants=[{"N": str(n)} for n in range(count)])
            else:
                Wait.partial(task_id=task_id, deferrable=deferrable).expand(n=list(range(count)))
