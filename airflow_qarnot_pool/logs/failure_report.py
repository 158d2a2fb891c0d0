"""Describe a failed Qarnot task for the exception that Airflow shows."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.errors import QarnotError, end_of, shortened
from airflow_qarnot_pool.api.ranges import format_ranges
from airflow_qarnot_pool.parameters.shell import find_shell_character

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

log = logging.getLogger(__name__)

#: Maximum characters of stderr in a report, of one line of it, and of the stream that is searched for the lines.
_MAX_STDERR = 4_000
_MAX_LINE = 1_000
_MAX_SEARCHED = 64_000
#: Maximum remote errors in a report, and characters of each of them and of the report.
_MAX_ERRORS = 10
_MAX_ERROR = 500
MAX_REPORT = 6_000
#: Maximum number of lines of stderr in a report, and seconds to read them.
MAX_STDERR_LINES = 20
STDERR_DEADLINE = 30.0
#: Maximum number of instances whose errors are in a report.
MAX_INSTANCES = 5


#: Remedy for a Qarnot task whose pool was opened by a setup task.
REOPEN_POOL = "Run the task that creates it again: clearing this task clears its setup, too"


def failure_report(client: QarnotClient, task: Task, link: str, remedy: str = REOPEN_POOL) -> str:
    """Return why a Qarnot task did not succeed, as the message of an exception.

    :param client: each request takes at most its deadline.
    :param link: URL of the task in the console; empty if there is none.
    :param remedy: remedy if the pool has ended.
    """
    lines = [f"Qarnot task {task.uuid} ({task.name}) ended in {task.state}"]
    failed = task.failed_instances
    if failed and task.state != "Cancelled":
        lines[0] += f": instance{'s' if len(failed) > 1 else ''} {format_ranges(failed)} failed"
    lines += _errors(task, sorted(failed)[:MAX_INSTANCES])
    if task.pool:
        lines += _pool_note(client, task.pool, remedy)
    stderr = _stderr(client, task, sorted(failed)[:MAX_INSTANCES])
    if characters := find_shell_character(task.constants.get("DOCKER_CMD")):
        lines.append(
            f"The command has {characters!r}, which only a shell knows, and none runs it: "
            "write sh -c '...' around the command"
        )
    if stderr:
        lines += ["Last lines of stderr:", *(f"  {line}" for line in stderr)]
    if link:
        lines.append(f"See {link} for more")
    return shortened("\n".join(lines), MAX_REPORT)


def _errors(task: Task, instances: list[int]) -> list[str]:
    """Return the errors of *task*, and of its *instances* if the task does not have the same."""
    of_the_task = [str(error) for error in task.errors[:_MAX_ERRORS]]
    lines = [f"  {shortened(error, _MAX_ERROR)}" for error in of_the_task]
    if len(task.errors) > _MAX_ERRORS:
        lines.append(f"  and {len(task.errors) - _MAX_ERRORS} more errors")
    for instance in task.completed_instances:
        error = instance.error
        if instance.instance_id not in instances or not error:
            continue
        # Qarnot returns most reasons twice, with the task and with the instance.
        if not any((error.message or error.code) in known for known in of_the_task):
            lines.append(f"  instance {instance.instance_id}: {shortened(str(error), _MAX_ERROR)}")
    return lines


def _pool_note(client: QarnotClient, uuid: str, remedy: str) -> list[str]:
    """Return a line about the pool if it has ended, which often ends its Qarnot tasks."""
    try:
        pool = client.pools.get(uuid)
    except QarnotError:
        return []
    if pool.state in ("Closing", "Closed", "Failure", "PendingDelete"):
        return [f"  its pool {uuid} is {pool.state} and takes no more tasks. {remedy}"]
    return []


def _stderr(client: QarnotClient, task: Task, instances: list[int]) -> list[str]:
    """Return the end of the stderr of *instances*, or of all instances together if there are none."""
    ends = time.monotonic() + min(STDERR_DEADLINE, client.transport.deadline)
    share = max(3, MAX_STDERR_LINES // len(instances)) if instances else MAX_STDERR_LINES
    wanted: Sequence[int | None] = instances or [None]
    lines: list[str] = []
    try:
        for instance in wanted:
            limited = client.limited(deadline=ends - time.monotonic())
            mark = "" if instance is None else f"{instance}> "
            lines += [mark + line for line in _last_lines(limited, task.uuid, instance, share)]
    except QarnotError as error:
        log.debug("No more stderr of Qarnot task %s: %s", task.uuid, error)
    return end_of("\n".join(lines), _MAX_STDERR).split("\n") if lines else []


def _last_lines(client: QarnotClient, uuid: str, instance: int | None, count: int) -> list[str]:
    """Return the end of each of the last *count* lines of stderr."""
    text = ""
    for piece in client.tasks.stream_output(uuid, "stderr", instance):
        text += piece
        if len(text) > 2 * _MAX_SEARCHED:
            text = text[-_MAX_SEARCHED - 1 :]
    return [end_of(line, _MAX_LINE) for line in end_of(text, _MAX_SEARCHED).splitlines()[-count:]]
