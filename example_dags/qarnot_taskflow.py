"""Python functions on the nodes of a warm pool.

`throw` runs once for each seed, in parallel on two nodes. `combine` gets all their results. Both are plain functions.
They import their modules inside, because only the source of a function is sent to the node. Arguments and results are
JSON.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


@task
def seeds(params: Any = None) -> list[int]:
    """Return a seed for each part of the work."""
    return list(range(params["parts"]))


@qarnot_task(timeout=timedelta(minutes=10))
def throw(seed: int, darts: str) -> dict[str, int]:
    """Throw darts at a square, and count those in the circle."""
    import random

    rng = random.Random(seed)
    hits = sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(int(darts)))
    print(f"seed {seed}: {hits} of {darts}")
    return {"hits": hits, "darts": int(darts)}


@qarnot_task(multiple_outputs=True)
def combine(throws: list[dict[str, int]]) -> dict[str, float]:
    """Estimate pi and the error."""
    import math

    darts = sum(one["darts"] for one in throws)
    share = sum(one["hits"] for one in throws) / darts
    return {"pi": 4 * share, "error": 4 * math.sqrt(share * (1 - share) / darts)}


@task
def report(pi: float, error: float) -> None:
    """Log the estimate, on an Airflow worker like any task."""
    logging.getLogger(__name__).info("pi is about %.4f, give or take %.4f", pi, error)


with DAG(
    "qarnot_taskflow",
    description="Python functions on a warm pool",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    params={
        "parts": Param(4, type="integer", minimum=1, maximum=1000, title="Parts, which run side by side"),
        "darts": Param(20_000, type="integer", minimum=1, title="Darts in each part"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    given = seeds()
    with QarnotPoolGroup("nodes", instance_count=2) as nodes:
        thrown = throw.partial(darts="{{ params.darts }}").expand(seed=given)
        estimate = combine(thrown)
    # Tasks on an Airflow worker run before the pool opens and after its work, because its nodes are billed meanwhile.
    given >> nodes
    report(estimate["pi"], estimate["error"])
