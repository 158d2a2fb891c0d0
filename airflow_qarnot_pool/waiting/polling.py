"""Wait on the worker, and functions shared with waits in the triggerer."""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
    QarnotUnknownStateError,
)
from airflow_qarnot_pool.exceptions import QarnotCostLimitError
from airflow_qarnot_pool.parameters.configuration import min_poll_interval
from airflow_qarnot_pool.waiting.conditions import (
    CAPITALIZED_NOUNS,
    POOL_POLL_INTERVALS,
    STRANDED_INTERVALS,
    Absence,
    Condition,
    EndReason,
    WaitResult,
    is_queued,
    result_if_met,
    stranded_result,
    timeout_message,
)
from airflow_qarnot_pool.waiting.intervals import (
    Backoff,
    Forecast,
    Pace,
    may_keep_worker,
    requested_pause,
    steady_interval,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Minimum time in an ended state after which no second poll is needed, because a rescheduled sensor remembers none.
ENDED_LONG_AGO = timedelta(minutes=5)
#: Seconds between the requests that confirm a 404 or a refusal outside a wait.
CONFIRM_AFTER = (0.5, 1.0)


@dataclass(eq=False)
class KillFlag:
    """A flag that a signal handler sets and the interrupted code waits for.

    ``threading.Event`` is not signal-safe. If the signal arrives while ``wait`` holds the lock of the event, ``set``
    waits for that lock forever. ``SimpleQueue.put`` may be called at any moment.
    """

    _set: bool = False
    _wake: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)

    def set(self) -> None:
        """Set the flag, and wake the waiting code."""
        self._set = True
        self._wake.put(None)

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds* until the flag is set, and return whether it is."""
        if not self._set:
            with suppress(queue.Empty):
                self._wake.get(timeout=seconds)
        return self._set


class PoolsOfTasks:
    """Poll the pools of awaited Qarnot tasks at a low rate, because a service may leave tasks queued on an ended pool.

    :param get: function that requests a pool.
    :param uuids: the pools.
    :param interval: seconds between two polls of the wait.
    """

    def __init__(self, get: Callable[[str], Any], uuids: Iterable[str], interval: float) -> None:
        self._get, self._uuids = get, tuple(uuids)
        self._every = POOL_POLL_INTERVALS * interval
        self._grace = STRANDED_INTERVALS * interval
        self._polled: float | None = None
        self._ended_at: dict[str, float] = {}

    def why_stranded(self, task_states: Iterable[str]) -> str | None:
        """Return why a Qarnot task in one of *task_states* never runs: it is queued, and its pool has ended.

        With several pools, the pool of that task is a guess.
        """
        if not self._uuids or not any(map(is_queued, task_states)):
            return None
        now = time.monotonic()
        every = self._grace if self._ended_at else self._every
        if self._polled is not None and now - self._polled < every:
            return None
        self._polled = now
        for uuid in self._uuids:
            state, long_ago = self._ended_state(uuid)
            if state is None:
                self._ended_at.pop(uuid, None)
            elif long_ago or now - self._ended_at.setdefault(uuid, now) >= self._grace:
                return f"its pool {uuid} is {state}"
        return None

    def _ended_state(self, uuid: str) -> tuple[str | None, bool]:
        """Return the state of a pool that has ended, and whether it has been in that state for long.

        The state is None if the pool accepts tasks or cannot be polled.
        """
        try:
            pool = self._get(uuid)
            if states.accepts_tasks(pool.state):
                return None, False
        except QarnotNotFoundError as error:
            return (None if error.foreign else "deleted"), False
        except QarnotError as error:
            log.info("Could not poll pool %s of the awaited Qarnot tasks: %s", uuid, error)
            return None, False
        since = pool.state_transition_time
        return pool.state, since is not None and datetime.now(UTC) - since > ENDED_LONG_AGO


def wait_on_worker(
    get: Callable[[str], Any],
    uuid: str,
    condition: Condition,
    interval: float,
    deadline: datetime | None,
    killed: KillFlag,
    still_waiting: Callable[[Any], None] = lambda remote: None,
    over_limit: Callable[[], str | None] = lambda: None,
    why_stranded: Callable[[Iterable[str]], str | None] = lambda states: None,
    forecast: Forecast | None = None,
    limit: float | None = None,
) -> WaitResult | None:
    """Wait in this process, and return None if *killed* is set first.

    Polls are frequent after a change of the object, and slow down to *interval*. *still_waiting* (with the object) and
    *over_limit* are called at a steady interval, *why_stranded* with every poll. An unreachable API never ends the
    wait, and a refusal only if it lasts.

    :param get: function that requests the object.
    :param forecast: given for an object that was just created. It is not polled at once, and rarely before its
        expected end.
    :param limit: maximum seconds in this process, if the wait can continue in the triggerer. It leaves earlier if the
        object stays queued or a poll fails. The result is None then.
    """
    steady = steady_interval(interval)
    still_waiting, over_limit = at_most_every(steady, still_waiting), at_most_every(steady, over_limit)
    history: list[str] = []
    absence = Absence(interval)
    expected = forecast.expected if forecast else None
    started = time.monotonic()
    pace = Pace(started, interval, min_poll_interval(), expected, limit)
    if forecast is not None and not wait_for_next_poll(pace, killed, deadline):
        return None
    while not killed.is_set():
        remote = _poll(get, uuid, condition, absence, history, pace.backoff)
        if isinstance(remote, WaitResult):
            return remote
        state, waited = remote and remote.state, time.monotonic() - started
        if limit is not None and not may_keep_worker(condition.kind, state, waited, limit, expected):
            return None
        if remote is not None:
            if history[-1:] != [remote.state]:
                pace.record_change(time.monotonic())
                history.append(remote.state)
            still_waiting(remote)
            if why := why_stranded((remote.state,)):
                return stranded_result(uuid, remote.state, why)
        if message := over_limit():
            resume_state = {"error": QarnotCostLimitError.__name__}
            return WaitResult(ending=EndReason.ERROR, uuid=uuid, message=message, resume_state=resume_state)
        if deadline is not None and _seconds_until(deadline) <= 0:
            return WaitResult(
                ending=EndReason.TIMEOUT,
                uuid=uuid,
                state=next(reversed(history), None),
                message=timeout_message(condition.kind, uuid, history, condition),
            )
        if not wait_for_next_poll(pace, killed, deadline):
            return None
    return None


def wait_for_next_poll(pace: Pace, killed: KillFlag, deadline: datetime | None) -> bool:
    """Wait until the next poll is due, *deadline* has come or *killed* is set.

    Return False, without a wait, if the wait leaves its worker before the next poll.
    """
    left = math.inf if deadline is None else _seconds_until(deadline)
    pause = pace.pause(time.monotonic(), left)
    if pause is not None:
        killed.wait(pause)
    return pause is not None


def _seconds_until(deadline: datetime) -> float:
    return (deadline - datetime.now(UTC)).total_seconds()


def _poll(
    get: Callable[[str], Any],
    uuid: str,
    condition: Condition,
    absence: Absence,
    history: list[str],
    backoff: Backoff,
) -> Any:
    """Return the result of the wait if it ends, else the object, or None if the poll says nothing about it."""
    try:
        remote = get(uuid)
    except QarnotError as error:
        backoff.record_failure(error)
        if ends_wait(error, absence):
            if not isinstance(error, QarnotNotFoundError):
                raise
            return _absence_result(condition, uuid, error)
        return None
    absence.record_found()
    backoff.record_response()
    result = result_if_met(condition, remote, history)
    return remote if result is None else replace(result, remote=remote)


def ends_wait(error: QarnotError, absence: Absence) -> bool:
    """Return whether a poll that fails with *error* ends the wait: it is permanent, and has lasted for some time."""
    if is_transient(error):
        return False  # the transport has logged it
    if absence.is_certain(error, time.monotonic()):
        return True
    log.warning("Polling again, because a single response proves nothing: %s", error)
    return False


def at_most_every(seconds: float, call: Callable[..., T]) -> Callable[..., T | None]:
    """Return a function that does as *call*, but nothing for some *seconds* after it has.

    An error is raised only if it is permanent and has lasted. A 404 ends no wait.
    """
    due, absence = float("-inf"), Absence(seconds)

    def call_if_due(*args: Any) -> T | None:
        nonlocal due
        if time.monotonic() < due:
            return None
        due = time.monotonic() + seconds
        try:
            result = call(*args)
        except QarnotError as error:
            due = time.monotonic() + max(seconds, requested_pause(error))
            if ends_wait(error, absence) and not isinstance(error, QarnotNotFoundError):
                raise
            return None
        absence.record_found()
        return result

    return call_if_due


def _absence_result(condition: Condition, uuid: str, error: QarnotNotFoundError) -> WaitResult:
    return WaitResult(
        ending=EndReason.MET if condition.met_by_absence else EndReason.GONE,
        uuid=uuid,
        message=f"{CAPITALIZED_NOUNS[condition.kind]} {uuid} is gone before its end was seen ({error})",
    )


def confirmed(request: Callable[[], T], pause: Callable[[float], Any] = time.sleep) -> T:
    """Return the response to *request*. A 404 or a refusal counts only if the next requests return it, too."""
    for seconds in CONFIRM_AFTER:
        try:
            return request()
        except (QarnotNotFoundError, QarnotRefusedError) as error:
            log.info("Requesting again, because a single response proves nothing: %s", error)
        pause(seconds)
    return request()


def get_confirmed(resource: Any, uuid: str, pause: Callable[[float], Any] = time.sleep) -> Any:
    """Return the object *uuid*, as :func:`confirmed` does.

    :raises QarnotNotFoundError: the object does not exist. ``foreign``: no response came from the service itself.
    """
    return confirmed(partial(resource.get, uuid), pause)


def find_confirmed(resource: Any, ref: str, pause: Callable[[float], Any] = time.sleep) -> Any | None:
    """Return the object; None if the service itself says that it is deleted.

    :raises QarnotNotFoundError: no response came from the service itself.
    """
    try:
        return get_confirmed(resource, ref, pause)
    except QarnotNotFoundError as error:
        if error.foreign:
            raise
        return None


def poll_once_more(
    resource: Any,
    uuid: str,
    condition: Condition,
    state: str | None,
    pause: Callable[[float], Any] = time.sleep,
) -> WaitResult | None:
    """Poll once more after a wait has ended, and return the result; None if the condition is not met.

    The last poll of a wait may have been an interval, an outage or a queue for a worker ago.

    :param state: the state that the last poll of the wait has shown.
    :raises QarnotError: the object could not be polled.
    """
    try:
        remote = get_confirmed(resource, uuid, pause)
    except QarnotNotFoundError as error:
        if condition.met_by_absence and not error.foreign:
            return WaitResult(ending=EndReason.MET, uuid=uuid)
        raise
    return result_if_met(condition, remote, (state,) if state else ())


def is_transient(error: QarnotError) -> bool:
    """Return whether *error* says nothing about the object, and a later poll may succeed. Such an error ends no wait.

    A response that cannot be parsed often comes from a failing proxy. Other errors are permanent if they last.
    """
    if isinstance(error, QarnotUnknownStateError):
        return False
    if isinstance(error, QarnotNotFoundError):
        return error.foreign
    return isinstance(error, QarnotUnavailableError) or (
        isinstance(error, QarnotProtocolError) and (error.status or 200) < 300
    )
