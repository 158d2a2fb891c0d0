"""Why the Qarnot task of an attempt has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.executors.running import Outcome
from airflow_qarnot_pool.logs.failure_report import failure_report
from airflow_qarnot_pool.ownership.ladder import is_queue_timeout

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: Maximum seconds of each request for a reason.
REPORT_DEADLINE = 5.0


def explain(client: QarnotClient, uuid: str, state: str, link: str) -> tuple[Outcome, str]:
    """Return what the end of a failed Qarnot task was, and its reason. Never raises.

    :param state: the state in which it was seen.
    :param link: URL of it in the console; empty if there is none.
    """
    quick = client.limited(deadline=REPORT_DEADLINE, retries=0)
    try:
        task = quick.tasks.get(uuid)
        if is_queue_timeout(task):
            seconds = task.max_time_queue.total_seconds() if task.max_time_queue else 0
            return Outcome.WAITED, f"Qarnot task {uuid} had no slot of its pool for {seconds:.0f} s"
        return Outcome.FAILURE, failure_report(quick, task, link, remedy="The next attempt has another")
    except QarnotError as error:
        return Outcome.FAILURE, f"Qarnot task {uuid} ended in {state}. Its reason cannot be read: {error}"
