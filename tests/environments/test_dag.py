"""A shared pool with several environments through ``dag.test()``, where XComs name that of each call."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from tests.dags.test_examples import LOCAL_BUNDLE, Run, client

# Without the directory's own fixtures: this wants the session's server, which the examples use.
from tests.conftest import qarnot  # isort: skip

pytestmark = pytest.mark.usefixtures("airflow_db", "qarnot_connection")
__all__ = ["client", "qarnot"]

FILE = f"""
from airflow.sdk import DAG, task
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

SHARED = {{
    "shared": "environments",
    "instance_count": 1,
    "environment": {{"modules": ["helpers"], "python": "{sys.version_info.major}.{sys.version_info.minor}"}},
}}

with DAG("leaves_open", schedule=None) as leaves_open:
    QarnotCreatePoolOperator(task_id="open_pool", **SHARED)

with DAG("joins", schedule=None) as joins:
    with QarnotPoolGroup("g", setup_retries=0, **SHARED):

        @task.qarnot
        def answer(number: int) -> int:
            import helpers

            return helpers.ANSWER * number

        answer(1)
        answer.override(task_id="mapped").expand(number=[1, 2])
"""


def test_calls_name_the_environment_of_their_run(
    client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [{"name": "environments", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (tmp_path / "environments.py").write_text(FILE)
    pools = []
    for dag_id, value in (("leaves_open", 1), ("joins", 21)):
        (tmp_path / "helpers.py").write_text(f"ANSWER = {value}\n")
        dag = runpy.run_path(str(tmp_path / "environments.py"))[dag_id]
        run = Run.of(dag.test(), client)
        assert set(run.states.values()) == {"success"}, run.states
        opener = "g.open_pool" if dag_id == "joins" else "open_pool"
        pools.append(run.dag_run.get_task_instance(opener).xcom_pull(task_ids=opener))
    assert pools[0] == pools[1]
    ti = run.dag_run.get_task_instance("g.answer")
    assert ti.xcom_pull(task_ids="g.answer") == 21
    assert ti.xcom_pull(task_ids="g.mapped") == [21, 42]
