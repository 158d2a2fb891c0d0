"""Sensors against the local Qarnot, deferred and on the worker."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.exceptions import (
    QarnotCredentialsError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotStateUnreachableError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.version_compat import AirflowSensorTimeout, AirflowSkipException
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult
from tests.harness import FakeTI, context_of, defer, resume, run
from tests.operators.conftest import connect

pool_sensor = partial(QarnotPoolSensor, task_id="sense", poke_interval=0.1)
task_sensor = partial(QarnotTaskSensor, task_id="sense", poke_interval=0.1)
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])


@MODES
@pytest.mark.parametrize(
    "state", ["Submitted", "PartiallyDispatched", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"]
)
def test_every_state_on_the_way_is_seen_or_known_to_be_passed(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool, state: str
) -> None:
    uuid = client.pools.create(PoolSpec(name="x", instance_count=2))
    run(partial(pool_sensor, qarnot_pool=uuid, target_states=state, deferrable=deferrable))
    client.pools.delete(uuid)


@MODES
@pytest.mark.parametrize("states", ["Closing", "Closed", ["Closed", "Failure"]])
def test_the_end_of_a_pool(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool, states: str | list[str]
) -> None:
    uuid = client.pools.create(PoolSpec(name="x"))
    client.pools.close(uuid)
    run(partial(pool_sensor, qarnot_pool=uuid, target_states=states, deferrable=deferrable))
    client.pools.delete(uuid)


def test_a_pool_that_is_deleted(qarnot: LocalQarnot, client: QarnotClient) -> None:
    uuid = client.pools.create(PoolSpec(name="x"))
    make = partial(pool_sensor, qarnot_pool=uuid, target_states="PendingDelete")
    deferred, context = defer(make)
    client.pools.delete(uuid)
    resume(make, deferred, context)


@MODES
def test_ready_slots(qarnot: LocalQarnot, client: QarnotClient, deferrable: bool) -> None:
    uuid = client.pools.create(PoolSpec(name="x", instance_count=3))
    run(partial(pool_sensor, qarnot_pool=uuid, ready_slots="3", deferrable=deferrable))
    assert client.pools.get(uuid).ready_slots == 3
    client.pools.delete(uuid)


@MODES
def test_a_target_that_cannot_come_any_more_fails_at_once(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool
) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="false"))
    with pytest.raises(QarnotStateUnreachableError, match=r"Failure.*remote errors"):
        run(partial(task_sensor, qarnot_task=uuid, deferrable=deferrable))
    with pytest.raises(AirflowSkipException):
        run(partial(task_sensor, qarnot_task=uuid, deferrable=deferrable, soft_fail=True))
    run(partial(task_sensor, qarnot_task=uuid, target_states=["Success", "Failure"], deferrable=deferrable))


@MODES
def test_the_wait_is_bounded(qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="sleep 60"))
    late = partial(task_sensor, qarnot_task=uuid, wait_timeout=timedelta(seconds=0.5), deferrable=deferrable)
    with pytest.raises(AirflowSensorTimeout):
        run(late)
    with pytest.raises(AirflowSkipException):
        run(partial(late, soft_fail=True))


@MODES
def test_the_object_must_exist(qarnot: LocalQarnot, deferrable: bool) -> None:
    with pytest.raises(QarnotNotFoundError, match="nobody"):
        run(partial(pool_sensor, qarnot_pool="nobody", deferrable=deferrable))


@MODES
@pytest.mark.parametrize("ref", ["uuid", "shortname"])
@pytest.mark.parametrize("kind", ["status", "reset", "garbage"])
def test_an_outage_ends_no_wait(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    deferrable: bool,
    ref: str,
    kind: str,
) -> None:
    """At the first look, which one request with all its retries does not live through."""
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.01)
    uuid = client.tasks.create(
        TaskSpec(name="x", shortname=f"out-{kind}-{deferrable}", pool=pool, command="true")
    )
    sensor = partial(
        task_sensor, qarnot_task=uuid if ref == "uuid" else f"out-{kind}-{deferrable}", deferrable=deferrable
    )
    qarnot.faults([{"path": "^/tasks", "times": 9, "kind": kind, "status": 503}])
    run(sensor)
    client.tasks.delete(uuid)


def test_the_first_poll_heeds_retry_after(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", shortname="asked-to-wait", pool=pool, command="true"))
    qarnot.faults([{"path": "^/tasks", "times": 1, "kind": "status", "status": 429, "retry_after": 300}])
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: 0.0)
    monkeypatch.setattr("airflow_qarnot_pool.sensors.base.time", clock)
    run(partial(task_sensor, qarnot_task="asked-to-wait"))
    assert pauses == [300.0]
    client.tasks.delete(uuid)


def test_an_outage_that_lasts_is_the_end_of_the_time(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.01)
    qarnot.faults([{"path": "^/tasks", "times": 999, "kind": "status", "status": 503}])
    late = partial(task_sensor, qarnot_task="x", wait_timeout=timedelta(seconds=0.1))
    with pytest.raises(AirflowSensorTimeout, match="could not be polled"):
        run(late)
    with pytest.raises(AirflowSkipException):
        run(partial(late, soft_fail=True))


@MODES
def test_soft_fail_hides_no_mistake(
    server: LocalQarnot, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    """A wrong token is no reason to skip what comes after the sensor; ``never_fail`` says that it is."""
    connect(server, monkeypatch)
    value = os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"].replace(server.token, "wrong-token")
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", value)
    sensor = partial(pool_sensor, qarnot_pool="x", deferrable=deferrable)
    with pytest.raises(QarnotCredentialsError):
        run(partial(sensor, soft_fail=True))
    with pytest.raises(AirflowSkipException):
        run(partial(sensor, never_fail=True))


def test_soft_fail_hides_no_mistake_that_the_trigger_meets(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    sensor = task_sensor(qarnot_task="x", soft_fail=True)
    context = context_of(sensor)
    wrong = WaitResult(
        ending=EndReason.ERROR, uuid="x", message="no", resume_state={"error": "QarnotCredentialsError"}
    )
    with pytest.raises(QarnotCredentialsError):
        sensor.execute_complete(context, wrong.to_event())
    gone = WaitResult(ending=EndReason.GONE, uuid="x", message="gone")
    with pytest.raises(AirflowSkipException):
        sensor.execute_complete(context, gone.to_event())


def test_a_rescheduled_sensor_sees_that_the_pool_is_gone(qarnot: LocalQarnot, client: QarnotClient) -> None:
    """Each of its looks is made by a new object, which remembers nothing."""
    uuid = client.pools.create(PoolSpec(name="x"))
    make = partial(
        pool_sensor, qarnot_pool=uuid, target_states="PendingDelete", deferrable=False, mode="reschedule"
    )
    context = {**context_of(make()), "ti": ReschedulingTI()}
    with pytest.raises(AirflowRescheduleException):
        make().execute(context)
    client.pools.delete(uuid)
    while client.pools.find(uuid) is not None:
        pass
    with pytest.raises(QarnotNotFoundError):
        make().execute(context)  # the first look of another try
    context["ti"].rescheduled = datetime.now(UTC)
    make().execute(context)


class ReschedulingTI(FakeTI):
    rescheduled: datetime | None = None

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        return self.rescheduled


def test_a_state_that_is_reached_already_needs_no_trigger(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    run(partial(task_sensor, qarnot_task=uuid))
    sensor = task_sensor(qarnot_task=uuid)
    assert sensor.execute(context_of(sensor)) is None


def test_bad_targets_are_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"'Ready' is no state of a pool.*mean 'FullyExecuting'"):
        pool_sensor(qarnot_pool="x", target_states="Ready")
    with pytest.raises(QarnotInvalidSpecError, match=r"'Closed' is no state of a Qarnot task.*Success"):
        task_sensor(qarnot_task="x", target_states="Closed")
    with pytest.raises(QarnotInvalidSpecError, match="exclude"):
        pool_sensor(qarnot_pool="x", target_states="Closed", ready_slots=1)
    with pytest.raises(QarnotInvalidSpecError, match="ready_slots"):
        pool_sensor(qarnot_pool="x", ready_slots="several")
    pool_sensor(qarnot_pool="x", target_states="{{ params.state }}")
