"""Every event of docs/guarantees.md has a row on the evidence page, which names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
EVIDENCE = (ROOT / "docs" / "contributing" / "evidence" / "guarantees.md").read_text()


def rows(page: str, header: str) -> list[str]:
    """Return the rows of all tables of *page* whose first column is *header*."""
    tables = re.findall(rf"^\| {header} \|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", page, re.M)
    return [row for table in tables for row in table.splitlines()]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


ROWS = [*rows(EVIDENCE, "Event"), *rows(EVIDENCE, "Statement")]


@cache
def names_of_tests() -> frozenset[str]:
    """Return the names of all test functions."""
    return frozenset(
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    )


def test_each_event_has_its_row_of_evidence() -> None:
    events = [cells(row)[0] for row in rows(PAGE, "Event")]
    assert events == [cells(row)[0] for row in rows(EVIDENCE, "Event")]
    assert len(events) > 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_each_row_names_tests_that_exist(row: str) -> None:
    _, evidence = cells(row)
    named = re.findall(r"`(?:[\w/.]+::)?(test_\w+)`", evidence)
    unknown = [name for name in named if name not in names_of_tests()]
    assert not unknown, f"no test has the name {', '.join(unknown)}"
    files = re.findall(r"`([\w/]+/|[\w/]*test_\w+\.py)`", evidence)
    missing = [name for name in files if not (list((ROOT / "tests").rglob(Path(name).name)))]
    assert not missing, f"{', '.join(missing)} does not exist"
    assert named or files or re.search(r"make \w+|\]\(", evidence), "the row names nothing that shows it"


def test_no_name_is_cut_short() -> None:
    cut = re.findall(r"`[^`\n]*(?:…|\.\.\.)[^`\n]*test_[^`\n]*`|`test_[^`\n]*(?:…|\.\.\.)[^`\n]*`", EVIDENCE)
    assert not cut


def test_the_page_for_users_names_no_test() -> None:
    assert not re.findall(r"\btest_\w+|tests/", PAGE)
