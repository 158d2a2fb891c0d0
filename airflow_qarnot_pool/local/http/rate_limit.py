"""Limit of requests per second. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """A token bucket, which holds the requests of one second, and one at least.

    :param per_second: requests per second that are served in the long run.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_second, clock
        self._size = max(1.0, per_second)
        self._left, self._filled = self._size, clock()

    def wait(self) -> float:
        """Count a request, and return 0. If it exceeds the limit, return the seconds until one is served."""
        now = self._clock()
        self._left = min(self._size, self._left + (now - self._filled) * self._rate)
        self._filled = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0
