"""The iterations of a real loop are kept apart: Airflow 3.4, which `make next` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION
from tests.dags.test_examples import LOCAL_BUNDLE, Run, client

__all__ = ["client"]

pytestmark = [
    pytest.mark.usefixtures("airflow_db", "qarnot_connection"),
    pytest.mark.skipif(AIRFLOW_VERSION < (3, 4), reason="loops are new in Airflow 3.4"),
]

#: A function on a node, to which Airflow would give the loop.
LOOP_ON_A_NODE = """
from airflow.sdk import DAG, task, task_group

with DAG("loops", schedule=None) as dag:

    @task_group
    def refine():
        @task.qarnot(image="python")
        def function(*, loop):
            return loop.index

        function()

    refine.loop(max_iterations=2)
"""

LOOP = """
from airflow.sdk import DAG, task, task_group
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

with DAG("loops", schedule=None) as dag:
    with QarnotPoolGroup("warm", instance_count=2):

        @task_group
        def refine():
            one = QarnotRunTaskOperator(task_id="one", image="alpine", command="echo {{ loop.index }}")
            copies = QarnotRunTaskOperator.partial(task_id="copies", image="alpine").expand(
                command=["echo a {{ loop.index }}", "echo b {{ loop.index }}"]
            )
            many = QarnotRunTasksOperator(task_id="many", image="alpine", commands=["echo {{ loop.index }}", "echo x"])

            @task.qarnot(image="python")
            def function(number):
                return number

            one >> copies >> many >> function("{{ loop.index }}")

        refine.loop(max_iterations=2)
"""


def test_each_iteration_has_qarnot_tasks_of_its_own(
    client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [{"name": "loops", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    file = tmp_path / "loops.py"
    file.write_text(LOOP)
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(file))
    assert bag.import_errors == {}
    run = Run.of(bag.dags["loops"].test(), client)
    run.assert_good()
    made = sorted(task.labels["airflow.task_id"].rpartition(".")[2] for task in run.tasks)
    # Once per iteration, each copy and each command counting.
    assert made == ["copies"] * 4 + ["function"] * 2 + ["many"] * 4 + ["one"] * 2


def test_a_function_on_a_node_that_asks_for_the_loop_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "loops.py"
    file.write_text(LOOP_ON_A_NODE)
    from airflow.dag_processing.dagbag import DagBag

    (error,) = DagBag(dag_folder=str(file)).import_errors.values()
    assert "Airflow's 'loop' does not reach the node" in error
