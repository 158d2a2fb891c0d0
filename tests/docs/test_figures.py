"""Figures and excerpts on pages are those of the code."""

from __future__ import annotations

from airflow_qarnot_pool.decorators import node, payload
from tests.conftest import ROOT


def test_limits_of_python_functions() -> None:
    text = (ROOT / "docs" / "python-on-nodes.md").read_text()
    assert f"{payload.MAX_BYTES:,} bytes; {payload.MAX_PARTS} constants" in text
    assert f"| {node.MAX_RESULT:,} characters |" in text
    assert f"| {node.MAX_DETAIL:,} characters, its end |" in text


def test_contributing_shows_the_import_contract() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    contract = project[project.index("[tool.importlinter]") :].partition("\n\n")[0].strip()
    assert f"```toml\n{contract}\n```" in (ROOT / "CONTRIBUTING.md").read_text()
