"""What the instances of a Qarnot task wrote, and why they failed."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.api.ranges import format_ranges

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

log = logging.getLogger(__name__)

#: Most characters of one stream that go to the Airflow task log; the end of the output matters most.
LOG_CHARACTERS = 1_000_000
STDERR_LINES = 20
_NODE_LOST = re.compile(r"node.{0,80}?(lost|killed|unreachable|disconnected)|preempt", re.IGNORECASE)
SHOWN_INSTANCES = 5


def log_output(client: QarnotClient, task: Task, logger: Any) -> None:
    """Write a Qarnot task's output to *logger*, a line at a time, so that Airflow masks secrets in it.

    Output that cannot be fetched is no reason to lose the result: that is logged, too.
    """
    for stream, read in (("stdout", client.tasks.stdout), ("stderr", client.tasks.stderr)):
        try:
            text = read(task.uuid)
        except QarnotError as error:
            logger.warning("The %s of Qarnot task %s could not be fetched: %s", stream, task.uuid, error)
            continue
        if len(text) > LOG_CHARACTERS:
            logger.info("[%s] ... %d characters left out", stream, len(text) - LOG_CHARACTERS)
            text = text[-LOG_CHARACTERS:]
        for line in text.splitlines():
            logger.info("[%s] %s", stream, line)


def failure_report(client: QarnotClient, task: Task, link: str) -> str:
    """Why a Qarnot task did not succeed, for the person who reads the exception."""
    lines = [f"Qarnot task {task.uuid} ({task.name}) ended in {task.state}"]
    failed = task.failed_instances
    if failed:
        lines[0] += f": instance{'s' if len(failed) > 1 else ''} {format_ranges(failed)} failed"
    lines += [f"  {error}" for error in task.errors]
    shown = sorted(failed)[:SHOWN_INSTANCES]
    for one in task.completed_instances:
        if one.instance_id in shown and one.error:
            lines.append(f"  instance {one.instance_id}: {one.error}")
    if task.pool:
        lines += _pool_note(client, task.pool)
    tail = _stderr(client, task, shown)
    if tail:
        lines += ["Last lines of stderr:", *(f"  {line}" for line in tail)]
    lines.append(f"See {link} for more")
    return "\n".join(lines)


def lost_nodes(task: Task) -> bool:
    """Whether every instance that failed did so because its node went away.

    Qarnot publishes no list of its error codes, so the words of the error are what there is to go by.
    """
    failed = [one for one in task.completed_instances if not one.succeeded]
    return bool(failed) and all(one.error and _NODE_LOST.search(str(one.error)) for one in failed)


def _pool_note(client: QarnotClient, uuid: str) -> list[str]:
    """A Qarnot task often ends because its pool did."""
    try:
        pool = client.pools.get(uuid)
    except QarnotError:
        return []
    if pool.state in ("Closing", "Closed", "Failure", "PendingDelete"):
        return [f"  its pool {uuid} is {pool.state}"]
    return []


def _stderr(client: QarnotClient, task: Task, instances: list[int]) -> list[str]:
    """The end of stderr: of the failed instances where they are known, else of all together."""
    try:
        if not instances:
            return client.tasks.stderr(task.uuid).splitlines()[-STDERR_LINES:]
        lines: list[str] = []
        share = max(3, STDERR_LINES // len(instances))
        for instance in instances:
            text = client.tasks.stderr(task.uuid, instance)
            lines += [f"{instance}> {line}" for line in text.splitlines()[-share:]]
        return lines
    except QarnotError as error:
        log.debug("No stderr of Qarnot task %s: %s", task.uuid, error)
        return []
