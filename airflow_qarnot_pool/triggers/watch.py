"""Find the new items of one watcher among all items that a poll shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from airflow_qarnot_pool.triggers.watermark import Item, Watermark, digest_of, minute_of

#: Maximum number of new items that a poll keeps for one watcher, the oldest ones. The next polls show the others.
MAX_NEW = 10_000
#: Number of minutes beyond the needed ones that a first poll remembers before it forgets the older ones.
SPARE_MINUTES = 100


class Found(NamedTuple):
    """The result of a poll for one watcher.

    :param items: new items, the oldest first.
    :param newest: the minute of the service's clock.
    :param complete: whether the items are all new items that the service shows.
    :param baseline: the items that exist, if the watcher had no watermark. They are not new.
    """

    items: list[Item]
    newest: int | None
    complete: bool
    baseline: Watermark | None


@dataclass(slots=True)
class Watch:
    """The search for the new items of one watcher, in the thread of the poll.

    :param mark: the watermark. None to take all items for reported.
    :param lateness: minutes after its time in which an item may become visible.
    :param now: time of the poll on the service's clock.
    """

    mark: Watermark | None
    lateness: int
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _newest: datetime | None = None
    _items: list[tuple[datetime, Item]] = field(default_factory=list)
    _existing: dict[int, set[bytes]] = field(default_factory=dict)
    _complete: bool = True

    def oldest(self, now: datetime) -> datetime | None:
        """Return the oldest time of an item that may be new, *now* on the service's clock. None for any time."""
        if self.mark is None:
            return now - timedelta(minutes=self.lateness)
        return datetime.fromtimestamp(60 * self.mark.floor, UTC) if self.mark.floor else None

    def begin(self, date: datetime | None) -> None:
        """Start a poll whose response is of *date*, on the service's clock."""
        self.now = date or datetime.now(UTC)
        self._newest, self._complete = None, True
        self._items, self._existing = [], {}

    def offer(self, item: Item, time: datetime) -> None:
        """Keep *item* if it is new.

        :param time: the time of the item.
        """
        if not self.may_be_new(time):
            return
        minute = minute_of(time)
        if self.mark is None:
            self._existing.setdefault(minute, set()).add(digest_of(item))
            if len(self._existing) > 2 * self.lateness + SPARE_MINUTES:
                floor = self._floor()
                self._existing = {known: seen for known, seen in self._existing.items() if known >= floor}
        elif self.mark.is_new(item, minute):
            self._items.append((time, item))
            if len(self._items) >= 2 * MAX_NEW:
                self._drop_youngest()

    def may_be_new(self, time: datetime) -> bool:
        """Return whether an item of *time* is not surely an old one."""
        if self._newest is None or time > self._newest:
            self._newest = time
        return minute_of(time) >= self._floor()

    def _floor(self) -> int:
        return (self._newest_minute() or 0) - self.lateness if self.mark is None else self.mark.floor

    def _newest_minute(self) -> int | None:
        """Return the minute of the service's clock, as far as the items and the response show it.

        A time in the future, or a clock that is ahead, must not make later items look old.
        """
        return None if self._newest is None else minute_of(min(self._newest, self.now))

    def _drop_youngest(self) -> None:
        self._items.sort(key=lambda entry: entry[0])
        if len(self._items) > MAX_NEW:
            del self._items[MAX_NEW:]
            self._complete = False

    def result(self) -> Found | None:
        """Return the result of the poll, or None if there is nothing new."""
        newest = self._newest_minute()
        if self.mark is None:
            seen = {minute: frozenset(digests) for minute, digests in self._existing.items()}
            floor = Watermark(0, seen).floor_when_complete(newest, self.lateness)
            return Found([], newest, True, Watermark(0, seen).after((), "", floor))
        if not self._items:
            return None
        self._drop_youngest()
        return Found([item for _, item in self._items], newest, self._complete, None)
