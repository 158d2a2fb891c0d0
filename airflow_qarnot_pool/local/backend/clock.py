"""Virtual time: a clock that can run fast or jump, and its events.

Everything timed in the local Qarnot (boots, idle times, resize periods, policy edges, time to live) is an event here. A
week can therefore pass in one call, with all events at their time and in their order.
"""

from __future__ import annotations

import heapq
import itertools
import time
from bisect import bisect_right
from collections.abc import Callable

Action = Callable[[], None]


class Timer:
    """A future event, which `cancel()` prevents."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Action) -> None:
        self.when = when
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Clock:
    """A clock whose epoch seconds are the start, plus the real time passed * speed, plus the seconds advanced.

    `now` stands still while an action runs, at the time at which the action was due.
    """

    def __init__(self, start: float | None = None, real: Callable[[], float] = time.monotonic) -> None:
        self._real = real
        self._anchor_real = real()
        self._anchor = time.time() if start is None else start
        self._speed = 1.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self.now = self._anchor

    @property
    def speed(self) -> float:
        return self._speed

    def read(self) -> float:
        """Return the virtual time, whether or not the due events have run."""
        return self._anchor + (self._real() - self._anchor_real) * self._speed

    def start_at(self, when: float) -> None:
        """Start at the virtual time *when*, without events."""
        self._anchor, self._anchor_real, self.now = when, self._real(), when

    def set_speed(self, speed: float) -> None:
        """Set the virtual seconds per real second from now on (0 stops the clock)."""
        self.catch_up()
        self._anchor, self._anchor_real, self._speed = self.read(), self._real(), speed

    def advance(self, seconds: float) -> None:
        """Jump ahead and run the events that fall due on the way, in order."""
        self._anchor += seconds
        self.catch_up()

    def at(self, when: float, action: Action) -> Timer:
        timer = Timer(when, action)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def after(self, seconds: float, action: Action) -> Timer:
        return self.at(self.now + seconds, action)

    def catch_up(self) -> None:
        """Run all due events, and set `now` to the virtual time."""
        target = max(self.read(), self.now)
        while self._heap and self._heap[0][0] <= target:
            when, _, timer = heapq.heappop(self._heap)
            if timer.action is not None:
                self.now = max(self.now, when)
                action, timer.action = timer.action, None
                action()
        self.now = max(self.now, target)

    def real_delay(self) -> float | None:
        """Return the real seconds until the next event, or None without one or if the clock stands still."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        if not self._heap or self._speed <= 0:
            return None
        return max(0.0, (self._heap[0][0] - self.read()) / self._speed)


class ShownTime:
    """Map virtual time to the time that the server shows.

    A step changes how later times are shown. Times that were shown before keep their value, as in a database.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[float, float]] = []

    @property
    def is_true(self) -> bool:
        """Whether the server shows its virtual time."""
        return not self._steps

    def step(self, now: float, seconds: float) -> None:
        """Put the shown clock forward by *seconds*, or back."""
        self._steps.append((now, self.show(now) - now + seconds))

    def show(self, when: float) -> float:
        """Return the shown time of the virtual time *when*."""
        position = bisect_right(self._steps, when, key=lambda step: step[0])
        return when + (self._steps[position - 1][1] if position else 0.0)
