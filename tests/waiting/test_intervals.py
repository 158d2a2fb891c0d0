"""When to poll next, and when to defer."""

from __future__ import annotations

from statistics import quantiles

import pytest

from airflow_qarnot_pool.api.errors import QarnotUnavailableError
from airflow_qarnot_pool.parameters.configuration import LONGEST, SHORTEST
from airflow_qarnot_pool.waiting.intervals import (
    MAX_BACKOFF,
    MAX_QUEUED_ON_WORKER,
    MAX_RETRY_AFTER,
    MAX_SIBLINGS_ON_WORKERS,
    Forecast,
    Pace,
    backoff_delay,
    has_few_siblings,
    may_keep_worker,
    poll_delay,
    requested_pause,
    steady_interval,
)

MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(
    ("age", "shortest", "longest", "expected"),
    [
        pytest.param(0, 0.75, 15, 0.75, id="just submitted"),
        pytest.param(30, 0.75, 15, 0.75, id="young"),
        pytest.param(MINUTE, 0.75, 15, 1.2, id="a minute"),
        pytest.param(10 * MINUTE, 0.75, 15, 12, id="ten minutes"),
        pytest.param(HOUR, 0.75, 15, 15, id="an hour"),
        pytest.param(float("inf"), 0.75, 15, 15, id="no young object"),
        pytest.param(-5, 0.75, 15, 0.75, id="a clock that was set back"),
        pytest.param(0, 5, 5, 5, id="a fixed interval, young"),
        pytest.param(HOUR, 5, 5, 5, id="a fixed interval, old"),
        pytest.param(0, 0.75, 0.05, 0.05, id="the upper bound counts"),
        pytest.param(HOUR, 0.75, 60, 60, id="a large upper bound"),
    ],
)
def test_the_interval_follows_the_age_between_its_bounds(
    age: float, shortest: float, longest: float, expected: float
) -> None:
    assert poll_delay(age, shortest, longest) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("age", "remaining", "longest", "expected"),
    [
        pytest.param(0, 1.2, 15, 1.2, id="soon: one poll, when it has ended"),
        pytest.param(0, 3.8, 15, 1.9, id="later: one on the way"),
        pytest.param(1.9, 1.9, 15, 1.9, id="after that one"),
        pytest.param(0, 9.3, 15, 1.86, id="never blind for longer than two seconds"),
        pytest.param(0, 0.1, 15, 0.75, id="the lower bound holds"),
        pytest.param(0, 5.2, 1, 5.2 / 6, id="the upper bound holds"),
        pytest.param(5 * MINUTE, 60, 15, 6, id="a long wait on a worker: no more polls than without it"),
        pytest.param(5, 0, 15, 0.75, id="it is late: as if nothing was expected"),
        pytest.param(5, -4, 15, 0.75, id="it is later"),
        pytest.param(5, None, 15, 0.75, id="nothing is expected"),
    ],
)
def test_an_expected_end_is_polled_when_it_is_due(
    age: float, remaining: float | None, longest: float, expected: float
) -> None:
    assert poll_delay(age, 0.75, longest, remaining) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("defer_after", "expected", "stays"),
    [
        pytest.param(10, None, True, id="not known"),
        pytest.param(10, 5, True, id="it ends before"),
        pytest.param(10, 60, False, id="it runs for longer"),
        pytest.param(0, None, False, id="switched off"),
    ],
)
def test_a_wait_starts_on_its_worker_only_if_it_may_end_there(
    defer_after: float, expected: float | None, stays: bool
) -> None:
    assert Forecast(defer_after, expected).ends_on_worker is stays


def polls(age: float, until: float) -> list[float]:
    """Return the ages at which an object is polled that nothing else is waited for with."""
    ages = [age]
    while ages[-1] < until:
        ages.append(ages[-1] + poll_delay(ages[-1], SHORTEST, LONGEST))
    return ages


def test_the_end_of_a_task_younger_than_a_minute_is_seen_in_time() -> None:
    """Half a second on average and two seconds in one of a hundred, with 0.25 s for the request and the event loop."""
    ages = polls(0.0, MINUTE)
    ends = [step / 100 for step in range(1, 6000)]
    lateness = [next(age for age in ages if age >= end) - end for end in ends]
    percentiles = quantiles(lateness, n=100)
    assert percentiles[49] <= 0.7 - 0.25
    assert percentiles[98] <= 2.0 - 0.25


@pytest.mark.parametrize("age", [10 * MINUTE, HOUR])
def test_an_old_wait_costs_no_more_than_a_poll_every_five_seconds(age: float) -> None:
    assert len(polls(age, age + HOUR)) <= HOUR / 5


def test_a_wait_of_half_an_hour_costs_no_more_than_polls_every_five_seconds() -> None:
    """The rare polls of its end make up for the frequent ones of its start."""
    assert len(polls(0.0, HOUR / 2)) <= HOUR / 2 / 5


@pytest.mark.parametrize(("longest", "expected"), [(15.0, 5.0), (5.0, 5.0), (0.3, 0.3), (3600.0, 5.0)])
def test_what_follows_no_age_is_polled_at_a_steady_interval(longest: float, expected: float) -> None:
    assert steady_interval(longest) == expected


@pytest.mark.parametrize(
    ("delay", "failures", "retry_after", "expected"),
    [
        pytest.param(0.75, 1, None, 1.5, id="the first failure among young waits"),
        pytest.param(0.75, 4, None, 12.0, id="the fourth"),
        pytest.param(15.0, 1, None, 10.0, id="the first failure among old waits"),
        pytest.param(0.75, 50, None, MAX_BACKOFF, id="an outage"),
        pytest.param(0.75, 1, 30.0, 30.0, id="Retry-After"),
        pytest.param(0.75, 50, 30.0, MAX_BACKOFF, id="a Retry-After that is shorter than the pause"),
        pytest.param(0.75, 1, 7200.0, MAX_RETRY_AFTER, id="a Retry-After of hours"),
    ],
)
def test_failures_slow_the_polls_down_and_retry_after_counts(
    delay: float, failures: int, retry_after: float | None, expected: float
) -> None:
    requested = requested_pause(QarnotUnavailableError(retry_after=retry_after))
    assert backoff_delay(delay, failures, requested) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("left", "poll_seconds", "limit", "pause"),
    [
        pytest.param(float("inf"), 0.0, None, 1.0, id="nothing else"),
        pytest.param(0.4, 0.0, None, 0.4, id="the deadline comes first"),
        pytest.param(-3.0, 0.0, None, 0.0, id="the deadline has passed"),
        pytest.param(float("inf"), 8.0, None, 8.0, id="an expensive poll"),
        pytest.param(float("inf"), 0.0, 50.9, 0.9, id="the limit comes first"),
        pytest.param(float("inf"), 0.0, 50.5, None, id="too little time for a poll"),
        pytest.param(0.4, 0.0, 50.5, 0.4, id="the deadline comes before the limit"),
        pytest.param(float("inf"), 0.0, 40.0, None, id="the limit has passed"),
    ],
)
def test_the_next_pause_of_a_wait_on_a_worker(
    left: float, poll_seconds: float, limit: float | None, pause: float | None
) -> None:
    pace = Pace(started=100.0, longest=15.0, shortest=0.75, limit=limit, poll_seconds=poll_seconds)
    assert pace.pause(150.0, left) == (None if pause is None else pytest.approx(pause))


@pytest.mark.parametrize(
    ("kind", "state", "waited", "defer_after", "stays"),
    [
        pytest.param("task", "FullyExecuting", 0.0, 0.0, False, id="switched off"),
        pytest.param("task", "Submitted", 0.0, 0.0, False, id="switched off, queued"),
        pytest.param("task", "FullyExecuting", 9.0, 10.0, True, id="it runs"),
        pytest.param("task", "PartiallyExecuting", 9.0, 10.0, True, id="some of it runs"),
        pytest.param("task", "UploadingResults", 9.0, 10.0, True, id="it stores its results"),
        pytest.param("task", "FullyExecuting", 10.0, 10.0, False, id="it runs for long"),
        pytest.param("task", "Submitted", 0.1, 10.0, True, id="it is being dispatched"),
        pytest.param("task", "FullyDispatched", MAX_QUEUED_ON_WORKER, 10.0, False, id="it is queued"),
        pytest.param("task", "Submitted", 1.0, 0.5, False, id="it is queued, and the limit is short"),
        pytest.param("task", None, 0.1, 10.0, False, id="an outage"),
        pytest.param("pool", "Submitted", 9.0, 10.0, True, id="a pool boots"),
        pytest.param("pool", "Submitted", 10.0, 10.0, False, id="a pool boots for long"),
    ],
)
def test_when_a_wait_may_stay_on_its_worker(
    kind: str, state: str | None, waited: float, defer_after: float, stays: bool
) -> None:
    assert may_keep_worker(kind, state, waited, defer_after) is stays  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("waited", "defer_after", "expected", "stays"),
    [
        pytest.param(9.9, 15.0, 10.0, True, id="it will end soon"),
        pytest.param(10.0, 15.0, 10.0, False, id="it is late"),
        pytest.param(5.0, 5.0, 10.0, False, id="the limit is short"),
        pytest.param(MAX_QUEUED_ON_WORKER - 0.1, 15.0, 1.0, True, id="it was short"),
        pytest.param(MAX_QUEUED_ON_WORKER, 15.0, 1.0, False, id="it was short and is late"),
        pytest.param(MAX_QUEUED_ON_WORKER, 15.0, None, False, id="nothing is known"),
    ],
)
def test_a_queued_task_keeps_its_worker_for_as_long_as_the_previous_one_took(
    waited: float, defer_after: float, expected: float | None, stays: bool
) -> None:
    assert may_keep_worker("task", "Submitted", waited, defer_after, expected) is stays


@pytest.mark.parametrize(
    ("map_index", "count", "few"),
    [
        pytest.param(None, None, True, id="no index"),
        pytest.param(-1, None, True, id="not mapped"),
        pytest.param(0, MAX_SIBLINGS_ON_WORKERS, True, id="few"),
        pytest.param(0, MAX_SIBLINGS_ON_WORKERS + 1, False, id="many"),
        pytest.param(MAX_SIBLINGS_ON_WORKERS - 1, None, True, id="one of the first"),
        pytest.param(MAX_SIBLINGS_ON_WORKERS, None, False, id="not one of the first"),
    ],
)
def test_tasks_that_are_mapped_many_times_do_not_keep_the_workers(
    map_index: int | None, count: int | None, few: bool
) -> None:
    assert has_few_siblings(map_index, count) is few
