"""The DAGs whose pools are on the pictures of docs/pools-page.md. :mod:`tools.pools_page` runs them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

BY_HAND: dict[str, Any] = {"schedule": None, "catchup": False}
#: Seconds from *least* to *least* + 4 * *step*, by the number of the instance.
WORK = "sh -c 'echo {what} $INSTANCE_ID; sleep $(({least} + INSTANCE_ID % 5 * {step})); echo done'"


def work(what: str, least: int, step: int = 0) -> str:
    return WORK.format(what=what, least=least, step=step)


# Busy, with a failed task that is tried again.
with (
    DAG("nightly_rendering", **BY_HAND),
    QarnotPoolGroup("farm", instance_count=8, slots_per_node=2, max_cost=5),
):
    layout = QarnotRunTaskOperator(task_id="layout", command=work("layout", 20))
    frames = QarnotRunTaskOperator(task_id="frames", command=work("frame", 10, 4), instance_count=40)
    denoise = QarnotRunTaskOperator.partial(
        task_id="denoise", retries=1, retry_delay=timedelta(minutes=1)
    ).expand(
        command=[
            work(f"shot {number}", 25)
            if number != 2
            else "sh -c 'echo reading shot 2; echo cannot read shot2.0012.exr: no such file >&2; exit 3'"
            for number in range(6)
        ]
    )
    upscale = QarnotRunTaskOperator(
        task_id="upscale", command=work("upscale", 30, 5), instance_count=200, trigger_rule="all_done"
    )
    layout >> frames >> denoise >> upscale

# Two runs on one pool.
with DAG("market_risk", **BY_HAND), QarnotPoolGroup("pricing", shared="pricing", instance_count=3):
    QarnotRunTaskOperator(task_id="revalue", command=work("book", 20, 10), instance_count=60)

# Its run ends, and nothing closes the pool.
with DAG("genome_qc", **BY_HAND):
    opened = QarnotCreatePoolOperator(task_id="open_pool", instance_count=2)
    QarnotRunTaskOperator(
        task_id="align", qarnot_pool=opened.output, command=work("sample", 15), instance_count=4
    )

# The nodes wait for a person.
with DAG("crash_tests", **BY_HAND):
    solver = QarnotCreatePoolOperator(task_id="open_pool", instance_count=4)

    @task
    def wait_for_review() -> None:
        time.sleep(3600)

    simulate = QarnotRunTaskOperator(
        task_id="simulate", qarnot_pool=solver.output, command=work("car", 20), instance_count=8
    )
    simulate >> wait_for_review()

# Its nodes do not boot.
with DAG("protein_folding", **BY_HAND):
    QarnotCreatePoolOperator(
        task_id="open_pool",
        instance_count=16,
        pool_spec={"preparation_command": "sh -c 'echo the licence server does not respond >&2; exit 7'"},
    )

# All is well, and closed.
with DAG("weather", **BY_HAND), QarnotPoolGroup("grid", instance_count=2):
    QarnotRunTaskOperator(task_id="forecast", command=work("cell", 5, 2), instance_count=8)
