"""State that other processes and users can write is read back, or is a QarnotError that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_qarnot_pool.api.fields import decoded
from airflow_qarnot_pool.api.limits import stored_moment
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.budget import Watched
from airflow_qarnot_pool.conditions import Condition, Outcome
from airflow_qarnot_pool.costs import Work
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError, QarnotProtocolError
from airflow_qarnot_pool.fan_out import Memory
from airflow_qarnot_pool.identity import Life, Relic, numbers_of
from airflow_qarnot_pool.shared import _holder

READERS: dict[str, Callable[[Any], Any]] = {
    "event": Outcome.from_event,
    "condition": Condition.from_kwargs,
    "fan-out": Memory.from_carry,
    "task instance": Life.from_kwargs,
    "limits": Watched.from_kwargs,
    "date": stored_moment,
}
NASTY: list[Any] = [
    None,
    5,
    "2026-99-99T00:00:00",
    [1],
    {"status": "no such", "uuid": "u"},
    {"status": "met"},
    {"status": "met", "uuid": "u", "carry": 5},
    {"kind": "pool", "targets": 5},
    {"kind": "no such", "targets": ["Closed"]},
    {"pending": {"x": "0-1"}},
    {"pending": {"1": "0-999999999999"}},
    {"remembered": ["a"]},
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
    relic = Relic.of(task)
    assert (relic.generation, relic.item, relic.retries) == (1, None, 0)
    assert Work.of(task).map_index == -1
    assert numbers_of(task.shortname) is None


@pytest.mark.parametrize("name", [None, "", "5", "[1, 2, 3]", '["a", "b"]', "[" * 5_000, '["a", "b", null]'])
def test_a_hold_with_a_name_that_is_not_ours_has_no_holder(name: str | None) -> None:
    assert _holder(name) is None


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 10_000, "{" * 500])
def test_a_template_that_renders_to_nested_text_stays_text(text: str) -> None:
    assert decoded(text) == text
