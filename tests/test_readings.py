"""Tests that expect default readings are left out under a set that has others, and never in an ordinary run."""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.local.backend.readings import NOT_SIMULATED, Readings
from tests import readings

ROWS = sorted({row.replace("_", "-") for row in Readings.choices()} | NOT_SIMULATED)


def test_an_ordinary_run_has_no_other_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", None):
        if value is None:
            monkeypatch.delenv(readings.VARIABLE)
        else:
            monkeypatch.setenv(readings.VARIABLE, value)
        assert not readings.are_others()
        assert [row for row in ROWS if readings.are_others(row)] == []


def test_a_set_has_others_only_in_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(readings.VARIABLE, "strict")
    assert readings.are_others()
    assert {row for row in ROWS if readings.are_others(row)} == readings.SETS["strict"].keys()
    assert readings.are_others("range-end", "abort-again")
    assert not readings.are_others("range-end", "date-header")


@pytest.mark.skipif(bool(readings.current()), reason="not an ordinary run")
def test_this_run_leaves_none_out(request: pytest.FixtureRequest) -> None:
    skips = [(item.nodeid, mark) for item in request.session.items for mark in item.iter_markers("skip")]
    assert [one for one, mark in skips if str(mark.kwargs.get("reason")).startswith(readings.SKIPPED)] == []
