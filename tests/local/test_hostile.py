"""What the local Qarnot can do to its clients on purpose: capped and lagging searches, clocks that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.backend.clock import ShownTime

from .conftest import Http

Private = Callable[..., LocalQarnot]
ANY = {"operator": "Like", "field": "Name", "value": "."}


class World:
    """A server whose clock stands still, and one pool on it."""

    def __init__(self, server: LocalQarnot) -> None:
        self.server, self.http = server, Http(server)
        self.pool = str(
            self.call("POST", "/pools", {"name": "p", "profile": "docker-batch", "instanceCount": 1})["uuid"]
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http(method, path, body)
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else None

    def task(self) -> str:
        body = {"name": "t", "poolUuid": self.pool, "instanceCount": 1}
        return str(self.call("POST", "/tasks", body)["uuid"])

    def searched(self, filter: Any = ANY, **more: Any) -> dict[str, str]:
        found = self.call("POST", "/tasks/search", {"filter": filter, **more})
        return {one["uuid"]: one["state"] for one in found}

    def moved(self, kind: str, uuid: str) -> datetime:
        return datetime.fromisoformat(self.call("GET", f"/{kind}/{uuid}")["stateTransitionTime"])

    def now(self) -> datetime:
        return datetime.fromtimestamp(int(self.server.get_clock()["now"]), UTC)


@pytest.fixture
def still(private: Private) -> World:
    return World(private(speed=0, boot_seconds=3600))


def test_a_capped_search_is_cut_without_a_word_and_pages_lead_on(still: World) -> None:
    tasks = [still.task() for _ in range(7)]
    still.server.cap_searches(3)
    assert list(still.searched(maximumResults=1000)) == tasks[:3]
    page = still.call("POST", "/tasks/paginate", {"filter": ANY, "maximumResults": 1000})
    assert ([one["uuid"] for one in page["data"]], page["total"], page["isTruncated"]) == (tasks[:3], 7, True)
    still.server.cap_searches(3, refuses=True)
    too_many = {"filter": ANY, "maximumResults": 4}
    assert still.http("POST", "/tasks/search", too_many).status_code == 400
    assert still.http("POST", "/tasks/paginate", too_many).status_code == 400
    assert list(still.searched()) == tasks[:3]
    still.server.cap_searches(None)
    assert list(still.searched(maximumResults=4)) == tasks[:4]
    assert list(still.searched()) == tasks


def test_a_lagging_search_shows_an_older_state_and_names_the_true_one(still: World) -> None:
    first, deleted = still.task(), still.task()
    still.server.lag_searches(10)
    second = still.task()
    still.call("POST", f"/tasks/{first}/abort")
    still.call("DELETE", f"/tasks/{deleted}")
    tag = {"operator": "Equal", "field": "PoolUuid", "value": still.pool}
    for filter in (ANY, tag, {"operator": "In", "field": "Uuid", "values": [first, second, deleted]}):
        assert still.searched(filter) == {first: "Submitted", deleted: "Submitted"}
    assert still.call("GET", f"/tasks/{first}")["state"] == "Cancelled"
    still.server.advance_clock(11)
    assert still.searched() == {first: "Cancelled", second: "Submitted"}
    still.server.lag_searches(0)
    third = still.task()
    assert third in still.searched()


def test_a_clock_set_back_dates_what_happens_from_then_on_and_the_answers(still: World) -> None:
    before = still.task()
    shown = still.moved("tasks", before)
    still.server.advance_clock(5)
    still.server.step_clock(-30)
    after = still.task()
    assert still.moved("tasks", before) == shown
    assert still.moved("tasks", after) == still.now() - timedelta(seconds=30)
    dated = parsedate_to_datetime(still.http("GET", f"/tasks/{after}").headers["Date"])
    assert dated == still.now() - timedelta(seconds=30)
    since = {"operator": "GreaterThanOrEqual", "field": "StateTransitionTime", "value": shown.isoformat()}
    assert list(still.searched(since)) == [before]


def test_a_part_with_a_clock_of_its_own_dates_its_objects_by_it(still: World) -> None:
    one = still.task()
    still.server.skew_clock(3600, uuid=one)
    assert still.moved("tasks", one) == still.now() + timedelta(hours=1)
    still.server.skew_clock(-60, every=2)
    offs = {still.moved("tasks", still.task()) - still.now() for _ in range(4)}
    assert offs == {timedelta(), timedelta(seconds=-60)}
    soon = still.now() + timedelta(minutes=30)
    since = {"operator": "GreaterThanOrEqual", "field": "StateTransitionTime", "value": soon.isoformat()}
    assert list(still.searched(since)) == [one]


def test_a_proxy_answers_with_a_page_and_nothing_takes_effect(still: World) -> None:
    task = still.task()
    still.server.faults(
        [{"kind": "proxy", "status": 404, "method": "POST", "path": f"^/tasks/{task}/abort$", "times": 1}]
    )
    answer = still.http("POST", f"/tasks/{task}/abort")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html")
    assert still.call("GET", f"/tasks/{task}")["state"] == "Submitted"


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        ("/_local/searches", {"cap": 0}),
        ("/_local/searches", {"lag": 3}),
        ("/_local/clock", {"skew": {"seconds": "much"}}),
        ("/_local/clock", {"skew": {"seconds": 1, "every": 0}}),
        ("/_local/clock", {"step_seconds": None}),
    ],
)
def test_settings_that_mean_nothing_are_refused(server: LocalQarnot, path: str, bad: Any) -> None:
    assert Http(server)("PUT", path, bad).status_code == 400


def test_the_shown_time_keeps_the_times_that_it_has_shown() -> None:
    shown_time = ShownTime()
    assert (shown_time.show(5.0), shown_time.is_true) == (5.0, True)
    shown_time.step(10.0, -3.0)
    shown_time.step(20.0, 5.0)
    assert [shown_time.show(when) for when in (9.0, 10.0, 19.0, 20.0)] == [9.0, 7.0, 16.0, 22.0]
    assert not shown_time.is_true
