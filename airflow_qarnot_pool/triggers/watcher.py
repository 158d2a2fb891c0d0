"""Base of the triggers that start DAGs for new items on Qarnot.

A watcher reports items in events. It keeps a :class:`~airflow_qarnot_pool.triggers.watermark.Watermark` of the reported
ones in the state store of its asset. From Airflow 3.3, ``plugins.watermarks`` advances the stored watermark in the
database transaction that stores the event, and leaves out items that were reported already. So a triggerer may be
killed or frozen at any moment.

Older versions have no state store, and a deployment may have disabled plugins. Then the watcher itself stores the
watermark once the event has surely been stored. Events of the last minutes before a kill come twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import short_repr
from airflow_qarnot_pool.hooks.qarnot import QarnotHook, check_conn_id
from airflow_qarnot_pool.parameters.configuration import MAX_POLL_INTERVAL, MIN_POLL_INTERVAL
from airflow_qarnot_pool.parameters.validation import Duration, as_duration, check_flags
from airflow_qarnot_pool.triggers.watermark import Item, Watermark, item_minute, split

if TYPE_CHECKING:
    from airflow_qarnot_pool.triggers.watch import Found
    from airflow_qarnot_pool.triggers.watch_poller import WatchSubscriber
    from airflow_qarnot_pool.triggers.watermark_stores import WatermarkStore

    #: Each store, and the watermark that it has.
    Stored = list[tuple[WatermarkStore, Watermark | None]]

#: Default seconds between polls.
POLL_INTERVAL = 30.0
#: Default time after its own time in which an item may become visible.
ALLOWED_LATENESS = timedelta(hours=1)
MAX_LATENESS = timedelta(days=7)
#: Default and maximum number of items in an event.
MAX_ITEMS, LARGEST_MAX_ITEMS = 100, 1000
MAX_TAG_LENGTH = 1000
#: Seconds after an event at which the stored watermark must include it, because Airflow stores an event within seconds.
CONFIRM_AFTER = 60.0
#: Number of checks in a row that miss the event before the watcher stores the watermark itself. A supervisor that was
#: frozen may answer one check before it stores the event.
MAX_MISSES = 2


class QarnotWatcher(BaseEventTrigger):
    """Report new items to the assets of its ``AssetWatcher``.

    :param qarnot_conn_id: connection of type ``qarnot``.
    :param existing: also report the items that exist when the watcher first runs.
    :param poll_interval: seconds between polls, which all watchers of a connection (or of a bucket) share. The shortest
        one counts.
    :param allowed_lateness: how long after its own time an item may become visible, at most 7 days. Later ones are not
        reported.
    :param max_items: maximum number of items in an event, up to 1000.
    """

    #: Name of the list of items in an event, and of the field of an item that has its time.
    items: ClassVar[str]
    time: ClassVar[str]

    def __init__(
        self,
        *,
        qarnot_conn_id: str = QarnotHook.default_conn_name,
        existing: bool = False,
        poll_interval: Duration = POLL_INTERVAL,
        allowed_lateness: Duration = ALLOWED_LATENESS,
        max_items: int = MAX_ITEMS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_conn_id(qarnot_conn_id)
        check_flags(existing=existing)
        if not isinstance(max_items, int) or not 1 <= max_items <= LARGEST_MAX_ITEMS:
            raise QarnotInvalidSpecError(
                f"max_items must be a number from 1 to {LARGEST_MAX_ITEMS}, got {max_items!r}",
                field="max_items",
                remedy=f"Omit it for {MAX_ITEMS}.",
            )
        self.qarnot_conn_id = qarnot_conn_id
        self.existing = existing
        self.poll_interval = seconds("poll_interval", poll_interval)
        if not MIN_POLL_INTERVAL <= self.poll_interval <= MAX_POLL_INTERVAL:
            raise QarnotInvalidSpecError(
                f"poll_interval must be from {MIN_POLL_INTERVAL} to {MAX_POLL_INTERVAL} s, got {poll_interval!r}",
                field="poll_interval",
                remedy=f"Omit it for {POLL_INTERVAL:.0f} s.",
            )
        self.allowed_lateness = seconds("allowed_lateness", allowed_lateness)
        if self.allowed_lateness > MAX_LATENESS.total_seconds():
            raise QarnotInvalidSpecError(
                f"allowed_lateness must be at most {MAX_LATENESS.days} days, got {allowed_lateness!r}",
                field="allowed_lateness",
                remedy="Give a shorter one, because all items of this time are remembered.",
            )
        self.max_items = max_items
        self._stores: list[WatermarkStore] = []
        self._mark: Watermark | None = None
        #: The watermark after an event of an earlier time, which the stores must reach, and when to check that.
        self._expected: Watermark | None = None
        self._confirm_at = 0.0
        self._misses = 0

    @abstractmethod
    def _scope(self) -> dict[str, Any]:
        """Return the arguments that define which items are watched. Another scope has another watermark."""

    @abstractmethod
    def _subscribe(self) -> WatchSubscriber:
        """Return a subscriber of the shared poll, whose updates are ``Found``."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the keyword arguments, from which Airflow makes the trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "qarnot_conn_id": self.qarnot_conn_id,
                **self._scope(),
                "existing": self.existing,
                "poll_interval": self.poll_interval,
                "allowed_lateness": self.allowed_lateness,
                "max_items": self.max_items,
            },
        )

    @property
    def state_key(self) -> str:
        """The key of the watermark in the state store of an asset."""
        scope = json.dumps([type(self).__name__, self.qarnot_conn_id, self._scope()], sort_keys=True)
        return f"qarnot-{self.items}-{hashlib.blake2b(scope.encode(), digest_size=8).hexdigest()}"

    @property
    def _lateness(self) -> int:
        """The allowed lateness in minutes, to which times are rounded."""
        return math.ceil(self.allowed_lateness / 60) + 1

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event whenever there are new items. Never returns."""
        from airflow_qarnot_pool.triggers.watermark_stores import stores_of

        self._stores = stores_of(self)
        self._mark = await self._load()
        while True:
            try:
                async with self._subscribe() as subscriber:
                    while True:
                        found = await self._next(subscriber)
                        if found is not None:
                            async for event in self._events(found):
                                yield event
            except QarnotError as error:
                self.log.error("%s Polling again in %.0f s", error, self.poll_interval)
                await asyncio.sleep(self.poll_interval)

    async def _next(self, subscriber: WatchSubscriber) -> Found | None:
        """Return the next new items, or None if it is time to look at the stores first."""
        from airflow_qarnot_pool.triggers.watch import Watch

        subscriber.watch = Watch(self._mark, self._lateness)
        timeout = None
        if self._expected is not None:
            timeout = self._confirm_at - asyncio.get_running_loop().time()
            if timeout <= 0:
                await self._confirm(self._expected)
                return None
        try:
            return await subscriber.next(timeout)  # type: ignore[return-value]
        except TimeoutError:
            return None

    async def _events(self, found: Found) -> AsyncIterator[TriggerEvent]:
        """Yield the events of a poll, each with the change of the watermark that it makes."""
        if self._mark is None:
            assert found.baseline is not None
            self._mark = found.baseline
            await self._save(self._mark, [(store, None) for store in self._stores])
            return
        # The poll may have started before the last event.
        new = [item for item in found.items if self._mark.is_new(item, item_minute(item, self.time))]
        for items, is_last in _with_last(split(new, self.max_items)):
            mark = self._mark.after(items, self.time, self._mark.floor)
            # Later items of this poll are not older than the last one of this event.
            floor = mark.floor_when_complete(found.newest, self._lateness) if is_last else 0
            if not found.complete:
                floor = min(floor, item_minute(items[-1], self.time))
            self._mark = mark.after((), self.time, floor)
            self._expect()
            self.log.info("Reporting %d new %s", len(items), self.items)
            yield TriggerEvent(self._payload(items, self._mark.floor))

    def _payload(self, items: list[Item], floor: int) -> dict[str, Any]:
        change = {"key": self.state_key, "floor": floor, "items": self.items, "time": self.time}
        return {**self._scope(), self.items: items, "watermark": change}

    # --- the stored watermark

    async def _load(self) -> Watermark | None:
        """Return what the stored watermarks have together, and give it to assets that have less or none."""
        stored = await self._stored()
        known = [mark for _, mark in stored if mark is not None]
        if not known and not self.existing:
            return None
        mark = reduce(Watermark.union, known, Watermark())
        await self._save(mark, _behind(stored, mark))
        return mark

    async def _stored(self) -> Stored:
        return [(store, Watermark.from_json(await store.load(self.state_key))) for store in self._stores]

    async def _save(self, mark: Watermark, behind: Stored) -> None:
        """Add *mark* to the stores that are *behind*. Events may have advanced the others beyond it."""
        for store, stored in behind:
            await store.save(self.state_key, (stored or Watermark()).union(mark).to_json())

    def _expect(self) -> None:
        if self._stores and self._expected is None:
            self._expected = self._mark
            self._confirm_at = asyncio.get_running_loop().time() + CONFIRM_AFTER

    async def _confirm(self, expected: Watermark) -> None:
        """Store *expected* if the stored watermark still lacks an event that has surely been stored."""
        behind = _behind(await self._stored(), expected)
        self._misses = self._misses + 1 if behind else 0
        if behind:
            if self._misses < MAX_MISSES:
                self._confirm_at = asyncio.get_running_loop().time() + CONFIRM_AFTER
                return
            await self._save(expected, behind)
        self._expected = None
        if self._mark != expected:
            self._expect()


def checked_tag(tag: Any) -> str:
    """Return *tag*.

    :raises QarnotInvalidSpecError: *tag* is not the text of one tag.
    """
    if not isinstance(tag, str) or not tag.strip() or len(tag) > MAX_TAG_LENGTH:
        raise QarnotInvalidSpecError(
            f"tag must be a text of up to {MAX_TAG_LENGTH} characters, got {short_repr(tag)}",
            field="tag",
            remedy="Give one tag, as the objects have it.",
        )
    return tag


def seconds(name: str, value: Duration) -> float:
    """Return the seconds of a duration.

    :raises QarnotInvalidSpecError: *value* is not a duration of more than 0.
    """
    duration = as_duration(name, value)
    if duration is None:
        raise QarnotInvalidSpecError(
            f"{name} must be a duration of more than 0, got None",
            field=name,
            remedy="Omit it for the default.",
        )
    return duration.total_seconds()


def _behind(stored: Stored, mark: Watermark) -> Stored:
    """Return the stores that do not have all of *mark*."""
    return [(store, each) for store, each in stored if each is None or not each.covers(mark)]


def _with_last(parts: Iterator[list[Item]]) -> Iterator[tuple[list[Item], bool]]:
    """Yield each part, and whether it is the last one."""
    part = next(parts, None)
    while part is not None:
        following = next(parts, None)
        yield part, following is None
        part = following
