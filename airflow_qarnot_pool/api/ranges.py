"""Ranges of instance ids in the format of Qarnot: ``"0-2,4-5,17"``.

Both ends are included, as in the status ranges of the API. ``format_ranges(ids, explicit=True)`` lists every id, which
means the same if an end was excluded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PART = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")
#: Maximum number of instances, because a typo such as "0-99999999999" could fill the memory.
MAX_INSTANCES = 1_000_000


def parse_ranges(text: str | None) -> frozenset[int]:
    """Parse a range text to instance ids. Empty for None and "". Raises ValueError with the problem."""
    ids: set[int] = set()
    if text is None or not text.strip():
        return frozenset()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()[:80]!r} is not an instance id or a range such as 0-3")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise ValueError(f"the range {part.strip()[:80]!r} ends before it starts")
        if len(ids) + last - first >= MAX_INSTANCES:
            raise ValueError(f"the range {part.strip()[:80]!r} names more than {MAX_INSTANCES} instances")
        ids.update(range(first, last + 1))
    return frozenset(ids)


def format_ranges(ids: Iterable[int], *, explicit: bool = False) -> str:
    """Return the shortest range text for these ids, ascending. ``explicit`` lists every id."""
    ordered = sorted(set(ids))
    if explicit:
        return ",".join(map(str, ordered))
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
