"""Every row of docs/guarantees.md names tests, by their whole names, that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
#: A row of a table that says who shows it; the header and the line below it have other last cells.
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (?!Event)", line)]


def names_of_tests() -> frozenset[str]:
    """Return the names of all test functions."""
    return frozenset(
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    )


NAMES = names_of_tests()


def shown_by(row: str) -> str:
    return row.strip("| ").split(" | ")[-1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_each_row_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(?:[\w/.]+::)?(test_\w+)`", shown_by(row))
    unknown = [name for name in named if name not in NAMES]
    assert not unknown, f"no test has the name {', '.join(unknown)}"
    files = re.findall(r"`([\w/]+/|[\w/]*test_\w+\.py)`", shown_by(row))
    missing = [name for name in files if not (list((ROOT / "tests").rglob(Path(name).name)))]
    assert not missing, f"{', '.join(missing)} does not exist"
    assert named or files or re.search(r"make \w+|\]\(", shown_by(row)), "the row names nothing that shows it"


def test_no_name_is_cut_short() -> None:
    cut = re.findall(r"`[^`\n]*(?:…|\.\.\.)[^`\n]*test_[^`\n]*`|`test_[^`\n]*(?:…|\.\.\.)[^`\n]*`", PAGE)
    assert not cut
    assert len(ROWS) > 40
