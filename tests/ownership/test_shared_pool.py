"""Which pool of a shared name to use, and who still needs it: pure decisions."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, choose_oldest, decide
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.shared_pool import (
    HoldOwner,
    Usage,
    _packed,
    _unpacked,
    describe_users,
    mismatched_fields,
)
from tests.harness import life_of

LIFE = life_of(namespace="prod", dag_id="etl", run_id="r1", task_id="open", shared="nightly")


def snapshot(uuid: str, **fields: Any) -> RemoteSnapshot:
    values = {
        "usability": Usability.LIVE,
        "lineage": LIFE.lineage,
        "generation": 1,
        "fingerprint": "spec",
        "retries": 0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return RemoteSnapshot(**{**values, "uuid": uuid, **fields})


@pytest.mark.parametrize(
    "change",
    [
        {"dag_id": "other"},
        {"run_id": "other"},
        {"task_id": "other"},
        {"map_index": 3},
        {"max_tries": 5},
        {"run_started": "2026-02-02T00:00:00+00:00"},
    ],
)
def test_the_shared_name_is_the_same_for_every_try_of_every_task(change: dict[str, Any]) -> None:
    other = dataclasses.replace(LIFE, **change)
    assert (other.owner, other.lineage, other.shortname(2)) == (LIFE.owner, LIFE.lineage, LIFE.shortname(2))
    assert other.has_history


@pytest.mark.parametrize(
    "change", [{"namespace": "staging"}, {"shared": "weekly"}, {"shared": ""}, {"role": "x"}]
)
def test_other_names_namespaces_and_parts_are_others(change: dict[str, Any]) -> None:
    assert dataclasses.replace(LIFE, **change).owner != LIFE.owner


def test_kwargs_of_the_release_before_have_no_shared() -> None:
    kwargs = LIFE.to_kwargs()
    assert TaskInstanceIdentity.from_kwargs(kwargs) == LIFE
    del kwargs["shared"]
    assert TaskInstanceIdentity.from_kwargs(kwargs).shared == ""


LATER = "2026-01-02T00:00:00+00:00"
DEAD, ENDING = Usability.DEAD, Usability.ENDING
SETTLED = {
    "nothing": ([], None, (), 1),
    "one lives": ([snapshot("a")], "a", (), 2),
    "one lives, of another spec": ([snapshot("a", fingerprint="x")], "a", (), 2),
    "one is closing": ([snapshot("a", usability=ENDING)], None, (), 2),
    "three were": (
        [snapshot(c, usability=DEAD, generation=g) for c, g in (("a", 1), ("b", 3), ("c", 2))],
        None,
        (),
        4,
    ),
    "the older stays": ([snapshot("a", created=LATER), snapshot("b")], "b", ("a",), 2),
    "made in the same second": ([snapshot("b"), snapshot("a")], "a", ("b",), 2),
    "the earlier generation stays": (
        [snapshot("a", generation=2), snapshot("b", created=LATER)],
        "b",
        ("a",),
        3,
    ),
    "a double of another spec": (
        [snapshot("a", created=LATER, fingerprint="x"), snapshot("b")],
        "b",
        ("a",),
        2,
    ),
    "dead ones are not ended": ([snapshot("a", usability=DEAD), snapshot("b", generation=2)], "b", (), 3),
}


@pytest.mark.parametrize(("snapshots", "use", "end", "generation"), SETTLED.values(), ids=SETTLED)
def test_settle(
    snapshots: list[RemoteSnapshot], use: str | None, end: tuple[str, ...], generation: int
) -> None:
    plan = choose_oldest(snapshots)
    assert (plan.use.uuid if plan.use else None, plan.end, plan.generation) == (use, end, generation)


def test_of_those_made_in_one_second_every_reader_keeps_the_same() -> None:
    """Whoever looks, in whatever order the server answers: never all closed, never two kept."""
    mine = LIFE.lineage
    for order in itertools.permutations(snapshot(one, lineage=mine) for one in "cab"):
        for plan in (choose_oldest(order), decide(LIFE, order, "spec")):
            assert plan.use is not None
            assert (plan.use.uuid, set(plan.end)) == ("a", {"b", "c"})


def holder(run_id: str, by: str = "", dag_id: str = "etl") -> HoldOwner:
    return HoldOwner(dag_id=dag_id, run_id=run_id, opened_by=by)


ME = holder("r1")
OVER = holder("over")
NEEDED = {
    "by nobody": (Usage(), []),
    "its own work is done with": (Usage(working=frozenset({ME})), []),
    "a run holds it": (Usage(holders=frozenset({holder("r2", "open")})), ["DAG run r2 of etl"]),
    "a run works on it": (Usage(working=frozenset({holder("r2")})), ["DAG run r2 of etl"]),
    "a run does both, and is named once": (
        Usage(holders=frozenset({holder("r2", "open")}), working=frozenset({holder("r2")})),
        ["DAG run r2 of etl"],
    ),
    "a run of the same name of another DAG": (
        Usage(holders=frozenset({holder("r1", "open", "other")})),
        ["DAG run r1 of other"],
    ),
    "another group of the same run": (
        Usage(holders=frozenset({holder("r1", "b.open")})),
        ["DAG run r1 of etl"],
    ),
    "a run that is over": (Usage(holders=frozenset({OVER}), working=frozenset({OVER})), []),
    "unowned_tasks": (Usage(unowned_tasks=2), ["2 Qarnot tasks that no DAG run of this namespace made"]),
}


@pytest.mark.parametrize(("needs", "words"), NEEDED.values(), ids=NEEDED)
def test_runs_that_need_it(needs: Usage, words: list[str]) -> None:
    assert list(describe_users(needs, ME, lambda one: one.run_id != "over")) == words


OPENED = ["day.open"]
COPY, ALL = 3, -1
GIVEN_UP = {
    "its own": (holder("r1", "day.open"), ALL, OPENED, True),
    "that of another task": (holder("r1", "b.open"), ALL, OPENED, False),
    "that of tasks which moved": (holder("r1"), ALL, OPENED, True),
    "any of the run": (holder("r1", "b.open"), ALL, None, True),
    "that of another run": (holder("r2", "day.open"), ALL, None, False),
    "that of another DAG": (holder("r1", "day.open", "other"), ALL, None, False),
    "that of its own copy": (holder("r1", "day.open[3]"), COPY, OPENED, True),
    "that of a sibling": (holder("r1", "day.open[30]"), COPY, OPENED, False),
    "that of a sibling, by one that is told of no task": (holder("r1", "day.open[4]"), COPY, None, False),
    "that of its own copy's tasks which moved": (holder("r1", "[3]"), COPY, OPENED, True),
    "that of a sibling's tasks which moved": (holder("r1", "[4]"), COPY, OPENED, False),
    "that of a setup outside the mapped group": (holder("r1", "day.open"), COPY, OPENED, True),
    "that of a copy of another task": (holder("r1", "b.open[3]"), COPY, OPENED, False),
    "all copies, by what is not mapped": (holder("r1", "day.open[4]"), ALL, OPENED, True),
}


@pytest.mark.parametrize(("one", "map_index", "tasks", "so"), GIVEN_UP.values(), ids=GIVEN_UP)
def test_which_holds_are_given_up(one: HoldOwner, map_index: int, tasks: list[str] | None, so: bool) -> None:
    identity = dataclasses.replace(LIFE, map_index=map_index)
    assert one.is_given_up_by(identity, tasks) is so


def test_fields_that_differ_are_told_by_name() -> None:
    mine = {"profile": "a", "scaling": "b", "constants": "c"}
    packed = _packed({"profile": "a", "scaling": "x", "resource_buckets": "d"})
    assert mismatched_fields(mine, _unpacked(packed)) == ["constants", "resource_buckets", "scaling"]
    assert _unpacked("") == {}
