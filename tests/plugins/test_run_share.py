"""What a DAG run's tab shows of a shared pool: the run's own part of the cost, and the whole pool's beside it."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_qarnot_pool.costs.queries import cost_of_pool, cost_of_run
from airflow_qarnot_pool.ownership.identity import RunKey
from tests.plugins.conftest import PAGE, Maker, identity, until

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from airflow_qarnot_pool.local import LocalQarnot

As = Callable[[str | None], "TestClient"]
FIGURES = {"euros": "euros", "energy_wh": "energy_wh", "carbon_g": "carbon_g", "saved_g": "saved_g"}

#: The first run leaves a Qarnot task of nobody's DAG on the pool, so that it is there for the second one, too.
FILE = """
from airflow.sdk import DAG, task
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


@task
def somebody_else(pool):
    tasks = QarnotHook().get_conn().tasks
    if not tasks.list(tags=["somebody-else"]):
        spec = TaskSpec(name="else", pool=pool, command="sleep 3600", image="x", tags=["somebody-else"])
        tasks.create(spec)


with DAG("shares", schedule=None, params={"seconds": 1}) as dag:
    with QarnotPoolGroup("nodes", shared="nightly", instance_count=2, warm_up=False) as nodes:
        work = QarnotRunTaskOperator(task_id="work", command="sleep {{ params.seconds }}")
        somebody_else(nodes.open_pool.output) >> work
"""


def rows_of(client: TestClient, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"{PAGE}/api/dags/{dag_id}/pools", params={"run_id": run_id})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["pools"])


def test_the_shares_of_two_runs_on_a_shared_pool_add_up(
    make: Maker, as_role: As, server: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": "shares", "classpath": bundle, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (tmp_path / "shares.py").write_text(FILE)
    dag = runpy.run_path(str(tmp_path / "shares.py"))["dag"]
    runs = [RunKey("shares", dag.test(run_conf={"seconds": seconds}).run_id) for seconds in (1, 3)]
    [pool] = [one for one in make.client.pools.list() if one.labels.get("airflow.shared") == "nightly"]
    [left] = make.client.tasks.list(tags=["somebody-else"])
    make.client.tasks.abort(left.uuid)
    make.client.pools.close(pool.uuid)
    until(lambda: make.client.pools.get(pool.uuid).state == "Closed", "the pool to be closed")

    viewer = as_role("viewer")
    whole = cost_of_pool(make.client, pool.uuid)
    parts = []
    for run in runs:
        expected = cost_of_run(make.client, "page", *run).total

        def look(run: RunKey = run) -> dict[str, Any] | None:
            [row] = rows_of(viewer, *run) or [None]
            return row if row and row["mine"] and row["mine"]["figures"] else None

        row = until(look, f"the share of {run}")
        for shown, known in FIGURES.items():
            assert row["mine"]["figures"][shown] == pytest.approx(getattr(expected, known), rel=1e-6)
            assert row["figures"][shown] == pytest.approx(getattr(whole.cost, known), rel=1e-6)
        assert row["mine"]["tasks"]["succeeded"] == 1
        assert row["tasks"]["succeeded"] == 2
        parts.append(row["mine"]["figures"]["euros"])
    nobodys = whole.share_of(RunKey("", "")).euros
    assert nobodys
    assert 0 < parts[0] < parts[1] < parts[0] + parts[1] + nobodys
    assert sum(parts) + nobodys == pytest.approx(whole.cost.euros, rel=1e-6)

    base = f"{PAGE}/api/dags/shares/pools/{pool.uuid}"

    def full() -> dict[str, Any] | None:
        found: dict[str, Any] | None = viewer.get(base, params={"run_id": runs[1].run_id}).json()["pool"]
        return found

    found = until(full, "the pool in full")
    assert found["row"]["mine"]["figures"]["euros"] == pytest.approx(parts[1], rel=1e-6)
    assert [one["run_id"] for one in found["tasks"]] == [runs[1].run_id]


def test_a_pool_of_one_run_is_that_runs(make: Maker, as_role: As) -> None:
    uuid = make.pool(owner=identity("alone", "one"))
    make.task(uuid, owner=identity("alone", "one", "work"))
    viewer = as_role("viewer")
    row = until(
        lambda: (rows := rows_of(viewer, "alone", "one")) and rows[0]["figures"] and rows[0], "its row"
    )
    assert row["mine"] is None


def test_a_run_that_opened_a_pool_and_runs_nothing_has_no_share_once_another_does(
    make: Maker, as_role: As, server: LocalQarnot
) -> None:
    """Shares cost one request more, and only where there are several runs."""
    uuid = make.pool(owner=identity("opener", "one"))
    make.task(uuid, "sleep 600", owner=identity("worker", "one", "work"))
    viewer = as_role("viewer")

    def part(dag_id: str) -> dict[str, Any] | None:
        [row] = [row for row in rows_of(viewer, dag_id, "one") if row["uuid"] == uuid] or [None]
        return row["mine"]["figures"] if row and row["mine"] else None

    worked = until(lambda: part("worker"), "the part of the run that works")
    opened = until(lambda: part("opener"), "the part of the run that opened it")
    assert opened["euros"] == 0
    assert worked["euros"] > 0
    asked = [one["path"].rpartition("/")[2] for one in server.requests() if f"/pools/{uuid}/" in one["path"]]
    assert 1 <= asked.count("tasks") <= asked.count("carbon-facts")


def test_a_pool_in_full_from_before_the_run_came_is_not_shown_but_looked_at_again(
    as_role: As, airflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.plugins import details, history, rows
    from airflow_qarnot_pool.plugins.cache import LIST, Cache
    from airflow_qarnot_pool.plugins.listing import Listing
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin

    uuid = "11111111-1111-4111-8111-111111111111"
    there = ["secret_dag"]

    def labels(dag_id: str) -> dict[str, str]:
        return {"airflow.dag_id": dag_id, "airflow.run_id": "one", "airflow.shared": "nightly"}

    listings = [Listing()]

    def ask(key: str, first: Any) -> Any:
        pool = Pool.from_json({"uuid": uuid, "state": "FullyExecuting", "labels": labels("opener")})
        tasks = [Task.from_json({"uuid": one, "name": one, "labels": labels(one)}) for one in there]
        notes = [rows.TaskRow(uuid, "running", None, one, "one") for one in there]
        page = rows.PageData(now=datetime.now(UTC), connection="q", pools=[pool], tasks={uuid: notes})
        entries = rows.build_rows(page)
        if key != LIST:
            return details.build_detail(entries[0], pool, tasks, history.ObservedHistory())
        listings.append(listings[-1].updated(entries))
        return listings[-1]

    viewer, admin = as_role("viewer"), as_role("admin")
    admin.get(f"{PAGE}/")
    registry = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app.state.registry
    monkeypatch.setitem(registry.caches, "qarnot_default", Cache(ask, max_age=1e9, pause=0))
    path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}"
    until(lambda: admin.get(path).json()["pool"], "the pool before the run comes")
    there.append("mine")
    until(lambda: rows_of(viewer, "mine", "one"), "the run in the list")

    path = f"{PAGE}/api/dags/mine/pools/{uuid}"
    first = viewer.get(path, params={"run_id": "one"}).json()
    assert (first["pool"], first["age"], first["refreshing"]) == (None, None, True)
    found = until(lambda: viewer.get(path, params={"run_id": "one"}).json()["pool"], "the newer one")
    assert [task["name"] for task in found["tasks"]] == ["mine"]
