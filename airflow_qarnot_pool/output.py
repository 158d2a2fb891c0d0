"""What the instances of a Qarnot task wrote, and why they failed."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.api.ranges import format_ranges
from airflow_qarnot_pool.transcript import STREAMS, Transcript

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

log = logging.getLogger(__name__)

STDERR_LINES = 20
_NODE_LOST = re.compile(r"node.{0,80}?(lost|killed|unreachable|disconnected)|preempt", re.IGNORECASE)
SHOWN_INSTANCES = 5
SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh"})
_OF_A_SHELL = frozenset({"|", "||", "&&", ";", ">", ">>", "<", "2>&1", "&"})


def read_output(
    read: Callable[[str], str], transcript: Transcript, logger: Any, *, over: bool = True
) -> Transcript:
    """Write what is new of a Qarnot task's output to *logger*, a line at a time, so that Airflow masks secrets.

    Output that cannot be fetched is no reason to lose the result: that is logged, too.

    :param read: fetches all that is kept of a stream, by its name.
    """
    for stream in STREAMS:
        try:
            text = read(stream)
        except QarnotError as error:
            logger.warning(
                "The %s of Qarnot task %s could not be fetched: %s", stream, transcript.uuid, error
            )
            continue
        transcript, lines = transcript.read(stream, text, over=over)
        for line in lines:
            logger.info("%s", line)
    return transcript


def fetch(client: QarnotClient, uuid: str, stream: str, instance: int | None) -> str:
    """All that is kept of a stream; of one instance nothing where it has not run."""
    try:
        text: str = getattr(client.tasks, stream)(uuid, instance)
    except QarnotNotFoundError:
        if instance is None:
            raise
        return ""
    return text


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
    if word := shell_word(task.constants.get("DOCKER_CMD", "")):
        lines.append(
            f"The command has {word!r}, which only a shell knows, and none runs it: "
            "write sh -c '...' around the command"
        )
    if tail:
        lines += ["Last lines of stderr:", *(f"  {line}" for line in tail)]
    lines.append(f"See {link} for more")
    return "\n".join(lines)


def shell_word(command: str) -> str | None:
    """The first word of *command* that needs a shell, where it calls none: Qarnot splits it into words and runs it."""
    try:
        program, *words = shlex.split(command)
    except ValueError:
        return None
    if program.rpartition("/")[-1] in SHELLS:
        return None
    return next((one for one in words if one in _OF_A_SHELL or one[-1:] == ";"), None)


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
