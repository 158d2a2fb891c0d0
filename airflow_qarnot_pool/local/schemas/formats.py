"""Qarnot's text formats of times, durations and instance ranges (qarnot-api.md conventions and 4.3)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime

NEVER = "0001-01-01T00:00:00Z"
_SPAN = re.compile(r"^(-)?(?:(\d+)\.)?(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.(\d{1,7}))?$")


def stamp(when: float | None) -> str:
    """Format epoch seconds as `YYYY-MM-DDTHH:MM:SSZ`, and None as the year 1, Qarnot's "not reached"."""
    return NEVER if when is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def parse_stamp(text: str) -> float:
    """Parse an ISO 8601 text, in UTC without a zone, to epoch seconds. Raises ValueError."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", text.strip())
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if when.year <= 1:
        return float("-inf")
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def span(seconds: float) -> str:
    """Format seconds as a .NET TimeSpan `[d.]hh:mm:ss`, in whole seconds as the Python SDK misreads fractions."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}.' if days else ''}{hour:02d}:{minute:02d}:{second:02d}"


def parse_span(text: object) -> float:
    """Parse a .NET TimeSpan to seconds. Raises ValueError."""
    match = _SPAN.match(text.strip()) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"not a duration: {text!r}")
    sign, days, hours, minutes, seconds, fraction = match.groups()
    if len(days or "") > 8 or int(hours) > 23 or int(minutes) > 59 or int(seconds) > 59:
        raise ValueError(f"not a duration: {text!r}")
    total = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    value = total + float(f"0.{fraction or 0}")
    return -value if sign else value


def parse_ranges(text: str, *, includes_end: bool = True) -> list[int]:
    """Parse `"0-2,4,17"` to `[0, 1, 2, 4, 17]`. Raises ValueError.

    :param includes_end: whether a range includes its upper bound.
    """
    ids: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if not match:
            raise ValueError(f"not a range: {part!r}")
        first = int(match[1])
        last = int(match[2]) - (not includes_end) if match[2] else first
        if last < first or last - first >= 1_000_000:
            raise ValueError(f"not a range: {part!r}")
        span_ids = range(first, last + 1)
        if not ids.isdisjoint(span_ids):
            raise ValueError(f"instances named twice: {part!r}")
        ids.update(span_ids)
    return sorted(ids)


def ranges(ids: Iterable[int]) -> str:
    """Format `[0, 1, 2, 4]` as `"0-2,4"`, as in `status.succeededRange`."""
    parts: list[str] = []
    run: list[int] = []
    for i in [*sorted(ids), None]:
        if run and i != run[-1] + 1:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if i is not None:
            run.append(i)
    return ",".join(parts)
