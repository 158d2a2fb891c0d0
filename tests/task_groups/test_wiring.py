"""The edges of ``QarnotPoolGroup``, for every shape of DAG people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, XComArg, task

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

Edges = set[tuple[str, str]]


def run(task_id: str, **parameters: Any) -> QarnotRunTaskOperator:
    return QarnotRunTaskOperator(task_id=task_id, **{"command": "true", **parameters})


@task
def local(value: Any = None) -> list[str]:
    return ["a", "b"]


def edges(dag: DAG) -> Edges:
    return {(one.task_id, after) for one in dag.tasks for after in one.downstream_task_ids}


def one_task() -> None:
    with QarnotPoolGroup("g"):
        run("a")


def a_chain() -> None:
    with QarnotPoolGroup("g"):
        run("a") >> run("b")


def side_by_side() -> None:
    with QarnotPoolGroup("g"):
        run("a")
        run("b")


def a_diamond() -> None:
    with QarnotPoolGroup("g"):
        run("a") >> [run("b"), run("c")] >> run("d")


def mapped() -> None:
    with QarnotPoolGroup("g"):
        QarnotRunTaskOperator.partial(task_id="a").expand(command=["x", "y"])


def mapped_with_expand_kwargs() -> None:
    with QarnotPoolGroup("g"):
        QarnotRunTaskOperator.partial(task_id="a").expand_kwargs([{"command": "x"}, {"command": "y"}])


def mapped_over_a_task_outside() -> None:
    listed = local.override(task_id="before")()
    with QarnotPoolGroup("g"):
        QarnotRunTaskOperator.partial(task_id="a").expand(command=listed)


def mapped_over_a_task_inside() -> None:
    with QarnotPoolGroup("g"):
        QarnotRunTaskOperator.partial(task_id="a").expand(command=local.override(task_id="list")())


def taskflow() -> None:
    with QarnotPoolGroup("g"):
        local.override(task_id="b")(run("a").output)


def mapped_taskflow() -> None:
    with QarnotPoolGroup("g"):
        local.override(task_id="a").expand(value=[1, 2])


def an_upstream_outside() -> None:
    before = run("before")
    with QarnotPoolGroup("g"):
        run("a")
        before >> run("b")


def a_downstream_outside() -> None:
    after = run("after")
    with QarnotPoolGroup("g"):
        run("a") >> after


def before_and_after() -> None:
    before, after = run("before"), run("after")
    with QarnotPoolGroup("g") as group:
        run("a")
    before >> group >> after


def before_and_after_said_first() -> None:
    before, after = run("before"), run("after")
    group = QarnotPoolGroup("g")
    before >> group >> after
    with group:
        run("a")


def a_nested_group() -> None:
    with QarnotPoolGroup("g"):
        run("a")
        with TaskGroup("n"):
            run("b") >> run("c")


def inside_another_group() -> None:
    with TaskGroup("n"), QarnotPoolGroup("g"):
        run("a")


def two_groups() -> None:
    with QarnotPoolGroup("g"):
        first = run("a")
    with QarnotPoolGroup("h"):
        first >> run("b")


def a_pool_in_a_pool() -> None:
    with QarnotPoolGroup("g"):
        run("a")
        with QarnotPoolGroup("h"):
            run("b")


def many_from_one() -> None:
    with QarnotPoolGroup("g"):
        QarnotRunTasksOperator(task_id="a", commands=["x"])


def no_prefix() -> None:
    with QarnotPoolGroup("g", prefix_group_id=False):
        run("a")


def empty() -> None:
    with QarnotPoolGroup("g"):
        pass


def around(group: str, *work: str) -> Edges:
    """Setup to teardown, and setup to each piece of work: the pool's uuid goes there."""
    opens, closes = f"{group}.open_pool", f"{group}.close_pool"
    return {(opens, closes), *((opens, one) for one in work)}


SHAPES: list[tuple[Callable[[], None], Edges]] = [
    (one_task, {*around("g", "g.a"), ("g.a", "g.close_pool")}),
    (a_chain, {*around("g", "g.a", "g.b"), ("g.a", "g.b"), ("g.b", "g.close_pool")}),
    (side_by_side, {*around("g", "g.a", "g.b"), ("g.a", "g.close_pool"), ("g.b", "g.close_pool")}),
    (
        a_diamond,
        {
            *around("g", "g.a", "g.b", "g.c", "g.d"),
            ("g.a", "g.b"),
            ("g.a", "g.c"),
            ("g.b", "g.d"),
            ("g.c", "g.d"),
            ("g.d", "g.close_pool"),
        },
    ),
    (mapped, {*around("g", "g.a"), ("g.a", "g.close_pool")}),
    (mapped_with_expand_kwargs, {*around("g", "g.a"), ("g.a", "g.close_pool")}),
    (mapped_over_a_task_outside, {*around("g", "g.a"), ("before", "g.a"), ("g.a", "g.close_pool")}),
    (
        mapped_over_a_task_inside,
        {*around("g", "g.a", "g.list"), ("g.list", "g.a"), ("g.a", "g.close_pool")},
    ),
    (taskflow, {*around("g", "g.a"), ("g.a", "g.b"), ("g.b", "g.close_pool")}),
    (mapped_taskflow, {*around("g", "g.a"), ("g.a", "g.close_pool")}),
    (
        an_upstream_outside,
        {*around("g", "g.a", "g.b"), ("before", "g.b"), ("g.a", "g.close_pool"), ("g.b", "g.close_pool")},
    ),
    (a_downstream_outside, {*around("g", "g.a"), ("g.a", "after"), ("g.a", "g.close_pool")}),
    (
        before_and_after,
        {*around("g", "g.a"), ("before", "g.open_pool"), ("g.a", "after"), ("g.a", "g.close_pool")},
    ),
    (
        before_and_after_said_first,
        # Airflow itself links what is around a group that is empty yet; one edge more does no harm.
        {
            *around("g", "g.a"),
            ("before", "g.open_pool"),
            ("g.a", "after"),
            ("before", "after"),
            ("g.a", "g.close_pool"),
        },
    ),
    (
        a_nested_group,
        {
            *around("g", "g.a", "g.n.b", "g.n.c"),
            ("g.n.b", "g.n.c"),
            ("g.a", "g.close_pool"),
            ("g.n.c", "g.close_pool"),
        },
    ),
    (inside_another_group, {*around("n.g", "n.g.a"), ("n.g.a", "n.g.close_pool")}),
    (
        two_groups,
        {
            *around("g", "g.a"),
            *around("h", "h.b"),
            ("g.a", "g.close_pool"),
            ("h.b", "h.close_pool"),
            ("g.a", "h.b"),
        },
    ),
    (
        a_pool_in_a_pool,
        {
            *around("g", "g.a", "g.h.open_pool"),
            *around("g.h", "g.h.b"),
            ("g.a", "g.close_pool"),
            ("g.h.b", "g.h.close_pool"),
            ("g.h.close_pool", "g.close_pool"),
        },
    ),
    (many_from_one, {*around("g", "g.a"), ("g.a", "g.close_pool")}),
    (no_prefix, {("open_pool", "close_pool"), ("open_pool", "a"), ("a", "close_pool")}),
    (empty, around("g")),
]


@pytest.mark.parametrize(("build", "expected"), SHAPES, ids=[build.__name__ for build, _ in SHAPES])
def test_edges(build: Callable[[], None], expected: Edges) -> None:
    with DAG("d") as dag:
        build()
    found = edges(dag)
    assert found - expected == set(), "edges that should not be"
    assert expected - found == set(), "edges that are missing"


@pytest.mark.parametrize("build", [build for build, _ in SHAPES], ids=[build.__name__ for build, _ in SHAPES])
def test_every_teardown_waits_for_all_that_its_setup_precedes(build: Callable[[], None]) -> None:
    with DAG("d") as dag:
        build()
    for closing in (one for one in dag.tasks if one.is_teardown):
        (opening,) = closing.upstream_task_ids & {one.task_id for one in dag.tasks if one.is_setup}
        group = opening.rpartition("open_pool")[0]
        inside = {one.task_id for one in dag.tasks if one.task_id.startswith(group) and "." in one.task_id}
        before = {one.task_id for one in closing.get_flat_relatives(upstream=True)}
        after = {one.task_id for one in dag.get_task(opening).get_flat_relatives(upstream=False)}
        assert inside - {opening, closing.task_id} <= before & (after | inside)


def pool_of(one: Any) -> Any:
    return one.partial_kwargs.get("qarnot_pool") if hasattr(one, "partial_kwargs") else one.qarnot_pool


def test_tasks_take_the_pool_of_their_own_group_unless_they_name_one() -> None:
    with DAG("d") as dag, QarnotPoolGroup("g") as outer:
        run("a")
        run("b", qarnot_pool="mine")
        QarnotRunTaskOperator.partial(task_id="c").expand(command=["x"])
        QarnotRunTaskOperator.partial(task_id="d", command="x").expand(qarnot_pool=["p", "q"])
        with QarnotPoolGroup("h") as inner:
            run("e")
    for task_id, group in {"g.a": outer, "g.c": outer, "g.h.e": inner}.items():
        assert isinstance(pool := pool_of(dag.get_task(task_id)), XComArg)
        assert pool.operator is group.open_pool
    assert dag.get_task("g.b").qarnot_pool == "mine"
    assert pool_of(dag.get_task("g.d")) is None


def test_the_pool_cools_down_by_itself_unless_told_otherwise() -> None:
    with DAG("d"):
        with QarnotPoolGroup("a", instance_count=2) as managed:
            pass
        with QarnotPoolGroup("b", keep_warm=None, instance_count=2) as fixed:
            pass
        with QarnotPoolGroup("c", elastic={"max_total_slots": 2}) as elastic:
            pass
    assert [one.open_pool.keep_warm is not None for one in (managed, fixed, elastic)] == [True, False, False]


def test_setup_and_teardown_have_retries_unless_told_otherwise() -> None:
    with DAG("d"), QarnotPoolGroup("g") as group:
        pass
    assert (group.open_pool.retries, group.close_pool.retries) == (3, 3)
    with DAG("d", default_args={"retries": 1}), QarnotPoolGroup("g") as group:
        pass
    assert group.open_pool.retries == 1
    with DAG("d"), QarnotPoolGroup("g", default_args={"retries": 0}) as group:
        pass
    assert group.open_pool.retries == 0


def test_bad_pools_are_refused_when_the_dag_is_parsed() -> None:
    with (
        DAG("d"),
        pytest.raises(QarnotInvalidSpecError, match="instance_count"),
        QarnotPoolGroup("g", instance_count=0),
    ):
        pass
    with DAG("d") as dag:
        run("a")
    assert [one.task_id for one in dag.tasks] == ["a"], "the group that broke is not the current one any more"
    with DAG("d"), pytest.raises(QarnotInvalidSpecError, match="task_id"):
        QarnotPoolGroup("g", task_id="x")


def test_an_exception_inside_is_what_comes_out() -> None:
    with DAG("d"), pytest.raises(ZeroDivisionError), QarnotPoolGroup("g"):
        1 / 0  # noqa: B018
    with DAG("d") as dag:
        run("a")
    assert edges(dag) == set(), "the group that broke is not the current one any more"


def test_groups_serialize_for_the_scheduler() -> None:
    from airflow.serialization import serialized_objects

    # The name of 3.1 and 3.2, after that of 3.3.
    serializer = getattr(serialized_objects, "DagSerialization", serialized_objects.SerializedDAG)
    with DAG("d") as dag:
        a_nested_group()
        with QarnotPoolGroup("m"):
            QarnotRunTaskOperator.partial(task_id="a").expand(command=["x", "y"])
    again = serializer.from_dict(serializer.to_dict(dag))
    assert {one.task_id for one in again.tasks} == {one.task_id for one in dag.tasks}
    assert again.get_task("m.close_pool").upstream_task_ids == {"m.a", "m.open_pool"}
