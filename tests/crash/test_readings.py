"""Sets of other readings have every answer together, and a run is right under each. ``make readings`` runs more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.backend.readings import NOT_SIMULATED, Readings, search_limits, token_limit
from tests import readings
from tests.crash.matrix import Matrix, Point
from tests.readings import LEFT_OUT, SETS, answers_of

#: One death in each step, where most depends on the answers of the service.
POINTS = (
    Point("create, second try", "worker, second try", "POST /tasks", "unanswered"),
    Point("run, second try", "worker, second try", "GET /tasks/{u}", "before"),
    Point("close", "worker", "POST /pools/{u}/close", "unanswered"),
)
pytestmark = pytest.mark.reading


@pytest.fixture(params=SETS)
def other(
    request: pytest.FixtureRequest, servers: dict[str, LocalQarnot], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A set that the servers follow."""
    name: str = request.param
    monkeypatch.setenv(readings.VARIABLE, name)
    readings.change(servers["enforce"], name)
    yield name
    readings.change(servers["enforce"], "")


def test_a_run_is_right_under_each_set(matrix: Matrix, other: str) -> None:
    for point in POINTS:
        matrix.check_kill_anew(point, "enforce")


def test_the_sets_have_every_answer_that_can_be_simulated() -> None:
    given = {one for answers in SETS.values() for one in answers.items()}
    rows = {row.replace("_", "-"): known for row, known in Readings.choices().items()}
    missing = {(row, answer) for row, known in rows.items() for answer in known[1:]} - given
    assert {row for row, _ in missing} == LEFT_OUT.keys()


@pytest.mark.parametrize("name", [*SETS, "random-7"])
def test_a_set_can_be_simulated(name: str) -> None:
    answers = answers_of(name)
    search_limits(answers)
    token_limit(answers)
    _, unknown = Readings().with_answers(answers)
    assert unknown == []


def test_some_set_has_each_setting_of_searches() -> None:
    assert {row for answers in SETS.values() for row in answers} >= NOT_SIMULATED


def test_a_set_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"READINGS must be strict, .* or random-SEED, got 'sloppy'"):
        answers_of("sloppy")
