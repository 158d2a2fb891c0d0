"""The list of pools and its changes: no server."""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.plugins import listing
from airflow_qarnot_pool.plugins.listing import Listing, RowEntry, found_in, words_of


def entries(**states: str) -> list[RowEntry]:
    return [RowEntry({"uuid": uuid, "state": state}, {}) for uuid, state in states.items()]


def seen(found: Listing, revision: int | None) -> tuple[set[str], set[str]] | None:
    since = found.since(revision)
    return None if since is None else ({row["uuid"] for row in since[0]}, set(since[1]))


def test_a_page_is_sent_what_has_changed_since_its_revision() -> None:
    first = Listing().updated(entries(a="open", b="open"))
    assert first.updated(entries(a="open", b="open")) is first
    second = first.updated(entries(a="open", b="closed", c="open"))
    third = second.updated(entries(b="closed", c="open"))
    assert (first.revision, second.revision, third.revision) == (1, 2, 3)
    assert seen(third, 0) == ({"b", "c"}, {"a"})
    assert seen(third, 1) == ({"b", "c"}, {"a"})
    assert seen(third, 2) == (set(), {"a"})
    assert seen(third, 3) == (set(), set())
    for unknown in (None, 4, -1):
        assert seen(third, unknown) is None
    back = third.updated(entries(a="open", b="closed", c="open"))
    assert seen(back, 2) == ({"a"}, set())


def test_the_order_of_the_page_is_that_of_the_rows() -> None:
    found = Listing().updated(entries(b="open", a="open"))
    assert list(found.entries) == ["b", "a"]


def test_a_page_that_is_too_far_behind_is_sent_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_GONE", 2)
    found = Listing().updated(entries(a="", b="", c="", d=""))
    for left in ("bcd", "cd", "d"):
        found = found.updated(entries(**dict.fromkeys(left, "")))
    assert seen(found, 1) is None  # that "a" has left is forgotten
    assert seen(found, 2) == (set(), {"b", "c"})


def test_a_search_is_bounded_and_finds_each_word_alone() -> None:
    words = words_of(" Frame_31  nightly frame_31 " + " ".join(map(str, range(20))))
    assert (words[:3], len(words)) == (["frame_31", "nightly", "0"], listing.MAX_WORDS)
    assert words_of("x" * 1000) == ["x" * listing.MAX_WORD]
    left_out = {"a": "frame_31\nother", "b": "nightly", "c": ""}
    assert found_in(left_out, ["frame_3", "nightly", "no"]) == {"frame_3": ["a"], "nightly": ["b"], "no": []}
