"""Describe a failed Qarnot task for the exception that Airflow shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.errors import QarnotError, end_of, shortened
from airflow_qarnot_pool.api.ranges import format_ranges
from airflow_qarnot_pool.logs.writer import _MAX_ERROR, _MAX_ERRORS, _MAX_STDERR, MAX_REPORT, _last_lines, log
from airflow_qarnot_pool.parameters.shell import shell_characters

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task


MAX_STDERR_LINES = 20


_NODE_LOST = re.compile(r"node.{0,80}?(lost|killed|unreachable|disconnected)|preempt", re.IGNORECASE)


MAX_INSTANCES = 5


def failure_report(client: QarnotClient, task: Task, link: str) -> str:
    """Return why a Qarnot task did not succeed, for the person who reads the exception."""
    lines = [f"Qarnot task {task.uuid} ({task.name}) ended in {task.state}"]
    failed = task.failed_instances
    if failed:
        lines[0] += f": instance{'s' if len(failed) > 1 else ''} {format_ranges(failed)} failed"
    of_the_task = [str(error) for error in task.errors[:_MAX_ERRORS]]
    lines += [f"  {shortened(one, _MAX_ERROR)}" for one in of_the_task]
    if len(task.errors) > _MAX_ERRORS:
        lines.append(f"  and {len(task.errors) - _MAX_ERRORS} more errors")
    shown = sorted(failed)[:MAX_INSTANCES]
    for one in task.completed_instances:
        # Qarnot gives most reasons twice: with the task and with the instance.
        if (
            one.instance_id in shown
            and one.error
            and not any((one.error.message or one.error.code) in said for said in of_the_task)
        ):
            lines.append(f"  instance {one.instance_id}: {shortened(str(one.error), _MAX_ERROR)}")
    if task.pool:
        lines += _pool_note(client, task.pool)
    tail = _stderr(client, task, shown)
    if found := shell_characters(task.constants.get("DOCKER_CMD")):
        lines.append(
            f"The command has {found!r}, which only a shell knows, and none runs it: "
            "write sh -c '...' around the command"
        )
    if tail:
        lines += ["Last lines of stderr:", *(f"  {line}" for line in tail)]
    lines.append(f"See {link} for more")
    return shortened("\n".join(lines), MAX_REPORT)


def is_node_loss(task: Task) -> bool:
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
    """Return the end of stderr: of the failed instances if they are known, else of all together."""
    try:
        if not instances:
            lines = _last_lines(client, task.uuid, None, MAX_STDERR_LINES)
        else:
            share = max(3, MAX_STDERR_LINES // len(instances))
            lines = [
                f"{instance}> {line}"
                for instance in instances
                for line in _last_lines(client, task.uuid, instance, share)
            ]
    except QarnotError as error:
        log.debug("No stderr of Qarnot task %s: %s", task.uuid, error)
        return []
    return end_of("\n".join(lines), _MAX_STDERR).split("\n") if lines else []
