"""An import of a module that does not reach the node is refused at parse."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

HEAD = """
from airflow.sdk import DAG, task
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

SHIPS = {"modules": ["helpers", "sub/other.py"]}

with DAG("imports", schedule=None):
    @task.qarnot
    def uses():
        import json, pandas
        from helpers.inner import double
        try:
            import optional_module
        except ImportError:
            pass
        return double(1)

"""
REFUSED = {
    "alone": "uses()",
    "in a group": """
    with QarnotPoolGroup("g", instance_count=1):
        uses()
""",
    "in a group with another module": """
    with QarnotPoolGroup("g", instance_count=1, environment={"modules": ["sub/other.py"]}):
        uses()
""",
    "on the pool of an operator": """
    uses.override(qarnot_pool=QarnotCreatePoolOperator(task_id="open", instance_count=1).output)()
""",
}
ACCEPTED = {
    "with an environment": "uses.override(environment=SHIPS)()",
    "in a group that ships it": """
    with QarnotPoolGroup("g", instance_count=1, environment=SHIPS):
        uses()
""",
    "on the pool of an operator that ships it": """
    opened = QarnotCreatePoolOperator(task_id="open", instance_count=1, environment=SHIPS)
    uses.override(qarnot_pool=opened.output)()
""",
    "on a pool that is not known": """uses.override(qarnot_pool="{{ params.pool }}")()""",
    "with files of a bucket": """uses.override(resource_buckets=["code"])()""",
    "with files of a bucket of its group": """
    with QarnotPoolGroup("g", instance_count=1, pool_spec={"resourceBuckets": ["code"]}):
        uses()
""",
}


def parse(folder: Path, text: str) -> Any:
    (folder / "helpers").mkdir()
    (folder / "helpers" / "__init__.py").write_text("")
    (folder / "optional_module.py").write_text("")
    (folder / "json.py").write_text("")
    file = folder / "imports_dag.py"
    body = text.strip("\n")
    file.write_text(HEAD + (body if body.startswith(" ") else f"    {body}") + "\n")
    spec = importlib.util.spec_from_file_location("imports_dag", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["imports_dag"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["imports_dag"]


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_an_import_that_is_not_shipped_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"uses\(\) imports 'helpers'.*modules=\['helpers'\]"):
        parse(tmp_path, text)


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_an_import_that_may_reach_the_node_is_accepted(tmp_path: Path, text: str) -> None:
    parse(tmp_path, text)
