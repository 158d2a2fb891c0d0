"""What the instances of a Qarnot task wrote, and why they failed."""

from __future__ import annotations

import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import xcoms
from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.api.ranges import format_ranges
from airflow_qarnot_pool.handover import Claim, Position, Stamped, on_their_way, stamped
from airflow_qarnot_pool.transcript import STREAMS
from airflow_qarnot_pool.triggers.keys import OUTPUT_KEY, position_key

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

log = logging.getLogger(__name__)

STDERR_LINES = 20
_NODE_LOST = re.compile(r"node.{0,80}?(lost|killed|unreachable|disconnected)|preempt", re.IGNORECASE)
SHOWN_INSTANCES = 5
SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh"})
_OF_A_SHELL = frozenset({"|", "||", "&&", ";", ">", ">>", "<", "2>&1", "&"})


def write(logger: Any, one: Stamped) -> None:
    """Write a line to the log with its time, from whichever process: the same line is the same to Airflow then."""
    # What is not a logger of structlog's has times of its own.
    as_first = {"timestamp": one.time, "logger": "qarnot.output"} if hasattr(logger, "bind") else {}
    logger.info("%s", one.line, **as_first)


def read_output(
    read: Callable[[str], str], position: Position, logger: Any, *, over: bool = True
) -> Position:
    """Write what is new of a Qarnot task's output to *logger*, a line at a time, so that Airflow masks secrets.

    Output that cannot be fetched is no reason to lose the result: that is logged, too.

    :param read: fetches all that is kept of a stream, by its name.
    """
    transcript = position.transcript
    lines: list[str] = []
    for stream in STREAMS:
        try:
            text = read(stream)
        except QarnotError as error:
            logger.warning(
                "The %s of Qarnot task %s could not be fetched: %s", stream, transcript.uuid, error
            )
            continue
        transcript, new = transcript.read(stream, text, over=over)
        lines += new
    if position.batches:
        for one in stamped(lines, position.batches, None, time.time())[0]:
            write(logger, one)
    else:
        for line in lines:
            logger.info("%s", line)
    return Position(transcript=transcript)


def take_over(ti: Any, told: Mapping[str, Any], logger: Any) -> Position:
    """Where a worker goes on with an output that triggers have followed; no trigger writes any of it after this.

    :param ti: the task instance.
    :param told: the account of the trigger that ended, which is nothing more than what another one has noted since.
    """
    position = Position.from_json(told)
    follower = told.get("follower")
    try:
        claim = Claim.from_json(xcoms.pull(ti, OUTPUT_KEY))
        xcoms.push(ti, OUTPUT_KEY, claim.taken_by("worker").to_json())
        notes = (xcoms.pull(ti, position_key(one)) for one in reversed(claim.followers))
        noted = next(filter(None, notes), None)
    except Exception as error:
        logger.warning(
            "How far triggers have written the output could not be read (%s: %s): lines may be here twice",
            type(error).__name__,
            error,
        )
        return position
    if follower and follower not in claim.followers and position.written:
        logger.warning(
            "Two triggerers may have written the output at the same time: up to %d lines may be in the log twice",
            position.written,
        )
    elif noted and noted.get("uuid") == position.transcript.uuid:
        position = Position.from_json(noted)
    if position.doubtful:
        logger.warning("%s", on_their_way(position.doubtful))
    return position


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
