"""What the instances of a Qarnot task wrote, and why they failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNotFoundError,
    end_of,
    shortened,
)
from airflow_qarnot_pool.api.transport import BrokenOffError
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

#: Maximum characters of standard error in a report, of one line of it, and of the stream that are searched for them.
_MAX_STDERR = 4_000
_MAX_LINE = 1_000
_MAX_SEARCHED = 64_000
#: Maximum remote errors in a report, and characters of each of them and of the report.
_MAX_ERRORS = 10
_MAX_ERROR = 500
MAX_REPORT = 6_000
#: How often an output is read whose connection breaks off in the middle.
_MAX_READS = 3


def write(logger: Any, one: TimestampedLine) -> None:
    """Write a line to the log with its time, from whichever process: the same line is the same to Airflow then."""
    # What is not a logger of structlog's has times of its own.
    as_first = {"timestamp": one.time, "logger": "qarnot.output"} if hasattr(logger, "bind") else {}
    logger.info("%s", one.line, **as_first)


def write_new_output(
    read: Callable[[str], str | Iterable[str]], position: Offset, logger: Any, *, finished: bool = True
) -> Offset:
    """Write what is new of a Qarnot task's output to *logger*, a line at a time, so that Airflow masks secrets.

    No output costs a result: one that cannot be fetched, read or written is logged as such.

    :param read: fetches all that is kept of a stream, by its name, as a whole or in pieces.
    """
    cursor = position.cursor
    lines: list[str] = []
    for stream in STREAMS:
        try:
            reading = partial(_read, cursor, stream, read, finished)
            cursor, new = retry_broken_read(reading)
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
            for one in with_timestamps(lines, position.batches, None, time.time())[0]:
                write(logger, one)
        else:
            for line in lines:
                logger.info("%s", line)
    except Exception as error:
        log.warning("The output of Qarnot task %s could not be logged: %s", cursor.uuid, _error_text(error))
    return Offset(cursor=cursor)


def _read(
    cursor: LogCursor, stream: str, read: Callable[[str], str | Iterable[str]], finished: bool
) -> tuple[LogCursor, list[str]]:
    return cursor.read(stream, read(stream), finished=finished)


def retry_broken_read(read: Callable[[], T]) -> T:
    """Return what *read* does, and call it again if a connection breaks off in the middle of an answer."""
    for _ in range(_MAX_READS - 1):
        try:
            return read()
        except BrokenOffError as error:
            log.debug("%s", error)
    return read()


def _error_text(error: Exception) -> str:
    return (
        str(error) if isinstance(error, QarnotError) else shortened(f"{type(error).__name__}: {error}", 1000)
    )


def acquire_lease(ti: Any, told: Mapping[str, Any], logger: Any) -> Offset | None:
    """Where a worker goes on with an output that triggers have followed; no trigger writes any of it after this.

    None if that cannot be read, so that all of the output is written.

    :param ti: the task instance.
    :param told: the account of the trigger that ended, which is nothing more than what another one has noted since.
    """
    try:
        position = Offset.from_json(told)
    except QarnotError as error:
        logger.warning("%s Lines may be here twice", error)
        return None
    follower = told.get("follower")
    try:
        claim = WriterLease.from_json(xcoms.pull(ti, OUTPUT_KEY))
        xcoms.push(ti, OUTPUT_KEY, claim.acquired_by("worker").to_json())
        notes = (xcoms.pull(ti, position_key(one)) for one in reversed(claim.followers))
        noted = next(filter(None, notes), None)
        found = Offset.from_json(noted) if noted else None
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
    elif found is not None and found.cursor.uuid == position.cursor.uuid:
        position = found
    if position.doubtful:
        logger.warning("%s", rewrite_notice(position.doubtful))
    return position


def fetch(client: QarnotClient, uuid: str, stream: str, instance: int | None) -> Iterable[str]:
    """Return all that is kept of a stream, in pieces; of one instance nothing if it has not run."""
    try:
        return client.tasks.stream_output(uuid, stream, instance)
    except QarnotNotFoundError:
        if instance is None:
            raise
        return ()


def _last_lines(client: QarnotClient, uuid: str, instance: int | None, count: int) -> list[str]:
    """Return the end of each of the last *count* lines of stderr."""
    text = ""
    for piece in client.tasks.stream_output(uuid, "stderr", instance):
        text += piece
        if len(text) > 2 * _MAX_SEARCHED:
            text = text[-_MAX_SEARCHED - 1 :]
    return [end_of(line, _MAX_LINE) for line in end_of(text, _MAX_SEARCHED).splitlines()[-count:]]
