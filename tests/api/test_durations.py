from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_qarnot_pool.api.durations import parse_duration, parse_span, parse_timestamp
from airflow_qarnot_pool.api.fields import span


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("00:00:00", timedelta(0)),
        ("00:10:00", timedelta(minutes=10)),
        ("7.00:00:00", timedelta(days=7)),
        ("1.02:03:04.5000000", timedelta(days=1, hours=2, minutes=3, seconds=4, microseconds=500000)),
        ("00:00:01.0000030", timedelta(seconds=1, microseconds=3)),
        ("-00:00:01", -timedelta(seconds=1)),
    ],
)
def test_spans(text, duration):
    assert parse_span(text) == duration
    assert parse_span(span(duration)) == duration


def test_a_fraction_of_one_digit_is_tenths():
    assert parse_span("00:00:00.1") == timedelta(milliseconds=100)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90", timedelta(seconds=90)),
        ("1.5", timedelta(seconds=1.5)),
        ("00:01:30", timedelta(seconds=90)),
        ("PT1M30S", timedelta(seconds=90)),
        ("P7D", timedelta(days=7)),
        ("P1W", timedelta(days=7)),
        ("P1DT12H", timedelta(days=1, hours=12)),
    ],
)
def test_durations_as_people_write_them(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "P", "PT", "soon", "1:2", "nan", "inf", "10 minutes"])
def test_an_invalid_duration_is_refused(text):
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-01-01T00:00:00Z", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T00:00:00.1234567Z", datetime(2025, 1, 1, microsecond=123456, tzinfo=UTC)),
        ("2025-01-01T02:00:00+02:00", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T02:00:00+0200", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T00:00:00", datetime(2025, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00", None),
    ],
)
def test_timestamps(text, moment):
    assert parse_timestamp(text) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2025-13-01T00:00:00Z"])
def test_an_invalid_timestamp_is_refused(text):
    with pytest.raises(ValueError):
        parse_timestamp(text)
