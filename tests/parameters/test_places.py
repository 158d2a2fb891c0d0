"""Errors that are raised when a DAG is parsed name the task or group, and its DAG."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, task_group

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.parameters.places import naming
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

GLOBAL = 1


@qarnot_task
def square(number: Any) -> Any:
    return number * number


def uses_a_global() -> int:
    return GLOBAL


def run_task(task_id: str = "fit", **wrong: Any) -> None:
    QarnotRunTaskOperator(task_id=task_id, command="c", **wrong)


def in_a_group(build: Callable[[], Any]) -> None:
    with TaskGroup("outer"), QarnotPoolGroup("work", instance_count=1):
        build()


def in_a_mapped_group() -> None:
    @task_group
    def copies(number: int) -> None:
        with QarnotPoolGroup("work", instance_count=1):
            QarnotRunTaskOperator.partial(task_id="fit").expand(command=["a", "b"])

    copies.expand(number=[1, 2])


def calls_of_a_function() -> None:
    square(1)
    square(object())


class Team(QarnotRunTaskOperator):
    """An operator of a DAG author, with a parameter that its constructor does not name."""

    def __init__(self, **kwargs: Any) -> None:
        self.team = kwargs.pop("team", None)
        super().__init__(**kwargs)


def test_a_subclass_may_take_parameters_that_it_does_not_name() -> None:
    with DAG("train"):
        assert Team(task_id="one", command="c", team="a").team == "a"
        with pytest.raises(QarnotInvalidSpecError, match=r"^Task 'wrong' of DAG 'train': comand is not"):
            Team(task_id="wrong", comand="c", team="a")


BUILDS: dict[str, tuple[Callable[[], Any], str]] = {
    "a wrong value": (lambda: run_task(instance_count=0), "Task 'fit' of DAG 'train': instance_count"),
    "an unknown parameter": (lambda: run_task(comand="c"), "Task 'fit' of DAG 'train': comand is not"),
    "an Airflow pool": (lambda: run_task(pool="{{ x }}"), "Task 'fit' of DAG 'train': pool of Qarnot"),
    "a list of commands": (
        lambda: QarnotRunTasksOperator(task_id="many", commands=[{"constants": {}}]),
        "Task 'many' of DAG 'train': command",
    ),
    "a sensor": (
        lambda: QarnotTaskSensor(task_id="wait", qarnot_task="t", target_states="Ready"),
        "Task 'wait' of DAG 'train': ",
    ),
    "a mapped task": (
        lambda: QarnotRunTaskOperator.partial(task_id="frame", comand="c"),
        "Task 'frame' of DAG 'train': comand is not",
    ),
    "in groups": (
        lambda: in_a_group(lambda: run_task(instance_count=0)),
        "Task 'outer.work.fit' of DAG 'train': instance_count",
    ),
    "an unknown parameter in groups": (
        lambda: in_a_group(lambda: run_task(comand="c")),
        "Task 'outer.work.fit' of DAG 'train': comand is not",
    ),
    "a mapped task in groups": (
        lambda: in_a_group(lambda: QarnotRunTaskOperator.partial(task_id="frame", comand="c")),
        "Task 'outer.work.frame' of DAG 'train': comand is not",
    ),
    "a function": (
        lambda: qarnot_task(uses_a_global)(),
        "Task 'uses_a_global' of DAG 'train': @task.qarnot: ",
    ),
    "a parameter of a function": (
        lambda: qarnot_task(task_id="fit", comand="c")(uses_a_global),
        "Task 'fit' of DAG 'train': comand is not",
    ),
    "the second call of a function": (calls_of_a_function, "Task 'square__1' of DAG 'train': "),
    "a mapped call": (lambda: square.expand(number=[object()]), "Task 'square' of DAG 'train': "),
    "a group": (
        lambda: QarnotPoolGroup("work", instance_cuont=1),
        "QarnotPoolGroup 'work' of DAG 'train': instance_cuont is not",
    ),
    "the setup of a group": (
        lambda: QarnotPoolGroup("work", instance_count=0).__enter__(),
        "Task 'work.open_pool' of DAG 'train': instance_count",
    ),
    "the work of a group": (
        lambda: in_a_group(lambda: run_task(wait_for_completion=False)),
        "QarnotPoolGroup 'outer.work' of DAG 'train': outer.work.fit does not wait",
    ),
    "a mapped group": (in_a_mapped_group, "QarnotPoolGroup 'copies.work' of DAG 'train': "),
}


@pytest.mark.parametrize(("build", "start"), BUILDS.values(), ids=BUILDS.keys())
def test_an_error_of_a_dag_starts_with_the_task_once(build: Callable[[], Any], start: str) -> None:
    with pytest.raises(QarnotInvalidSpecError) as caught, DAG("train", schedule=None):
        build()
    text = str(caught.value)
    assert text.startswith(start)
    assert text.count("DAG 'train'") == 1


def test_a_dag_that_is_an_argument_is_named() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"^Task 'open' of DAG 'train': comand is not"):
        QarnotCreatePoolOperator(task_id="open", dag=DAG("train", schedule=None), comand="c")


def test_a_task_without_a_dag_is_named() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"^Task 'fit': instance_count"):
        run_task(instance_count=0)


def test_a_task_without_an_id_leaves_the_message_as_it_is() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"^taskid is not a parameter"):
        QarnotRunTaskOperator(taskid="fit", command="c")


def test_an_error_keeps_its_place_and_its_parts_between_processes() -> None:
    def fail() -> None:
        with naming(lambda: "Outer"), naming(lambda: "Inner"):
            raise QarnotInvalidSpecError("slots is wrong", field="slots", remedy="Give 1.")

    with pytest.raises(QarnotInvalidSpecError) as caught:
        fail()
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert str(error) == "Inner: slots is wrong. Give 1."
        assert (error.field, error.message) == ("slots", "slots is wrong")


def test_the_import_error_of_airflow_names_the_task(tmp_path: Path) -> None:
    """Airflow shows the last two frames of the traceback, which are not in the DAG file, and the message."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # 3.1
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]
    file = tmp_path / "train.py"
    file.write_text(
        dedent(
            """
            from airflow.sdk import DAG
            from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

            with DAG("train", schedule=None):
                QarnotRunTaskOperator(task_id="fit", command="c", instance_count=0)
            """
        )
    )
    bag = DagBag(dag_folder=str(file))
    (shown,) = bag.import_errors.values()
    assert "Task 'fit' of DAG 'train': instance_count" in shown.strip().splitlines()[-1]
