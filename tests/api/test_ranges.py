from __future__ import annotations

import pytest

from airflow_qarnot_pool.api.ranges import format_ranges, parse_ranges


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (None, set()),
        ("", set()),
        ("  ", set()),
        ("0", {0}),
        ("0-2", {0, 1, 2}),
        ("0-2,4-5,17", {0, 1, 2, 4, 5, 17}),
        (" 1 , 3 - 4 ", {1, 3, 4}),
        ("5-5,5", {5}),
    ],
)
def test_parse(text, ids):
    assert parse_ranges(text) == ids


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1,,2", "3-1", "1;2", "0-9999999999", "1.5"])
def test_nonsense_is_refused(text):
    with pytest.raises(ValueError, match=r"range|instance id"):
        parse_ranges(text)


@pytest.mark.parametrize(
    ("ids", "text"),
    [([], ""), ([3], "3"), ([2, 0, 1], "0-2"), ([0, 1, 4, 5, 17, 17], "0-1,4-5,17")],
)
def test_format(ids, text):
    assert format_ranges(ids) == text
    assert parse_ranges(text) == set(ids)


def test_explicit_ranges_mean_the_same_whether_ends_are_included_or_not():
    assert format_ranges([2, 0, 1], explicit=True) == "0,1,2"
