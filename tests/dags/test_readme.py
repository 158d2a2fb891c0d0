"""The DAG of the README runs as it is printed."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from tests.conftest import ROOT
from tests.dags.test_examples import Run, client

pytestmark = pytest.mark.usefixtures("airflow_db", "qarnot_connection")
__all__ = ["client"]

LOCAL_BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"


def test_the_dag_of_the_readme(
    client: object, qarnot: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # dag.test() wants the file in a bundle.
    bundles = [{"name": "readme", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "frames.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "frames.py"))
    run = Run.__new__(Run)
    run.dag_run, run._client = names["frames"].dag.test(), client
    assert str(run.dag_run.state) == "success", run.states
    assert run.only_pool().state == "Closed"
    ran = [task.labels["airflow.task_id"] for task in run.tasks if not task.labels["airflow.part"]]
    assert sorted(ran) == ["render.frame"] * 12 + ["render.merge"]
