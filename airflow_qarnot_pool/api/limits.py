"""Parse data from outside with limits: JSON, numbers, compressed data, stored state, addresses.

Pure functions. Parsing takes limited time and memory for any input, and ends in a value or in an error that the caller
expects.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotProtocolError, shortened

#: Maximum nesting of JSON. Responses of the API have less than ten levels.
MAX_DEPTH = 100
#: Maximum digits of a number in JSON, because parsing takes quadratic time.
MAX_DIGITS = 1000
_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for anything else, and for JSON that is nested too deeply."""
    try:
        data = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (
                parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ()
            )
            if isinstance(child, (dict, list))
        ]
        if not level:
            return data
    raise ValueError("the JSON is nested too deeply")


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def parse_number(text: str | None) -> int | None:
    """Parse a number that a label or name holds, such as a generation. None for anything else."""
    return int(text) if text and len(text) < 10 and text.isdecimal() else None


def decompress(data: bytes, limit: int) -> bytes:
    """Decompress zlib data. Raises ValueError if it is damaged, cut off, or more than *limit* bytes."""
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"it cannot be decompressed ({error})") from None
    if stream.eof:
        return result
    if len(result) >= limit:
        raise ValueError(f"it is more than {limit:,} bytes")
    raise ValueError("it is cut off")


@contextmanager
def parsing_stored_state(what: str) -> Iterator[None]:
    """Turn the error of a malformed value into a QarnotProtocolError that names *what*.

    For stored state, such as trigger kwargs, events and XComs, which other processes and users can write.
    """
    try:
        yield
    except _MALFORMED as error:
        raise QarnotProtocolError(
            f"{what} cannot be read ({type(error).__name__}: {shortened(str(error), 200)})",
            remedy="Clear the task to start it again.",
        ) from error


def parse_stored_time(text: Any) -> datetime:
    """Read a date that was stored as text. Raises QarnotProtocolError for anything else."""
    with parsing_stored_state("A stored date"):
        return datetime.fromisoformat(text)
