from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from airflow_qarnot_pool.api import filters


def test_leaves():
    assert filters.equal("State", "Closed") == {"operator": "Equal", "field": "State", "value": "Closed"}
    assert filters.equal("InstanceCount", 3)["value"] == "3"
    operators = [f("X", "1")["operator"] for f in (filters.lt, filters.ge)]
    assert operators == ["LessThan", "GreaterThanOrEqual"]


def test_times_travel_in_utc():
    moment = datetime(2025, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert filters.ge("CreationDate", moment)["value"] == "2025-01-01T00:00:00Z"
    assert filters.ge("CreationDate", datetime(2025, 1, 1, tzinfo=UTC))["value"] == "2025-01-01T00:00:00Z"


def test_lists_are_sent_under_both_names():
    leaf = filters.in_("Uuid", iter(["a", "b"]))
    assert leaf == {"operator": "In", "field": "Uuid", "value": ["a", "b"], "values": ["a", "b"]}


def test_nodes():
    one, two = filters.equal("Tags", "a"), filters.equal("Tags", "b")
    assert filters.and_(one, two) == {"operator": "And", "filters": [one, two]}
    assert filters.and_(one) == one
    with pytest.raises(ValueError, match="And needs"):
        filters.and_()
