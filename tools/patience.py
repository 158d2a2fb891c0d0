"""A clock for waits on a machine that other programs want, too."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: Seconds between two measurements of the processes.
EVERY = 2.0


class Patience:
    """Counts the seconds in which some processes had the machine.

    A second counts in full while the processes sleep, or run whenever they want to. While they queue for a core, it
    counts by the share of their wishes that they get: what takes a minute on a quiet machine has a minute here, too,
    however long that is by the wall clock. Linux tells how long each thread has run and queued; elsewhere this is the
    wall clock.

    :param pids: the processes that are waited for. This process always counts.
    """

    def __init__(self, pids: Callable[[], Iterable[int]] = tuple) -> None:
        self._pids = pids
        self._threads = self._look()
        self._at = time.monotonic()
        self.seconds = 0.0

    def count(self) -> float:
        """Return the seconds since this was made."""
        now = time.monotonic()
        if now - self._at >= EVERY:
            threads = self._look()
            ran = queued = 0
            for thread, (ran_now, queued_now) in threads.items():
                ran_before, queued_before = self._threads.get(thread, (0, 0))
                ran += ran_now - ran_before
                queued += queued_now - queued_before
            wanted = ran + queued
            self.seconds += (now - self._at) * (ran / wanted if wanted > 0 else 1.0)
            self._threads, self._at = threads, now
        return self.seconds

    def begin_again(self) -> None:
        """Count from zero."""
        self.count()
        self.seconds = 0.0

    def _look(self) -> dict[str, tuple[int, int]]:
        """Nanoseconds that each thread has run and queued."""
        found = {}
        for pid in {*self._pids(), os.getpid()}:
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError, ValueError):
                        ran, queued, _ = (thread / "schedstat").read_text().split()
                        found[str(thread)] = int(ran), int(queued)
        return found
