"""Trigger rules of tasks inside ``QarnotPoolGroup``: they work, or are refused by name."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, TriggerRule, task

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.dags.test_examples import LOCAL_BUNDLE, Run, client

__all__ = ["client"]

#: Every rule of the installed Airflow but the one that every task has by itself.
RULES = sorted(str(rule.value) for rule in TriggerRule if rule is not TriggerRule.ALL_SUCCESS)


def plain(task_id: str, rule: str) -> Any:
    return QarnotRunTaskOperator(task_id=task_id, command="true", trigger_rule=rule)


def mapped(task_id: str, rule: str) -> Any:
    return QarnotRunTaskOperator.partial(task_id=task_id, trigger_rule=rule).expand(command=["x", "y"])


def many(task_id: str, rule: str) -> Any:
    return QarnotRunTasksOperator(task_id=task_id, commands=["x"], trigger_rule=rule)


def nested(task_id: str, rule: str) -> Any:
    with TaskGroup(f"in_{task_id}"):
        return plain(task_id, rule)


def on_a_node(task_id: str, rule: str) -> Any:
    @task.qarnot(task_id=task_id, trigger_rule=rule)
    def function() -> None: ...

    return function()


def on_nodes(task_id: str, rule: str) -> Any:
    @task.qarnot(task_id=task_id, trigger_rule=rule)
    def function(value: int) -> None: ...

    return function.expand(value=[1, 2])


def local(task_id: str, rule: str) -> Any:
    @task(task_id=task_id, trigger_rule=rule)
    def function() -> None: ...

    return function()


def naming_the_pool(task_id: str, rule: str) -> Any:
    @task(task_id=task_id, trigger_rule=rule)
    def function(pool: Any) -> None: ...

    return function(_groups[0].pool)


_groups: list[QarnotPoolGroup] = []
KINDS = [plain, mapped, many, nested, on_a_node, on_nodes, local, naming_the_pool]
Make = Callable[[str, str], Any]


def group() -> QarnotPoolGroup:
    _groups[:] = [QarnotPoolGroup("g")]
    return _groups[0]


def made(kind: Make, rule: str, after: list[Any]) -> str:
    """The id of a task of this kind and rule, linked with what comes before."""
    one = kind(rule, rule)
    one = getattr(one, "operator", one)
    for other in after:
        other >> one
    return str(one.task_id)


def accepted(dag: DAG) -> Any:
    """The DAG as the scheduler gets it."""
    from airflow.serialization import serialized_objects

    serializer = getattr(serialized_objects, "DagSerialization", serialized_objects.SerializedDAG)
    dag.validate_setup_teardown()
    return serializer.from_dict(serializer.to_dict(dag))


def relatives(dag: Any, task_id: str, *, upstream: bool) -> set[str]:
    found: set[str] = set()
    left = [dag.get_task(task_id)]
    while left:
        one = left.pop()
        for other in one.upstream_task_ids if upstream else one.downstream_task_ids:
            if other not in found:
                found.add(other)
                left.append(dag.get_task(other))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_after_work_of_the_group_every_rule_works_between_setup_and_teardown(kind: Make) -> None:
    rules = [one for one in RULES if kind is local or one != "always"]
    with DAG("d", schedule=None) as dag:
        outside = plain("outside", "all_success")
        with group():
            work = plain("work", "all_success")
            ids = {rule: made(kind, rule, after=[work, outside]) for rule in rules}
    seen = accepted(dag)
    for rule, task_id in ids.items():
        one = seen.get_task(task_id)
        assert one.trigger_rule == rule
        assert one.upstream_task_ids == {"g.work", "outside"}, "Airflow refuses an edge from the setup"
        assert "g.open_pool" in relatives(seen, task_id, upstream=True)
        assert "g.close_pool" in relatives(seen, task_id, upstream=False)


@pytest.mark.parametrize("kind", [one for one in KINDS if one is not local])
def test_a_task_on_the_pool_that_waits_for_nothing_is_refused_by_name(kind: Make) -> None:
    with (
        DAG("d", schedule=None),
        pytest.raises(
            QarnotInvalidSpecError, match=r"^QarnotPoolGroup 'g' of .* of g\.(in_one\.)?one .*all_done"
        ) as caught,
        group(),
    ):
        plain("work", "all_success") >> kind("one", "always")
    assert caught.value.field == "trigger_rule"


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_without_upstreams_runs_when_the_pool_is_open_whatever_its_rule(kind: Make) -> None:
    with DAG("d", schedule=None) as dag, group():
        ids = [made(kind, rule, after=[]) for rule in RULES]
    seen = accepted(dag)
    found = [(seen.get_task(one).upstream_task_ids, seen.get_task(one).trigger_rule) for one in ids]
    assert found == [({"g.open_pool"}, "all_success")] * len(RULES)


@pytest.mark.parametrize("kind", KINDS)
def test_with_upstreams_outside_only_a_rule_is_refused_by_name_with_what_to_write(kind: Make) -> None:
    for rule in RULES:
        with DAG("d", schedule=None):
            outside = plain("outside", "all_success")
            with (
                pytest.raises(
                    QarnotInvalidSpecError, match=r"^QarnotPoolGroup 'g' of .*one must be.*\(outside\)"
                ) as caught,
                group(),
            ):
                outside >> kind("one", rule)
        assert caught.value.field == "trigger_rule"
        assert repr(rule) in str(caught.value)
        assert "all_success" in str(caught.value.remedy)


def test_a_rule_of_default_args_holds_for_a_group_too() -> None:
    with DAG("d", schedule=None, default_args={"trigger_rule": "none_failed"}) as dag, group():
        first = QarnotRunTaskOperator(task_id="first", command="true")
        first >> QarnotRunTaskOperator(task_id="then", command="true")
        with QarnotPoolGroup("inner"):
            QarnotRunTaskOperator(task_id="one", command="true")
    seen = accepted(dag)
    assert seen.get_task("g.then").trigger_rule == "none_failed"
    assert {seen.get_task(one).trigger_rule for one in ("g.first", "g.inner.one", "g.inner.open_pool")} == {
        "all_success"
    }
    assert seen.get_task("g.close_pool").trigger_rule == "all_done_setup_success"


FILE = """
from airflow.sdk import DAG, TaskGroup, task
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


def run(task_id, **parameters):
    return QarnotRunTaskOperator(task_id=task_id, **{"command": "true", **parameters})


@task.qarnot(trigger_rule="all_done")
def on_a_node():
    return "cleaned"


with DAG("rules", schedule=None) as dag:
    with QarnotPoolGroup("g", warm_up=False, instance_count=2):
        work = run("work", command="false")
        good = run("good")
        skipped = run("skipped")
        task.branch(task_id="choose")(lambda: None)() >> skipped
        for rule in ("all_done", "one_failed", "none_skipped", "all_done_setup_success", "none_failed"):
            work >> run(rule, trigger_rule=rule)
        work >> on_a_node()
        good >> run("nothing_failed", trigger_rule="none_failed")
        good >> run("one_failed_of_none", trigger_rule="one_failed")
        skipped >> run("none_skipped_of_one", trigger_rule="none_skipped")
        [work, good] >> QarnotRunTaskOperator.partial(task_id="mapped", trigger_rule="all_done").expand(
            command=["true", "true"]
        )
        with TaskGroup("n"):
            work >> run("nested", trigger_rule="all_done")
        work >> run("cleanup").as_teardown()
    with QarnotPoolGroup("refused", pool_spec={"profile": "no-such-profile"}, setup_retries=0):
        run("work") >> run("cleanup", trigger_rule="all_done")
"""


def run_of(file: str, client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the DAG of *file* once."""
    bundles = [{"name": "rules", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    path = tmp_path / "rules.py"
    path.write_text(file)
    run = Run.__new__(Run)
    run.dag_run, run._client = runpy.run_path(str(path))["dag"].test(), client
    return run


ARROWS = """
from airflow.sdk import DAG
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

with DAG("arrows", schedule=None, default_args={"retries": 0}) as dag:
    for name, command in {"fails": "false", "works": "true"}.items():
        create = QarnotCreatePoolOperator(task_id=f"{name}_create", instance_count=1)
        work = QarnotRunTaskOperator(task_id=name, qarnot_pool=create.output, command=command)
        create >> work >> QarnotClosePoolOperator(task_id=f"{name}_close", qarnot_pool=create.output)
    bad = {"profile": "no-such-profile"}
    create = QarnotCreatePoolOperator(task_id="refused_create", instance_count=1, pool_spec=bad)
    work = QarnotRunTaskOperator(task_id="refused", qarnot_pool=create.output, command="true")
    create >> work >> QarnotClosePoolOperator(task_id="refused_close", qarnot_pool=create.output)
"""


@pytest.mark.usefixtures("airflow_db", "qarnot_connection")
def test_a_pool_without_a_group_is_closed_after_a_failure_which_the_run_keeps(
    client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(ARROWS, client, tmp_path, monkeypatch)
    assert {name: run.states[name] for name in ("fails", "fails_close", "works_close")} == {
        "fails": "failed",
        "fails_close": "success",
        "works_close": "success",
    }
    assert run.states["refused_close"] == "success"
    assert str(run.dag_run.state) == "failed"
    assert {pool.state in ("Closing", "Closed") for pool in run._mine(client.pools.list())} == {True}


@pytest.mark.usefixtures("airflow_db", "qarnot_connection")
def test_a_clean_up_runs_on_the_pool_after_a_failure_and_before_it_closes(
    client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(FILE, client, tmp_path, monkeypatch)
    ran = ("all_done", "one_failed", "none_skipped", "all_done_setup_success", "on_a_node", "nothing_failed")
    wanted = {
        **{
            f"g.{one}": "success"
            for one in (*ran, "mapped[0]", "mapped[1]", "cleanup", "n.nested", "open_pool", "close_pool")
        },
        "g.work": "failed",
        "g.none_failed": "upstream_failed",
        "g.skipped": "skipped",
        "g.none_skipped_of_one": "skipped",
        "g.one_failed_of_none": "skipped",
        "refused.open_pool": "failed",
        "refused.work": "upstream_failed",
        "refused.cleanup": "upstream_failed",
        "refused.close_pool": "upstream_failed",
    }
    assert {name: run.states[name] for name in wanted} == wanted
    (pool,) = run._mine(client.pools.list())
    assert pool.state in ("Closing", "Closed")
    on_pool = {one.labels["airflow.task_id"] for one in run.tasks if one.pool == pool.uuid}
    assert {f"g.{one}" for one in (*ran, "mapped", "cleanup", "n.nested")} <= on_pool
