"""Write the output of a Qarnot task to a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError, shortened
from airflow_qarnot_pool.api.transport import DEFAULT_DEADLINE, ResponseInterruptedError
from airflow_qarnot_pool.logs.checkpoint import (
    Offset,
    TimestampedLine,
    WriterLease,
    rewrite_notice,
    with_timestamps,
)
from airflow_qarnot_pool.logs.cursor import STREAMS, LogCursor
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.xcoms import OUTPUT_KEY, position_key

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Maximum number of reads of an output if the connection breaks in the middle of a response.
_MAX_READS = 3
#: Maximum seconds to read a stream for the log, because the next Airflow task starts only when it has been written.
OUTPUT_DEADLINE = 30.0
#: Maximum seconds to read a result in the output.
RESULT_DEADLINE = DEFAULT_DEADLINE


def write(logger: Any, line: TimestampedLine) -> None:
    """Write *line* to the log with its time, which makes it the same line to Airflow, whatever process writes it."""
    # Only a logger of structlog accepts a time.
    options = {"timestamp": line.time, "logger": "qarnot.output"} if hasattr(logger, "bind") else {}
    logger.info("%s", line.line, **options)


def write_new_output(
    read: Callable[[str, float], str | Iterable[str]], position: Offset, logger: Any, *, finished: bool = True
) -> Offset:
    """Write the new lines of a Qarnot task's output to *logger*, one by one, because Airflow masks secrets by line.

    An output that cannot be fetched, read or written is logged as such, and does not fail the task.

    :param read: function that fetches everything that is kept of a stream, as a text or in pieces. It gets the name of
        the stream and the maximum number of seconds.
    :param finished: whether the Qarnot task has finished, which completes its last line.
    """
    cursor = position.cursor
    lines: list[str] = []
    for stream in STREAMS:
        try:
            reading = partial(_read, cursor, stream, read, finished)
            cursor, new = retry_broken_read(reading, OUTPUT_DEADLINE)
            lines += new
        except Exception as error:
            logger.warning(
                "The %s of Qarnot task %s could not be fetched: %s",
                stream,
                cursor.uuid,
                _error_text(error),
            )
    try:
        if position.batches:
            for stamped in with_timestamps(lines, position.batches, None, time.time())[0]:
                write(logger, stamped)
        else:
            for line in lines:
                logger.info("%s", line)
    except Exception as error:
        log.warning("The output of Qarnot task %s could not be logged: %s", cursor.uuid, _error_text(error))
    return Offset(cursor=cursor)


def _read(
    cursor: LogCursor,
    stream: str,
    read: Callable[[str, float], str | Iterable[str]],
    finished: bool,
    seconds: float,
) -> tuple[LogCursor, list[str]]:
    return cursor.read(stream, read(stream, seconds), finished=finished)


def retry_broken_read(read: Callable[[float], T], seconds: float) -> T:
    """Return the result of *read*, which is called again if a connection breaks in the middle of a response.

    :param read: function that gets the number of seconds in which it must have read the output.
    :param seconds: maximum seconds of all its calls together.
    """
    ends = time.monotonic() + seconds
    for _ in range(_MAX_READS - 1):
        try:
            return read(ends - time.monotonic())
        except ResponseInterruptedError as error:
            if time.monotonic() >= ends:
                raise
            log.debug("%s", error)
    return read(ends - time.monotonic())


def _error_text(error: Exception) -> str:
    return (
        str(error) if isinstance(error, QarnotError) else shortened(f"{type(error).__name__}: {error}", 1000)
    )


def acquire_lease(ti: Any, reported: Mapping[str, Any], logger: Any) -> Offset | None:
    """Return the position from which a worker continues an output. No trigger writes to the log after this.

    None if the position is malformed, which makes the worker write all of the output.

    :param ti: the task instance.
    :param reported: ``to_json()`` of the follower whose trigger ended. Another follower may have continued since.
    """
    try:
        position = Offset.from_json(reported)
    except QarnotError as error:
        logger.warning("%s Lines may be here twice", error)
        return None
    follower = reported.get("follower")
    try:
        lease = WriterLease.from_json(xcoms.pull(ti, OUTPUT_KEY))
        xcoms.push(ti, OUTPUT_KEY, lease.acquired_by("worker").to_json())
        newest = _newest_position(ti, lease)
    except Exception as error:
        logger.warning(
            "How far triggers have written the output could not be read (%s: %s): lines may be here twice",
            type(error).__name__,
            shortened(str(error), 1000),
        )
        return position
    if follower and follower not in lease.followers and position.written:
        logger.warning(
            "Two triggerers may have written the output at the same time: up to %d lines may be in the log twice",
            position.written,
        )
    elif newest is not None and newest.cursor.uuid == position.cursor.uuid:
        position = newest
    if position.doubtful:
        logger.warning("%s", rewrite_notice(position.doubtful))
    return position


def _newest_position(ti: Any, lease: WriterLease) -> Offset | None:
    checkpoints = (xcoms.pull(ti, position_key(follower)) for follower in reversed(lease.followers))
    newest = next(filter(None, checkpoints), None)
    return Offset.from_json(newest) if newest else None


def fetch(
    client: QarnotClient, uuid: str, stream: str, instance: int | None, seconds: float
) -> Iterable[str]:
    """Return everything that is kept of a stream, in pieces, and nothing of an instance that has not run.

    :param seconds: maximum seconds of the request, with its retries and all pieces.
    """
    try:
        return client.limited(deadline=seconds).tasks.stream_output(uuid, stream, instance)
    except QarnotNotFoundError:
        if instance is None:
            raise
        return ()
