"""The DAGs of docs/files.md: the first runs as it is printed, the other parses."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dags.test_examples import LOCAL_BUNDLE, Run, client

pytestmark = pytest.mark.usefixtures("airflow_db", "qarnot_connection")
__all__ = ["client"]


def test_the_dags_of_the_page(client: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    bundles = [{"name": "files", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "files.md").read_text(), re.DOTALL)
    (tmp_path / "folders.py").write_text(second)
    assert runpy.run_path(str(tmp_path / "folders.py"))["dag"].task_ids == ["upload", "download"]
    (tmp_path / "scenes.py").write_text(first)
    run = Run.__new__(Run)
    dag = runpy.run_path(str(tmp_path / "scenes.py"))["dag"]
    run.dag_run, run._client = dag.test(run_conf={"target": f"{tmp_path}/wood.txt"}), client  # type: ignore[assignment]
    assert str(run.dag_run.state) == "success", run.states
    assert (tmp_path / "wood.txt").read_text() == "oak\nbirch\n"


def test_the_dag_of_the_page_about_logs_parses(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "logs.md").read_text(), re.DOTALL)
    (tmp_path / "logs.py").write_text(code)
    assert runpy.run_path(str(tmp_path / "logs.py"))["dag"].get_task("render").log_output == "live"
