"""What the instances of a Qarnot task wrote, and why they failed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool import xcoms
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNotFoundError,
    end_of,
    shortened,
)
from airflow_qarnot_pool.api.ranges import format_ranges
from airflow_qarnot_pool.api.transport import BrokenOffError
from airflow_qarnot_pool.handover import Claim, Position, Stamped, on_their_way, stamped
from airflow_qarnot_pool.shell import shell_characters
from airflow_qarnot_pool.transcript import STREAMS, Transcript
from airflow_qarnot_pool.triggers.keys import OUTPUT_KEY, position_key

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

log = logging.getLogger(__name__)
T = TypeVar("T")

STDERR_LINES = 20
#: Maximum characters of standard error in a report, of one line of it, and of the stream that are searched for them.
_MAX_STDERR = 4_000
_MAX_LINE = 1_000
_MAX_SEARCHED = 64_000
#: Maximum remote errors in a report, and characters of each of them and of the report.
_MAX_ERRORS = 10
_MAX_ERROR = 500
MAX_REPORT = 6_000
#: How often an output is read whose connection breaks off in the middle.
_READINGS = 3
_NODE_LOST = re.compile(r"node.{0,80}?(lost|killed|unreachable|disconnected)|preempt", re.IGNORECASE)
SHOWN_INSTANCES = 5


def write(logger: Any, one: Stamped) -> None:
    """Write a line to the log with its time, from whichever process: the same line is the same to Airflow then."""
    # What is not a logger of structlog's has times of its own.
    as_first = {"timestamp": one.time, "logger": "qarnot.output"} if hasattr(logger, "bind") else {}
    logger.info("%s", one.line, **as_first)


def read_output(
    read: Callable[[str], str | Iterable[str]], position: Position, logger: Any, *, over: bool = True
) -> Position:
    """Write what is new of a Qarnot task's output to *logger*, a line at a time, so that Airflow masks secrets.

    No output costs a result: one that cannot be fetched, read or written is logged as such.

    :param read: fetches all that is kept of a stream, by its name, as a whole or in pieces.
    """
    transcript = position.transcript
    lines: list[str] = []
    for stream in STREAMS:
        try:
            reading = partial(_read, transcript, stream, read, over)
            transcript, new = read_again(reading)
            lines += new
        except Exception as error:
            logger.warning(
                "The %s of Qarnot task %s could not be fetched: %s", stream, transcript.uuid, _words(error)
            )
    try:
        if position.batches:
            for one in stamped(lines, position.batches, None, time.time())[0]:
                write(logger, one)
        else:
            for line in lines:
                logger.info("%s", line)
    except Exception as error:
        log.warning("The output of Qarnot task %s could not be logged: %s", transcript.uuid, _words(error))
    return Position(transcript=transcript)


def _read(
    transcript: Transcript, stream: str, read: Callable[[str], str | Iterable[str]], over: bool
) -> tuple[Transcript, list[str]]:
    return transcript.read(stream, read(stream), over=over)


def read_again(read: Callable[[], T]) -> T:
    """Return what *read* does, and call it again if a connection breaks off in the middle of an answer."""
    for _ in range(_READINGS - 1):
        try:
            return read()
        except BrokenOffError as error:
            log.debug("%s", error)
    return read()


def _words(error: Exception) -> str:
    return (
        str(error) if isinstance(error, QarnotError) else shortened(f"{type(error).__name__}: {error}", 1000)
    )


def take_over(ti: Any, told: Mapping[str, Any], logger: Any) -> Position | None:
    """Where a worker goes on with an output that triggers have followed; no trigger writes any of it after this.

    None if that cannot be read, so that all of the output is written.

    :param ti: the task instance.
    :param told: the account of the trigger that ended, which is nothing more than what another one has noted since.
    """
    try:
        position = Position.from_json(told)
    except QarnotError as error:
        logger.warning("%s Lines may be here twice", error)
        return None
    follower = told.get("follower")
    try:
        claim = Claim.from_json(xcoms.pull(ti, OUTPUT_KEY))
        xcoms.push(ti, OUTPUT_KEY, claim.taken_by("worker").to_json())
        notes = (xcoms.pull(ti, position_key(one)) for one in reversed(claim.followers))
        noted = next(filter(None, notes), None)
        found = Position.from_json(noted) if noted else None
    except Exception as error:
        logger.warning(
            "How far triggers have written the output could not be read (%s: %s): lines may be here twice",
            type(error).__name__,
            shortened(str(error), 1000),
        )
        return position
    if follower and follower not in claim.followers and position.written:
        logger.warning(
            "Two triggerers may have written the output at the same time: up to %d lines may be in the log twice",
            position.written,
        )
    elif found is not None and found.transcript.uuid == position.transcript.uuid:
        position = found
    if position.doubtful:
        logger.warning("%s", on_their_way(position.doubtful))
    return position


def fetch(client: QarnotClient, uuid: str, stream: str, instance: int | None) -> Iterable[str]:
    """Return all that is kept of a stream, in pieces; of one instance nothing if it has not run."""
    try:
        return client.tasks.stream_output(uuid, stream, instance)
    except QarnotNotFoundError:
        if instance is None:
            raise
        return ()


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
    shown = sorted(failed)[:SHOWN_INSTANCES]
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
    """Return the end of stderr: of the failed instances if they are known, else of all together."""
    try:
        if not instances:
            lines = _last_lines(client, task.uuid, None, STDERR_LINES)
        else:
            share = max(3, STDERR_LINES // len(instances))
            lines = [
                f"{instance}> {line}"
                for instance in instances
                for line in _last_lines(client, task.uuid, instance, share)
            ]
    except QarnotError as error:
        log.debug("No stderr of Qarnot task %s: %s", task.uuid, error)
        return []
    return end_of("\n".join(lines), _MAX_STDERR).split("\n") if lines else []


def _last_lines(client: QarnotClient, uuid: str, instance: int | None, count: int) -> list[str]:
    """Return the end of each of the last *count* lines of stderr."""
    text = ""
    for piece in client.tasks.stream_output(uuid, "stderr", instance):
        text += piece
        if len(text) > 2 * _MAX_SEARCHED:
            text = text[-_MAX_SEARCHED - 1 :]
    return [end_of(line, _MAX_LINE) for line in end_of(text, _MAX_SEARCHED).splitlines()[-count:]]
