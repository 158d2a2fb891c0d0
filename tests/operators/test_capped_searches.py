"""A service that puts fewer objects into an answer than are asked for, and does not say so."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.specs import Elastic, PoolSpec, TaskSpec
from airflow_qarnot_pool.costs.limits import CostLimit
from airflow_qarnot_pool.costs.spending import pools_of_run
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership import shared_pool
from airflow_qarnot_pool.ownership.identity import namespace_tag
from airflow_qarnot_pool.ownership.termination import end_owned
from airflow_qarnot_pool.plugins.cache import LIST
from airflow_qarnot_pool.plugins.queries import Fetcher
from airflow_qarnot_pool.plugins.rows import Closings
from tests.crash.children import eventually
from tests.harness import FakeTI, life_of, run


@pytest.fixture(params=[1, 7, 100])
def cap(qarnot: LocalQarnot, request: pytest.FixtureRequest) -> Iterator[int]:
    qarnot.cap_searches(request.param)
    yield request.param
    qarnot.cap_searches(None)


def submit(client: QarnotClient, pool: str, count: int, run_id: str = "", **identity: str) -> list[str]:
    """Submit Qarnot tasks that do not end, as those of a fan-out, or as a stranger's."""
    of = life_of(run_id=run_id, **identity)
    ours = {"tags": of.tags(), "labels": of.labels(1, "")} if run_id else {}
    specs = [TaskSpec(name="t", pool=pool, command="sleep 600", **ours) for _ in range(count)]  # type: ignore[arg-type]
    return [str(item.uuid) for item in client.tasks.create_many(specs)]


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
def test_a_fan_out_succeeds_under_any_cap_and_its_retry_runs_nothing_again(
    qarnot: LocalQarnot, client: QarnotClient, cap: int, deferrable: bool
) -> None:
    pool = client.pools.create(PoolSpec(name="p", instance_count=8))
    make = partial(
        QarnotRunTasksOperator,
        task_id="many",
        commands=["true"] * 20,
        qarnot_pool=pool,
        retries=1,
        deferrable=deferrable,
        max_in_flight=12,
    )
    for try_number in (1, 2):
        ti = FakeTI(task_id="many", run_id=f"cap-{cap}-{deferrable}", max_tries=1, try_number=try_number)
        assert run(make, ti)["succeeded"] == 20
    assert len(client.pools.tasks(pool)) == 20
    client.pools.delete(pool)


def test_all_that_a_task_instance_has_is_ended_under_any_cap(
    client: QarnotClient, pool: str, cap: int
) -> None:
    uuids = submit(client, pool, 12, run_id=f"end-{cap}")
    assert sorted(end_owned(client.tasks, life_of(run_id=f"end-{cap}"))) == sorted(uuids)
    eventually(lambda: {client.tasks.get(uuid).state for uuid in uuids} == {"Cancelled"})


def test_a_user_of_a_shared_pool_is_seen_behind_many_others_under_any_cap(
    client: QarnotClient, pool: str, cap: int
) -> None:
    submit(client, pool, 11)
    submit(client, pool, 1, run_id="last")
    shared = Pool(uuid=pool, labels={"airflow.namespace": "test"})
    needs = shared_pool._usage_of(client, shared, ())
    assert needs.unowned_tasks == 11
    assert {holder.run_id for holder in needs.working} == {"last"}


def test_all_pools_of_a_run_count_against_its_limit_under_any_cap(client: QarnotClient, cap: int) -> None:
    identity = life_of(run_id=f"spent-{cap}")
    uuids = {
        client.pools.create(
            PoolSpec(
                name="p",
                tags=identity.tags(),
                labels=identity.labels(1, ""),
                elastic=Elastic(max_total_slots=1),
            )
        )
        for _ in range(9)
    }
    watched = CostLimit(
        uuid="", max_run_cost=1.0, dag_id=identity.dag_id, run_id=identity.run_id, namespace="test"
    )
    assert {one.uuid for one in pools_of_run(client, watched)} == uuids
    for uuid in uuids:
        client.pools.delete(uuid)


def test_the_page_lists_all_pools_under_any_cap(
    client: QarnotClient, cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = life_of(run_id=f"page-{cap}")
    spec = PoolSpec(
        name="p",
        tags=(namespace_tag("test"),),
        labels=identity.labels(1, ""),
        elastic=Elastic(max_total_slots=1),
    )
    uuids = {client.pools.create(spec) for _ in range(9)}
    monkeypatch.setattr("airflow_qarnot_pool.plugins.airflow_db.run_facts", lambda runs: {})
    monkeypatch.setattr("airflow_qarnot_pool.plugins.airflow_db.closings", lambda: Closings({}, {}))
    assert uuids <= Fetcher("qarnot_default")(LIST).entries.keys()
    for uuid in uuids:
        client.pools.delete(uuid)
