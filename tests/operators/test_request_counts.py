"""Every request to Qarnot that one Airflow task costs. Each test is a kind of task, and lists all of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.parameters.configuration import SHORTEST
from airflow_qarnot_pool.version_compat import TaskDeferred
from airflow_qarnot_pool.waiting.intervals import END_MARGIN
from tests.crash.children import eventually
from tests.harness import FakeTI, context_of, fire
from tests.operators.conftest import connect

work = partial(QarnotRunTaskOperator, task_id="work", command="true", defer_after=60)
SUBMIT, POLL = "POST /tasks", "GET /tasks/{}"
OUTPUT = ["GET /tasks/{}/stdout", "GET /tasks/{}/stderr"]
MODES = pytest.mark.parametrize("deferrable", [True, False])


@pytest.fixture
def ti(request: pytest.FixtureRequest) -> FakeTI:
    return FakeTI(run_id=request.node.name)


def state_of(qarnot: LocalQarnot, kind: str, ti: FakeTI) -> Any:
    """Return the state of the object that *ti* has created."""
    owned = (
        one for one in qarnot.call("GET", f"/{kind}s") if one["labels"].get("airflow.run_id") == ti.run_id
    )
    return next((one["state"] for one in owned), None)


def sent(qarnot: LocalQarnot, ti: FakeTI) -> list[str]:
    """Return the requests since the last call, without those of :func:`state_of`. ``{}`` stands for the object."""
    uuid = next(ti.xcoms[key] for key in ("qarnot_task", "qarnot_pool") if key in ti.xcoms)
    requests = [f"{one['method']} {one['path']}".replace(uuid, "{}") for one in qarnot.requests()]
    qarnot.clear_requests()
    return [one for one in requests if one not in ("GET /tasks", "GET /pools")]


@pytest.fixture
def ends_during_the_first_pause(qarnot: LocalQarnot, ti: FakeTI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each pause of a wait on a worker last until the Qarnot task has ended, or the pool is ready."""

    def until_then(*_: Any) -> bool:
        eventually(
            lambda: (
                state_of(qarnot, "task", ti) in ("Success", "Failure")
                or state_of(qarnot, "pool", ti) == "FullyExecuting"
            )
        )
        return False

    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.KillFlag.wait", until_then)


@MODES
@pytest.mark.usefixtures("ends_during_the_first_pause")
def test_a_task_that_ends_on_its_worker_costs_one_poll_and_each_stream_once(
    qarnot: LocalQarnot, pool: str, ti: FakeTI, deferrable: bool
) -> None:
    operator = work(qarnot_pool=pool, deferrable=deferrable)
    qarnot.clear_requests()
    assert operator.execute(context_of(operator, ti))["state"] == "Success"
    assert sent(qarnot, ti) == [SUBMIT, POLL, *OUTPUT]


@pytest.mark.usefixtures("ends_during_the_first_pause")
def test_a_task_without_output_costs_a_submission_and_a_poll(
    qarnot: LocalQarnot, pool: str, ti: FakeTI
) -> None:
    operator = work(qarnot_pool=pool, log_output=False)
    qarnot.clear_requests()
    operator.execute(context_of(operator, ti))
    assert sent(qarnot, ti) == [SUBMIT, POLL]


@pytest.mark.usefixtures("ends_during_the_first_pause")
def test_a_failure_on_the_worker_costs_its_pool_and_its_errors_besides(
    qarnot: LocalQarnot, pool: str, ti: FakeTI
) -> None:
    operator = work(qarnot_pool=pool, command="false")
    qarnot.clear_requests()
    with pytest.raises(QarnotTaskFailedError):
        operator.execute(context_of(operator, ti))
    about_it = [f"GET /pools/{pool}", "GET /tasks/{}/stderr/0"]
    assert sent(qarnot, ti) == [SUBMIT, POLL, *OUTPUT, *about_it]


def test_a_task_that_defers_at_once_costs_its_submission_until_then_and_a_poll_when_it_resumes(
    qarnot: LocalQarnot, pool: str, ti: FakeTI
) -> None:
    operator = work(qarnot_pool=pool, defer_after=0)
    context = context_of(operator, ti)
    qarnot.clear_requests()
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    assert sent(qarnot, ti) == [SUBMIT]
    event = fire(deferred.value)
    qarnot.clear_requests()
    resumed = work(qarnot_pool=pool)
    assert resumed.execute_complete({**context, "task": resumed}, event)["state"] == "Success"
    assert sent(qarnot, ti) == [POLL, *OUTPUT]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch, server: LocalQarnot, ti: FakeTI) -> list[float]:
    """Record the pauses of a wait on a worker, with an interval that bounds none of them, and skip time in them."""
    connect(server, monkeypatch, poll_interval=15)
    lengths: list[float] = []

    def until_the_end(_: Any, seconds: float) -> bool:
        lengths.append(seconds)
        eventually(lambda: state_of(server, "task", ti) in ("Success", "Failure"))
        return False

    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.KillFlag.wait", until_the_end)
    return lengths


def after_a_run_of(seconds: float, ti: FakeTI) -> None:
    """Have an earlier DAG run whose Qarnot task took some *seconds*."""
    result = {"wall_seconds": float(int(seconds)), "execution_seconds": 2 * seconds, "instances": 2}
    ti.others = [FakeTI(run_id="earlier", task_id=ti.task_id, xcoms={"return_value": result})]


def test_the_first_poll_of_a_task_is_when_it_ended_in_the_previous_run(
    qarnot: LocalQarnot, pool: str, ti: FakeTI, pauses: list[float]
) -> None:
    after_a_run_of(1.5, ti)
    work(qarnot_pool=pool).execute(context_of(work(qarnot_pool=pool), ti))
    assert pauses == [pytest.approx(1.5 + END_MARGIN, abs=0.5)]


def test_a_task_that_has_never_run_is_polled_by_its_age(
    qarnot: LocalQarnot, pool: str, ti: FakeTI, pauses: list[float]
) -> None:
    work(qarnot_pool=pool).execute(context_of(work(qarnot_pool=pool), ti))
    assert pauses == [SHORTEST]


@pytest.mark.parametrize("stored", ["text", {"wall_seconds": "5"}, {"uuid": "x"}, {"wall_seconds": None}])
def test_a_result_that_does_not_say_how_long_it_took_is_ignored(
    qarnot: LocalQarnot, pool: str, ti: FakeTI, pauses: list[float], stored: Any
) -> None:
    ti.others = [FakeTI(run_id="earlier", task_id=ti.task_id, xcoms={"return_value": stored})]
    work(qarnot_pool=pool).execute(context_of(work(qarnot_pool=pool), ti))
    assert pauses == [SHORTEST]


def test_an_error_of_airflow_about_the_previous_run_is_ignored(
    qarnot: LocalQarnot, pool: str, ti: FakeTI, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Airflow is down")

    monkeypatch.setattr("airflow_qarnot_pool.ownership.xcoms.pull_newest", fail)
    work(qarnot_pool=pool).execute(context_of(work(qarnot_pool=pool), ti))
    assert pauses == [SHORTEST]


def test_a_task_that_took_longer_in_the_previous_run_than_a_worker_waits_defers_at_once(
    qarnot: LocalQarnot, pool: str, ti: FakeTI, pauses: list[float]
) -> None:
    after_a_run_of(90, ti)
    operator = work(qarnot_pool=pool)
    qarnot.clear_requests()
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))
    assert sent(qarnot, ti) == [SUBMIT]
    assert pauses == []


@MODES
@pytest.mark.usefixtures("ends_during_the_first_pause")
def test_a_pool_that_boots_costs_its_creation_and_polls(
    qarnot: LocalQarnot, ti: FakeTI, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "60")
    operator = QarnotCreatePoolOperator(task_id="create", instance_count=1, deferrable=deferrable)
    qarnot.clear_requests()
    pool = operator.execute(context_of(operator, ti))
    assert sent(qarnot, ti) == ["POST /pools", "GET /pools/{}"]
    qarnot.call("DELETE", f"/pools/{pool}")


def test_a_pool_that_closes_costs_its_end_and_the_four_requests_of_its_cost(
    qarnot: LocalQarnot, pool: str, ti: FakeTI
) -> None:
    operator = QarnotClosePoolOperator(task_id="close", qarnot_pool=pool)
    qarnot.clear_requests()
    operator.execute(context_of(operator, ti))
    ti.xcoms["qarnot_pool"] = pool
    figures = ["/credits/v1/pools/{}/credits", "/carbon/v1/pools/{}/carbon-facts", "/pools/{}/tasks"]
    assert sent(qarnot, ti) == ["POST /pools/{}/close", "GET /pools/{}", *(f"GET {one}" for one in figures)]
