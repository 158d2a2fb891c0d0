"""The cache of the Pools page: one question at a time, bounded, and nobody waits."""

from __future__ import annotations

import threading
import time
from typing import Any

from airflow_qarnot_pool.plugins.cache import (
    LIST,
    MAX_DETAILS,
    MAX_QUEUED,
    Cache,
    CacheEntry,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def settled(cache: Cache, key: str = LIST) -> CacheEntry:
    """The look once nothing is being asked."""
    deadline = time.monotonic() + 30
    while (look := cache.get(key)).refreshing:
        assert time.monotonic() < deadline, "it asks on and on"
        time.sleep(0.002)
    return look


def test_the_first_look_gives_nothing_and_does_not_wait() -> None:
    go = threading.Event()
    cache = Cache(lambda key, first: go.wait(10), max_age=5, pause=0, clock=Clock())
    look = cache.get()
    assert (look.value, look.age, look.refreshing) == (None, None, True)
    go.set()
    assert settled(cache).value is True


def test_it_asks_once_however_many_look_and_again_only_when_due() -> None:
    asked: list[str] = []
    clock = Clock()
    cache = Cache(lambda key, first: asked.append(key) or len(asked), max_age=5, pause=0, clock=clock)
    for _ in range(100):
        cache.get()
    assert settled(cache).value == 1
    clock.now = 4.9
    assert settled(cache).age == 4.9
    clock.now = 5.0
    stale = cache.get()
    assert (stale.value, stale.refreshing) == (1, True)
    assert settled(cache).value == 2
    assert asked == [LIST, LIST]


def test_nothing_is_asked_while_nobody_looks() -> None:
    asked: list[str] = []
    clock = Clock()
    cache = Cache(lambda key, first: asked.append(key), max_age=5, pause=0, clock=clock)
    cache.get()
    settled(cache)
    clock.now = 1000.0
    assert len(asked) == 1


def test_a_failing_request_keeps_known_data_says_why_and_is_tried_less_often() -> None:
    clock, answers = Clock(), iter([1, *[ValueError("away")] * 20])

    def ask(key: str, first: Any = None) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = Cache(ask, max_age=5, pause=0, describe=lambda error: f"because {error}", clock=clock)
    cache.get()
    settled(cache)
    pauses = []
    for _ in range(8):
        start = clock.now
        while not cache.get().refreshing:
            clock.now += 1
        pauses.append(clock.now - start)
        look = settled(cache)
        assert (look.value, look.error) == (1, "because away")
        assert look.age == clock.now
    assert pauses == [5, 5, 10, 20, 40, 60, 60, 60]


def test_a_wish_during_a_question_is_asked_again() -> None:
    """After a pool was closed by hand, an answer from before is not the newest."""
    began, go = threading.Event(), threading.Event()
    asked: list[int] = []

    def ask(key: str, first: Any = None) -> int:
        asked.append(1)
        began.set()
        go.wait(10)
        return len(asked)

    cache = Cache(ask, max_age=5, pause=0, clock=Clock())
    cache.get()
    began.wait(10)
    cache.get(newer=True)
    go.set()
    assert settled(cache).value == 2


def test_a_refresh_asks_only_for_what_is_cached() -> None:
    asked: list[str] = []
    cache = Cache(lambda key, first: asked.append(key), max_age=5, pause=0, clock=Clock())
    cache.refresh("never read")
    cache.get("read")
    settled(cache, "read")
    cache.refresh("read")
    settled(cache, "read")
    assert asked == ["read", "read"]


def test_the_list_comes_before_details_and_one_question_at_a_time() -> None:
    began, go = threading.Event(), threading.Event()
    asked: list[str] = []
    together, most = [0], [0]

    def ask(key: str, first: Any = None) -> None:
        began.set()
        together[0] += 1
        most[0] = max(most[0], together[0])
        go.wait(10)
        asked.append(key)
        together[0] -= 1

    cache = Cache(ask, max_age=5, pause=0, clock=Clock())
    cache.get("a")
    began.wait(10)
    for key in ("b", "c", LIST):
        cache.get(key)
    go.set()
    for key in ("a", "b", "c", LIST):
        settled(cache, key)
    assert asked == ["a", LIST, "b", "c"]
    assert most == [1]


def test_a_detail_older_than_the_list_is_asked_for_again() -> None:
    asked: list[str] = []
    clock = Clock()

    def ask(key: str, first: Any) -> int:
        asked.append(key)
        if asked.count("fails") == 2:
            raise ValueError("away")
        return len(asked)

    cache = Cache(ask, max_age=5, pause=0, clock=clock)
    for key in ("fails", "a"):
        cache.get(key)
        settled(cache, key)
    clock.now = 4.0
    cache.get()
    settled(cache)
    asked.clear()
    asked.append("fails")
    assert (cache.get("a").refreshing, cache.get("fails").refreshing) == (True, True)
    settled(cache, "a")
    assert settled(cache, "fails").error == "away"
    assert not cache.get("a").refreshing
    assert not cache.get("fails").refreshing  # as rarely as everything that fails


def test_details_that_nobody_looks_at_are_forgotten() -> None:
    cache = Cache(lambda key, first: key, max_age=5, pause=0, clock=Clock())
    settled(cache)
    for n in range(MAX_DETAILS + 10):
        settled(cache, str(n))
    assert cache.get(str(MAX_DETAILS + 9)).value is not None
    assert cache.get("0").value is None
    assert cache.get().value == LIST


def test_a_thousand_wishes_are_no_thousand_questions() -> None:
    began, go = threading.Event(), threading.Event()
    asked: list[str] = []

    def ask(key: str, first: Any = None) -> None:
        began.set()
        go.wait(10)
        asked.append(key)

    cache = Cache(ask, max_age=5, pause=0, clock=Clock())
    cache.get("first")
    began.wait(10)
    for n in range(1000):
        cache.get(str(n))
    cache.get()
    go.set()
    settled(cache)
    settled(cache, "0")
    assert len(asked) <= 2 + MAX_QUEUED
    assert LIST in asked


def test_a_first_answer_is_shown_until_the_whole_one_is_there() -> None:
    began, go, clock = threading.Event(), threading.Event(), Clock()

    def ask(key: str, first: Any) -> str:
        first("pools")
        first("first")
        began.set()
        go.wait(10)
        return "whole"

    cache = Cache(ask, max_age=5, pause=0, clock=clock)
    cache.get()
    began.wait(10)
    assert (cache.get().value, cache.get().refreshing) == ("first", True)
    go.set()
    assert settled(cache).value == "whole"
    began.clear()
    go.clear()
    clock.now = 5
    cache.get()
    began.wait(10)
    assert cache.get().value == "whole"  # never less than was known
    go.set()


def test_a_version_names_one_value_of_one_process() -> None:
    clock = Clock()
    one, other = (
        Cache(lambda key, first: f"text at {clock.now}", max_age=5, pause=0, clock=clock) for _ in range(2)
    )
    known = settled(one).version
    assert one.get().version == known
    assert settled(other).version != known
    clock.now = 5
    one.get()
    assert settled(one).version != known


def test_an_equal_value_keeps_its_version() -> None:
    answers = iter([[1], [1], [2]])
    cache = Cache(lambda key, first: next(answers), max_age=5, pause=0, clock=Clock())
    cache.get()
    versions = [settled(cache).version]
    for _ in range(2):
        cache.get(newer=True)
        versions.append(settled(cache).version)
    assert versions[0] == versions[1] != versions[2]
    assert {version.partition(".")[0] for version in versions} == {cache.get().source}


def test_a_fetch_that_takes_long_is_followed_by_a_longer_pause() -> None:
    """An account of tens of thousands of pools must not keep the api-server busy."""
    clock = Clock()
    asked: list[float] = []

    def fetch(key: str, first: Any) -> None:
        asked.append(clock.now)
        clock.now += 10

    cache = Cache(fetch, max_age=5, pause=0, clock=clock)
    cache.get()
    assert settled(cache).age == 0
    for clock.now in (49.9, 50.0):
        settled(cache)
    assert asked == [0, 50]
