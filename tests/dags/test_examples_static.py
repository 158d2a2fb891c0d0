"""What can be seen of the examples without running them."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, XComArg

from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from tests.conftest import ROOT

FILES = sorted((ROOT / "example_dags").glob("*.py"))
#: Lines of code that are a screen.
SCREEN = 60


def load(file: Any) -> DAG:
    dag: DAG = runpy.run_path(str(file))["dag"]
    return dag


def upstream_of(task: Any, dag: DAG) -> set[str]:
    """Ids of all tasks that come before *task*."""
    found: set[str] = set()
    todo = set(task.upstream_task_ids)
    while todo:
        one = todo.pop()
        found.add(one)
        todo |= dag.get_task(one).upstream_task_ids - found
    return found


def users_of(setup: Any, dag: DAG) -> Iterator[Any]:
    """Tasks that take the setup's output, and those of its group."""
    group = next((g for g in dag.task_group_dict.values() if g and _has(g, setup)), None)
    for task in dag.tasks:
        values = [getattr(task, name, None) for name in task.template_fields]
        values += list(getattr(task, "partial_kwargs", {}).values())
        references = {one.task_id for value in values for one, _ in XComArg.iter_xcom_references(value)}
        if setup.task_id in references or (group is not None and _has(group, task)):
            yield task


def _has(group: TaskGroup, task: Any) -> bool:
    return bool(group.group_id) and any(one is task for one in group.iter_tasks())


def closed_too_early(dag: DAG) -> list[str]:
    """Tasks that use a pool and are not waited for by its teardown."""
    found = []
    for teardown in (one for one in dag.tasks if one.is_teardown):
        waited = upstream_of(teardown, dag)
        setups = [dag.get_task(one) for one in teardown.upstream_task_ids if dag.get_task(one).is_setup]
        for setup in setups:
            found += [
                one.task_id
                for one in users_of(setup, dag)
                if one not in (setup, teardown) and one.task_id not in waited
            ]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_teardown_waits_for_every_user_of_its_pool(file: Any) -> None:
    dag = load(file)
    creators = [one for one in dag.tasks if getattr(one, "is_setup", False)]
    assert len(creators) == sum(one.is_teardown for one in dag.tasks)
    assert closed_too_early(dag) == []
    assert not [
        one.task_id for one in dag.tasks if isinstance(one, QarnotCreatePoolOperator) and not one.is_setup
    ]


def test_a_teardown_that_does_not_wait_is_seen() -> None:
    """Airflow's own ``with teardown`` leaves mapped tasks out."""
    with DAG("d", schedule=None) as dag:
        start = QarnotCreatePoolOperator(task_id="start").as_setup()
        stop = QarnotClosePoolOperator(task_id="stop", qarnot_pool=start.output).as_teardown(setups=start)
        with stop:
            QarnotRunTaskOperator(task_id="seen", qarnot_pool=start.output, command="true")
            QarnotRunTaskOperator.partial(task_id="missed", qarnot_pool=start.output).expand(command=["true"])
    assert closed_too_early(dag) == ["missed"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_a_screen(file: Any) -> None:
    """Code without imports, docstrings, comments and blank lines."""
    lines: set[int] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr)):
            continue
        assert node.end_lineno is not None
        lines |= set(range(node.lineno, node.end_lineno + 1))
    text = file.read_text().splitlines()
    code = [n for n in lines if text[n - 1].strip() and not text[n - 1].lstrip().startswith(("#", '"""'))]
    assert len(code) <= SCREEN


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_fields_of_a_form_say_what_they_are(file: Any) -> None:
    dag = load(file)
    for name in dag.params:
        param = dag.params.get_param(name)
        schema = param.schema
        assert schema.get("title"), name
        assert schema.get("type"), name
        if schema["type"] in ("integer", "number"):
            assert "minimum" in schema, name
        if len(dag.params) > 2:
            assert param.description, name
