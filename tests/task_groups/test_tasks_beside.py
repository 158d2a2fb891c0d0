"""Airflow tasks that run on a worker while the nodes of a pool are idle: the teardown names them."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup, task

from airflow_qarnot_pool.costs.idle import IdleCause, IdleTime
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.teardown_cost import tasks_beside
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.conftest import ROOT
from tests.dags.test_examples import EXAMPLES
from tests.harness import FakeTI, run


@task
def local(value: Any = None) -> list[str]:
    return []


@task.qarnot
def remote() -> None: ...


class DerivedByUser(QarnotRunTaskOperator):
    """An operator of a DAG file."""


def work(task_id: str, **parameters: Any) -> QarnotRunTaskOperator:
    return QarnotRunTaskOperator(task_id=task_id, **{"command": "true", **parameters})


def test_tasks_inside_and_tasks_that_the_work_waits_for_are_named() -> None:
    with DAG("d", schedule=None):
        first, listed, after = local.override(task_id="first")(), local(), local.override(task_id="after")()
        with QarnotPoolGroup("g") as group:
            QarnotRunTaskOperator.partial(task_id="mapped").expand(command=listed)
            inside = local.override(task_id="inside")(work("a").output)
            with TaskGroup("n"):
                inside >> local.override(task_id="mapped_local").expand(value=[1, 2])
            DerivedByUser(task_id="derived", command="true")
            sent = work("sent", wait_for_completion=False)
            (
                EmptyOperator(task_id="empty")
                >> remote()
                >> QarnotTaskSensor(task_id="s", qarnot_task=sent.output)
            )
        first >> group >> after
    assert group.close_pool is not None
    assert tasks_beside(group.close_pool) == ["g.inside", "g.n.mapped_local", "local"]


def test_tasks_before_and_after_the_pool_are_not() -> None:
    with DAG("d", schedule=None):
        listed = local()
        with QarnotPoolGroup("g") as group:
            QarnotRunTaskOperator.partial(task_id="mapped").expand(command=listed)
        listed >> group >> local.override(task_id="after")()
    assert group.close_pool is not None
    assert tasks_beside(group.close_pool) == []


def test_so_it_is_for_a_pool_without_a_group() -> None:
    with DAG("d", schedule=None):
        opened = QarnotCreatePoolOperator(task_id="open").as_setup()
        closed = QarnotClosePoolOperator(task_id="close", qarnot_pool=opened.output).as_teardown(
            setups=opened
        )
        opened >> local() >> work("a", qarnot_pool=opened.output) >> closed
    assert tasks_beside(closed) == ["local"]
    assert tasks_beside(QarnotClosePoolOperator(task_id="alone", qarnot_pool="p")) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_example_lets_a_pool_wait_for_a_worker(example: str) -> None:
    dag = runpy.run_path(str(ROOT / "example_dags" / f"{example}.py"))["dag"]
    assert [tasks_beside(one) for one in dag.tasks if one.is_teardown and tasks_beside(one)] == []


def idle(paid: float = 100.0, **causes: float) -> IdleTime:
    found = {IdleCause[name.upper()]: seconds for name, seconds in causes.items()}
    return IdleTime(paid=paid, idle=sum(found.values()), causes=found)


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (idle(gaps=40, head=20, tail=10), 70),
        (IdleTime(paid=100, idle=90, causes={IdleCause.SIZE: 30.0}), 60),
        (idle(gaps=5), 5),
        (idle(gaps=4), None),
        (idle(paid=2, gaps=0.5), None),
        (idle(size=50, uneven=20, warm_up=30), None),
        (idle(), None),
    ],
)
def test_it_is_said_if_the_pool_stood_without_work_for_long(found: IdleTime, seconds: int | None) -> None:
    said = found.describe_wait_for(["g.one", "g.two"])
    if seconds is None:
        assert said is None
        return
    assert said is not None
    assert said.startswith(f"About {seconds} of 100 node-seconds were idle")
    assert "g.one, g.two" in said
    assert "task >> group" in said
    assert found.describe_wait_for([]) is None


def test_a_hundred_tasks_are_not_all_named() -> None:
    said = idle(gaps=90).describe_wait_for([f"t{n}" for n in range(100)])
    assert said is not None
    assert "t7, ...." in said
    assert "t8" not in said


def test_the_log_of_the_teardown_says_it(
    qarnot: LocalQarnot, qarnot_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with DAG("d", schedule=None):
        with QarnotPoolGroup("g", instance_count=2, keep_warm=None) as group:
            local()
        opening: Any = group.open_pool
        closing: Any = group.close_pool
    pool = run(lambda: opening, FakeTI(run_id="beside", task_id="g.open_pool"))
    qarnot.advance_clock(100)
    closing.qarnot_pool = pool
    run(lambda: closing, FakeTI(run_id="beside", task_id="g.close_pool"))
    said = capsys.readouterr().out
    assert "node-seconds were idle without any Qarnot task" in said
    assert "keep it open: g.local. Link" in said
