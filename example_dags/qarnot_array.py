"""Thousands of calls of a Python function as one Airflow task and one Qarnot task.

`count` runs once for each of 1,000 ranges of numbers, 50 of them in each of 20 instances. `total` gets all results in
the order of the ranges. If some calls fail, a retry runs only these again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from airflow.sdk import DAG, task

from airflow_qarnot_pool.decorators.array import array_results
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


@qarnot_task(timeout=timedelta(minutes=1))
def count(start: int, size: int) -> int:
    """Count the primes of a range."""
    numbers = range(max(start, 2), start + size)
    return sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in numbers)


@task
def total(counts: Sequence[int]) -> int:
    """Add the counts, on an Airflow worker."""
    found: int = sum(array_results(counts))
    logging.getLogger(__name__).info("%d primes", found)
    return found


with DAG(
    "qarnot_array",
    description="One array of 1,000 calls on a warm pool",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    with QarnotPoolGroup("nodes", instance_count=4):
        counts = count.override(chunk_size=50).partial(size=100).array(start=range(0, 100_000, 100))
    total(counts)
