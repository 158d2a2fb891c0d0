"""The same two Airflow tasks with Qarnot and without: what ``tools.worker_growth`` runs, over and over."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

SECONDS = 0.1


class Wait(BaseOperator):
    """Waits as the Qarnot operators do, for the time alone."""

    def __init__(self, *, deferrable: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable

    def execute(self, context: Any) -> None:
        if self.deferrable:
            self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=SECONDS)), method_name="execute")
        time.sleep(SECONDS)


with DAG("plain", schedule=None):
    for task_id, deferrable in (("deferred", True), ("on_worker", False)):
        Wait(task_id=task_id, deferrable=deferrable)

with DAG("ours", schedule=None):
    for task_id, deferrable in (("deferred", True), ("on_worker", False)):
        QarnotRunTaskOperator(
            task_id=task_id,
            qarnot_pool=os.environ.get("GROWTH_POOL", "none"),
            command=f"sleep {SECONDS}",
            deferrable=deferrable,
        )
