"""What the Pools page knows, shared by all who look, and when it is asked for again.

A :class:`Cache` belongs to one connection. One thread at a time asks, one thing after another with a pause between,
so the rate of requests to Qarnot is bounded however many look and at how many pools; nobody who looks waits for
Qarnot: a look gives what is there, with its age, and says whether something newer is on its way. When nobody
looks, nothing is asked. Knows neither Qarnot nor Airflow.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

log = logging.getLogger(__name__)

#: The thing that every look is about; the others are details, of which only so many are kept.
LIST = "list"
MAX_DETAILS = 50
#: Most things to wait for their turn: whoever asks for a thousand gets no thousand requests.
MAX_QUEUED = 20
#: Longest time, in seconds, between two attempts while they fail.
MAX_RETRY_DELAY = 60.0


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """What is known of one thing. ``age`` in seconds, None where nothing is known yet; ``error`` of the last try.

    ``version`` names the value: another one has another version, also in another process.
    """

    value: Any = None
    age: float | None = None
    error: str | None = None
    refreshing: bool = False
    version: str = ""


@dataclass
class _Entry:
    value: Any = None
    version: int = 0
    #: Whether the value is a whole one, and not the first part of one.
    whole: bool = False
    seen_at: float | None = None
    error: str | None = None
    failures: int = 0
    due_at: float = float("-inf")
    waiting: bool = False
    #: Counts the wishes for something newer, so that one that comes while it is asked for is not lost.
    wishes: int = field(default=0)


class Cache:
    """:param ask: gives the newest value of a key; what it raises is shown by ``words``. Its second argument takes
        parts of the first answer, which are shown until the whole one is there.
    :param every: seconds after which a value is asked for again, when somebody looks.
    :param pause: seconds between two questions.
    """

    def __init__(
        self,
        ask: Callable[[str, Callable[[Any], None]], Any],
        *,
        every: float,
        pause: float = 0.25,
        describe: Callable[[Exception], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._every = every
        self._pause = pause
        self._describe = describe
        self._clock = clock
        self._name = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._thread: threading.Thread | None = None

    def get(self, key: str = LIST, *, newer: bool = False) -> CacheEntry:
        """What is known of *key*. Asks for it, without waiting, when it is due or *newer* is wanted."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            self._forget()
            if newer:
                entry.wishes += 1
            if newer or self._clock() >= entry.due_at or self._is_behind(entry):
                self._want(key, entry)
            age = None if entry.seen_at is None else max(0.0, self._clock() - entry.seen_at)
            return CacheEntry(
                value=entry.value,
                age=age,
                error=entry.error,
                refreshing=entry.waiting,
                version=f"{self._name}.{entry.version}",
            )

    def _is_behind(self, entry: _Entry) -> bool:
        """Whether the list knows of newer things than a detail, which then follows at once (unless it fails)."""
        known, listed = entry.seen_at, self._entries.get(LIST, entry).seen_at
        return known is not None and listed is not None and known < listed and not entry.failures

    def _forget(self) -> None:
        """Drop the details that nobody has looked at for longest."""
        old = [key for key, entry in self._entries.items() if key != LIST and not entry.waiting]
        for key in old[: max(0, len(self._entries) - 1 - MAX_DETAILS)]:
            del self._entries[key]

    def _want(self, key: str, entry: _Entry) -> None:
        if entry.waiting or (key != LIST and len(self._queue) >= MAX_QUEUED):
            return  # one that finds no room is due at its next look still
        entry.waiting = True
        self._queue[key] = None
        if key == LIST:
            self._queue.move_to_end(key, last=False)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="qarnot-pools-page", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Ask for what is wanted, one after another, until nothing is."""
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                key, _ = self._queue.popitem(last=False)
                wishes = self._entries[key].wishes
            value, error = None, None
            try:
                value = self._ask(key, partial(self._first, key))
            except Exception as problem:
                # Once for each outage: somebody may keep the page open for days.
                first = self._entries[key].failures == 0
                log.log(
                    logging.WARNING if first else logging.DEBUG,
                    "The Pools page could not ask for %s: %s",
                    key,
                    problem,
                )
                error = self._describe(problem)
            with self._lock:
                self._note(key, value, error, wishes)
            time.sleep(self._pause)

    def _first(self, key: str, value: Any) -> None:
        with self._lock:
            entry = self._entries[key]
            if not entry.whole:
                entry.value, entry.seen_at = value, self._clock()
                entry.version += 1

    def _note(self, key: str, value: Any, error: str | None, wishes: int) -> None:
        entry, now = self._entries[key], self._clock()
        entry.waiting = False
        entry.error = error
        if error is None:
            entry.value, entry.seen_at, entry.failures = value, now, 0
            entry.version, entry.whole = entry.version + 1, True
            entry.due_at = now + self._every
        else:
            entry.failures += 1
            entry.due_at = now + min(
                self._every * 2 ** (entry.failures - 1), max(self._every, MAX_RETRY_DELAY)
            )
        if entry.wishes != wishes:
            self._want(key, entry)
