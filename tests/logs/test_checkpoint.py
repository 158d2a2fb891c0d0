"""Who goes on with an output, and from where: times of lines, notes, claims."""

from __future__ import annotations

import json

import pytest

from airflow_qarnot_pool.logs.checkpoint import (
    Batch,
    Offset,
    WriterLease,
    rewrite_notice,
    with_timestamps,
)
from airflow_qarnot_pool.logs.cursor import LogCursor

NOW = 1_800_000_000.0


def times(lines: list[str], batches: tuple[Batch, ...] = (), since: float | None = None) -> list[str]:
    return [one.time[17:] for one in with_timestamps(lines, batches, since, NOW)[0]]


def test_each_line_has_a_time_of_its_own_up_to_now() -> None:
    assert times(["[a] x", "[a] x", "[b] x"]) == ["59.998000Z", "59.999000Z", "00.000000Z"]


def test_times_are_later_than_those_of_the_look_before() -> None:
    found = times(["[a] x"] * 4, since=NOW - 0.002)
    assert found == ["59.998500Z", "59.999000Z", "59.999500Z", "00.000000Z"]


def test_a_clock_that_is_behind_gives_times_all_the_same() -> None:
    assert len(times(["[a] x"] * 4, since=NOW + 60)) == 4


def test_rewritten_lines_keep_their_times_and_new_lines_have_later_ones() -> None:
    lines = ["[out 0] 1", "[out 1] 1", "[out 1] 2", "[err] 1"]
    first, batches = with_timestamps(lines, (), None, NOW)
    assert [batch.size for batch in batches] == [4]
    batches = tuple(Batch.from_json(json.loads(json.dumps(batch.to_json()))) for batch in batches)
    more = ["[out 0] 1", "[out 0] 2", "[out 1] 1", "[out 1] 2", "[err] 1"]
    again, both = with_timestamps(more, batches, None, NOW + 5)
    assert set(again) > set(first)
    assert [batch.size for batch in both] == [4, 1]
    (new,) = set(again) - set(first)
    assert new.line == "[out 0] 2"
    assert new.time > max(one.time for one in first)
    # And once more, by a third one.
    third, same = with_timestamps(more, both, None, NOW + 9)
    assert (third, same) == (again, both)


def test_a_position_survives_in_json() -> None:
    _, batches = with_timestamps(["[a] x", "[b] y"], (), None, NOW)
    position = Offset(cursor=LogCursor(uuid="u", instance=0), batches=batches, written=7)
    assert position.doubtful == 2
    assert Offset.from_json(json.loads(json.dumps(position.to_json()))) == position


@pytest.mark.parametrize("value", [None, {}, {"followers": []}, "?"])
def test_an_unclaimed_log_has_no_holder(value: object) -> None:
    assert WriterLease.from_json(value) == WriterLease()


def test_a_claim_remembers_who_was_before() -> None:
    claim = WriterLease().acquired_by("a").acquired_by("b").acquired_by("a")
    assert claim.followers == ("b", "a")
    assert WriterLease.from_json(json.loads(json.dumps(claim.to_json()))).holder == "a"


def test_one_line_is_announced_as_one() -> None:
    assert rewrite_notice(1).startswith("One line of the output may not have reached the log")
    assert rewrite_notice(1200).startswith("1,200 lines of the output may not")
