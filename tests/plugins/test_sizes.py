"""The curve of an ended pool on the Pools page, from a run on the engines of the local Qarnot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.plugins import sizes
from airflow_qarnot_pool.plugins.sizes import Sizes
from benchmarks.virtual_qarnot import Lags, Outcome, Shape, Step, run

STEPS = (Step(task_id="a"), Step(task_id="b"), Step(task_id="merge", upstream=("a", "b")))


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """A run on twice the nodes that it needs."""
    return run(Shape(steps=STEPS), 4, Lags(0, 0, 0.0))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The DAGs that were read from Airflow's database."""
    read: list[str] = []

    def dag(dag_id: str) -> Any:
        read.append(dag_id)
        followers = {"a": ["merge"], "b": ["merge"], "merge": []}
        tasks = [
            SimpleNamespace(task_id=task, downstream_task_ids=below) for task, below in followers.items()
        ]
        return SimpleNamespace(dag_id=dag_id, tasks=tasks)

    monkeypatch.setattr(sizes, "dag_in_the_database", dag)
    return read


def test_an_ended_pool_has_a_curve_that_is_computed_once_for_each_bill(
    outcome: Outcome, reads: list[str]
) -> None:
    curves = Sizes()
    found = curves.of(outcome.pool, outcome.tasks, outcome.euros)
    assert found is not None
    assert (found["recorded"], found["chosen"]) == (4, 2)
    assert [point[0] for point in found["points"]] == [1, 2, 3, 4]
    assert found["points"][-1][2] == pytest.approx(outcome.euros, abs=1e-6)
    assert curves.of(outcome.pool, outcome.tasks, outcome.euros) is found
    assert len(reads) == 1
    curves.of(outcome.pool, outcome.tasks, outcome.euros * 2)
    assert len(reads) == 2


def test_without_a_bill_there_is_no_curve(outcome: Outcome, reads: list[str]) -> None:
    assert Sizes().of(outcome.pool, outcome.tasks, None) is None
    assert reads == []


def test_a_dag_that_cannot_be_read_leaves_the_curve(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(dag_id: str) -> Any:
        raise RuntimeError("no timetable of this plugin")

    monkeypatch.setattr(sizes, "dag_in_the_database", broken)
    assert Sizes().of(outcome.pool, outcome.tasks, outcome.euros) is not None
    assert "cannot be read for the sizes of its pool" in caplog.text
