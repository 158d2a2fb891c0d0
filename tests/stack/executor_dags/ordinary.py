"""Ordinary tasks, once on the scheduler's machine and once on nodes. Nothing here knows of Qarnot but ``executor``."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, Context, get_current_context, task

EXECUTORS = {"local": "LocalExecutor", "qarnot": "QarnotExecutor"}


def note(word: str) -> None:
    """Append a line about the task instance that runs here to the file in the conf of its run."""
    context = get_current_context()
    ti = context["ti"]
    # One write of a line that is short: lines of several processes do not mix.
    with Path(context["dag_run"].conf["notes"]).open("a") as file:
        file.write(f"{ti.run_id} {ti.task_id} {ti.map_index} {word} {ti.try_number} {os.getpid()}\n")


class Deferring(BaseOperator):
    """Has one process before its deferral, and one after it."""

    def execute(self, context: Context) -> None:
        # With 1 s Airflow may lose the deferral under LocalExecutor, as docs/contributing/evidence/versions.md says.
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=5)), method_name="resume")

    def resume(self, context: Context, event: Any) -> str:
        return "resumed"


for name, executor in EXECUTORS.items():
    with DAG(f"ordinary_{name}", schedule=None, default_args={"executor": executor, "retries": 0}):

        @task
        def make() -> dict[str, Any]:
            note("made")
            return {"numbers": [1, 2, 3]}

        @task
        def numbers(made: dict[str, Any]) -> list[int]:
            return list(made["numbers"])

        @task
        def square(number: int) -> int:
            return number * number

        @task(trigger_rule="none_failed")
        def total(squares: list[int], text: str) -> str:
            return f"{sum(squares)} {text}"

        @task
        def remove() -> str:
            note("removed")
            return "removed"

        made = make()
        shell = BashOperator(task_id="shell", bash_command="echo from a shell")
        later = Deferring(task_id="later")
        summed = total(square.expand(number=numbers(made)), shell.output)
        made >> [shell, later]
        later >> summed
        summed >> remove().as_teardown(setups=made.operator.as_setup())


with DAG(
    "counted", schedule=None, default_args={"executor": "QarnotExecutor", "retries": 0}, max_active_runs=100
):

    @task
    def work(index: int, seconds: float = 0.5) -> None:
        """Take the seconds of the run's conf, or until the file exists that it names as ``gate``."""
        import time

        conf = get_current_context()["dag_run"].conf
        note("start")
        ends = time.monotonic() + float(conf.get("seconds", seconds))
        while (left := ends - time.monotonic()) > 0 and not ("gate" in conf and Path(conf["gate"]).exists()):
            time.sleep(min(left, 0.1))
        note("end")

    @task
    def indexes() -> list[int]:
        return list(range(int(get_current_context()["dag_run"].conf.get("count", 3))))

    work.expand(index=indexes.override(executor="LocalExecutor")())


with DAG("beside", schedule=None, default_args={"executor": "LocalExecutor", "retries": 0}):
    BashOperator(task_id="work", bash_command="true")
