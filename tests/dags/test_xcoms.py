"""XComs of whole DAG runs as Airflow's metadata database has them: links, and what the provider stores for itself."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.api import client

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator, duration_of
from airflow_qarnot_pool.version_compat import database_xcom
from tests.conftest import ROOT
from tests.crash.children import eventually
from tests.dags.test_examples import LOCAL_BUNDLE
from tests.harness import LONGEST_LINK

pytestmark = pytest.mark.usefixtures("airflow_db")

CONSOLE = "https://console.example"
#: The README's DAG: a pool, mapped work on it, and a task that comes after.
README = """
from airflow.sdk import DAG
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

with DAG("{dag_id}", schedule=None, default_args={default_args}) as dag:
    with QarnotPoolGroup("render", instance_count=4):
        commands = [f"echo frame {{n}}" for n in range({count})]
        frames = QarnotRunTaskOperator.partial(task_id="frame").expand(command=commands)
        frames >> QarnotRunTaskOperator(task_id="merge", command="echo all frames")
"""
#: Waits of all kinds, a second try, and an output that is followed.
SLICES = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

waits = "sh -c 'until test -e {released}; do sleep 0.02; done'"
fails_once = "sh -c 'mkdir {work}/tried-{{{{ ti.map_index }}}} 2>/dev/null && exit 1; true'"
with DAG("slices", schedule=None, default_args={{"retries": 1, "retry_delay": timedelta()}}) as dag:
    with QarnotPoolGroup("g", instance_count=2, report_cost=True):
        frames = QarnotRunTaskOperator.partial(task_id="frame").expand(command=[fails_once] * 2)
        many = QarnotRunTasksOperator(task_id="many", commands=["true"] * 4, max_in_flight=1)
        live = QarnotRunTaskOperator(task_id="live", command="sh -c 'echo a; sleep 0.5; echo b'", log_output="live")
        worker = QarnotRunTaskOperator(task_id="worker", command=waits, deferrable=False)
        frames >> many >> live >> worker

if __name__ == "__main__":
    from tests.execution_api import serve_the_newest_execution_api

    serve_the_newest_execution_api()
    dag.test()
"""


def stored(dag_id: str) -> list[Any]:
    """The rows of all XComs of a DAG."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = list(session.scalars(select(XComModel).where(XComModel.dag_id == dag_id)))
        session.expunge_all()
        return rows


def links(rows: list[Any]) -> dict[tuple[str, int, str], Any]:
    """Links by task, map index and kind."""
    return {
        (row.task_id, row.map_index, row.key.removeprefix("_link_Qarnot").removesuffix("Link")): row.value
        for row in rows
        if row.key.startswith("_link_")
    }


@pytest.fixture
def bundle(qarnot: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a bundle of its own: dag.test() writes all of a bundle's DAGs to the database."""
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.05")
    connection = qarnot.airflow_connection(namespace="xcoms", console_url=CONSOLE)
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", connection)
    folder = tmp_path / "dags"
    folder.mkdir()
    bundles = [{"name": "xcoms", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(folder)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    return folder


@pytest.fixture
def readme(bundle: Path) -> Callable[..., Any]:
    """Run the README's DAG."""

    def run(dag_id: str, count: int, **default_args: Any) -> Any:
        path = bundle / "dag.py"
        path.write_text(README.format(dag_id=dag_id, count=count, default_args=default_args))
        return runpy.run_path(str(path))["dag"].test()

    return run


def test_each_link_is_one_url_and_xcoms_grow_linearly_with_the_mapped_tasks(
    readme: Callable[..., Any],
) -> None:
    sizes = {}
    for count in (2, 6, 10):
        dag_id = f"readme_{count}"
        run = readme(dag_id, count)
        assert run.state == "success"
        rows = stored(dag_id)
        sizes[count] = sum(len(json.dumps(row.value)) for row in rows)
        (pool,) = {row.value for row in rows if row.key == "qarnot_pool"}
        tasks = {(row.task_id, row.map_index): row.value for row in rows if row.key == "qarnot_task"}
        assert len(tasks) == count + 1
        expected = {
            **{(task, -1, "Pool"): f"pools/{pool}" for task in ("render.open_pool", "render.close_pool")},
            **{(*one, "Pool"): f"pools/{pool}" for one in tasks},
            **{(*one, "Task"): f"tasks/{uuid}" for one, uuid in tasks.items()},
        }
        found = links(rows)
        pages = {one: found.pop(one) for one in list(found) if one[2] == "PoolPage"}
        assert {one: link.removeprefix(CONSOLE + "/") for one, link in found.items()} == expected
        # Of every task that uses the pool, the address on the Pools page, relative to Airflow's.
        assert set(pages) == {(*one[:2], "PoolPage") for one in expected if one[2] == "Pool"}
        assert set(pages.values()) == {f"plugin/qarnot-pools#pool=qarnot_default/{pool}"}
        assert max(map(len, found.values())) <= LONGEST_LINK
    # Were one list of all tasks stored with each of them, the next four would take more than the first four.
    assert sizes[10] - sizes[6] == pytest.approx(sizes[6] - sizes[2], rel=0.02)


def test_tasks_find_their_pool_though_default_args_push_no_xcoms(readme: Callable[..., Any]) -> None:
    run = readme("pushes_nothing", 1, do_xcom_push=False)
    assert run.state == "success"
    returned = {row.task_id for row in stored("pushes_nothing") if row.key == "return_value"}
    assert returned == {"render.open_pool", "render.close_pool"}


def test_a_pool_is_a_reference_though_default_args_want_several_outputs(readme: Callable[..., Any]) -> None:
    assert readme("several_outputs", 1, multiple_outputs=True).state == "success"


def test_each_mapped_task_reads_how_long_it_took_in_the_previous_run(
    readme: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "60")
    read: dict[tuple[str, int], float | None] = {}
    original = QarnotRunTaskOperator._expected_seconds

    def expected(operator: Any, context: Any) -> float | None:
        ti = context["ti"]
        seconds = original(operator, context)
        read[ti.task_id, -1 if ti.map_index is None else ti.map_index] = seconds
        return seconds

    monkeypatch.setattr(QarnotRunTaskOperator, "_expected_seconds", expected)
    assert readme("again", 2).state == "success"
    tasks = {("render.frame", 0), ("render.frame", 1), ("render.merge", -1)}
    assert read == dict.fromkeys(tasks)
    took = {
        (row.task_id, row.map_index): duration_of(database_xcom().deserialize_value(row))
        for row in stored("again")
        if row.key == "return_value" and (row.task_id, row.map_index) in tasks
    }
    assert took.keys() == tasks
    assert None not in took.values()
    assert readme("again", 2).state == "success"
    assert read == took


FAILS_EARLY = """
from airflow.sdk import DAG
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

with DAG("fails_early", schedule=None) as dag:
    QarnotRunTaskOperator(task_id="work", command="true", task_spec="{{ [] }}")
"""


def test_no_log_has_an_error_of_an_xcom_that_need_not_exist(
    readme: Callable[..., Any], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run has no earlier result, and a task that fails at once has no link."""
    missing: list[tuple[str, str, int | None]] = []

    original = client.log

    class Log:
        def error(self, event: str, **facts: Any) -> None:
            missing.append((facts["task_id"], facts["key"], facts["map_index"]))

        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "60")
    monkeypatch.setattr(client, "log", Log())
    for _ in range(2):
        assert readme("first", 3).state == "success"
    path = bundle / "fails_early.py"
    path.write_text(FAILS_EARLY)
    assert runpy.run_path(str(path))["dag"].test().state == "failed"
    assert missing == []


def test_with_xcoms_in_object_storage_links_are_urls_and_no_object_is_left_behind(
    bundle: Path, tmp_path: Path
) -> None:
    """With Airflow's own backend, which Airflow chooses when it is imported: so in a process of its own."""
    storage, released = tmp_path / "storage", tmp_path / "released"
    storage.mkdir()
    (bundle / "dag.py").write_text(SLICES.format(released=released, work=tmp_path))
    env = os.environ | {
        "AIRFLOW__CORE__XCOM_BACKEND": "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": f"file://{storage}",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD": "0",
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "log"
    with log.open("w") as out:
        run = subprocess.Popen(
            [sys.executable, str(bundle / "dag.py")], cwd=ROOT, env=env, stdout=out, stderr=out
        )
    try:

        def waits() -> Any:
            assert run.poll() is None, log.read_text()[-5000:]
            found = links(stored("slices"))
            return found if ("g.worker", -1, "Task") in found else None

        moves = lambda: log.stat().st_size  # noqa: E731
        found = eventually(waits, 240, pause=0.5, say="the wait on a worker", progress=moves)
        released.touch()
        eventually(lambda: run.poll() is not None, 240, pause=0.1, say="the end", progress=moves)
        assert run.wait() == 0, log.read_text()[-5000:]
    finally:
        run.kill()
        run.wait()
    rows = stored("slices")
    for one, link in (*found.items(), *links(rows).items()):
        start = "plugin/qarnot-pools#pool=" if one[2] == "PoolPage" else f"{CONSOLE}/{one[2].lower()}s/"
        assert str(link).startswith(start), (one, link)
        assert len(link) <= LONGEST_LINK
    referred = {
        str(row.value).removeprefix("file://") for row in rows if str(row.value).startswith("file://")
    }
    assert referred == {str(path) for path in storage.rglob("*") if path.is_file()}
    in_storage = {row.key for row in rows if str(row.value).startswith("file://")}
    assert in_storage == {"return_value", "qarnot_cost"}
    states = {(row.task_id, row.map_index) for row in rows if row.key == "return_value"}
    assert {("g.frame", 0), ("g.frame", 1), ("g.many", -1), ("g.live", -1), ("g.worker", -1)} <= states
