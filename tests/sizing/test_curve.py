"""The curve of a record, the size that is chosen, and the sentence about it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_qarnot_pool.ownership.identity import RunKey
from airflow_qarnot_pool.sizing.curve import (
    MARGIN,
    TOLERANCE,
    SizePoint,
    choose,
    curve_of,
    format_seconds,
    points_of,
    record_of,
    sizes_for,
    table_of,
)
from airflow_qarnot_pool.sizing.demand import Demand, Work, upstreams_of
from tests.sizing.pools import RUN, at, cost, pool, task

FLAT = upstreams_of("dag", {"a": []})
#: Two instances side by side on four nodes from their boots at 50 on, closed at 150.
WIDE = cost(task("a", 50, 150), task("a", 50, 150), paid=400, ended=150, size=4)


def record(of: Any = WIDE) -> Any:
    return record_of(pool(), of, FLAT, at(0))


def test_a_pool_of_several_runs_has_no_record() -> None:
    assert record() is not None
    assert record_of(pool(labels={"airflow.shared": "gpu"}), WIDE, FLAT, at(0)) is None
    others = cost(
        task("a", 50, 150), task("a", 50, 150, run=RunKey("dag", "next")), paid=400, ended=150, size=4
    )
    assert record(others) is None


def test_qarnot_tasks_of_less_than_a_second_wait_for_nothing_that_waits_for_them() -> None:
    """Qarnot's dates have whole seconds, so their ends and submissions are equal."""
    short = [task("a", 50, 50, 0.4), task("a", 51, 51, 0.4), task("a", 51, 51, 0.4), task("a", 51, 52)]
    found = record(cost(*short, task("a", 60, 150), paid=100, ended=150, size=1))
    assert found is not None
    assert found.at(2).seconds == pytest.approx(150, abs=5)


def test_the_sentence_has_the_time_and_the_cost_of_both_sizes() -> None:
    assert str(curve_of(record())) == (
        "2 nodes: 2 min 30 s, 0.0200 EUR instead of 2 min 30 s, 0.0400 EUR with 4 nodes"
    )
    right = cost(task("a", 50, 150), task("a", 50, 150), paid=200, ended=150, size=2)
    assert str(curve_of(record(right))) == (
        "2 nodes: 2 min 30 s, 0.0200 EUR. No cheaper size is within 25% of the fastest"
    )


def test_the_recorded_size_has_the_figures_of_the_record() -> None:
    curve = curve_of(record())
    assert [point.size for point in curve.points] == [1, 2, 4]
    assert curve.points[-1] == curve.recorded == SizePoint(4, 150, 400, pytest.approx(0.04))  # type: ignore[arg-type]
    assert curve.points[0] == SizePoint(1, 250, 200, pytest.approx(0.02))  # type: ignore[arg-type]
    assert curve.to_json() == {
        "points": [[1, 250, 0.02], [2, 150, 0.02], [4, 150, 0.04]],
        "chosen": 2,
        "recorded": 4,
    }


def test_a_table_marks_the_recorded_size_and_the_chosen_one() -> None:
    assert table_of([record()]).splitlines() == [
        "instance_count    makespan        cost",
        "             1  4 min 10 s  0.0200 EUR",
        "             2  2 min 30 s  0.0200 EUR  cheapest within the tolerance",
        "             4  2 min 30 s  0.0400 EUR  recorded",
    ]


def points(*each: tuple[float, float]) -> list[SizePoint]:
    return [SizePoint(size, seconds, 0, euros) for size, (seconds, euros) in enumerate(each, start=1)]


CHOICES = {
    "the fastest is the cheapest": (points((100, 2), (50, 1)), 2),
    "the cheapest is too slow": (points((200, 1), (100, 2), (90, 3)), 2),
    "the cheapest is just fast enough": (points((125, 1), (100, 2)), 1),
    "a prediction at the edge": (points((100 * (1 + TOLERANCE) * (1 + MARGIN) - 0.1, 1), (100, 2)), 1),
    "a prediction beyond it": (points((100 * (1 + TOLERANCE) * (1 + MARGIN) + 0.1, 1), (100, 2)), 2),
    "of equal ones the smallest": (points((100, 1), (100, 1)), 1),
}


@pytest.mark.parametrize(("given", "size"), CHOICES.values(), ids=CHOICES)
def test_the_cheapest_size_within_the_tolerance_is_chosen(given: list[SizePoint], size: int) -> None:
    assert choose(given).size == size


def test_several_runs_count_with_their_mean() -> None:
    short = cost(task("a", 50, 100), task("a", 50, 100), paid=200, ended=100, size=4)
    mean = {point.size: point for point in points_of([record(), record(short)])}
    assert mean[2].seconds == pytest.approx((150 + 100) / 2)
    assert mean[2].euros == pytest.approx((0.02 + 0.01) / 2)


SOUND = {
    "unknown euros": cost(task("a", 50, 150), paid=None, ended=150),
    "nodes that were lost and booted again": cost(
        task("a", 50, 150), task("a", 150, 400, 100), paid=550, ended=400, size=2
    ),
}


@pytest.mark.parametrize("of", SOUND.values(), ids=SOUND)
def test_a_record_that_a_replay_does_not_yield_says_nothing(of: Any) -> None:
    assert record(of) is None


def demand(instances: int, size: int, per_node: int = 1) -> Demand:
    works = tuple(Work((1.0,), (RUN, "a"), (), 0.0) for _ in range(instances))
    return Demand(works=works, size=size, slots_per_node=per_node)


SIZES: dict[str, tuple[Demand, int | None, list[int]]] = {
    "up to the instances": (demand(3, 2), None, [1, 2, 3]),
    "up to twice the recorded size": (
        demand(100, 10),
        None,
        [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 20],
    ),
    "whole nodes": (demand(10, 4, per_node=4), None, [4, 8, 12]),
    "up to a maximum": (demand(100, 10), 5, [1, 2, 3, 4, 5]),
    "a maximum below a node": (demand(100, 8, per_node=8), 5, [5]),
}


@pytest.mark.parametrize(("given", "largest", "expected"), SIZES.values(), ids=SIZES)
def test_sizes_are_compared_as_far_as_they_are_useful(
    given: Demand, largest: int | None, expected: list[int]
) -> None:
    assert sizes_for([given], largest) == expected


def test_times_have_a_unit_that_fits() -> None:
    assert [format_seconds(s) for s in (45.4, 59.6, 91, 660, 5400, 7290)] == [
        "45 s",
        "1 min 00 s",
        "1 min 31 s",
        "11 min",
        "1 h 30 min",
        "2 h 2 min",
    ]
