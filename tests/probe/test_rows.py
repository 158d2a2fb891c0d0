"""The experiments and the page of assumptions share their rows."""

from __future__ import annotations

import re

from airflow_qarnot_pool.probe.experiments import EXPERIMENTS, NOT_ASKED
from airflow_qarnot_pool.probe.rows import Assumption, parse_rows, read_rows
from tests.conftest import ROOT


def test_each_row_has_an_experiment_or_a_reason() -> None:
    assert set(read_rows()) == EXPERIMENTS.keys() | NOT_ASKED.keys()
    assert not EXPERIMENTS.keys() & NOT_ASKED.keys()


def test_each_line_of_the_table_is_a_row() -> None:
    page = (ROOT / "docs" / "assumptions.md").read_text()
    lines = re.findall(r"^\| (?!Id)", page, re.M)
    assert len(lines) == len(parse_rows(page)) > 50


def test_a_row_is_read_as_plain_text() -> None:
    page = "| Id | Question | Assumption | Effect |\n|---|---|---|---|\n| `a-b` | A or [B](b.md)? | `x\\|y` | None. |\n"
    assert parse_rows(page) == {"a-b": Assumption("a-b", "A or B?", "`x|y`", "None.")}
