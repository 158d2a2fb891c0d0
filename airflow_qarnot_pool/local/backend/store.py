"""Store of objects with indexes by uuid, shortname, tag and time of the last transition."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from airflow_qarnot_pool.local.backend.clock import ShownTime
from airflow_qarnot_pool.local.backend.models import Remote

R = TypeVar("R", bound=Remote)


class Store(Generic[R]):
    """Objects in order of creation."""

    def __init__(
        self, shown_time: ShownTime | None = None, note: Callable[[R], None] = lambda item: None
    ) -> None:
        self._shown_time, self._note = shown_time or ShownTime(), note
        self._skewed = False
        self._skew: tuple[float, int] = (0.0, 1)
        self._lag: _Lag[R] | None = None
        self._by_uuid: dict[str, R] = {}
        self._by_shortname: dict[str, list[R]] = {}
        self._by_tag: dict[str, dict[str, R]] = {}
        # Transitions happen in the order of virtual time, so appending keeps this sorted. An entry is stale
        # if its object has moved again. Stale entries are dropped when they are the majority.
        self._transitions: list[tuple[float, R]] = []

    def __len__(self) -> int:
        return len(self._by_uuid)

    def __iter__(self) -> Iterator[R]:
        return iter(self._by_uuid.values())

    def add(self, item: R) -> None:
        seconds, every = self._skew
        if seconds and item.seq % every == 0:
            self.skew(item, seconds)
        self._index(item)
        self._note(item)

    def load(self, items: Iterable[R]) -> None:
        """Add objects of an earlier server, in order of creation."""
        for item in items:
            self._index(item)
        self._transitions.sort(key=lambda entry: entry[0])

    def _index(self, item: R) -> None:
        self._by_uuid[item.uuid] = item
        self._by_shortname.setdefault(item.shortname, []).append(item)
        for tag in item.tags:
            self._by_tag.setdefault(tag, {})[item.uuid] = item
        self._transitions.append((item.moved, item))

    def remove(self, item: R) -> None:
        if self._by_uuid.pop(item.uuid, None) is None:
            return
        named = self._by_shortname[item.shortname]
        named.remove(item)
        if not named:
            del self._by_shortname[item.shortname]
        self._untag(item)
        self._note(item)

    def retag(self, item: R, tags: list[str]) -> None:
        self._untag(item)
        item.tags = tags
        for tag in tags:
            self._by_tag.setdefault(tag, {})[item.uuid] = item
        self._note(item)

    def _untag(self, item: R) -> None:
        for tag in item.tags:
            if tagged := self._by_tag.get(tag):
                tagged.pop(item.uuid, None)
                if not tagged:
                    del self._by_tag[tag]

    def move(self, item: R, state: str, now: float) -> bool:
        """Change the state and record the transition. Return False if the object has that state already."""
        if item.state == state:
            return False
        item.previous_state, item.state = item.state, state
        item.previously_moved, item.moved = item.moved, now
        item.modified = now
        if item.uuid in self._by_uuid:
            self._transitions.append((now, item))
            if len(self._transitions) > 1000 + 4 * len(self._by_uuid):
                self._transitions = [e for e in self._transitions if self._current(e)]
            self._note(item)
        return True

    def _current(self, entry: tuple[float, R]) -> bool:
        when, item = entry
        return item.moved == when and item.uuid in self._by_uuid

    def get(self, uuid: str) -> R | None:
        return self._by_uuid.get(uuid.lower())

    def find(self, key: str) -> R | None:
        """Return the object with this uuid or shortname, the newest if several share a shortname."""
        item = self.get(key)
        if item is None and (named := self._by_shortname.get(key)):
            item = named[-1]
        return item

    def named(self, shortname: str) -> list[R]:
        return self._by_shortname.get(shortname, [])

    def tagged(self, tag: str) -> list[R]:
        """Return the objects with a tag, in order of creation or tagging."""
        return list(self._by_tag.get(tag, {}).values())

    def moved_since(self, when: float) -> list[R]:
        """Return the objects that may show a last transition at `when` or later."""
        if self._skewed or not self._shown_time.is_true:
            return list(self)
        first = bisect_left(self._transitions, when, key=lambda entry: entry[0])
        return list({e[1].uuid: e[1] for e in self._transitions[first:] if self._current(e)}.values())

    # ---- a server whose clocks and replicas disagree ----

    def shown(self, item: R, when: float) -> float:
        """Return the shown time of the virtual time *when* of an object."""
        return self._shown_time.show(when) + item.skew

    def skew(self, item: R, seconds: float) -> None:
        """Show all times of one object wrong by *seconds*."""
        item.skew, self._skewed = seconds, True

    def skew_new(self, seconds: float, every: int) -> None:
        """Show all times of each new object whose number *every* divides wrong by *seconds*."""
        self._skew = (seconds, every)

    def lag(self, seconds: float, clock: Callable[[], float]) -> None:
        """Let searches use a copy of the objects that is renewed after *seconds*. 0 ends that."""
        self._lag = _Lag(seconds, clock, clock(), self._copied()) if seconds > 0 else None

    def searched(self) -> Store[R]:
        """Return the store for searches: this one, or an older copy of it."""
        lag = self._lag
        if lag is None:
            return self
        if lag.clock() - lag.taken >= lag.seconds:
            lag.taken, lag.store = lag.clock(), self._copied()
        return lag.store

    def _copied(self) -> Store[R]:
        older: Store[R] = Store(self._shown_time)
        older.load(copy.copy(item) for item in self)
        older._skewed = self._skewed
        return older


@dataclass
class _Lag(Generic[R]):
    """An older copy of a store, and how long searches use it."""

    seconds: float
    clock: Callable[[], float]
    taken: float
    store: Store[R]
