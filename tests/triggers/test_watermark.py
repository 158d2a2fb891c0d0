"""What a watermark has reported, and how much it remembers. No server is needed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from airflow_qarnot_pool.triggers import watermark
from airflow_qarnot_pool.triggers.watch import MAX_NEW, Watch
from airflow_qarnot_pool.triggers.watermark import Item, Watermark, minute_of, split

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = 60


def file(key: str, minutes: float = 0.0, etag: str = "e") -> Item:
    """A file that was written so many minutes after noon."""
    modified = NOON + timedelta(minutes=minutes)
    return {"key": key, "size": 1, "etag": etag, "modified": modified.isoformat()}


def time_of(item: Item) -> datetime:
    return datetime.fromisoformat(item["modified"])


def poll(mark: Watermark | None, *items: Item, now: float = 0.0) -> Any:
    watch = Watch(mark, HOUR)
    watch.begin(NOON + timedelta(minutes=now))
    for item in items:
        watch.offer(item, time_of(item))
    return watch.result()


def report(mark: Watermark | None, *items: Item, now: float = 0.0) -> tuple[list[str], Watermark]:
    """The keys of the events of a poll, and the watermark after them."""
    found = poll(mark, *items, now=now)
    if found is None:
        assert mark is not None
        return [], mark
    if mark is None:
        return [], found.baseline
    mark = mark.after(found.items, "modified", mark.floor)
    mark = mark.after((), "modified", mark.floor_when_complete(found.newest, HOUR))
    return [item["key"] for item in found.items], mark


class Case(NamedTuple):
    #: What each poll shows: minutes after noon on the service's clock, and the files.
    polls: list[tuple[float, list[Item]]]
    #: The keys that each poll reports.
    reported: list[list[str]]


OLD = file("old", -5000)
CASES = {
    "a file is new once": Case([(0, []), (1, [file("a", 1)]), (2, [file("a", 1)])], [[], ["a"], []]),
    "what exists is not new": Case([(0, [OLD, file("a")]), (1, [OLD, file("a")])], [[], []]),
    "a file that is overwritten": Case([(0, [file("a")]), (2, [file("a", 1)])], [[], ["a"]]),
    "with other content in the same second": Case([(0, [file("a")]), (1, [file("a", 0, "f")])], [[], ["a"]]),
    "a key that is sorted before the last one": Case(
        [(0, []), (1, [file("z", 1)]), (2, [file("a", 2), file("z", 1)])], [[], ["z"], ["a"]]
    ),
    "the oldest first": Case([(0, []), (3, [file("a", 2), file("b", 1)])], [[], ["b", "a"]]),
    "a large upload that becomes visible late": Case(
        [(0, [file("a")]), (50, [file("b", 50)]), (51, [file("b", 50), file("late", -9)])],
        [[], ["b"], ["late"]],
    ),
    "too late": Case(
        [(0, []), (90, [file("b", 90)]), (91, [file("b", 90), file("late", 1)])], [[], ["b"], []]
    ),
    "all files of an outage of days": Case(
        [(0, [file("a")]), (3000, [file("b", 5), file("c", 2999)])], [[], ["b", "c"]]
    ),
    "old files, and some in the last hour of them": Case(
        [(0, [file("a", -300), file("b", -310)]), (1, [file("a", -300), file("b", -310)])], [[], []]
    ),
    "a time in the future makes no other file old": Case(
        [(0, []), (1, [file("f", 1e6)]), (2, [file("f", 1e6), file("a", 2)])], [[], ["f"], ["a"]]
    ),
    "a response whose date is ahead makes no file old": Case(
        [(1e6, [file("x", -1)]), (1e6, [file("a", 1)]), (3, [file("b", 2)])], [[], ["a"], ["b"]]
    ),
    "a file that is deleted and written again": Case(
        [(0, [file("a")]), (1, []), (2, [file("a", 2)])], [[], [], ["a"]]
    ),
    "minutes pass without a file": Case([(0, [OLD]), (500, [OLD]), (1000, [OLD])], [[], [], []]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_polls(case: Case) -> None:
    mark: Watermark | None = None
    reported = []
    for now, items in case.polls:
        keys, mark = report(mark, *items, now=now)
        reported.append(keys)
        mark = Watermark.from_json(json.loads(json.dumps(mark.to_json())))
    assert reported == case.reported


def test_a_kill_between_two_events_of_a_poll_loses_nothing() -> None:
    """The floor follows the clock only with the last event of a poll, however long the outage was."""
    items = [file(f"{number:03}", number) for number in range(0, 600, 7)]
    found = poll(Watermark(), *items, now=600)
    parts = list(split(found.items, 10))
    for killed_after in range(len(parts)):
        mark = Watermark()
        for part in parts[:killed_after]:
            mark = mark.after(part, "modified", mark.floor)
        keys, _ = report(mark, *items, now=600)
        assert keys == [item["key"] for part in parts[killed_after:] for item in part]


def test_items_that_were_reported_meanwhile_are_left_out() -> None:
    mark = Watermark().after([file("a", 1)], "modified", 0)
    new, mark = mark.report([file("a", 1), file("b", 2)], "modified", minute_of(NOON))
    assert [item["key"] for item in new] == ["b"]
    assert mark.report([file("b", 2), file("older", -1)], "modified", 0)[0] == []


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "MAX_SEEN", 100)
    mark: Watermark | None = None
    seen: list[Item] = []
    for now in range(0, 150, 3):
        new = [file(f"{now}/{number}", now) for number in range(20)]
        seen += new
        keys, mark = report(mark, *seen, now=now)
        assert len(keys) == (0 if now == 0 else 20)
        assert sum(map(len, mark.seen.values())) <= 100
    assert mark is not None
    assert len(json.dumps(mark.to_json())) < 1500


def test_all_items_of_one_minute_are_remembered_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "MAX_SEEN", 100)
    items = [file(str(number), number / 1000) for number in range(500)]
    keys, mark = report(Watermark(), *items)
    assert len(keys) == 500
    assert report(mark, *items)[0] == []


def test_the_first_poll_of_a_large_bucket_remembers_the_last_hour() -> None:
    watch = Watch(None, HOUR)
    watch.begin(NOON)
    for minutes in range(-3000, 0):
        watch.offer(file(str(minutes), minutes), NOON + timedelta(minutes=minutes))
        assert len(watch._existing) < 300
    (found,) = [watch.result()]
    assert found is not None
    assert found.baseline is not None
    assert len(found.baseline.seen) == HOUR + 1


def test_a_poll_keeps_the_oldest_items_and_later_polls_show_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.triggers.watch.MAX_NEW", 40)
    items = [file(f"{-number:04}", number) for number in range(150)]
    mark, reported = Watermark(), []
    while (found := poll(mark, *items, now=150)) is not None:
        assert len(found.items) <= 40
        reported += [item["key"] for item in found.items]
        floor = mark.floor if not found.complete else minute_of(NOON) + 90
        mark = mark.after(found.items, "modified", floor)
    assert reported == [item["key"] for item in items]
    assert MAX_NEW > 40


def test_events_are_bounded_in_number_and_size() -> None:
    items = [file(str(number)) for number in range(25)]
    assert [len(part) for part in split(items, 10)] == [10, 10, 5]
    assert list(split([], 10)) == []
    long = [file(f"{number}{'é' * 500}") for number in range(100)]
    parts = list(split(long, 1000))
    assert [item for part in parts for item in part] == long
    assert all(len(json.dumps(part)) < watermark.MAX_EVENT_BYTES + 4000 for part in parts)
    huge = [file("k" * 200_000)]
    assert list(split(huge, 10)) == [huge]


@pytest.mark.parametrize(
    "stored",
    [
        None,
        3,
        "text",
        [],
        {},
        {"floor": 1},
        {"floor": "x", "seen": {}},
        {"floor": None, "seen": {}},
        {"floor": 1, "seen": [1]},
        {"floor": 1, "seen": {"a": "b"}},
        {"floor": 1, "seen": {"3": "no base64!"}},
    ],
)
def test_what_is_no_watermark_counts_as_none(stored: Any) -> None:
    assert Watermark.from_json(stored) is None


def test_a_watermark_covers_what_it_has_reported() -> None:
    early = Watermark().after([file("a", 1)], "modified", 0)
    late = early.after([file("b", 2)], "modified", 0)
    assert late.covers(early)
    assert not early.covers(late)
    forgotten = late.after([file("c", 200)], "modified", minute_of(NOON) + 100)
    assert forgotten.covers(late)
    assert not late.covers(forgotten)
