"""The reports of the commands of an array."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from airflow_qarnot_pool.logs.array_reports import parse_command_report


def json_of(text: str) -> str:
    return "json." + base64.urlsafe_b64encode(text.encode()).decode()


REPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no value": ("3.0.none.", {"value": "null"}),
    "a value": (f"3.0.{json_of('[1, 2]')}", {"value": "[1, 2]"}),
    "a code that skips": ("3.99.none.", {"skip": "The command exited with code 99"}),
    "another code": ("3.4.none.", {"error": "the command exited with code 4"}),
    "no JSON": (f"3.0.{json_of('{')}", {"error": "the file QARNOT_RETURN_FILE is not JSON"}),
    "NaN": (f"3.0.{json_of('[0, NaN]')}", {"error": "has NaN at [1], which no XCom can have"}),
    "deep": (f"3.0.{json_of('[' * 200 + ']' * 200)}", {"error": "nested too deeply"}),
    "no text": ("3.0.json._w==", {"error": "is not JSON"}),
    "too long": ("3.0.long.", {"error": "more than 1,000,000 bytes. Set a smaller chunk_size"}),
}


@pytest.mark.parametrize(("text", "outcome"), REPORTS.values(), ids=REPORTS.keys())
def test_a_report_of_a_command(text: str, outcome: dict[str, Any]) -> None:
    report = parse_command_report(text, (99,))
    assert report.instance is None
    assert report.outcomes.keys() == {3}
    found = report.outcomes[3]
    if "error" in outcome:
        assert outcome["error"] in found["error"]["summary"]
    else:
        assert found == outcome


def test_the_end_of_an_instance() -> None:
    report = parse_command_report("end.17", ())
    assert (report.instance, report.outcomes) == (17, {})


@pytest.mark.parametrize(
    "text", ["", "end.", "end.x", "3", "3.", "x.0.none.", "3.x.none.", "-3.0.none.", "3.0.other.", "3.0."]
)
def test_a_malformed_report_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_command_report(text, ())
