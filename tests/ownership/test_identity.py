"""Which remote object belongs to which life of an Airflow task instance: pure decisions."""

from __future__ import annotations

import dataclasses
import re

import pytest

from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, decide
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

LIFE = TaskInstanceIdentity(
    namespace="prod",
    dag_id="etl",
    run_id="scheduled__2026-01-01",
    task_id="group.render_frames",
    map_index=3,
    run_started="2026-01-01T00:00:00+00:00",
    max_tries=2,
    try_number=2,
    retries=2,
)


def snapshot(uuid: str = "a", **fields: object) -> RemoteSnapshot:
    values = {
        "uuid": uuid,
        "usability": Usability.LIVE,
        "lineage": LIFE.lineage,
        "generation": 1,
        "fingerprint": "spec",
        "retries": 2,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return RemoteSnapshot(**{**values, **fields})  # type: ignore[arg-type]


def test_a_retry_keeps_owner_and_lineage() -> None:
    again = dataclasses.replace(LIFE, try_number=3)
    assert (again.owner, again.lineage, again.shortname(1)) == (LIFE.owner, LIFE.lineage, LIFE.shortname(1))


@pytest.mark.parametrize("change", [{"max_tries": 3}, {"run_started": "2026-01-02T00:00:00+00:00"}])
def test_a_clear_keeps_the_owner_and_starts_a_lineage(change: dict[str, object]) -> None:
    cleared = dataclasses.replace(LIFE, **change)
    assert cleared.owner == LIFE.owner
    assert cleared.lineage != LIFE.lineage


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "staging"},
        {"dag_id": "other"},
        {"run_id": "manual"},
        {"task_id": "other"},
        {"map_index": 4},
        {"role": "warm-up"},
    ],
)
def test_different_work_has_a_different_owner(change: dict[str, object]) -> None:
    assert dataclasses.replace(LIFE, **change).owner != LIFE.owner


@pytest.mark.parametrize("task_id", ["render", "a.b.C_d", "___", "x" * 200, "été", "-lead"])
def test_shortnames_use_only_what_qarnot_takes(task_id: str) -> None:
    name = dataclasses.replace(LIFE, task_id=task_id).shortname(12)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]", name)
    assert len(name) <= 63
    assert name.endswith("-12")


def test_kwargs_round_trip_and_take_what_another_release_adds() -> None:
    assert TaskInstanceIdentity.from_kwargs({**LIFE.to_kwargs(), "added_later": 1}) == LIFE


def test_three_tags_are_ours() -> None:
    assert len(LIFE.tags()) == 3


CASES = {
    "nothing there: the first generation": ([], (), None, 1),
    "live: adopted": ([snapshot("a")], (), "a", 2),
    "succeeded: its result is used": ([snapshot("a", usability=Usability.SUCCEEDED)], (), "a", 2),
    "failed: the next generation": ([snapshot("a", usability=Usability.DEAD)], (), None, 2),
    "closing: never adopted": ([snapshot("a", usability=Usability.ENDING)], (), None, 2),
    "generations count on from the highest": (
        [snapshot("a", usability=Usability.DEAD), snapshot("b", usability=Usability.DEAD, generation=4)],
        (),
        None,
        5,
    ),
    "an earlier lineage ends and is not adopted": ([snapshot("a", lineage="before")], ("a",), None, 1),
    "an earlier lineage's success counts for nothing": (
        [snapshot("a", lineage="before", usability=Usability.SUCCEEDED)],
        (),
        None,
        1,
    ),
    "a success under other retries may be from before a clear": (
        [snapshot("a", usability=Usability.SUCCEEDED, retries=1)],
        (),
        None,
        2,
    ),
    "another spec ends and the next generation comes": (
        [snapshot("a", fingerprint="other")],
        ("a",),
        None,
        2,
    ),
    "a success of another spec is not this work": (
        [snapshot("a", usability=Usability.SUCCEEDED, fingerprint="other")],
        (),
        None,
        2,
    ),
    "doubles: the oldest stays": (
        [
            snapshot("b", created="2026-01-01T00:00:05+00:00"),
            snapshot("a", created="2026-01-01T00:00:01+00:00"),
        ],
        ("b",),
        "a",
        2,
    ),
    "doubles of the same second: the smallest uuid stays, for whoever looks": (
        [snapshot("b"), snapshot("a")],
        ("b",),
        "a",
        2,
    ),
    "a success with a running double: the double ends": (
        [snapshot("a", usability=Usability.SUCCEEDED), snapshot("b", created="2026-01-01T00:00:09+00:00")],
        ("b",),
        "a",
        2,
    ),
    "a failure and its successor: the successor is used": (
        [snapshot("a", usability=Usability.DEAD), snapshot("b", generation=2)],
        (),
        "b",
        3,
    ),
    "old life and own life": (
        [snapshot("old", lineage="before"), snapshot("own", generation=2)],
        ("old",),
        "own",
        3,
    ),
}


@pytest.mark.parametrize(("snapshots", "ended", "used", "generation"), CASES.values(), ids=CASES.keys())
def test_decide(
    snapshots: list[RemoteSnapshot], ended: tuple[str, ...], used: str | None, generation: int
) -> None:
    plan = decide(LIFE, snapshots, "spec")
    assert (plan.end, plan.use and plan.use.uuid, plan.generation) == (ended, used, generation)
