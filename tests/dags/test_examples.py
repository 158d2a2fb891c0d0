"""Every example runs to success against the local Qarnot, and leaves one closed pool."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import time
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership.claim import ClaimRequest, claim
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION
from tests.conftest import ROOT
from tests.harness import life_of

pytestmark = pytest.mark.usefixtures("airflow_db", "qarnot_connection")

#: dag.test() wants the file of a DAG in a bundle.
LOCAL_BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"
EXAMPLE_DAGS = ROOT / "example_dags"
EXAMPLES = sorted(path.stem for path in EXAMPLE_DAGS.glob("qarnot_*.py"))


@pytest.fixture
def client(qarnot: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(qarnot.url, qarnot.token, storage_url=qarnot.storage_url) as client:
        yield client


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example that the test is named after, in a bundle of its own.

    ``dag.test()`` parses all files of a bundle, and writes their DAGs to the database.
    """
    name = f"{request.function.__name__.removeprefix('test_')}.py"
    folder = tmp_path / "dags"
    shutil.copytree(EXAMPLE_DAGS / "word_counts", folder / "word_counts")
    bundles = [{"name": "example", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(folder)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    return Path(shutil.copy(EXAMPLE_DAGS / name, folder))


class Run:
    """One run of an example, and what it left on Qarnot."""

    def __init__(self, client: QarnotClient, example: Path, conf: dict[str, Any] | None = None) -> None:
        dag = runpy.run_path(str(example))["dag"]
        self.dag_run = dag.test(run_conf=conf)
        self._client = client

    @classmethod
    def of(cls, dag_run: Any, client: QarnotClient) -> Run:
        """A run that somebody else has made."""
        run = cls.__new__(cls)
        run.dag_run, run._client = dag_run, client
        return run

    def _mine(self, found: Any) -> list[Any]:
        run = self.dag_run.run_id
        return [one for one in found if one.labels.get("airflow.run_id") == run]

    @property
    def states(self) -> dict[str, str]:
        """State of the Airflow tasks by their ids; mapped ones have their index."""
        return {
            ti.task_id + (f"[{ti.map_index}]" if ti.map_index >= 0 else ""): str(ti.state)
            for ti in self.dag_run.get_task_instances()
        }

    @property
    def tasks(self) -> list[Task]:
        """The Qarnot tasks of the run; a warm-up is not work."""
        return [one for one in self._mine(self._client.tasks.list()) if not one.labels["airflow.role"]]

    def only_pool(self) -> Pool:
        """The run's pool: there is one, and it closes."""
        (pool,) = self.assert_nothing_left_on()
        return pool

    def assert_nothing_left_on(self) -> list[Pool]:
        """All pools of the run close."""
        return [self._closed(pool) for pool in self._mine(self._client.pools.list())]

    def _closed(self, pool: Pool) -> Pool:
        deadline = time.monotonic() + 30
        while pool.state == "Closing" and time.monotonic() < deadline:
            time.sleep(0.05)
            pool = self._client.pools.get(pool.uuid)
        assert pool.state == "Closed"
        return pool

    def assert_good(self) -> None:
        """Everything succeeded, once, on the one pool."""
        assert str(self.dag_run.state) == "success", self.states
        assert set(self.states.values()) == {"success"}
        pool = self.only_pool()
        assert {task.state for task in self.tasks} == {"Success"}
        assert {task.pool for task in self.tasks} == {pool.uuid}
        assert {task.labels["airflow.generation"] for task in self.tasks} == {"1"}


def asset_events(dag_id: str) -> dict[str, list[Any]]:
    """Return the extras of the asset events of a DAG, by the URI of the asset."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(AssetModel.uri, AssetEvent.extra).join(
            AssetModel, AssetEvent.asset_id == AssetModel.id
        )
        rows = session.execute(query.where(AssetEvent.source_dag_id == dag_id)).all()
    extras: dict[str, list[Any]] = {}
    for uri, extra in rows:
        extras.setdefault(uri, []).append(extra)
    return extras


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_qarnot_")}
    assert tested == set(EXAMPLES)


def test_qarnot_warm_pool(client: QarnotClient, example: Path, qarnot: LocalQarnot) -> None:
    run = Run(client, example, {"seconds": 0})
    run.assert_good()
    assert run.only_pool().instance_count == 4
    assert len(run.tasks) == 12
    account = qarnot.get_account()["pools"][run.only_pool().uuid]
    costs = run.dag_run.get_task_instance("close_pool").xcom_pull(task_ids="close_pool", key="qarnot_cost")
    assert costs["run"]["total"]["euros"] == pytest.approx(account["creditsSpent"], abs=2e-6)
    assert costs["run"]["total"]["node_seconds"] == pytest.approx(account["nodeSeconds"], abs=2e-3)
    assert sum(task["euros"] for task in costs["run"]["tasks"].values()) == pytest.approx(
        account["creditsSpent"], abs=5e-6
    )
    assert set(costs["run"]["tasks"]) == {"fetch", "simulate", "report"}
    stages = [task.labels["airflow.task_id"] for task in sorted(run.tasks, key=lambda one: one.uuid)]
    assert {stage: stages.count(stage) for stage in stages} == {"fetch": 4, "simulate": 6, "report": 2}


def test_qarnot_ask_before_cost(client: QarnotClient, example: Path) -> None:
    run = Run(client, example, {"seconds": 0})
    assert str(run.dag_run.state) == "success", run.states
    assert {name for name, state in run.states.items() if state != "success"} == {"ask"}
    assert run.states["ask"] == "skipped"
    pool = run.only_pool()
    assert pool.labels["airflow.max_cost"] == "1.0"
    assert len(run.tasks) == 7


def test_a_dear_run_asks_with_the_estimate_and_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    dag = runpy.run_path(str(EXAMPLE_DAGS / "qarnot_ask_before_cost.py"))["dag"]
    is_dear, ask = dag.get_task("is_dear"), dag.get_task("ask")
    context = {"params": {"max_euros": 0.5}}
    monkeypatch.setitem(is_dear.python_callable.__globals__, "get_current_context", lambda: context)
    assert [is_dear.python_callable({"euros": euros}) for euros in (0.6, 0.5, None)] == [
        "ask",
        "start",
        "start",
    ]
    found = {"euros": 0.6, "limit": 1.2, "runs": 2, "table": "4  11 min  0.6000 EUR"}
    context = {"dag": dag, "ti": SimpleNamespace(xcom_pull=lambda task_ids: {"estimate": found}[task_ids])}
    assert ask.render_template(ask.subject, context) == "Spend about 0.60 EUR on qarnot_ask_before_cost?"
    assert "The mean of 2 runs at each size" in ask.render_template(ask.body, context)
    assert "Its pool is closed above 1.20 EUR" in ask.render_template(ask.body, context)
    assert found["table"] in ask.render_template(ask.body, context)


def test_qarnot_elastic_pool(client: QarnotClient, example: Path, qarnot: LocalQarnot) -> None:
    qarnot.set_speed(100)  # it resizes every 90 seconds
    try:
        run = Run(client, example)
    finally:
        qarnot.set_speed(1)
    run.assert_good()
    elastic = run.only_pool().elastic
    assert elastic is not None
    assert elastic.is_elastic
    assert elastic.max_total_slots == 5
    assert sorted(task.instances or 0 for task in run.tasks) == [1, 5]


def test_qarnot_multi_slot_pool(client: QarnotClient, example: Path) -> None:
    run = Run(client, example)
    run.assert_good()
    assert run.only_pool().slots_per_node == 4
    done = {task.labels["airflow.task_id"]: task.succeeded_instances for task in run.tasks}
    assert done == {"nodes.render": frozenset(range(16)), "nodes.some_again": frozenset({0, 1, 2, 7})}


def test_qarnot_ladder(client: QarnotClient, example: Path) -> None:
    run = Run(client, example)
    assert run.states == {"simulate": "success"}
    (made,) = run.tasks
    assert (str(made.scheduling_type).lower(), made.pool, made.state) == ("flex", None, "Success")
    assert made.snapshot_interval == timedelta(minutes=10)


def test_qarnot_params(client: QarnotClient, example: Path) -> None:
    conf = {
        "nodes": 1,
        "slots_per_node": 2,
        "items": 3,
        "image": "library/alpine:3.22",
        "command": "echo this is ${ITEM}",
    }
    run = Run(client, example, conf)
    run.assert_good()
    pool = run.only_pool()
    assert (pool.instance_count, pool.slots_per_node) == (2, 2)
    assert {task.constants["DOCKER_REPO"] for task in run.tasks} == {"library/alpine"}
    outputs = sorted(client.tasks.stdout(task.uuid) for task in run.tasks)
    assert outputs == [f"0> this is {number}\n" for number in (1, 2, 3)]


def test_qarnot_parameter_sweep(client: QarnotClient, example: Path) -> None:
    run = Run(client, example, {"rates": [0, 0.1, 0.2, 0.5]})
    run.assert_good()
    assert len(run.tasks) == 4
    best = run.dag_run.get_task_instance("best").xcom_pull(task_ids="best")
    assert best == {"rate": 0.2, "loss": pytest.approx(0.01)}


def test_qarnot_scheduled_pipeline(client: QarnotClient, example: Path, qarnot: LocalQarnot) -> None:
    import boto3

    run = Run(client, example)
    run.assert_good()
    assert "sales" in run.only_pool().tags
    bucket = f"sales-{run.dag_run.run_after:%Y%m%d}"
    storage = boto3.client(
        "s3",
        endpoint_url=qarnot.storage_url,
        aws_access_key_id=qarnot.email,
        aws_secret_access_key=qarnot.token,
        region_name="default",
    )
    keys = {one["Key"] for one in storage.list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys >= {"inputs/prices.txt", "sales-0.txt", "sales-1.txt", "best.txt", "sales.tar.gz"}
    assert storage.get_object(Bucket=bucket, Key="best.txt")["Body"].read() == b"100\n"
    assert run.dag_run.get_task_instance("report").xcom_pull(task_ids="report") == 100
    (extra,) = asset_events("qarnot_scheduled_pipeline")[f"qarnot://{bucket}/"]
    assert extra["uuid"] == next(
        task.uuid for task in run.tasks if task.labels["airflow.task_id"] == "nodes.compute"
    )
    assert "best.txt" in extra["files"]["keys"]
    assert extra["cost"]["euros"] is not None


def test_qarnot_shared_pool(client: QarnotClient, example: Path) -> None:
    run = Run(client, example)
    run.assert_good()
    assert run.only_pool().labels["airflow.shared"] == "days"
    assert sorted(task.labels["airflow.task_id"] for task in run.tasks) == [
        "nodes.load",
        *["nodes.model"] * 2,
    ]


def test_qarnot_on_time(client: QarnotClient, example: Path) -> None:
    """By hand, so that the DAG is paused. No pool lingers for it."""
    run = Run(client, example)
    if AIRFLOW_VERSION < (3, 2):  # It does not tell a task that its DAG is paused.
        assert str(run.dag_run.state) == "success", run.states
        return
    run.assert_good()
    assert run.only_pool().labels["airflow.shared"] == "forecasts"


def test_qarnot_taskflow(client: QarnotClient, example: Path) -> None:
    run = Run(client, example, {"parts": 2, "darts": 1000})
    assert str(run.dag_run.state) == "success", run.states
    assert run.only_pool().state == "Closed"
    assert sorted(task.labels["airflow.task_id"] for task in run.tasks) == [
        "nodes.combine",
        *["nodes.throw"] * 2,
    ]
    combine = run.dag_run.get_task_instance("nodes.combine")
    outputs = {key: combine.xcom_pull(task_ids="nodes.combine", key=key) for key in ("pi", "error")}
    assert outputs["pi"] == pytest.approx(3.14, abs=0.3)
    assert 0 < outputs["error"] < 0.1


def test_qarnot_array(client: QarnotClient, example: Path) -> None:
    run = Run(client, example)
    assert str(run.dag_run.state) == "success", run.states
    assert run.only_pool().state == "Closed"
    assert [task.instances for task in run.tasks] == [20]
    assert run.dag_run.get_task_instance("total").xcom_pull(task_ids="total") == 9592


def test_qarnot_environment(
    client: QarnotClient, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel that is made from the installed package stands for the index."""
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    installed = distribution("natsort")
    with zipfile.ZipFile(tmp_path / f"natsort-{installed.version}-py3-none-any.whl", "w") as wheel:
        for file in installed.files or ():
            path = Path(str(installed.locate_file(file)))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                wheel.write(path, str(file))
    run = Run(client, example)
    run.assert_good()
    assert {one.profile for one in run.assert_nothing_left_on()} == {"docker-batch"}
    listed = run.dag_run.get_task_instance("nodes.listing").xcom_pull(task_ids="nodes.listing")
    assert listed == ["1: 1", "9: 2", "10: 1", "and: 2", "page: 4"]


def test_qarnot_events(client: QarnotClient, example: Path) -> None:
    """By hand."""
    run = Run(client, example, {"keys": ["words/x y.txt", "words/$(id)"]})
    run.assert_good()
    outputs = sorted(client.tasks.stdout(task.uuid) for task in run.tasks)
    assert outputs == ["0> processing words/$(id)\n", "0> processing words/x y.txt\n"]


def test_qarnot_executor(client: QarnotClient, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On workers here. With QarnotExecutor only the mapped task names it."""
    run = Run(client, example)
    assert set(run.states.values()) == {"success"}
    assert len(run.states) == 6
    path = get_provider_info()["executors"][0]
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", f"LocalExecutor,QarnotExecutor:{path}")
    dag = runpy.run_path(str(example))["dag"]
    assert [one.task_id for one in dag.tasks if one.executor == "QarnotExecutor"] == ["simulate"]


@pytest.mark.parametrize("report_only", [True, False])
def test_qarnot_maintenance(client: QarnotClient, example: Path, report_only: bool) -> None:
    """A pool whose DAG run is not known is reported; it is younger than the grace, so it stays."""
    identity = life_of(namespace="tests", dag_id="deleted", run_id=f"deleted-{report_only}")
    forgotten = claim(
        ClaimRequest(resource=client.pools, spec=PoolSpec(name="forgotten"), identity=identity)
    ).uuid
    run = Run(client, example, {"report_only": report_only})
    assert run.states == {"reap": "success"}
    report = run.dag_run.get_task_instance("reap").xcom_pull(task_ids="reap")
    entry = next(one for one in report["pools"] if one["uuid"] == forgotten)
    assert report["dry_run"] is report_only
    assert (entry["action"], entry["dag_id"], entry["done"]) == ("keep", "deleted", False)
    client.pools.delete(forgotten)


def test_qarnot_cost_report(client: QarnotClient, example: Path) -> None:
    """A run whose pool is made after the period counts in the next one; so the period here reaches ahead."""
    run = Run(client, example)
    assert run.states == {"report": "success", "tell": "success"}
    report = run.dag_run.get_task_instance("report").xcom_pull(task_ids="report")
    assert report["markdown"].count("**By ") == 3
    assert report["html"].startswith("<p>")
