"""Objects of one kind, found by uuid, shortname, tag or time of their last transition without a full scan."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from airflow_qarnot_pool.local.backend.clock import ShownTime
from airflow_qarnot_pool.local.backend.models import Remote

R = TypeVar("R", bound=Remote)


class Store(Generic[R]):
    """Objects in order of creation."""

    def __init__(self, dial: ShownTime | None = None) -> None:
        self._dial = dial or ShownTime()
        self._skewed = False
        self._skew: tuple[float, int] = (0.0, 1)
        self._lag: _Lag[R] | None = None
        self._by_uuid: dict[str, R] = {}
        self._by_shortname: dict[str, list[R]] = {}
        self._by_tag: dict[str, dict[str, R]] = {}
        # Transitions happen in the order of virtual time, so appending keeps this sorted; an entry is stale
        # when its object has moved again. Stale ones are dropped when they are the greater part.
        self._transitions: list[tuple[float, R]] = []

    def __len__(self) -> int:
        return len(self._by_uuid)

    def __iter__(self) -> Iterator[R]:
        return iter(self._by_uuid.values())

    def add(self, item: R) -> None:
        seconds, every = self._skew
        if seconds and item.seq % every == 0:
            self.skew(item, seconds)
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

    def retag(self, item: R, tags: list[str]) -> None:
        self._untag(item)
        item.tags = tags
        for tag in tags:
            self._by_tag.setdefault(tag, {})[item.uuid] = item

    def _untag(self, item: R) -> None:
        for tag in item.tags:
            if tagged := self._by_tag.get(tag):
                tagged.pop(item.uuid, None)
                if not tagged:
                    del self._by_tag[tag]

    def move(self, item: R, state: str, now: float) -> bool:
        """Change the state and note the transition. False if it has that state already."""
        if item.state == state:
            return False
        item.previous_state, item.state = item.state, state
        item.previously_moved, item.moved = item.moved, now
        item.modified = now
        if item.uuid in self._by_uuid:
            self._transitions.append((now, item))
            if len(self._transitions) > 1000 + 4 * len(self._by_uuid):
                self._transitions = [e for e in self._transitions if self._current(e)]
        return True

    def _current(self, entry: tuple[float, R]) -> bool:
        when, item = entry
        return item.moved == when and item.uuid in self._by_uuid

    def get(self, uuid: str) -> R | None:
        return self._by_uuid.get(uuid.lower())

    def find(self, key: str) -> R | None:
        """By uuid or shortname. Where several share a shortname (it is not enforced): the newest."""
        found = self.get(key)
        if found is None and (named := self._by_shortname.get(key)):
            found = named[-1]
        return found

    def named(self, shortname: str) -> list[R]:
        return self._by_shortname.get(shortname, [])

    def tagged(self, tag: str) -> list[R]:
        """In order of creation or tagging."""
        return list(self._by_tag.get(tag, {}).values())

    def moved_since(self, when: float) -> list[R]:
        """Objects that may show a last transition at `when` or later."""
        if self._skewed or not self._dial.is_true:
            return list(self)
        first = bisect_left(self._transitions, when, key=lambda entry: entry[0])
        return list({e[1].uuid: e[1] for e in self._transitions[first:] if self._current(e)}.values())

    # ---- a server whose clocks and replicas disagree ----

    def shown(self, item: R, when: float) -> float:
        """What is shown for the moment *when* of an object."""
        return self._dial.show(when) + item.skew

    def skew(self, item: R, seconds: float) -> None:
        """Show all times of one object wrong by *seconds*."""
        item.skew, self._skewed = seconds, True

    def skew_new(self, seconds: float, every: int) -> None:
        """Show all times of every so-manieth new object wrong by *seconds*."""
        self._skew = (seconds, every)

    def lag(self, seconds: float, clock: Callable[[], float]) -> None:
        """Have searches see the objects as they are now, for so many seconds; then as they are then, and so on."""
        self._lag = _Lag(seconds, clock, clock(), self._copied()) if seconds > 0 else None

    def searched(self) -> Store[R]:
        """What a search looks through: this store, or an older copy of it."""
        lag = self._lag
        if lag is None:
            return self
        if lag.clock() - lag.taken >= lag.seconds:
            lag.taken, lag.store = lag.clock(), self._copied()
        return lag.store

    def _copied(self) -> Store[R]:
        found: Store[R] = Store(self._dial)
        for item in self:
            found.add(copy.copy(item))
        found._transitions.sort(key=lambda entry: entry[0])
        found._skewed = self._skewed
        return found


@dataclass
class _Lag(Generic[R]):
    """An older copy of a store, and how long it serves."""

    seconds: float
    clock: Callable[[], float]
    taken: float
    store: Store[R]
