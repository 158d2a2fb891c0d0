"""Cache behind the Pools page, shared by all viewers, with its refresh policy.

A :class:`Cache` belongs to one connection. One thread at a time fetches one value after another, with a pause between
them. So the rate of requests to Qarnot is bounded, however many viewers and pools there are, and no viewer waits for
Qarnot. A read returns the cached value with its age, and whether a newer one is on its way. Without viewers nothing is
fetched. This module knows neither Qarnot nor Airflow.
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

#: Key of the list of pools. The other keys are those of details.
LIST = "list"
#: Maximum number of details that are kept.
MAX_DETAILS = 50
#: Maximum number of keys to fetch, because a viewer who asks for a thousand pools must not cause a thousand requests.
MAX_QUEUED = 20
#: A value is fetched again after so many times the duration of its fetch, because a huge account must leave time.
REST = 4
#: Maximum seconds between attempts while they fail.
MAX_RETRY_DELAY = 60.0


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A cached value. ``age`` is in seconds, and None before the first value. ``error`` is that of the last attempt.

    ``version`` names the value. A different value has a different version, in another process, too. ``source`` names
    the cache.
    """

    value: Any = None
    age: float | None = None
    error: str | None = None
    refreshing: bool = False
    #: Whether a whole value was read, and not only the first part of one.
    complete: bool = False
    version: str = ""
    source: str = ""


@dataclass
class _Entry:
    value: Any = None
    version: int = 0
    #: Whether the value is complete, and not the first part of one.
    complete: bool = False
    fetched_at: float | None = None
    error: str | None = None
    failures: int = 0
    due_at: float = float("-inf")
    queued: bool = False
    #: Number of requests for a newer value. A request that comes during a fetch must not be lost.
    refresh_requests: int = field(default=0)

    def store(self, value: Any, now: float) -> None:
        """Store a value. It has a new version only if it differs, so that an unchanged page is sent nothing."""
        if self.version == 0 or value != self.value:
            self.value, self.version = value, self.version + 1
        self.fetched_at = now


class Cache:
    """Cached values by key, which one thread refreshes.

    :param fetch: function that returns the newest value of a key. Its second argument is a function that takes parts of
        the first value, which are shown until the value is complete.
    :param max_age: seconds after which a value is fetched again when it is read.
    :param pause: seconds between two fetches.
    :param describe: function that returns the text shown for an error that *fetch* raised.
    """

    def __init__(
        self,
        fetch: Callable[[str, Callable[[Any], None]], Any],
        *,
        max_age: float,
        pause: float = 0.25,
        describe: Callable[[Exception], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._max_age = max_age
        self._pause = pause
        self._describe = describe
        self._clock = clock
        self._name = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._thread: threading.Thread | None = None

    def get(self, key: str = LIST, *, newer: bool = False) -> CacheEntry:
        """Return the cached value of *key*. Request a fetch, without waiting, if it is due or *newer* is set."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            self._evict()
            if newer:
                entry.refresh_requests += 1
            if newer or self._clock() >= entry.due_at or self._is_behind(entry):
                self._enqueue(key, entry)
            age = None if entry.fetched_at is None else max(0.0, self._clock() - entry.fetched_at)
            return CacheEntry(
                value=entry.value,
                age=age,
                error=entry.error,
                refreshing=entry.queued,
                complete=entry.complete,
                version=f"{self._name}.{entry.version}",
                source=self._name,
            )

    def refresh(self, key: str) -> None:
        """Request a fetch of *key*, without waiting, if it is cached. A value that nobody has read costs nothing."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.refresh_requests += 1
                self._enqueue(key, entry)

    def _is_behind(self, entry: _Entry) -> bool:
        """Return whether the list is newer than a detail, which is then fetched at once, unless its fetch fails."""
        fetched, listed = entry.fetched_at, self._entries.get(LIST, entry).fetched_at
        return fetched is not None and listed is not None and fetched < listed and not entry.failures

    def _evict(self) -> None:
        """Drop the least recently read details."""
        idle = [key for key, entry in self._entries.items() if key != LIST and not entry.queued]
        for key in idle[: max(0, len(self._entries) - 1 - MAX_DETAILS)]:
            del self._entries[key]

    def _enqueue(self, key: str, entry: _Entry) -> None:
        if entry.queued or (key != LIST and len(self._queue) >= MAX_QUEUED):
            return  # without a place in the queue it stays due at its next read
        entry.queued = True
        self._queue[key] = None
        if key == LIST:
            self._queue.move_to_end(key, last=False)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="qarnot-pools-page", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Fetch the queued keys one by one until the queue is empty."""
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                key, _ = self._queue.popitem(last=False)
                refresh_requests = self._entries[key].refresh_requests
            value, message, started = None, None, self._clock()
            try:
                value = self._fetch(key, partial(self._store_part, key))
            except Exception as error:
                # Warn once per outage, because the page may stay open for days.
                first = self._entries[key].failures == 0
                log.log(
                    logging.WARNING if first else logging.DEBUG,
                    "The Pools page could not fetch %s: %s",
                    key,
                    error,
                )
                message = self._describe(error)
            with self._lock:
                self._store(key, value, message, started, refresh_requests)
            time.sleep(self._pause)

    def _store_part(self, key: str, value: Any) -> None:
        with self._lock:
            entry = self._entries[key]
            if not entry.complete:
                entry.store(value, self._clock())

    def _store(self, key: str, value: Any, error: str | None, started: float, refresh_requests: int) -> None:
        entry, now = self._entries[key], self._clock()
        entry.queued = False
        entry.error = error
        if error is None:
            entry.store(value, now)
            entry.failures, entry.complete = 0, True
            entry.due_at = now + max(self._max_age, REST * (now - started))
        else:
            entry.failures += 1
            delay = self._max_age * 2 ** (entry.failures - 1)
            entry.due_at = now + min(delay, max(self._max_age, MAX_RETRY_DELAY))
        if entry.refresh_requests != refresh_requests:
            self._enqueue(key, entry)
