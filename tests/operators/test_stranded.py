"""Waits for Qarnot tasks whose pool has ended, on a service that leaves them queued."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.exceptions import (
    QarnotError,
    QarnotPoolEndedError,
    QarnotStateUnreachableError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.triggers import pool_end
from airflow_qarnot_pool.waiting import polling
from airflow_qarnot_pool.waiting.polling import KillFlag
from tests.crash.children import eventually, made_for
from tests.harness import FakeTI, again, airflow_says, context_of, defer, fire_many, resume, run
from tests.operators.conftest import WAITS, connect

MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
task = partial(QarnotRunTaskOperator, task_id="work", log_output=False)
tasks = partial(QarnotRunTasksOperator, task_id="work")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.05, close_seconds=0.05, queued="leave") as qarnot:
        yield qarnot


@pytest.fixture
def qarnot(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    connect(server, monkeypatch)
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.1")
    server.clear_requests()
    yield server
    server.faults([])


@pytest.fixture
def full(client: QarnotClient) -> Iterator[str]:
    """A pool whose only slot is taken, so that what is submitted stays queued."""
    uuid = client.pools.create(PoolSpec(name="full", instance_count=1))
    busy = client.tasks.create(TaskSpec(name="busy", pool=uuid, command="sleep 600"))
    eventually(lambda: client.tasks.get(busy).state == "FullyExecuting")
    yield uuid
    client.pools.delete(uuid)


def mine(client: QarnotClient, run_id: str) -> list[Any]:
    """What the run has submitted, without the warm-up of its pool."""
    found = client.tasks.list()
    return [
        one for one in found if one.labels.get("airflow.run_id") == run_id and "(warm-up)" not in one.name
    ]


def close_once_queued(client: QarnotClient, pool: str, run_id: str, count: int = 1) -> threading.Thread:
    def close() -> None:
        eventually(lambda: len(mine(client, run_id)) == count)
        client.pools.close(pool)

    thread = threading.Thread(target=close)
    thread.start()
    return thread


@WAITS
def test_a_wait_ends_when_the_pool_ends_and_leaves_the_qarnot_task_queued(
    qarnot: LocalQarnot, client: QarnotClient, full: str, deferrable: bool, run_id: str
) -> None:
    closing = close_once_queued(client, full, run_id)
    with pytest.raises(QarnotPoolEndedError, match=rf"is Submitted, and its pool {full} is Clos(ed|ing)"):
        run(partial(task, qarnot_pool=full, command="true", deferrable=deferrable), FakeTI(run_id=run_id))
    closing.join()
    assert [one.state for one in mine(client, run_id)] == ["Cancelled"]


@WAITS
def test_so_does_the_wait_for_many(
    qarnot: LocalQarnot, client: QarnotClient, full: str, deferrable: bool, run_id: str
) -> None:
    closing = close_once_queued(client, full, run_id, 3)
    make = partial(tasks, qarnot_pool=full, commands=["true"] * 3, deferrable=deferrable)
    with pytest.raises((QarnotTaskFailedError, QarnotPoolEndedError), match=f"pool {full} is Clos(ed|ing)"):
        run(make, FakeTI(run_id=run_id))
    closing.join()
    assert {one.state for one in mine(client, run_id)} == {"Cancelled"}


@MODES
def test_so_does_a_sensor(qarnot: LocalQarnot, client: QarnotClient, full: str, deferrable: bool) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=full, command="true"))
    closing = threading.Timer(0.5, lambda: client.pools.close(full))
    closing.start()
    make = partial(QarnotTaskSensor, task_id="sense", qarnot_task=uuid, poke_interval=0.2)
    with pytest.raises(QarnotStateUnreachableError, match=f"its pool {full} is Clos(ed|ing)"):
        run(partial(make, deferrable=deferrable))
    closing.join()


def test_a_rescheduled_sensor_goes_by_how_long_the_pool_has_ended(
    qarnot: LocalQarnot, client: QarnotClient, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its polls is made by a new object."""
    uuid = client.tasks.create(TaskSpec(name="x", pool=full, command="true"))
    client.pools.close(full)
    sensor = partial(QarnotTaskSensor, task_id="sense", qarnot_task=uuid, deferrable=False, mode="reschedule")
    assert not sensor().poke(context_of(sensor()))
    monkeypatch.setattr(polling, "ENDED_LONG_AGO", timedelta(seconds=-5))
    with pytest.raises(QarnotStateUnreachableError, match="its pool"):
        sensor().poke(context_of(sensor()))


@WAITS
def test_a_task_queued_on_a_shared_pool_runs_on_the_next(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool, run_id: str
) -> None:
    shared = {"shared": "left", "instance_count": 1, "keep_warm": timedelta(minutes=5)}
    create = partial(QarnotCreatePoolOperator, task_id="create", **shared)
    for kind, make in {
        "one": partial(task, command="true"),
        "many": partial(tasks, commands=["true", "true"]),
    }.items():
        ti = FakeTI(run_id=f"{run_id} {kind}")
        pool = run(create, FakeTI(run_id=ti.run_id, task_id="create"))
        busy = client.tasks.create(TaskSpec(name="busy", pool=pool, command="sleep 600"))
        eventually(lambda busy=busy: client.tasks.get(busy).state == "FullyExecuting")
        closing = close_once_queued(client, pool, ti.run_id, 1 if kind == "one" else 2)
        result = run(partial(make, qarnot_pool=pool, deferrable=deferrable), ti)
        closing.join()
        assert result.get("state") == "Success" or result["succeeded"] == 2
        states = {(one.state, one.pool == pool) for one in mine(client, ti.run_id)}
        assert states == {("Cancelled", True), ("Success", False)}
        for one in client.pools.list():
            client.pools.delete(one.uuid)


def test_tasks_queued_on_the_next_pool_are_awaited_without_haste(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second try has the ended pool as XCom. It adopts all items where the first one has moved."""
    monkeypatch.setattr(polling, "ENDED_LONG_AGO", timedelta(seconds=-5))
    shared = {"shared": "moved", "instance_count": 1, "keep_warm": timedelta(minutes=5)}
    create = partial(QarnotCreatePoolOperator, task_id="create", **shared)
    old = run(create, FakeTI(run_id=run_id, task_id="create"))
    client.pools.close(old)
    pool = run(create, FakeTI(run_id=f"{run_id} next", task_id="create"))
    busy = client.tasks.create(TaskSpec(name="busy", pool=pool, command="sleep 600"))
    eventually(lambda: client.tasks.get(busy).state == "FullyExecuting")
    make = partial(tasks, commands=["true", "true"], retries=1)
    defer(partial(make, qarnot_pool=pool), FakeTI(run_id=run_id, max_tries=1))
    assert {one.state for one in mine(client, run_id)} == {"Submitted"}
    qarnot.clear_requests()
    pauses: list[float] = []
    wait = KillFlag.wait

    def counted(self: KillFlag, seconds: float) -> bool:
        pauses.append(seconds)
        return wait(self, seconds)

    monkeypatch.setattr(KillFlag, "wait", counted)
    ends = threading.Timer(1.0, lambda: client.tasks.abort(busy))
    ends.start()
    second = partial(make, qarnot_pool=old, deferrable=False)
    assert run(second, FakeTI(run_id=run_id, max_tries=1, try_number=2))["succeeded"] == 2
    ends.join()
    searches = sum(one["path"] == "/tasks/search" for one in qarnot.requests())
    assert searches <= len(pauses) + 6  # those of the lookups before and after the wait
    client.pools.delete(pool)


def test_all_who_wait_on_a_pool_share_one_poll_of_it(
    qarnot: LocalQarnot, client: QarnotClient, full: str, run_id: str
) -> None:
    deferrals = []
    for index in range(30):
        make = partial(task, qarnot_pool=full, command="true")
        deferrals.append(defer(make, FakeTI(run_id=run_id, map_index=index))[0])
    qarnot.clear_requests()
    closing = threading.Timer(1.5, lambda: client.pools.close(full))
    closing.start()
    events = asyncio.run(fire_many(deferrals))
    closing.join()
    assert {event["status"] for event in events} == {"impossible"}
    asked = [
        one for one in qarnot.requests() if one["path"].startswith("/pools") and "close" not in one["path"]
    ]
    assert len(asked) < 30
    assert pool_end._ends == {}


def test_a_wait_for_what_runs_does_not_mind_that_the_pool_takes_no_more() -> None:
    """It may still finish, or upload its results."""
    polled: list[str] = []

    class Pools:
        state = "Closed"

        def get(self, uuid: str) -> Any:
            polled.append(uuid)
            return SimpleNamespace(state=self.state, state_transition_time=datetime(2026, 1, 1, tzinfo=UTC))

    pools = Pools()
    for state in ("FullyExecuting", "UploadingResults", "PendingCancel", "Success"):
        assert polling.PoolsOfTasks(pools.get, ("p",), 1.0).why_stranded((state,)) is None
    assert not polled
    assert polling.PoolsOfTasks(pools.get, ("p",), 1.0).why_stranded(("Submitted",)) == "its pool p is Closed"
    pools.state = "FullyExecuting"
    assert polling.PoolsOfTasks(pools.get, ("p",), 1.0).why_stranded(("Submitted",)) is None
    assert polling.PoolsOfTasks(pools.get, (), 1.0).why_stranded(("Submitted",)) is None


def test_a_deferred_wait_whose_qarnot_task_ran_after_all_goes_on(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    """What the trigger saw is old when a worker has time for it."""
    pool = client.pools.create(PoolSpec(name="x", instance_count=1))
    make = partial(task, qarnot_pool=pool, command="sleep 1")
    deferred, context = defer(make, FakeTI(run_id=run_id))
    uuid = context["ti"].xcoms["qarnot_task"]
    eventually(lambda: client.tasks.get(uuid).state == "FullyExecuting")
    event = {
        "status": "impossible",
        "uuid": uuid,
        "state": "Submitted",
        "message": "its pool has ended",
        "resume_state": deferred.trigger.resume_state,
    }
    operator = make(deferrable=False)
    result = operator.execute_complete({**context, "task": operator}, event)
    assert result["state"] == "Success"
    resumed = make()
    assert resume(make, deferred, {**context, "task": resumed})["state"] == "Success"
    client.pools.delete(pool)


# --- warm-ups of pools that end before they are ready

managed = partial(QarnotCreatePoolOperator, task_id="create", instance_count=1, keep_warm=60)


def warm_ups(client: QarnotClient, run_id: str) -> list[str]:
    """The states of the warm-ups of a run, the oldest first."""
    return [one.state for one in made_for(client.tasks, run_id) if "(warm-up)" in one.name]


@pytest.fixture
def without_nodes(qarnot: LocalQarnot) -> Iterator[None]:
    qarnot.withhold_nodes(True)
    yield
    qarnot.withhold_nodes(False)


@WAITS
def test_the_warm_up_of_a_pool_that_is_not_ready_in_time_ends_with_it(
    without_nodes: None, client: QarnotClient, run_id: str, deferrable: bool
) -> None:
    with pytest.raises(QarnotError):
        run(
            partial(managed, wait_timeout=0.3, deferrable=deferrable), FakeTI(run_id=run_id, task_id="create")
        )
    assert warm_ups(client, run_id) == ["Cancelled"]


def test_the_warm_up_of_a_deferred_setup_that_is_marked_failed_ends_with_its_pool(
    without_nodes: None, client: QarnotClient, run_id: str
) -> None:
    deferred, _ = defer(managed, FakeTI(run_id=run_id, task_id="create"))
    with airflow_says("failed"):
        asyncio.run(again(deferred.trigger).on_kill())
    assert warm_ups(client, run_id) == ["Cancelled"]


def test_the_warm_up_of_a_rung_ends_with_its_pool(
    without_nodes: None,
    qarnot: LocalQarnot,
    client: QarnotClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_next = QarnotCreatePoolOperator._open_next

    def open_next_with_nodes(*args: Any) -> str:
        qarnot.withhold_nodes(False)
        return open_next(*args)

    monkeypatch.setattr(QarnotCreatePoolOperator, "_open_next", open_next_with_nodes)
    name = "airflow_qarnot_pool.operators.create_pool.share_of_wait"
    monkeypatch.setattr(name, lambda deadline, rungs, now: now)
    make = partial(managed, wait_timeout=60, pool_spec={"ladder": ["Flex", "OnDemand"]})
    uuid = run(make, FakeTI(run_id=run_id, task_id="create"))
    eventually(lambda: warm_ups(client, run_id) == ["Cancelled"] * 2)
    client.pools.delete(uuid)
