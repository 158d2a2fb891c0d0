"""The DAGs of docs/python-on-nodes.md parse as they are printed, and the figures are those of the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from airflow_qarnot_pool.decorators import node, payload
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "python-on-nodes.md").read_text()


def test_the_dags_of_the_page_parse(tmp_path: Path) -> None:
    tasks = []
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)):
        path = tmp_path / f"page_{number}.py"
        path.write_text(code)
        tasks.append(sorted(runpy.run_path(str(path))["dag"].task_ids))
    assert tasks == [
        ["longest", "work.close_pool", "work.norm", "work.open_pool"],
        ["lines", "sort", "table"],
    ]


def test_the_figures_of_the_page() -> None:
    assert f"{payload.MAX_BYTES:,} bytes; {payload.MAX_PARTS} constants" in TEXT
    assert f"| {node.MAX_RESULT:,} characters |" in TEXT
    assert f"| {node.MAX_DETAIL:,} characters, its end |" in TEXT
