"""Which pool of a shared name to use, and who still needs it: pure decisions."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from airflow_qarnot_pool.identity import Fate, Life, Relic, decide
from airflow_qarnot_pool.shared import Holder, Needs, _packed, _unpacked, differing, needed_by, settle
from tests.harness import life_of

LIFE = life_of(namespace="prod", dag_id="etl", run_id="r1", task_id="open", shared="nightly")


def relic(uuid: str, **fields: Any) -> Relic:
    values = {
        "fate": Fate.LIVE,
        "lineage": LIFE.lineage,
        "generation": 1,
        "fingerprint": "spec",
        "retries": 0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Relic(**{**values, "uuid": uuid, **fields})


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
def test_what_is_shared_is_the_same_for_every_life_of_every_task(change: dict[str, Any]) -> None:
    other = dataclasses.replace(LIFE, **change)
    assert (other.owner, other.lineage, other.shortname(2)) == (LIFE.owner, LIFE.lineage, LIFE.shortname(2))
    assert other.has_history


@pytest.mark.parametrize(
    "change", [{"namespace": "staging"}, {"shared": "weekly"}, {"shared": ""}, {"part": "x"}]
)
def test_other_names_namespaces_and_parts_are_others(change: dict[str, Any]) -> None:
    assert dataclasses.replace(LIFE, **change).owner != LIFE.owner


def test_kwargs_of_the_release_before_have_no_shared() -> None:
    kwargs = LIFE.to_kwargs()
    assert Life.from_kwargs(kwargs) == LIFE
    del kwargs["shared"]
    assert Life.from_kwargs(kwargs).shared == ""


LATER = "2026-01-02T00:00:00+00:00"
DEAD, ENDING = Fate.DEAD, Fate.ENDING
SETTLED = {
    "nothing": ([], None, (), 1),
    "one lives": ([relic("a")], "a", (), 2),
    "one lives, of another spec": ([relic("a", fingerprint="x")], "a", (), 2),
    "one is closing": ([relic("a", fate=ENDING)], None, (), 2),
    "three were": (
        [relic(c, fate=DEAD, generation=g) for c, g in (("a", 1), ("b", 3), ("c", 2))],
        None,
        (),
        4,
    ),
    "the older stays": ([relic("a", created=LATER), relic("b")], "b", ("a",), 2),
    "made in the same second": ([relic("b"), relic("a")], "a", ("b",), 2),
    "the earlier generation stays": ([relic("a", generation=2), relic("b", created=LATER)], "b", ("a",), 3),
    "a double of another spec": ([relic("a", created=LATER, fingerprint="x"), relic("b")], "b", ("a",), 2),
    "dead ones are not ended": ([relic("a", fate=DEAD), relic("b", generation=2)], "b", (), 3),
}


@pytest.mark.parametrize(("relics", "use", "end", "generation"), SETTLED.values(), ids=SETTLED)
def test_settle(relics: list[Relic], use: str | None, end: tuple[str, ...], generation: int) -> None:
    plan = settle(relics)
    assert (plan.use.uuid if plan.use else None, plan.end, plan.generation) == (use, end, generation)


def test_of_those_made_in_one_second_every_reader_keeps_the_same() -> None:
    """Whoever looks, in whatever order the server answers: never all closed, never two kept."""
    mine = LIFE.lineage
    for order in itertools.permutations(relic(one, lineage=mine) for one in "cab"):
        for plan in (settle(order), decide(LIFE, order, "spec")):
            assert plan.use is not None
            assert (plan.use.uuid, set(plan.end)) == ("a", {"b", "c"})


def holder(run_id: str, by: str = "", dag_id: str = "etl") -> Holder:
    return Holder(dag_id=dag_id, run_id=run_id, by=by)


ME = holder("r1")
OVER = holder("over")
NEEDED = {
    "by nobody": (Needs(), []),
    "its own work is done with": (Needs(working=frozenset({ME})), []),
    "a run holds it": (Needs(holders=frozenset({holder("r2", "open")})), ["DAG run r2 of etl"]),
    "a run works on it": (Needs(working=frozenset({holder("r2")})), ["DAG run r2 of etl"]),
    "a run does both, and is named once": (
        Needs(holders=frozenset({holder("r2", "open")}), working=frozenset({holder("r2")})),
        ["DAG run r2 of etl"],
    ),
    "a run of the same name of another DAG": (
        Needs(holders=frozenset({holder("r1", "open", "other")})),
        ["DAG run r1 of other"],
    ),
    "another group of the same run": (
        Needs(holders=frozenset({holder("r1", "b.open")})),
        ["DAG run r1 of etl"],
    ),
    "a run that is over": (Needs(holders=frozenset({OVER}), working=frozenset({OVER})), []),
    "strangers": (Needs(strangers=2), ["2 Qarnot tasks that no Airflow task made"]),
}


@pytest.mark.parametrize(("needs", "words"), NEEDED.values(), ids=NEEDED)
def test_who_needs_it(needs: Needs, words: list[str]) -> None:
    assert needed_by(needs, ME, lambda one: one.run_id != "over") == words


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
def test_which_holds_are_given_up(one: Holder, map_index: int, tasks: list[str] | None, so: bool) -> None:
    life = dataclasses.replace(LIFE, map_index=map_index)
    assert one.given_up_by(life, tasks) is so


def test_fields_that_differ_are_told_by_name() -> None:
    mine = {"profile": "a", "scaling": "b", "constants": "c"}
    packed = _packed({"profile": "a", "scaling": "x", "resource_buckets": "d"})
    assert differing(mine, _unpacked(packed)) == ["constants", "resource_buckets", "scaling"]
    assert _unpacked("") == {}
