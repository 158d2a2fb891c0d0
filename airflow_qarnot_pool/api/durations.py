"""Times and durations as the API writes them: ``[d.]hh:mm:ss[.fffffff]`` and ``YYYY-MM-DDTHH:MM:SSZ``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_SPAN = re.compile(
    r"(?P<sign>-)?(?:(?P<days>\d+)\.)?(?P<h>\d+):(?P<m>\d{1,2}):(?P<s>\d{1,2})(?:\.(?P<f>\d{1,9}))?"
)
_ISO = re.compile(
    r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?",
    re.IGNORECASE,
)
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d+))?\s*(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE
)


def parse_span(text: str) -> timedelta:
    """Parse a .NET time span. Raises ValueError."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time span such as 00:10:00")
    fraction = (match["f"] or "").ljust(6, "0")[:6]
    duration = timedelta(
        days=int(match["days"] or 0),
        hours=int(match["h"]),
        minutes=int(match["m"]),
        seconds=int(match["s"]),
        microseconds=int(fraction),
    )
    return -duration if match["sign"] else duration


def parse_duration(text: str) -> timedelta:
    """Parse a duration in seconds (``90``), as time span (``00:01:30``) or ISO 8601 (``PT1M30S``).

    :raises ValueError: it is none of them.
    """
    text = text.strip()
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        pass
    iso = _ISO.fullmatch(text)
    if iso is not None and any(iso.groups()):
        return timedelta(
            weeks=int(iso["weeks"] or 0),
            days=int(iso["days"] or 0),
            hours=int(iso["h"] or 0),
            minutes=int(iso["m"] or 0),
            seconds=float(iso["s"] or 0),
        )
    return parse_span(text)


def parse_timestamp(text: str) -> datetime | None:
    """Parse a timestamp, in UTC. None for year 1, which means "not yet". Raises ValueError."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a timestamp such as 2025-01-01T00:00:00Z")
    moment = datetime.fromisoformat(match[1])
    if moment.year == 1:
        return None
    moment = moment.replace(microsecond=int((match[2] or "").ljust(6, "0")[:6]))
    zone = match[3] or "Z"
    if zone.upper() == "Z":
        return moment.replace(tzinfo=UTC)
    if ":" not in zone:
        zone = f"{zone[:3]}:{zone[3:]}"
    return datetime.fromisoformat(moment.isoformat() + zone).astimezone(UTC)
