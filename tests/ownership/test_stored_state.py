"""State that other processes and users can write is read back, or is a QarnotError that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_qarnot_pool.api.fields import parse_literal
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.costs.limits import CostLimit
from airflow_qarnot_pool.costs.model import TaskUsage
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError, QarnotProtocolError
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot
from airflow_qarnot_pool.ownership.fan_out import FanOutProgress
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity, index_and_generation
from airflow_qarnot_pool.ownership.shared_pool import _holder
from airflow_qarnot_pool.waiting.conditions import Condition, WaitResult

READERS: dict[str, Callable[[Any], Any]] = {
    "event": WaitResult.from_event,
    "condition": Condition.from_kwargs,
    "fan-out": FanOutProgress.from_resume_state,
    "task instance": TaskInstanceIdentity.from_kwargs,
    "limits": CostLimit.from_kwargs,
    "date": parse_stored_time,
}
NASTY: list[Any] = [
    None,
    5,
    "2026-99-99T00:00:00",
    [1],
    {"status": "no such", "uuid": "u"},
    {"status": "met"},
    {"status": "met", "uuid": "u", "resume_state": 5},
    {"kind": "pool", "targets": 5},
    {"kind": "no such", "targets": ["Closed"]},
    {"pending": {"x": "0-1"}},
    {"pending": {"1": "0-999999999999"}},
    {"succeeded": ["a"]},
    {"failed": "9" * 10_000},
]


@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("reader", READERS)
def test_stored_state_is_read_back_or_is_a_qarnot_error(reader: str, value: Any) -> None:
    said = ""
    try:
        READERS[reader](value)
    except QarnotProtocolError as error:
        said = str(error)
    except QarnotInvalidSpecError:
        return  # names the field
    assert len(said) < 1_000
    assert not said or "cannot be read" in said


@pytest.mark.parametrize("number", ["²", "9" * 10_000, "-1", "", "x"])
def test_numbers_in_labels_that_are_none_do_no_harm(number: str) -> None:
    labels = {
        f"airflow.{name}": number for name in ("generation", "retries", "try_number", "item", "map_index")
    }
    task = Task.from_json(
        {"uuid": "u", "state": "Success", "labels": labels, "shortname": f"s-{number}-{number}"}
    )
    snapshot = RemoteSnapshot.of(task)
    assert (snapshot.generation, snapshot.index, snapshot.retries) == (1, None, 0)
    assert TaskUsage.of(task).map_index == -1
    assert index_and_generation(task.shortname) is None


@pytest.mark.parametrize("name", [None, "", "5", "[1, 2, 3]", '["a", "b"]', "[" * 5_000, '["a", "b", null]'])
def test_a_hold_with_a_name_that_is_not_ours_has_no_holder(name: str | None) -> None:
    assert _holder(name) is None


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 10_000, "{" * 500])
def test_a_template_that_renders_to_nested_text_stays_text(text: str) -> None:
    assert parse_literal(text) == text
