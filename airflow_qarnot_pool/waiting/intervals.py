"""Decide when to poll next, and how long to wait on a worker before deferring. Pure functions.

An object that was submitted or has changed lately is likely to change soon, so it is polled often. A long wait can
bear a later response. So the interval is a share of the age, between two bounds that the configuration sets:
``[qarnot] min_poll_interval`` and ``[qarnot] poll_interval``. Equal bounds make a fixed interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from airflow_qarnot_pool.waiting.conditions import Kind, is_queued

#: The interval as a share of the age, so an end is seen at most 2 % of the wait late.
SHARE_OF_AGE = 1 / 50
#: Maximum seconds between polls that do not follow an age: of costs, quotas and output, and of pools of queued tasks.
MAX_STEADY_INTERVAL = 5.0
#: Maximum seconds between polls that fail.
MAX_BACKOFF = 60.0
#: Maximum seconds for which a Retry-After stops all polls. One request in that time burdens no service, and a response
#: that asks for hours may come from a proxy or concern one of many objects.
MAX_RETRY_AFTER = 600.0
#: Maximum seconds for which a queued Qarnot task keeps a worker, unless its end is expected later. A warm pool starts
#: it sooner.
MAX_QUEUED_ON_WORKER = 2.0
#: Maximum seconds between polls before an expected end, because the object may end sooner, or be queued.
MAX_BLIND = 2.0
#: Seconds after an expected end at which it is polled, because two runs do not take exactly as long.
END_MARGIN = 0.25
#: Maximum number of mapped siblings that wait on workers at the same time.
MAX_SIBLINGS_ON_WORKERS = 8


@dataclass(frozen=True)
class Forecast:
    """What is known about the wait for an object that this process has just created.

    :param defer_after: maximum seconds of the wait on the worker before it defers.
    :param expected: seconds after which the object probably ends. None if that is not known.
    """

    defer_after: float = 0.0
    expected: float | None = None

    @property
    def ends_on_worker(self) -> bool:
        """Return whether the object may end before the wait defers."""
        return (self.expected or 0.0) < self.defer_after


@dataclass
class Backoff:
    """The failures in a row of the polls of a wait, which make the pauses longer."""

    failures: int = 0
    #: Seconds for which the service asks to wait.
    requested: float = 0.0

    def record_failure(self, error: Exception) -> None:
        """Record a poll that has failed."""
        self.failures, self.requested = self.failures + 1, requested_pause(error)

    def record_response(self) -> None:
        """Record a poll that has succeeded."""
        self.failures, self.requested = 0, 0.0

    def delay(self, delay: float, shortest: float = 0.0) -> float:
        """Return the seconds until the next poll, which are *delay* without a failure, and *shortest* at least."""
        return backoff_delay(delay, self.failures, self.requested, shortest) if self.failures else delay


@dataclass
class Pace:
    """Decides every pause of a wait on a worker. Times are those of one monotonic clock.

    :param started: when the wait began. Its object was submitted or adopted then.
    :param longest: upper bound of the interval.
    :param shortest: lower bound. It is ignored if it exceeds *longest*.
    :param expected: seconds from the start after which the object probably ends. None if that is not known.
    :param limit: maximum seconds of the wait on the worker. None to wait there until the end.
    """

    started: float
    longest: float
    shortest: float
    expected: float | None = None
    limit: float | None = None
    backoff: Backoff = field(default_factory=Backoff)
    #: Seconds that the last poll took. An expensive one is followed by a pause of the same length.
    poll_seconds: float = 0.0
    _changed: float = field(init=False)

    def __post_init__(self) -> None:
        self._changed = self.started
        self.shortest = min(self.shortest, self.longest)

    def record_change(self, now: float) -> None:
        """Record that a poll has shown a change."""
        self._changed = now

    def pause(self, now: float, left: float = math.inf) -> float | None:
        """Return the seconds until the next poll. None if the wait leaves its worker before that.

        :param left: seconds until the deadline of the wait.
        """
        waited = now - self.started
        remaining = None if self.expected is None else self.expected + END_MARGIN - waited
        delay = poll_delay(now - self._changed, self.shortest, self.longest, remaining)
        delay = max(self.backoff.delay(delay, self.shortest), self.poll_seconds)
        delay = max(0.0, min(delay, left))
        if self.limit is None:
            return delay
        # The last poll comes when the limit is reached, unless that is too soon for a poll.
        stays = self.limit - waited
        return None if stays < min(self.shortest, delay) else min(delay, stays)


def poll_delay(age: float, shortest: float, longest: float, remaining: float | None = None) -> float:
    """Return the seconds until the next poll.

    :param age: seconds since the youngest of the awaited objects was submitted or has changed.
    :param shortest: lower bound. It is ignored if it exceeds *longest*.
    :param remaining: seconds until the end is expected, which is polled at that moment and rarely before it. None if
        that is not known.
    """
    delay = min(longest, max(shortest, SHARE_OF_AGE * age))
    if remaining is None or remaining <= 0:
        return delay
    pause = remaining / math.ceil(remaining / min(longest, max(delay, MAX_BLIND)))
    return max(pause, min(shortest, longest))


def steady_interval(longest: float) -> float:
    """Return the seconds between polls that do not follow an age, if *longest* is the upper bound of the others."""
    return min(longest, MAX_STEADY_INTERVAL)


def requested_pause(error: Exception) -> float:
    """Return the seconds for which the service asks to wait, by its ``Retry-After``; 0 if it does not."""
    retry_after: float | None = getattr(error, "retry_after", None)
    return min(retry_after or 0.0, MAX_RETRY_AFTER)


def backoff_delay(delay: float, failures: int, requested: float = 0.0, shortest: float = 0.0) -> float:
    """Return the seconds until the next poll after *failures* in a row.

    :param delay: seconds until the next poll without a failure.
    :param requested: seconds for which the service asks to wait.
    :param shortest: lower bound.
    """
    pause: float = min(MAX_BACKOFF, steady_interval(delay) * 2 ** min(failures, 10))
    return max(pause, requested, shortest)


def may_keep_worker(
    kind: Kind, state: str | None, waited: float, defer_after: float, expected: float | None = None
) -> bool:
    """Return whether a wait may stay on its worker.

    :param state: state of the object, or None if the poll failed. A deferred wait bears an outage better.
    :param waited: seconds since the start of the wait.
    :param defer_after: maximum seconds of the wait on the worker.
    :param expected: seconds after which the object probably ends, its time in the queue included. None if that is not
        known.
    """
    if state is None:
        return False
    if kind == "task" and is_queued(state):
        return waited < min(defer_after, max(MAX_QUEUED_ON_WORKER, expected or 0.0))
    return waited < defer_after


def has_few_siblings(map_index: int | None, count: int | None) -> bool:
    """Return whether few siblings of a mapped task instance can want a worker at the same time.

    :param count: number of mapped instances. None if it is not known, because no context of Airflow 3.1 to 3.3 has it,
        and a request for it would cost as much as it saves. Then those of the first indexes wait.
    """
    return max(map_index or 0, (count or 0) - 1) < MAX_SIBLINGS_ON_WORKERS
