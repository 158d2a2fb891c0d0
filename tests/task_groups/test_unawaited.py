"""Tasks of a group that do not wait for their Qarnot tasks, which the teardown would cancel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, task

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


def submit(**fields: Any) -> Any:
    return QarnotRunTaskOperator(
        **{"task_id": "work", "command": "true", "wait_for_completion": False, **fields}
    )


def nested() -> None:
    with TaskGroup("inner"):
        submit()


def with_a_sensor_for_its_start() -> None:
    QarnotTaskSensor(task_id="wait", qarnot_task=submit().output["uuid"], target_states="FullyExecuting")


def with_a_sensor_for_one_of_two_states() -> None:
    states = ["Success", "UploadingResults"]
    QarnotTaskSensor(task_id="wait", qarnot_task=submit().output["uuid"], target_states=states)


def with_a_sensor_for_another() -> None:
    submit() >> QarnotTaskSensor(task_id="wait", qarnot_task="some-other-task")


def with_a_sensor_for_the_first_of_two() -> None:
    first = submit(task_id="first")
    first >> submit() >> QarnotTaskSensor(task_id="wait", qarnot_task=first.output["uuid"])


def with_a_sensor_for_one_of_many() -> None:
    many = QarnotRunTasksOperator(task_id="work", commands=["a", "b"], wait_for_completion=False)
    QarnotTaskSensor(task_id="wait", qarnot_task=many.output["results"])


def with_a_sensor_for_one_copy() -> None:
    mapped = QarnotRunTaskOperator.partial(task_id="work", wait_for_completion=False)
    copies = mapped.expand(command=["true", "false"])
    copies >> QarnotTaskSensor(
        task_id="wait", qarnot_task="{{ ti.xcom_pull('render.work', map_indexes=0)['uuid'] }}"
    )


@task
def flags() -> list[bool]:
    return [True, False]


UNAWAITED: dict[str, Callable[[], Any]] = {
    "one": submit,
    "many": lambda: QarnotRunTasksOperator(task_id="work", commands=["true"], wait_for_completion=False),
    "in a nested group": nested,
    "mapped": lambda: QarnotRunTaskOperator.partial(task_id="work", wait_for_completion=False).expand(
        command=["true", "false"]
    ),
    "some copies": lambda: QarnotRunTaskOperator.partial(task_id="work", command="true").expand(
        wait_for_completion=[True, False]
    ),
    "some rows": lambda: QarnotRunTaskOperator.partial(task_id="work").expand_kwargs(
        [{"command": "true"}, {"command": "true", "wait_for_completion": False}]
    ),
    "flags of run time": lambda: QarnotRunTaskOperator.partial(task_id="work", command="true").expand(
        wait_for_completion=flags()
    ),
    "on the pool by a template": lambda: submit(qarnot_pool="{{ ti.xcom_pull('render.open_pool') }}"),
    "a sensor for its start": with_a_sensor_for_its_start,
    "a sensor for its start or end": with_a_sensor_for_one_of_two_states,
    "a sensor for another Qarnot task": with_a_sensor_for_another,
    "a sensor for the first of two": with_a_sensor_for_the_first_of_two,
    "a sensor for one of many": with_a_sensor_for_one_of_many,
    "a sensor for one copy": with_a_sensor_for_one_copy,
    "before another task that waits": lambda: submit() >> submit(task_id="next", wait_for_completion=True),
}


@pytest.mark.parametrize("shared", [None, "nightly"])
@pytest.mark.parametrize("build", UNAWAITED.values(), ids=UNAWAITED.keys())
def test_a_task_that_nothing_in_the_group_waits_for_is_refused_by_name(
    build: Callable[[], Any], shared: str | None
) -> None:
    with (
        DAG("dag", schedule=None),
        pytest.raises(
            QarnotInvalidSpecError, match=r"^QarnotPoolGroup 'render' of .*: render\.(inner\.)?work does not"
        ) as error,
        QarnotPoolGroup("render", instance_count=1, shared=shared),
    ):
        build()
    assert re.search(r"wait_for_completion=(False|XComArg)", str(error.value))
    assert "QarnotTaskSensor" in str(error.value)


def test_default_args_that_say_not_to_wait_are_refused_too() -> None:
    with (
        DAG("dag", schedule=None, default_args={"wait_for_completion": False}),
        pytest.raises(QarnotInvalidSpecError, match=r"render\.work"),
        QarnotPoolGroup("render", instance_count=1),
    ):
        QarnotRunTaskOperator(task_id="work", command="true")


def with_a_sensor() -> None:
    work = submit()
    QarnotTaskSensor(task_id="wait", qarnot_task=work.output["uuid"])


def with_a_sensor_later() -> None:
    work = submit()
    sensor = QarnotTaskSensor(task_id="wait", qarnot_task="{{ ti.xcom_pull('render.work')['uuid'] }}")
    work >> submit(task_id="meanwhile", wait_for_completion=True) >> sensor


def on_another_pool() -> None:
    other = QarnotCreatePoolOperator(task_id="other", instance_count=1, wait_for_completion=False)
    submit(qarnot_pool=other.output)


def with_a_sensor_for_any_end() -> None:
    QarnotTaskSensor(
        task_id="wait", qarnot_task=submit().output, target_states=["Success", "Failure", "cancelled"]
    )


def with_a_sensor_for_each_copy() -> None:
    copies = QarnotRunTaskOperator.partial(task_id="work", wait_for_completion=False).expand(
        command=["true", "false"]
    )
    QarnotTaskSensor.partial(task_id="wait").expand(qarnot_task=copies.output)


def with_a_sensor_for_each_of_many() -> None:
    many = QarnotRunTasksOperator(task_id="work", commands=["a", "b"], wait_for_completion=False)

    @task
    def uuids(found: dict[str, Any]) -> list[str]:
        return [one["uuid"] for one in found["results"]]

    QarnotTaskSensor.partial(task_id="wait").expand(qarnot_task=uuids(many.output))


def with_a_sensor_for_states_of_run_time() -> None:
    QarnotTaskSensor(task_id="wait", qarnot_task=submit().output, target_states="{{ params.state }}")


AWAITED: dict[str, Callable[[], Any]] = {
    "waits": lambda: submit(wait_for_completion=True),
    "a sensor follows": with_a_sensor,
    "a sensor follows later": with_a_sensor_later,
    "a sensor for any end": with_a_sensor_for_any_end,
    "a sensor for each copy": with_a_sensor_for_each_copy,
    "a sensor for each of many": with_a_sensor_for_each_of_many,
    "a sensor for states of run time": with_a_sensor_for_states_of_run_time,
    "runs on another pool": on_another_pool,
}


@pytest.mark.parametrize("build", AWAITED.values(), ids=AWAITED.keys())
def test_a_task_that_another_in_the_group_waits_for_is_accepted(build: Callable[[], Any]) -> None:
    with DAG("dag", schedule=None), QarnotPoolGroup("render", instance_count=1):
        build()


def test_a_task_outside_of_the_group_that_names_its_pool_is_not_of_the_group() -> None:
    with DAG("dag", schedule=None):
        with QarnotPoolGroup("render", instance_count=1) as group:
            submit(task_id="inside", wait_for_completion=True)
        submit(qarnot_pool=group.pool)
