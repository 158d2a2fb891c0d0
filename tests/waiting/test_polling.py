"""Waits on a worker: what ends them, and when they poll."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.waiting import polling
from airflow_qarnot_pool.waiting.conditions import TASK_ENDED, EndReason
from airflow_qarnot_pool.waiting.intervals import Forecast
from airflow_qarnot_pool.waiting.polling import at_most_every, confirmed, wait_on_worker

INTERVAL = 15.0
RUNS, DONE = "FullyExecuting", "Success"


class Worker:
    """A worker whose clock is set on by each of its pauses, and that gets these responses to its polls."""

    def __init__(self, responses: Iterator[Any]) -> None:
        self.now, self.polls, self.pauses = 0.0, 0, list[float]()
        self._responses = responses

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return False

    def get(self, uuid: str) -> Any:
        self.polls += 1
        response = next(self._responses)
        if isinstance(response, Exception):
            raise response
        return SimpleNamespace(uuid=uuid, state=response, previous_state=None, error_text="")


@pytest.fixture
def worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Worker:
    worker = Worker(iter(request.param))
    monkeypatch.setattr(polling, "time", SimpleNamespace(monotonic=lambda: worker.now))
    return worker


def wait(worker: Worker, interval: float = INTERVAL, **options: Any) -> Any:
    killed: Any = worker
    return wait_on_worker(worker.get, "u", TASK_ENDED, interval, None, killed, **options)


GONE, REFUSED, REJECTED = QarnotNotFoundError(), QarnotRefusedError(status=403), QarnotCredentialsError()
REDIRECT, DOWN = QarnotProtocolError(status=302), QarnotUnavailableError(status=503)
BANNED = QarnotUnavailableError(status=429, retry_after=300.0)


@pytest.mark.parametrize(
    "worker",
    [
        pytest.param([GONE, RUNS, DONE], id="404"),
        pytest.param([REFUSED, DONE], id="403"),
        pytest.param([REJECTED, DONE], id="401"),
        pytest.param([REDIRECT, DONE], id="a redirect"),
        pytest.param([REFUSED, REJECTED, GONE, REDIRECT, DONE], id="one after the other"),
        pytest.param([DOWN] * 50 + [DONE], id="an outage"),
        pytest.param([REFUSED, REFUSED, RUNS] * 9 + [DONE], id="again and again"),
    ],
    indirect=True,
)
def test_an_error_that_does_not_last_ends_no_wait(worker: Worker) -> None:
    assert wait(worker).ending is EndReason.MET


@pytest.mark.parametrize(
    ("worker", "error"),
    [
        pytest.param([REFUSED] * 99, QarnotRefusedError, id="403"),
        pytest.param([RUNS] + [REJECTED] * 99, QarnotCredentialsError, id="401"),
        pytest.param([REDIRECT] * 99, QarnotProtocolError, id="a redirect"),
    ],
    indirect=["worker"],
)
def test_an_error_that_lasts_ends_the_wait(worker: Worker, error: type[Exception]) -> None:
    with pytest.raises(error):
        wait(worker)
    assert worker.now >= 10.0
    assert worker.polls < 20


@pytest.mark.parametrize("worker", [[GONE] * 99], indirect=True)
def test_a_deletion_that_lasts_is_the_end(worker: Worker) -> None:
    assert wait(worker).ending is EndReason.GONE


@pytest.mark.parametrize(
    ("worker", "pauses"),
    [
        pytest.param([RUNS, BANNED, RUNS, DONE], [0.75, 300.0, 6.015], id="Retry-After"),
        pytest.param([DOWN] * 7 + [DONE], [1.5, 3.0, 6.0, 12.0, 24.0, 59.52, 60.0], id="an outage"),
        pytest.param([DOWN, RUNS, DOWN, DONE], [1.5, 0.75, 1.5], id="two short ones"),
    ],
    indirect=["worker"],
)
def test_polls_that_fail_become_rare_and_heed_retry_after(worker: Worker, pauses: list[float]) -> None:
    wait(worker)
    assert worker.pauses == pytest.approx(pauses)


@pytest.mark.parametrize("worker", [[DOWN, BANNED, DOWN, DONE]], indirect=True)
def test_no_failure_makes_polls_more_frequent_than_the_configuration_allows(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "min_poll_interval", lambda: 60.0)
    wait(worker, interval=60.0)
    assert worker.pauses == [60.0, 300.0, 60.0]


@pytest.mark.parametrize("worker", [[RUNS] * 99], indirect=True)
@pytest.mark.parametrize(
    ("shortest", "defer_after", "expected", "pauses", "polls"),
    [
        pytest.param(60.0, 15.0, None, [], 0, id="no poll is due before"),
        pytest.param(10.0, 15.0, None, [10.0], 1, id="one poll is due before"),
        pytest.param(0.75, 1.5, None, [0.75, 0.75], 2, id="the last one comes at the limit"),
        pytest.param(0.75, 2.0, None, [0.75, 0.75], 2, id="another one would come too soon"),
        pytest.param(0.75, 2.0, 1.9, [1.075, 0.925], 2, id="an end that is expected at the limit"),
    ],
)
def test_a_wait_keeps_its_worker_no_longer_than_it_may(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    shortest: float,
    defer_after: float,
    expected: float | None,
    pauses: list[float],
    polls: int,
) -> None:
    monkeypatch.setattr(polling, "min_poll_interval", lambda: shortest)
    forecast = Forecast(defer_after, expected)
    assert wait(worker, interval=60.0, forecast=forecast, limit=defer_after) is None
    assert worker.pauses == pytest.approx(pauses)
    assert worker.polls == polls


@pytest.mark.parametrize("worker", [[DONE]], indirect=True)
def test_what_accompanies_the_polls_ends_no_wait_by_a_stray_refusal(worker: Worker) -> None:
    responses: list[QarnotError | str] = [REFUSED, "fine", REFUSED, REFUSED, REFUSED, REFUSED]

    def call() -> str:
        response = responses.pop(0)
        if isinstance(response, QarnotError):
            raise response
        return response

    called = at_most_every(5.0, call)
    assert called() is None
    worker.now = 5.0
    assert called() == "fine"
    assert called() is None  # not due
    for now in (10.0, 15.0):
        worker.now = now
        assert called() is None
    worker.now = 20.0
    with pytest.raises(QarnotRefusedError):
        called()


@pytest.mark.parametrize("error", [GONE, REFUSED])
def test_a_denial_outside_a_wait_counts_if_two_more_requests_confirm_it(error: QarnotError) -> None:
    def request(*responses: Any) -> Any:
        left = list(responses)

        def respond() -> Any:
            response = left.pop(0)
            if isinstance(response, Exception):
                raise response
            return response

        return respond

    pauses: list[float] = []
    assert confirmed(request(error, error, "fine"), pauses.append) == "fine"
    with pytest.raises(type(error)):
        confirmed(request(error, error, error, "fine"), pauses.append)
    assert pauses == 2 * list(polling.CONFIRM_AFTER)
