"""Many commands in one Airflow task: the rules of a single Qarnot task hold for each item."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.api.transport import Response, _NoResponse
from airflow_qarnot_pool.exceptions import (
    QarnotNotFoundError,
    QarnotTaskFailedError,
    QarnotUnavailableError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import is_ending, label
from airflow_qarnot_pool.version_compat import TaskDeferralError, TaskDeferralTimeout, TaskDeferred
from tests.crash.children import eventually, made_for
from tests.harness import RUN_STARTED, FakeTI, context_of, defer, fire, resume
from tests.operators.conftest import connect
from tests.operators.test_lives import WEATHER, Weather, exchanging

LAST_TRY = pytest.mark.parametrize("try_number", [1, 2], ids=["a try is left", "the last try"])


@pytest.fixture(scope="module")
def free_server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.05, close_seconds=0.05, shortnames="free") as qarnot:
        yield qarnot


@pytest.fixture(params=["enforce", "free"])
def qarnot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """Each test runs against a server that enforces unique shortnames and against one that does not."""
    found: LocalQarnot = request.getfixturevalue("server" if request.param == "enforce" else "free_server")
    connect(found, monkeypatch)
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.05")
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.05)
    found.clear_requests()
    yield found
    found.faults([])


@pytest.fixture
def run_id(request: pytest.FixtureRequest, client: QarnotClient) -> Iterator[str]:
    yield str(request.node.name)
    for one in made_for(client.tasks, str(request.node.name)):
        with suppress(QarnotNotFoundError):
            client.tasks.delete(one.uuid)


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A command that runs until ``tmp_path/go`` exists."""
    return f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'"


@pytest.fixture
def many(pool: str, held: str) -> Callable[..., Any]:
    return partial(QarnotRunTasksOperator, task_id="many", retries=1, qarnot_pool=pool, commands=[held, held])


@pytest.fixture
def ti(run_id: str) -> Callable[..., FakeTI]:
    return lambda try_number=1, **fields: FakeTI(
        **{"run_id": run_id, "task_id": "many", "max_tries": 1, "try_number": try_number, **fields}
    )


def items(client: QarnotClient, run_id: str, item: int | None = None) -> list[Task]:
    """What was made for a run, or for one item of its fan-out; oldest first."""
    found = made_for(client.tasks, run_id)
    return [one for one in found if item is None or label(one.labels, "item") == str(item)]


def live(client: QarnotClient, run_id: str) -> list[int]:
    """The items of which a Qarnot task runs, with repeats for doubles."""
    return sorted(int(one.labels["airflow.item"]) for one in items(client, run_id) if not is_ending(one))


def abort(client: QarnotClient, uuid: str) -> None:
    client.tasks.abort(uuid)
    eventually(lambda: client.tasks.get(uuid).state == "Cancelled")


def test_an_adopted_item_that_another_cancels_is_submitted_again_once(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    tmp_path: Path,
) -> None:
    defer(many, ti())
    deferred, context = defer(many, ti(2))
    abort(client, items(client, run_id, 0)[0].uuid)
    # The trigger waits for both: the other one goes on to its end.
    (tmp_path / "go").touch()
    event = fire(deferred)
    (tmp_path / "go").unlink()
    with pytest.raises(TaskDeferred) as again:
        many().resume_execution("execute_complete", {"event": event}, context)
    assert [len(items(client, run_id, item)) for item in (0, 1)] == [2, 1]
    abort(client, items(client, run_id, 0)[1].uuid)
    with pytest.raises(
        QarnotTaskFailedError, match=r"1 of 2 Qarnot tasks failed: item 0\. A retry runs only this"
    ):
        resume(many, again.value, context)
    assert [len(items(client, run_id, item)) for item in (0, 1)] == [2, 1]


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
def test_one_on_its_way_out_when_it_is_adopted_is_submitted_again(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    tmp_path: Path,
    deferrable: bool,
) -> None:
    defer(many, ti())
    abort(client, items(client, run_id, 1)[0].uuid)
    (tmp_path / "go").touch()
    operator = many(deferrable=deferrable)
    context = context_of(operator, ti(2))
    try:
        result = operator.execute(context)
    except TaskDeferred as deferred:
        result = resume(many, deferred, context)
    assert result["succeeded"] == 2
    assert [len(items(client, run_id, item)) for item in (0, 1)] == [1, 2]


def test_a_cancel_of_an_item_is_not_undone_where_only_the_answer_was_lost(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    tmp_path: Path,
) -> None:
    def network(send: Any, call: Any) -> Response:
        answer: Response = send()
        if call.method == "POST" and re.search("^/tasks$", call.path):
            raise _NoResponse("no complete answer", touched=True)
        return answer

    with exchanging(network):
        deferred, context = defer(many, ti())
    abort(client, items(client, run_id, 0)[0].uuid)
    (tmp_path / "go").touch()
    with pytest.raises(QarnotTaskFailedError, match="item 0"):
        resume(many, deferred, context)
    assert len(items(client, run_id)) == 2


def test_an_item_of_another_spec_ends_and_takes_the_next_generation_and_the_others_stay(
    qarnot: LocalQarnot, client: QarnotClient, many: Any, ti: Callable[..., FakeTI], run_id: str, held: str
) -> None:
    defer(many, ti())
    defer(partial(many, commands=[held, {"command": held, "constants": {"A": "1"}}]), ti(2))
    assert live(client, run_id) == [0, 1]
    assert [[one.labels["airflow.generation"] for one in items(client, run_id, item)] for item in (0, 1)] == [
        ["1"],
        ["1", "2"],
    ]


def test_items_that_are_asked_for_no_more_end_and_new_ones_are_submitted(
    qarnot: LocalQarnot, client: QarnotClient, many: Any, ti: Callable[..., FakeTI], run_id: str, held: str
) -> None:
    defer(many, ti())
    defer(partial(many, commands=[held]), ti(2))
    assert live(client, run_id) == [0]


@pytest.mark.parametrize(
    "change",
    [{"map_index": 1}, {"dag_id": "other"}, {"task_id": "other"}],
    ids=lambda change: next(iter(change)),
)
def test_items_of_neighbours_are_kept_apart(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    change: dict[str, Any],
) -> None:
    defer(many, ti())
    defer(partial(many, task_id=change.get("task_id", "many")), ti(2, **change))
    assert live(client, run_id) == [0, 0, 1, 1]


def test_items_of_a_deleted_run_are_no_items_of_a_new_one_of_its_id(
    qarnot: LocalQarnot, client: QarnotClient, many: Any, ti: Callable[..., FakeTI], run_id: str
) -> None:
    defer(many, ti(2))
    defer(many, ti(), RUN_STARTED + timedelta(days=1))
    # A first try looks up nothing; the next look, of a retry, ends what the old run left.
    defer(many, ti(2), RUN_STARTED + timedelta(days=1))
    assert live(client, run_id) == [0, 1]


@pytest.mark.parametrize("weather", WEATHER.values(), ids=WEATHER.keys())
def test_whatever_becomes_of_the_answer_there_is_one_of_each_item(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    weather: Weather,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(qarnot, monkeypatch, timeout=weather.timeout)
    qarnot.faults([{"method": "POST", "path": "^/tasks$", "times": 1, **rule} for rule in weather.rules])
    answers = [weather.answer] if weather.answer else []

    def proxy(send: Any, call: Any) -> Response:
        answer: Response = send()
        return answers.pop() if answers and re.search("^/tasks$", call.path) else answer

    with exchanging(proxy), suppress(QarnotUnavailableError):
        defer(many, ti())
    qarnot.faults([])
    defer(many, ti(2))
    assert live(client, run_id) == [0, 1]


@LAST_TRY
def test_items_of_a_submission_that_fails_end_where_no_try_would_take_them_over(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    held: str,
    try_number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first chunk is submitted, and the second request fails for good."""
    monkeypatch.setattr("airflow_qarnot_pool.operators.tasks.CHUNK", 2)
    connect(qarnot, monkeypatch, retries=0)
    sent: list[str] = []

    def network(send: Any, call: Any) -> Response:
        if call.method == "POST" and re.search("^/tasks$", call.path):
            sent.append(call.path)
            if len(sent) > 1:
                raise _NoResponse("connection refused", touched=False)
        answer: Response = send()
        return answer

    operator = many(commands=[held] * 4)
    with exchanging(network), pytest.raises(QarnotUnavailableError):
        operator.execute(context_of(operator, ti(try_number)))
    assert live(client, run_id) == ([] if try_number == 2 else [0, 1])


@pytest.mark.parametrize(
    ("error", "expected"),
    [("Trigger timeout", TaskDeferralTimeout), ("Trigger failure", TaskDeferralError)],
)
def test_items_of_a_deferral_that_airflow_gave_up_end(
    qarnot: LocalQarnot,
    client: QarnotClient,
    many: Any,
    ti: Callable[..., FakeTI],
    run_id: str,
    error: str,
    expected: type[Exception],
) -> None:
    _, context = defer(many, ti())
    with pytest.raises(expected):
        many().resume_execution("__fail__", {"error": error}, context)
    assert live(client, run_id) == []


def test_the_execution_timeout_of_a_fan_out_counts_across_the_deferral(
    qarnot: LocalQarnot, client: QarnotClient, many: Any, ti: Callable[..., FakeTI], run_id: str
) -> None:
    make = partial(many, execution_timeout=timedelta(seconds=0.3))
    deferred, context = defer(make, ti())
    with pytest.raises(QarnotWaitTimeoutError):
        resume(make, deferred, context)
    assert live(client, run_id) == []


def test_a_resumed_fan_out_goes_on_though_its_link_cannot_be_stored(
    qarnot: LocalQarnot, client: QarnotClient, many: Any, ti: Callable[..., FakeTI], tmp_path: Path
) -> None:
    deferred, context = defer(many, ti())
    (tmp_path / "go").touch()
    event = fire(deferred)

    class NoLinks(FakeTI):
        def xcom_push(self, key: str, value: Any, **_: Any) -> None:
            if "_link_" in key:
                raise RuntimeError("503: the api-server is restarting")
            super().xcom_push(key, value)

    broken = NoLinks(**{name: getattr(context["ti"], name) for name in ("run_id", "task_id", "max_tries")})
    assert (
        many().resume_execution("execute_complete", {"event": event}, {**context, "ti": broken})["succeeded"]
        == 2
    )
