"""Any quota of tasks: every command runs exactly once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.tasks import CHUNK
from tests.harness import FakeTI
from tests.operators.deployment import Airflow
from tests.operators.quota.work import counting, many, once, ran, single

QUOTAS = pytest.mark.parametrize("limit", [1, 10, 20])


@QUOTAS
def test_40_mapped_tasks_under_any_quota_run_each_command_exactly_once(
    qarnot: LocalQarnot, pool: str, tmp_path: Path, limit: int
) -> None:
    """Their output is logged, so only what Airflow says of a task instance lets its Qarnot task be deleted."""
    qarnot.set_account(maxTask=limit)
    jobs = [
        (partial(single, pool, counting(tmp_path, n)), FakeTI(task_id="work", map_index=n, max_tries=2))
        for n in range(40)
    ]
    results = (airflow := Airflow()).run(jobs)
    assert airflow.errors == []
    assert [one["state"] for one in results] == ["Success"] * 40
    assert ran(tmp_path) == once(*range(40))


# The last one has more items than one request submits.
@pytest.mark.parametrize(("items", "limit"), [(60, 1), (60, 10), (CHUNK + 20, 20)])
def test_a_fan_out_under_any_quota_runs_each_command_exactly_once(
    qarnot: LocalQarnot, pool: str, tmp_path: Path, limit: int, items: int
) -> None:
    qarnot.set_account(maxTask=limit)
    make = partial(many, pool, [counting(tmp_path, n) for n in range(items)])
    (result,) = (airflow := Airflow()).run([(make, FakeTI(task_id="many", max_tries=2))])
    assert airflow.errors == []
    assert (result["total"], result["succeeded"]) == (items, items)
    assert ran(tmp_path) == once(*range(items))


@QUOTAS
def test_two_fan_outs_at_once_under_any_quota_run_each_command_exactly_once(
    qarnot: LocalQarnot, pool: str, tmp_path: Path, limit: int
) -> None:
    qarnot.set_account(maxTask=limit)
    jobs = [
        (
            partial(many, pool, [counting(tmp_path, f"{dag}{n}") for n in range(30)]),
            FakeTI(dag_id=dag, task_id="many", max_tries=2),
        )
        for dag in "AB"
    ]
    results = (airflow := Airflow()).run(jobs)
    assert airflow.errors == []
    assert [one["succeeded"] for one in results] == [30, 30]
    assert ran(tmp_path) == once(*(f"{dag}{n}" for dag in "AB" for n in range(30)))
