"""Sets of other readings have every answer together, and a run is right under each. ``make readings`` runs more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.backend.readings import NOT_SIMULATED, Readings, search_limits
from tests import readings
from tests.crash.matrix import Matrix, Point
from tests.readings import SETS, answers_of

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
    others = {
        (row.replace("_", "-"), answer) for row, known in Readings.choices().items() for answer in known[1:]
    }
    assert others <= {one for answers in SETS.values() for one in answers.items()}


@pytest.mark.parametrize("name", [*SETS, "random-7"])
def test_a_set_can_be_simulated(name: str) -> None:
    answers = answers_of(name)
    search_limits(answers)
    _, unknown = Readings().with_answers(answers)
    assert unknown == []


def test_some_set_is_late_and_some_set_is_capped() -> None:
    settings = NOT_SIMULATED & {row for answers in SETS.values() for row in answers}
    assert settings == {"search-cap", "search-lag"}


def test_a_set_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"READINGS must be strict, .* or random-SEED, got 'sloppy'"):
        answers_of("sloppy")
