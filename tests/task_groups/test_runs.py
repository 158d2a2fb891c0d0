"""Groups with branches, skips and copies through ``dag.test()``: what runs, what is skipped, and the pools closed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
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
