"""An operator waits on its worker for a moment before it defers, and all promises hold in both halves of the wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.exceptions import (
    QarnotInvalidSpecError,
    QarnotKilledError,
    QarnotTaskFailedError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.bases.parameters import mapped_count
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.version_compat import TaskDeferred
from airflow_qarnot_pool.waiting.polling import KillFlag
from tests.crash.children import eventually
from tests.harness import FakeTI, context_of, resume
from tests.operators.conftest import connect
from tests.operators.test_live_output import Log, Steps, Stores, log, steps, stores

__all__ = ["log", "steps", "stores"]

one = partial(QarnotRunTaskOperator, task_id="work", log_output=False, defer_after=60)
many = partial(QarnotRunTasksOperator, task_id="work", defer_after=60)
MODES = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda command, **more: one(command=command, **more), id="one"),
        pytest.param(lambda command, **more: many(commands=[command, command], **more), id="many"),
    ],
)
Make = Callable[..., Any]


@pytest.fixture
def ti(request: pytest.FixtureRequest) -> FakeTI:
    return FakeTI(run_id=request.node.name)


def states(client: QarnotClient, ti: FakeTI) -> set[str]:
    return {task.state for task in client.tasks.list() if task.labels.get("airflow.run_id") == ti.run_id}


@MODES
def test_a_short_qarnot_task_needs_no_deferral(pool: str, ti: FakeTI, make: Make) -> None:
    operator = make("sleep 0.5", qarnot_pool=pool)
    result = operator.execute(context_of(operator, ti))
    assert result.get("state") == "Success" or result["succeeded"] == 2


@MODES
def test_a_long_one_defers_after_that_time(client: QarnotClient, pool: str, ti: FakeTI, make: Make) -> None:
    operator = make("sleep 600", qarnot_pool=pool, defer_after=1)
    started = time.monotonic()
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))
    assert time.monotonic() - started >= 0.8  # one interval less, at the most
    assert states(client, ti) == {"FullyExecuting"}


@MODES
def test_zero_defers_at_once(
    client: QarnotClient, pool: str, ti: FakeTI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = make("sleep 600", qarnot_pool=pool, defer_after=0)
    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.KillFlag.wait", never)
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))


def never(*_: Any) -> bool:
    raise AssertionError("it waited")


@MODES
def test_it_defers_at_once_if_no_poll_is_due_before(
    pool: str, ti: FakeTI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MIN_POLL_INTERVAL", "POLL_INTERVAL"):
        monkeypatch.setenv(f"AIRFLOW__QARNOT__{name}", "60")
    operator = make("sleep 600", qarnot_pool=pool, defer_after=15)
    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.KillFlag.wait", never)
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))


@MODES
def test_one_of_many_mapped_siblings_defers_at_once(
    pool: str, ti: FakeTI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ti.map_index = 8
    operator = make("sleep 600", qarnot_pool=pool)
    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.KillFlag.wait", never)
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))


@task
def numbers() -> list[int]:
    return [1, 2, 3]


@task.qarnot
def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize(
    ("expand", "count"),
    [
        pytest.param(lambda work: work(task_id="work").expand(command=["a", "b", "c"]), 3, id="a list"),
        pytest.param(
            lambda work: work(task_id="work").expand(command=["a", "b"], image=["x", "y"]), 4, id="two lists"
        ),
        pytest.param(
            lambda work: work(task_id="work").expand_kwargs([{"command": "a"}, {"command": "b"}]),
            2,
            id="rows",
        ),
        pytest.param(lambda work: work(task_id="work").expand(command=numbers()), None, id="a result"),
        pytest.param(
            lambda work: work(task_id="work").expand(command=["a"], image=numbers()),
            None,
            id="a list and a result",
        ),
        pytest.param(lambda _: double.expand(number=[1, 2, 3, 4]).operator, 4, id="a function"),
        pytest.param(lambda _: double(1).operator, None, id="not mapped"),
    ],
)
def test_the_number_of_siblings_is_known_from_the_dag(
    expand: Callable[[Any], Any], count: int | None
) -> None:
    with DAG("d"):
        mapped = expand(QarnotRunTaskOperator.partial)
    assert mapped_count(mapped) == count


@MODES
def test_one_that_stays_queued_defers_soon(
    client: QarnotClient, pool: str, ti: FakeTI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.waiting.intervals.MAX_QUEUED_ON_WORKER", 0.5)
    first = many(commands=["sleep 600", "sleep 600"], qarnot_pool=pool, wait_for_completion=False)
    first.execute(context_of(first, FakeTI(run_id=f"{ti.run_id} first")))
    operator = make("true", qarnot_pool=pool)
    started = time.monotonic()
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))
    assert time.monotonic() - started < operator.defer_after
    assert "Success" not in states(client, ti)


def test_one_that_is_queued_stays_for_as_long_as_the_previous_one_took(
    pool: str, ti: FakeTI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.waiting.intervals.MAX_QUEUED_ON_WORKER", 0.0)
    go = tmp_path / "go"
    before = many(commands=[f"sh -c 'until test -e {go}; do sleep 0.05; done'"] * 2, qarnot_pool=pool)
    before.wait_for_completion = False
    before.execute(context_of(before, FakeTI(run_id=f"{ti.run_id} before")))
    ti.others = [FakeTI(run_id="earlier", task_id=ti.task_id, xcoms={"return_value": {"wall_seconds": 50.0}})]
    pauses = 0

    def wait(self: KillFlag, seconds: float) -> bool:
        nonlocal pauses
        pauses += 1
        if pauses == 3:  # two polls have seen it in the queue
            go.touch()
        time.sleep(0.05)
        return self.is_set()

    monkeypatch.setattr(KillFlag, "wait", wait)
    operator = one(command="true", qarnot_pool=pool)
    assert operator.execute(context_of(operator, ti))["state"] == "Success"


def test_an_adopted_one_defers_at_once(
    pool: str, ti: FakeTI, client: QarnotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have run for hours."""
    make = partial(one, command="sleep 600", qarnot_pool=pool, retries=1)
    ti.max_tries = 1
    operator = make(wait_for_completion=False)
    operator.execute(context_of(operator, ti))
    ti.try_number = 2
    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.KillFlag.wait", never)
    operator = make()
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))
    assert len(states(client, ti)) == 1


@MODES
def test_an_outage_is_left_to_the_trigger(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, ti: FakeTI, make: Make
) -> None:
    operator = make("sleep 1", qarnot_pool=pool)
    paths = "^/tasks/([0-9a-f-]+|search)$"
    qarnot.faults(
        [{"method": method, "path": paths, "kind": "status", "status": 503} for method in ("GET", "POST")]
    )
    context = context_of(operator, ti)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    qarnot.faults([])
    remake = partial(make, "sleep 1", qarnot_pool=pool)
    result = resume(remake, deferred.value, context)
    assert result.get("state") == "Success" or result["succeeded"] == 2


@MODES
def test_a_kill_before_the_deferral_ends_it(
    client: QarnotClient, pool: str, ti: FakeTI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = make("sleep 600", qarnot_pool=pool)
    patched = (
        operator._ends_soon
        if isinstance(operator, QarnotRunTasksOperator)
        else operator._wait_before_deferring
    )

    def kill_it(*args: Any) -> Any:
        operator.on_kill()
        return patched(*args)

    monkeypatch.setattr(operator, patched.__name__, kill_it)
    with pytest.raises(QarnotKilledError):
        operator.execute(context_of(operator, ti))
    eventually(lambda: states(client, ti) <= {"PendingCancel", "Cancelled"})


@MODES
def test_the_deadline_counts_before_the_deferral(
    client: QarnotClient, pool: str, ti: FakeTI, make: Make
) -> None:
    operator = make("sleep 600", qarnot_pool=pool, wait_timeout=1)
    context = context_of(operator, ti)
    try:
        operator.execute(context)
    except QarnotWaitTimeoutError:
        pass
    except TaskDeferred as deferred:
        remake = partial(make, "sleep 600", qarnot_pool=pool, wait_timeout=1)
        with pytest.raises(QarnotWaitTimeoutError):
            resume(remake, deferred, context)
    eventually(lambda: states(client, ti) <= {"PendingCancel", "Cancelled"})


@MODES
def test_a_failure_before_the_deferral_is_raised(pool: str, ti: FakeTI, make: Make) -> None:
    operator = make("false", qarnot_pool=pool)
    with pytest.raises(QarnotTaskFailedError):
        operator.execute(context_of(operator, ti))


def test_a_fan_out_continues_in_the_triggerer_with_what_has_ended(
    client: QarnotClient, pool: str, ti: FakeTI, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    commands = ["true", ["sh", "-c", f"until test -e {go}; do sleep 0.05; done"]]
    make = partial(many, commands=commands, qarnot_pool=pool, defer_after=2)
    operator = make()
    context = context_of(operator, ti)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    go.touch()
    assert resume(make, deferred.value, context)["succeeded"] == 2


def test_live_output_is_there_once_and_in_order_in_both_halves(
    qarnot: LocalQarnot,
    pool: str,
    ti: FakeTI,
    log: Log,
    stores: Stores,
    steps: Callable[..., Steps],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trigger continues after the lines of the worker, and the worker that resumes after those of the trigger."""
    connect(qarnot, monkeypatch, poll_interval=0.05)
    some = steps("echo first; echo half; printf ha", "printf lf", "echo; echo last")
    stores.ti = ti
    make = partial(one, command=some.command, qarnot_pool=pool, log_output="live", defer_after=1.5)
    operator = make()
    context = context_of(operator, ti)
    some.let(0)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    assert log.output[:2] == ["[stdout 0] first", "[stdout 0] half"]
    some.let(1, 2)
    resume(make, deferred.value, context)
    lines = [line.removeprefix("[stdout 0] ") for line in log.output]
    assert lines[:2] == ["first", "half"]
    assert lines[-1] == "last"
    assert "".join(lines[2:-1]) == "half"


def test_live_output_with_secret_constants_is_there_once(
    qarnot: LocalQarnot,
    pool: str,
    ti: FakeTI,
    log: Log,
    stores: Stores,
    steps: Callable[..., Steps],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The triggerer cannot mask them, so it follows no output. The worker that resumes continues after its lines."""
    connect(qarnot, monkeypatch, poll_interval=0.05)
    some = steps("echo first", "echo last")
    stores.ti = ti
    make = partial(
        one,
        command=some.command,
        qarnot_pool=pool,
        log_output="live",
        defer_after=1.5,
        constants={"QARNOT_SECRET__KEY": "hush"},
    )
    operator = make()
    context = context_of(operator, ti)
    some.let(0)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    assert log.output == ["[stdout 0] first"]
    some.let(1)
    resume(make, deferred.value, context)
    assert log.output == ["[stdout 0] first", "[stdout 0] last"]


def test_a_setup_waits_on_its_worker_for_nodes_that_boot_soon(
    client: QarnotClient, ti: FakeTI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "60")
    operator = QarnotCreatePoolOperator(task_id="open", instance_count=1, keep_warm=60)
    uuid = operator.execute(context_of(operator, ti))
    client.pools.close(uuid)


@pytest.mark.parametrize("wrong", [-1, "soon", True])
def test_a_wrong_defer_after_is_refused(wrong: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="defer_after"):
        one(command="true", defer_after=wrong)


@pytest.mark.parametrize("right", [0, 2.5, timedelta(seconds=3), "00:00:05", "{{ params.seconds }}", None])
def test_defer_after_takes_seconds_a_timedelta_or_a_template(right: Any) -> None:
    assert one(command="true", defer_after=right).defer_after == right


def test_a_wrong_option_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "soon")
    with pytest.raises(QarnotInvalidSpecError, match=r"\[qarnot\] defer_after"):
        one(command="true", defer_after=None)


def test_a_wrong_minimum_interval_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__MIN_POLL_INTERVAL", "0")
    with pytest.raises(QarnotInvalidSpecError, match=r"\[qarnot\] min_poll_interval"):
        one(command="true")
