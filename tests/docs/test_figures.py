"""Figures and excerpts on pages are those of the code."""

from __future__ import annotations

import re

import pytest

from airflow_qarnot_pool.api import command_array
from airflow_qarnot_pool.decorators import node
from tests.conftest import ROOT


def test_limits_of_python_functions() -> None:
    text = (ROOT / "docs" / "python-on-nodes.md").read_text()
    assert f"{command_array.MAX_BYTES:,} bytes; {command_array.MAX_PARTS} constants" in text
    assert f"| {node.MAX_RESULT:,} characters |" in text
    assert f"| {node.MAX_DETAIL:,} characters, its end |" in text


def test_contributing_shows_the_import_contract() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    contract = project[project.index("[tool.importlinter]") :].partition("\n\n")[0].strip()
    assert f"```toml\n{contract}\n```" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_pages_for_maintainers_name_files_and_functions_that_exist(page: str) -> None:
    package = ROOT / "airflow_qarnot_pool"
    source = "".join(path.read_text() for path in package.rglob("*.py"))
    text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text())
    for name in re.findall(r"`([\w./]+(?:\(\))?)`", text):
        first, *rest = name.split(".")
        if name.endswith("()") and not rest:
            assert f"def {name[:-2]}(" in source, name
        elif "/" in name:
            assert (package / name).exists() or (ROOT / name).exists(), name
        elif rest and rest != ["py"] and ((package / first).is_dir() or (package / f"{first}.py").exists()):
            # A module, or an attribute of one.
            module = package.joinpath(first, *rest)
            assert module.with_suffix(".py").exists() or f"def {rest[-1]}(" in source, name
