"""The edges of ``QarnotPoolGroup``, for every shape of DAG people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG, Label, TaskGroup, XComArg, task, task_group

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator, QarnotUpdatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

Edges = set[tuple[str, str]]


def run(task_id: str, **parameters: Any) -> QarnotRunTaskOperator:
    return QarnotRunTaskOperator(task_id=task_id, **{"command": "true", **parameters})


@task
def local(value: Any = None) -> list[str]:
    return ["a", "b"]


@task.branch
def choose() -> str:
    return "g.a"


@task.qarnot
def remote(value: Any) -> Any:
    return [value]


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


def group_before_group() -> None:
    with QarnotPoolGroup("g") as first:
        run("a")
    with QarnotPoolGroup("h") as second:
        run("b")
    first >> second


def group_before_group_said_first() -> None:
    first, second = QarnotPoolGroup("g"), QarnotPoolGroup("h")
    first >> second
    with second:
        run("b")
    with first:
        run("a")


def a_plain_group_before_and_after_said_first() -> None:
    with TaskGroup("before") as before:
        run("x")
    with TaskGroup("after") as after:
        run("y")
    group = QarnotPoolGroup("g")
    before >> group >> after
    with group:
        run("a")


def labelled() -> None:
    before, after = run("before"), run("after")
    with QarnotPoolGroup("g") as group:
        run("a") >> Label("inside") >> run("b")
    before >> Label("in") >> group >> Label("out") >> after


def a_branch() -> None:
    with QarnotPoolGroup("g"):
        branch = choose.override(task_id="choose")()
        join = run("join", trigger_rule="none_failed_min_one_success")
        branch >> [run("a"), run("b")] >> join


def rules_that_count() -> None:
    with QarnotPoolGroup("g"):
        a, b = run("a"), run("b")
        for rule in ("one_success", "one_done", "all_failed", "all_skipped", "all_done_min_one_success"):
            [a, b] >> run(rule, trigger_rule=rule)
        mapped = QarnotRunTaskOperator.partial(task_id="mapped", trigger_rule="one_success")
        a >> mapped.expand(command=["x"])


def rules_that_do_not_count() -> None:
    with QarnotPoolGroup("g"):
        for rule in ("all_done", "none_failed", "none_skipped", "one_failed", "all_done_setup_success"):
            run(f"before_{rule}") >> run(rule, trigger_rule=rule)


def a_teardown_of_the_work() -> None:
    before, after = run("before"), run("after")
    with QarnotPoolGroup("g") as group:
        run("a") >> run("cleanup").as_teardown()
    before >> group >> after


def python_on_nodes() -> None:
    with QarnotPoolGroup("g"):
        remote.override(task_id="b").expand(value=remote.override(task_id="a")(1))


def in_a_mapped_group() -> None:
    @task_group
    def each(part: Any) -> None:
        with QarnotPoolGroup("g"):
            run("a", constants={"PART": part}) >> run("b")

    each.expand(part=["x", "y"])


def deep_groups() -> None:
    with QarnotPoolGroup("g"), TaskGroup("n"), TaskGroup("m"):
        QarnotRunTaskOperator.partial(task_id="a").expand(command=["x"]) >> local.override(task_id="b")()


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
    (
        group_before_group,
        {
            *around("g", "g.a"),
            *around("h", "h.b"),
            ("g.a", "g.close_pool"),
            ("h.b", "h.close_pool"),
            ("g.a", "h.open_pool"),
        },
    ),
    (
        group_before_group_said_first,
        {
            *around("g", "g.a"),
            *around("h", "h.b"),
            ("g.a", "g.close_pool"),
            ("h.b", "h.close_pool"),
            ("g.a", "h.open_pool"),
        },
    ),
    (
        a_plain_group_before_and_after_said_first,
        {
            *around("g", "g.a"),
            ("before.x", "g.open_pool"),
            ("g.a", "after.y"),
            ("before.x", "after.y"),  # as above
            ("g.a", "g.close_pool"),
        },
    ),
    (
        labelled,
        {
            *around("g", "g.a", "g.b"),
            ("before", "g.open_pool"),
            ("g.a", "g.b"),
            ("g.b", "after"),
            ("g.b", "g.close_pool"),
        },
    ),
    (
        a_branch,
        # No edge from the setup to the task that joins: its success would count as one of the branches'.
        {
            *around("g", "g.choose", "g.a", "g.b"),
            ("g.choose", "g.a"),
            ("g.choose", "g.b"),
            ("g.a", "g.join"),
            ("g.b", "g.join"),
            ("g.join", "g.close_pool"),
        },
    ),
    (
        rules_that_count,
        {
            *around("g", "g.a", "g.b"),
            *(
                edge
                for rule in (
                    "one_success",
                    "one_done",
                    "all_failed",
                    "all_skipped",
                    "all_done_min_one_success",
                )
                for edge in (
                    ("g.a", f"g.{rule}"),
                    ("g.b", f"g.{rule}"),
                    (f"g.{rule}", "g.close_pool"),
                )
            ),
            ("g.a", "g.mapped"),
            ("g.mapped", "g.close_pool"),
        },
    ),
    (
        rules_that_do_not_count,
        {
            edge
            for rule in ("all_done", "none_failed", "none_skipped", "one_failed", "all_done_setup_success")
            for edge in (
                *around("g", f"g.before_{rule}"),
                (f"g.before_{rule}", f"g.{rule}"),
                (f"g.{rule}", "g.close_pool"),
            )
        },
    ),
    (
        a_teardown_of_the_work,
        {
            *around("g", "g.a", "g.cleanup"),
            ("before", "g.open_pool"),
            ("g.a", "g.cleanup"),
            ("g.a", "after"),
            ("g.cleanup", "g.close_pool"),
        },
    ),
    (python_on_nodes, {*around("g", "g.a", "g.b"), ("g.a", "g.b"), ("g.b", "g.close_pool")}),
    (
        in_a_mapped_group,
        {
            *around("each.g", "each.g.a", "each.g.b"),
            ("each.g.a", "each.g.b"),
            ("each.g.b", "each.g.close_pool"),
        },
    ),
    (
        deep_groups,
        {*around("g", "g.n.m.a"), ("g.n.m.a", "g.n.m.b"), ("g.n.m.b", "g.close_pool")},
    ),
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
    for closing in (one for one in dag.tasks if one.task_id.endswith("close_pool")):
        (opening,) = closing.upstream_task_ids & {one.task_id for one in dag.tasks if one.is_setup}
        group = opening.rpartition("open_pool")[0]
        inside = {
            one.task_id
            for one in dag.tasks
            if one.task_id.startswith(group) and (group or "." not in one.task_id)
        }
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


def test_a_task_without_an_edge_from_the_setup_has_its_pool_all_the_same() -> None:
    with DAG("d") as dag:
        a_branch()
        join = dag.get_task("g.join")
    pool = pool_of(join)
    assert isinstance(pool, XComArg)
    assert pool.operator is dag.get_task("g.open_pool")
    assert join.on_pool


def test_labels_stay() -> None:
    with DAG("d") as dag:
        labelled()
    found = {(one, other): info["label"] for one, all in dag.edge_info.items() for other, info in all.items()}
    expected = {
        ("before", "g.open_pool"): "in",
        ("g.downstream_join_id", "after"): "out",
        ("g.a", "g.b"): "inside",
    }
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("rows", "takes_the_groups"),
    [
        ([{"command": "x"}, {"command": "y"}], True),
        ([{"command": "x", "qarnot_pool": "p"}, {"command": "y", "qarnot_pool": "q"}], False),
    ],
)
def test_rows_of_expand_kwargs_name_a_pool_or_take_the_groups(rows: Any, takes_the_groups: bool) -> None:
    with DAG("d") as dag, QarnotPoolGroup("g"):
        QarnotRunTaskOperator.partial(task_id="a").expand_kwargs(rows)
    assert (pool_of(dag.get_task("g.a")) is not None) is takes_the_groups


def test_rows_of_expand_kwargs_of_which_only_some_name_a_pool_are_refused() -> None:
    with DAG("d"), pytest.raises(QarnotInvalidSpecError, match="1 of 2 rows"), QarnotPoolGroup("g"):
        QarnotRunTaskOperator.partial(task_id="a").expand_kwargs(
            [{"command": "x", "qarnot_pool": "p"}, {"command": "y"}]
        )


def test_expanding_in_a_mapped_task_group_is_refused_and_says_what_to_do() -> None:
    @task_group
    def each(part: Any) -> None:
        with QarnotPoolGroup("g"):
            QarnotRunTaskOperator.partial(task_id="a").expand(command=["x"])

    with DAG("d"), pytest.raises(QarnotInvalidSpecError, match="Expand the group or the task"):
        each.expand(part=["x", "y"])


def test_the_pool_cools_down_by_itself_unless_told_otherwise() -> None:
    with DAG("d"):
        with QarnotPoolGroup("a", instance_count=2) as managed:
            pass
        with QarnotPoolGroup("b", keep_warm=None, instance_count=2) as fixed:
            pass
        with QarnotPoolGroup("c", pool_spec={"elastic": {"max_total_slots": 2}}) as elastic:
            pass
    assert [one.open_pool.keep_warm is not None for one in (managed, fixed, elastic)] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "default_args", "ready_when"),
    [
        pytest.param({"keep_warm": None}, {}, 1, id="fixed size"),
        pytest.param({}, {"keep_warm": None}, 1, id="fixed size by default_args"),
        pytest.param({"keep_warm": None, "ready_when": "FullyExecuting"}, {}, "FullyExecuting", id="asked"),
        pytest.param({"keep_warm": None}, {"ready_when": 2}, 2, id="asked by default_args"),
        pytest.param({}, {}, None, id="managed"),
        pytest.param({"pool_spec": {"elastic": {"max_total_slots": 2}}}, {}, None, id="elastic"),
        pytest.param(
            {}, {"pool_spec": {"elastic": {"max_total_slots": 2}}}, None, id="elastic by default_args"
        ),
    ],
)
def test_a_pool_whose_nodes_all_boot_is_ready_with_its_first_slot(
    arguments: dict[str, Any], default_args: dict[str, Any], ready_when: Any
) -> None:
    size = {} if "pool_spec" in {**arguments, **default_args} else {"instance_count": 2}
    with DAG("d"), QarnotPoolGroup("g", default_args=default_args, **size, **arguments) as group:
        pass
    assert group.open_pool is not None
    assert group.open_pool.ready_when == ready_when


def test_a_shared_pool_is_opened_and_given_up_by_its_name() -> None:
    with DAG("d"), QarnotPoolGroup("g", shared="nightly", instance_count=2) as group:
        run("a")
    assert (group.open_pool.shared, group.close_pool.shared) == ("nightly", "nightly")
    spec = group.open_pool._spec(group.open_pool._given())
    assert spec.name == "nightly", "the same whoever opens it"
    assert group.open_pool.keep_warm is not None
    with DAG("d"), pytest.raises(QarnotInvalidSpecError, match="may outlive the DAG run that opened it"):
        QarnotPoolGroup("g", shared="nightly", keep_warm=None)
    with DAG("d"), pytest.raises(QarnotInvalidSpecError, match="shared="), QarnotPoolGroup("g", shared="a b"):
        pass
    with (
        DAG("d"),
        QarnotPoolGroup(
            "g", shared="{{ params.name }}", pool_spec={"elastic": {"max_total_slots": 2}}, keep_warm=None
        ),
    ):
        pass


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


@pytest.mark.parametrize("name", ["qarnot_pool", "qarnot_task"])
def test_the_result_of_a_task_that_stores_none_is_refused_as_a_reference_by_its_name(name: str) -> None:
    def consumer(number: int, ref: Any) -> None:
        if name == "qarnot_pool":
            run(f"work{number}", qarnot_pool=ref)
        else:
            QarnotTaskSensor(task_id=f"wait{number}", qarnot_task=ref, target_states="Success")

    with DAG("stores_none", schedule=None, default_args={"do_xcom_push": False}):
        submit = run("submit", wait_for_completion=False)
        mapped = QarnotRunTaskOperator.partial(task_id="mapped").expand(command=["true"])
        for number, ref in enumerate((submit, submit.output, mapped, mapped.output, {"uuid": submit.output})):
            with pytest.raises(
                QarnotInvalidSpecError, match=rf"{name} .*'(submit|mapped)'.*do_xcom_push=True"
            ):
                consumer(number, ref)
        consumer(9, submit.output["another_key"])


def test_operators_that_return_a_pool_always_store_it() -> None:
    default_args = {"do_xcom_push": False, "multiple_outputs": True}
    with DAG("stores_all_the_same", schedule=None, default_args=default_args):
        with QarnotPoolGroup("g", instance_count=1) as group:
            QarnotRunTaskOperator(task_id="work", command="true")
        create = QarnotCreatePoolOperator(task_id="create", instance_count=1)
        update = QarnotUpdatePoolOperator(task_id="update", qarnot_pool=create, tags=["x"])
        mapped = QarnotCreatePoolOperator.partial(task_id="mapped").expand(instance_count=[1])
        QarnotRunTasksOperator(task_id="many", commands=["true"], qarnot_pool=update)
        QarnotRunTaskOperator.partial(task_id="each", qarnot_pool=mapped).expand(command=["true"])
    assert group.open_pool is not None
    for operator in (group.open_pool, group.close_pool, create, update, mapped.unmap({"instance_count": 1})):
        assert (operator.do_xcom_push, operator.multiple_outputs) == (True, False)
