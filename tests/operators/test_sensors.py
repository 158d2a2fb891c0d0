"""Sensors against the local Qarnot, deferred and on the worker."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotUnknownStateError
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.compat import AirflowSensorTimeout, AirflowSkipException
from airflow_qarnot_pool.exceptions import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotStateUnreachableError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from tests.harness import context_of, defer, resume, run

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


def test_what_is_there_already_needs_no_trigger(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    run(partial(task_sensor, qarnot_task=uuid))
    sensor = task_sensor(qarnot_task=uuid)
    assert sensor.execute(context_of(sensor)) is None


def test_bad_targets_are_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(QarnotUnknownStateError, match="Warm"):
        pool_sensor(qarnot_pool="x", target_states="Warm")
    with pytest.raises(QarnotUnknownStateError, match="Closed"):
        task_sensor(qarnot_task="x", target_states="Closed")
    with pytest.raises(QarnotInvalidSpecError, match="exclude"):
        pool_sensor(qarnot_pool="x", target_states="Closed", ready_slots=1)
    with pytest.raises(QarnotInvalidSpecError, match="ready_slots"):
        pool_sensor(qarnot_pool="x", ready_slots="several")
    pool_sensor(qarnot_pool="x", target_states="{{ params.state }}")
