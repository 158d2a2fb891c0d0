"""The crash matrix of running a Qarnot task; see tests/crash/matrix.py."""

from __future__ import annotations

import pytest

from tests.crash.matrix import POINTS, SERVERS, STEPS, Matrix, Point

OWN_STEPS = [step for step in STEPS if step.startswith("run")]
OWN_POINTS = [point for point in POINTS if point.step in OWN_STEPS]
#: The polls of a wait that begins on a worker and ends in the triggerer.
POLLS = [
    point
    for point in OWN_POINTS
    if point.step == "run, deferred" and point.at in ("GET /tasks/{u}", "POST /tasks/search")
]


@pytest.mark.parametrize("step", OWN_STEPS)
def test_no_boundary_is_missing(matrix: Matrix, step: str) -> None:
    matrix.check_boundaries(step)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("point", OWN_POINTS, ids=str)
def test_killed_at(matrix: Matrix, point: Point, server: str) -> None:
    matrix.check_kill(point, server)


@pytest.mark.parametrize("point", POLLS, ids=str)
def test_killed_in_a_wait_that_begins_on_the_worker(matrix: Matrix, point: Point) -> None:
    matrix.check_kill_after(0.3, point, SERVERS[0])


@pytest.mark.reading
def test_the_table_in_the_docs_is_what_happens(matrix: Matrix) -> None:
    matrix.check_page(OWN_POINTS)
