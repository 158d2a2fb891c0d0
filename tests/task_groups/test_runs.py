"""Groups with branches, skips and copies through ``dag.test()``: what runs, what is skipped, and the pools closed."""

from __future__ import annotations

import json
import runpy
import threading
from pathlib import Path

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.costs.limits import limits_from_labels
from airflow_qarnot_pool.local import LocalQarnot
from tests.crash.children import eventually
from tests.dags.test_examples import LOCAL_BUNDLE, Run, client

pytestmark = pytest.mark.usefixtures("airflow_db", "qarnot_connection")
__all__ = ["client"]

FILE = """
from airflow.sdk import DAG, task, task_group
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


def run(task_id, **parameters):
    return QarnotRunTaskOperator(task_id=task_id, **{"command": "true", **parameters})


@task.branch
def choose(chosen):
    return chosen


@task_group
def each(part):
    with QarnotPoolGroup("pool", warm_up=False):
        run("a", constants={"PART": part})


with DAG("branches", schedule=None) as dag:
    with QarnotPoolGroup("g", warm_up=False):
        joined = run("joined", trigger_rule="none_failed_min_one_success")
        none = run("none", trigger_rule="none_failed_min_one_success")
        choose.override(task_id="some")("g.b") >> [run("a"), run("b")] >> joined
        choose.override(task_id="no")(None) >> [run("c"), run("d")] >> none
    each.expand(part=["x", "y"])
"""


def test_branches_and_copies(client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = [{"name": "branches", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (tmp_path / "branches.py").write_text(FILE)
    run = Run.__new__(Run)
    run.dag_run, run._client = runpy.run_path(str(tmp_path / "branches.py"))["dag"].test(), client
    skipped = {name for name, state in run.states.items() if state == "skipped"}
    # Were the setup's success counted, "none" would run without what it waits for.
    assert skipped == {"g.a", "g.c", "g.d", "g.none"}
    assert {state for name, state in run.states.items() if name not in skipped} == {"success"}, run.states
    pools = {one.labels["airflow.task_id"]: one for one in run._mine(client.pools.list())}
    assert len(run._mine(client.pools.list())) == 3
    assert {one.state for one in pools.values()} <= {"Closing", "Closed"}
    assert {one.pool for one in run.tasks if one.labels["airflow.task_id"].startswith("g.")} == {
        pools["g.open_pool"].uuid
    }
    copies = [one for one in run.tasks if one.labels["airflow.task_id"] == "each.pool.a"]
    assert len({one.pool for one in copies}) == 2, "each copy of a mapped group has a pool of its own"


QUIET = """
from airflow.sdk import DAG
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

with DAG("quiet", schedule=None) as dag:
    with QarnotPoolGroup("g", warm_up=False, do_xcom_push=False):
        pass
"""


def test_the_teardown_closes_the_pool_of_a_setup_that_returned_nothing(
    client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [{"name": "quiet", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (tmp_path / "quiet.py").write_text(QUIET)
    run = Run.of(runpy.run_path(str(tmp_path / "quiet.py"))["dag"].test(), client)
    assert set(run.states.values()) == {"success"}, run.states
    run.only_pool()


SHARED = """
from airflow.sdk import DAG
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

with DAG("limited", schedule=None) as dag:
    with QarnotPoolGroup("nodes", shared="limited", instance_count=1, warm_up=False, max_cost=0.1):
        QarnotRunTaskOperator(task_id="work", command="sleep 600", retries=3)
"""


def test_a_shared_pool_that_reaches_its_limit_is_closed_and_its_task_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [{"name": "limited", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (tmp_path / "limited.py").write_text(SHARED)
    with LocalQarnot(boot_seconds=0.05) as server, QarnotClient(server.url, server.token) as mine:
        monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", server.airflow_connection(namespace="limited"))

        def pass_time() -> None:
            eventually(lambda: any(one.state == "FullyExecuting" for one in mine.tasks.list()))
            server.advance_clock(3600)

        clock = threading.Thread(target=pass_time)
        clock.start()
        found = runpy.run_path(str(tmp_path / "limited.py"))["dag"].test()
        clock.join()
        tries = {one.task_id: (str(one.state), one.try_number) for one in found.get_task_instances()}
        assert tries["nodes.work"] == ("failed", 1)
        assert tries["nodes.close_pool"][0] == "success"
        (pool,) = mine.pools.list()
        assert limits_from_labels(pool).max_cost == 0.1  # type: ignore[union-attr]
        assert pool.state in ("Closing", "Closed")
        assert len(mine.tasks.list()) == 1
