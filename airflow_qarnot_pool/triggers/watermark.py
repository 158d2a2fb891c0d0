"""Remember the items that a watcher has reported: none twice, none lost, in a bounded size. Pure functions.

An item is a JSON object of an event, such as a file of a bucket. All its fields together identify it, so a file that is
overwritten is another item. One of them is the time of the item, on the clock of the service.

Neither the order of keys nor the order of times is the order in which items become visible. A large upload may become
visible long after the time that the storage gives it. So a watermark remembers each item of the *allowed lateness*, by
minute, as a digest of 6 bytes. Older items count as reported.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Item = dict[str, Any]

#: Bytes of a digest. Among :data:`MAX_SEEN` items, the probability that a new item has the digest of another one of its
#: minute is below 1e-10.
DIGEST_SIZE = 6
#: Maximum number of items that a watermark remembers once all have been reported: 160 kB. Beyond it, the oldest minutes
#: are forgotten and count as reported.
MAX_SEEN = 20_000
#: Maximum bytes of the items of an event, as JSON. Airflow stores them in its database.
MAX_EVENT_BYTES = 60_000


def minute_of(time: datetime) -> int:
    """Return the minutes since 1970."""
    return int(time.timestamp() // 60)


def item_minute(item: Item, time: str) -> int:
    """Return the minute of *item*, whose field *time* has an ISO time."""
    return minute_of(datetime.fromisoformat(item[time]))


def digest_of(item: Item) -> bytes:
    """Return the digest of all fields of *item*."""
    return hashlib.blake2b(json.dumps(item, sort_keys=True).encode(), digest_size=DIGEST_SIZE).digest()


@dataclass(frozen=True)
class Watermark:
    """The items that were reported.

    :param floor: all items of earlier minutes count as reported.
    :param seen: digests of the reported items by minute, from the floor on.
    """

    floor: int = 0
    seen: Mapping[int, AbstractSet[bytes]] = field(default_factory=dict)

    def is_new(self, item: Item, minute: int) -> bool:
        """Return whether *item* of *minute* has not been reported."""
        return minute >= self.floor and digest_of(item) not in self.seen.get(minute, ())

    def after(self, items: Iterable[Item], time: str, floor: int) -> Watermark:
        """Return the watermark after an event with *items*.

        :param time: name of the field that has the ISO time of an item.
        :param floor: the floor after this event. It never gets lower.
        """
        added: dict[int, set[bytes]] = {}
        for item in items:
            added.setdefault(item_minute(item, time), set()).add(digest_of(item))
        return self.union(Watermark(floor, added))

    def union(self, other: Watermark) -> Watermark:
        """Return the watermark for which everything counts as reported that does so for this one or for *other*."""
        floor = max(self.floor, other.floor)
        minutes = {minute for minute in (*self.seen, *other.seen) if minute >= floor}
        nothing: frozenset[bytes] = frozenset()
        seen = {
            minute: nothing.union(self.seen.get(minute, ()), other.seen.get(minute, ())) for minute in minutes
        }
        return Watermark(floor, seen)

    def report(self, items: Iterable[Item], time: str, floor: int) -> tuple[list[Item], Watermark]:
        """Return those of *items* that have not been reported, and the watermark after an event with them."""
        new = [item for item in items if self.is_new(item, item_minute(item, time))]
        return new, self.after(new, time, floor)

    def floor_when_complete(self, newest: int | None, lateness: int) -> int:
        """Return the floor once all visible items have been reported.

        :param newest: the minute of the service's clock, or None if it is unknown.
        :param lateness: minutes after its time in which an item may become visible.
        """
        floor = self.floor if newest is None else max(self.floor, newest - lateness)
        minutes = sorted(minute for minute in self.seen if minute >= floor)
        remembered = sum(len(self.seen[minute]) for minute in minutes)
        for minute in minutes[:-1]:
            if remembered <= MAX_SEEN:
                break
            remembered -= len(self.seen[minute])
            floor = minute + 1
        return floor

    def covers(self, other: Watermark) -> bool:
        """Return whether everything that *other* has reported counts as reported here, too."""
        return self.floor >= other.floor and all(
            digests <= self.seen.get(minute, frozenset())
            for minute, digests in other.seen.items()
            if minute >= self.floor
        )

    def to_json(self) -> dict[str, Any]:
        """Return the watermark for a store."""
        seen = {
            str(minute): base64.b64encode(b"".join(sorted(digests))).decode()
            for minute, digests in sorted(self.seen.items())
        }
        return {"floor": self.floor, "seen": seen}

    @classmethod
    def from_json(cls, stored: Any) -> Watermark | None:
        """Return the watermark of :meth:`to_json`, or None if *stored* is anything else."""
        try:
            seen = {int(minute): frozenset(_digests(text)) for minute, text in stored["seen"].items()}
            return cls(int(stored["floor"]), seen)
        except (TypeError, KeyError, AttributeError, ValueError, binascii.Error):
            return None


def _digests(text: str) -> Iterator[bytes]:
    joined = base64.b64decode(text, validate=True)
    return (joined[start : start + DIGEST_SIZE] for start in range(0, len(joined), DIGEST_SIZE))


def split(items: Sequence[Item], max_items: int) -> Iterator[list[Item]]:
    """Yield *items* in lists of at most *max_items* and about :data:`MAX_EVENT_BYTES`, of one item at least."""
    part: list[Item] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if part and (len(part) == max_items or size + length > MAX_EVENT_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += length
    if part:
        yield part
