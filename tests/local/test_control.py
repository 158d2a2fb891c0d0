"""The control side: faults, the request log, the account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.http.faults import Faults
from airflow_qarnot_pool.local.http.rate_limit import RateLimit
from airflow_qarnot_pool.local.schemas.errors import ApiError

from .conftest import Http, until

POOL = {"name": "p", "profile": "docker-batch", "instanceCount": 1}


@pytest.fixture(scope="module")
def own_server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.1) as running:
        yield running


@pytest.fixture
def own(own_server: LocalQarnot) -> Iterator[LocalQarnot]:
    """A server with no faults, no pools and an empty log."""
    own_server.clear_requests()
    yield own_server
    own_server.faults([])
    for pool in own_server.call("GET", "/pools"):
        own_server.call("DELETE", f"/pools/{pool['uuid']}")
    until(lambda: not own_server.call("GET", "/pools"))


@pytest.fixture
def http(own: LocalQarnot) -> Http:
    return Http(own)


def pools(own: LocalQarnot) -> int:
    return len(own.call("GET", "/pools"))


# ---- which rule applies (no server) --------------------------------------------------------------


def kinds(faults: Faults, method: str, path: str, count: int) -> list[str | None]:
    return [rule.kind if (rule := faults.choose(method, path)) else None for _ in range(count)]


def test_the_first_matching_rule_with_times_left() -> None:
    faults = Faults()
    faults.replace(
        [
            {"kind": "reset", "method": "post", "path": "^/pools$", "times": 1},
            {"kind": "lost", "path": "/pools", "times": 2},
            {"kind": "status", "method": "GET", "status": 500},
        ]
    )
    assert kinds(faults, "POST", "/tasks", 1) == [None]
    assert kinds(faults, "POST", "/pools", 4) == ["reset", "lost", "lost", None]
    assert kinds(faults, "GET", "/anything", 3) == ["status"] * 3


def test_chance_is_the_same_for_the_same_seed() -> None:
    def draw(seed: int) -> list[str | None]:
        faults = Faults()
        faults.replace({"seed": seed, "rules": [{"kind": "lost", "probability": 0.3}]})
        return kinds(faults, "GET", "/", 200)

    assert draw(7) == draw(7) != draw(8)
    assert 30 < draw(7).count("lost") < 90


@pytest.mark.parametrize(
    "bad",
    [
        {"rules": 3},
        "x",
        ["x"],
        [{"kind": "explode"}],
        [{"kind": "reset", "path": "("}],
        [{"kind": "reset", "tines": 3}],
        [{"kind": "delay", "seconds": "soon"}],
        [{"kind": "delay", "when": "sometime"}],
    ],
)
def test_bad_rules_are_refused(bad: Any) -> None:
    with pytest.raises(ApiError, match=r"[Ff]ault"):
        Faults().replace(bad)


# ---- what a client sees --------------------------------------------------------------------------


def test_status(own: LocalQarnot, http: Http) -> None:
    own.faults(
        [
            {
                "kind": "status",
                "method": "POST",
                "path": "^/pools$",
                "times": 1,
                "status": 429,
                "retry_after": 7,
            }
        ]
    )
    refused = http("POST", "/pools", POOL)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "7")
    assert refused.json()["message"]
    assert pools(own) == 0
    assert http("POST", "/pools", POOL).status_code == 200


def test_a_rate_limit_serves_so_many_a_second() -> None:
    now = 0.0
    limit = RateLimit(2, lambda: now)
    assert [limit.wait() for _ in range(4)] == [0, 0, 0.5, 0.5]
    now += 0.5
    assert [limit.wait(), limit.wait()] == [0, 0.5]
    now += 100  # no more than one second is saved
    assert [limit.wait() for _ in range(3)] == [0, 0, 0.5]
    slow = RateLimit(0.1, lambda: now)
    assert [slow.wait(), slow.wait()] == [0, 10]


def test_requests_beyond_the_rate_limit_get_429(private: Callable[..., LocalQarnot]) -> None:
    server = private(rate_limit=0.001)
    http = Http(server)
    assert http("POST", "/pools", POOL).status_code == 200
    refused = http("POST", "/pools", POOL)
    assert refused.status_code == 429
    assert 900 < int(refused.headers["Retry-After"]) <= 1000
    assert [one["status"] for one in server.requests()] == [200, 429]
    assert len(server.get_account()["pools"]) == 1


def test_reset_happens_before_any_effect(own: LocalQarnot, http: Http) -> None:
    own.faults([{"kind": "reset", "method": "POST", "times": 1}])
    with pytest.raises(requests.ConnectionError):
        http("POST", "/pools", POOL)
    assert pools(own) == 0
    assert http("POST", "/pools", POOL).status_code == 200


def test_lost_takes_effect(own: LocalQarnot, http: Http) -> None:
    own.faults([{"kind": "lost", "method": "POST", "times": 1}])
    with pytest.raises(requests.ConnectionError):
        http("POST", "/pools", POOL)
    assert pools(own) == 1


def test_garbage_takes_effect_and_is_no_json(own: LocalQarnot, http: Http) -> None:
    own.faults([{"kind": "garbage", "method": "POST", "times": 1}])
    answer = http("POST", "/pools", POOL)
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    assert pools(own) == 1


@pytest.mark.parametrize(("when", "made"), [(None, 1), ("after", 1), ("before", 0)])
def test_delay_answers_late_and_takes_effect_first_unless_told(
    own: LocalQarnot, http: Http, when: str | None, made: int
) -> None:
    own.faults([{"kind": "delay", "method": "POST", "times": 1, "seconds": 600, "when": when}])
    with pytest.raises(requests.ReadTimeout):
        requests.post(own.url + "/pools", json=POOL, headers={"Authorization": own.token}, timeout=0.5)
    until(lambda: pools(own) == made)
    own.faults([{"kind": "delay", "method": "POST", "times": 1, "seconds": 0.3, "when": when}])
    began = time.monotonic()
    assert http("POST", "/pools", POOL).status_code == 200
    assert time.monotonic() - began >= 0.3


def test_a_wrong_token_is_told_so_under_faults_too(own: LocalQarnot) -> None:
    own.faults([{"kind": "garbage"}])
    assert (
        requests.get(own.url + "/_local/requests", headers={"Authorization": "x"}, timeout=10).status_code
        == 401
    )


def test_the_log_has_every_request_in_order_with_its_fault(own: LocalQarnot, http: Http) -> None:
    own.faults(
        [
            {"kind": "lost", "method": "DELETE"},
            {"kind": "reset", "method": "PUT"},
            {"kind": "status", "method": "PATCH", "status": 503},
            {"kind": "garbage", "method": "GET", "path": "^/versions$"},
        ]
    )
    before = time.time()
    http("GET", "/v1/pools?tag=a&tag=b")
    for method in ("DELETE", "PUT"):
        with pytest.raises(requests.ConnectionError):
            http(method, "/pools/x")
    http("PATCH", "/pools/x")
    http("GET", "/versions")
    requests.get(own.url + "/pools", timeout=10)
    log = own.requests()
    assert [(e["method"], e["path"], e["query"], e["status"], e.get("fault")) for e in log] == [
        ("GET", "/pools", "tag=a&tag=b", 200, None),
        ("DELETE", "/pools/x", "", None, "lost"),
        ("PUT", "/pools/x", "", None, "reset"),
        ("PATCH", "/pools/x", "", 503, "status"),
        ("GET", "/versions", "", 200, "garbage"),
        ("GET", "/pools", "", 401, None),
    ]
    moments = [entry["at"] for entry in log]
    assert before <= moments[0]
    assert moments == sorted(moments)
    own.clear_requests()
    assert own.requests() == []


def test_a_storm_of_faults_has_exactly_the_effects_it_should(
    private: Callable[..., LocalQarnot], capfd: pytest.CaptureFixture[str]
) -> None:
    server = private()
    http = Http(server)
    rules = [
        {"kind": kind, "probability": 0.1, "seconds": 0.01}
        for kind in ("status", "reset", "lost", "garbage", "delay")
    ]
    server.faults(rules, seed=11)
    answered = 0
    for _ in range(200):
        try:
            answer = http("POST", "/tasks", {"name": "t", "profile": "docker-batch"})
        except requests.ConnectionError:
            continue
        answered += answer.status_code == 200 and answer.text.startswith("{")
    server.faults([])
    log = server.requests()
    assert len(log) == 200
    seen = [entry.get("fault") for entry in log]
    assert {None, "status", "reset", "lost", "garbage", "delay"} == set(seen)
    assert answered == seen.count(None) + seen.count("delay")
    assert len(server.call("GET", "/tasks")) == answered + seen.count("lost") + seen.count("garbage")
    server.stop()
    assert capfd.readouterr().err == ""


# ---- account, nodes ------------------------------------------------------------------------------


def test_account(own: LocalQarnot) -> None:
    found = own.set_account(maxPool=3, credits=2.5)
    assert (found["maxPool"], found["credits"]) == (3, 2.5)
    assert own.call("GET", "/info")["maxPool"] == 3
    assert own.set_account(maxPool=None)["maxPool"] is None
    for bad in ({"maxPools": 1}, {"maxPool": "x"}, {"maxPool": -1}, {"credits": None}):
        with pytest.raises(RuntimeError, match=": 400"):
            own.call("PUT", "/_local/account", bad)
    own.set_account(maxPool=1000, credits=1000)


def test_cost_limitss_consume_what_is_spent(own: LocalQarnot) -> None:
    project = own.call("GET", "/info")["projects"][0]["uuid"]
    path = f"/credits/v1/projects/{project}/budgets"
    old = {"alias": "old", "totalAmountInCents": 5, "expirationDateUtc": "2020-01-01T00:00:00Z"}
    now = {"alias": "now", "totalAmountInCents": 500, "consumedAmountInCents": 20}
    own.set_account(budgets=[old, {**now, "budgetOverrunPolicy": "BlockNew"}])
    before = own.get_account()["creditsSpent"]
    pool = own.call("POST", "/pools", {"name": "p", "profile": "docker-batch", "instanceCount": 1})["uuid"]
    own.advance_clock(3600)
    assert [one["alias"] for one in own.call("GET", path)["budgets"]] == ["old", "now"]
    (budget,) = own.call("GET", path + "?activeOnly=True")["budgets"]
    spent = own.get_account()["creditsSpent"] - before
    assert spent > 0.3
    assert budget["consumedAmountInCents"] == pytest.approx(20 + spent * 100, abs=0.6)
    assert budget["remainingAmountInCents"] == pytest.approx(480 - spent * 100, abs=0.6)
    assert (budget["budgetOverrunPolicy"], budget["isArchived"]) == ("BlockNew", False)
    for bad in (
        {},
        {"totalAmountInCents": -1},
        {**now, "budgetOverrunPolicy": "x"},
        {**now, "startDateUtc": "x"},
    ):
        with pytest.raises(RuntimeError, match=": 400"):
            own.set_account(budgets=[bad])
    own.call("DELETE", f"/pools/{pool}")
    own.set_account(budgets=[])


def test_nodes_show_what_runs_on_them(own: LocalQarnot) -> None:
    pool = own.call("POST", "/pools", POOL)["uuid"]
    constants = [{"key": "DOCKER_CMD", "value": "sleep 600"}]
    task = own.call("POST", "/tasks", {"name": "t", "poolUuid": pool, "constants": constants})["uuid"]

    def running() -> list[dict[str, Any]]:
        return [run for node in own.nodes() if node["pool"] == pool for run in node["running"]]

    until(running)
    (run,) = running()
    assert (run["task"], run["instance"]) == (task, 0)


def test_the_handle_tells_what_was_refused(own: LocalQarnot) -> None:
    with pytest.raises(RuntimeError, match=r"PUT /_local/clock: 400 .*speed"):
        own.set_speed(-1)
    assert own.token not in repr(own)
    with pytest.raises(RuntimeError, match="started already"):
        own.start()


def test_a_server_that_cannot_start_says_so(
    private: Callable[..., LocalQarnot], capfd: pytest.CaptureFixture[str]
) -> None:
    running = private()
    port = int(running.url.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="did not start"):
        private(port=port)
    assert "cannot listen" in capfd.readouterr().err


@pytest.mark.parametrize("bills", [True, False])
def test_credits_of_a_deleted_pool_are_told_unless_the_account_forgets_them(
    own: LocalQarnot, http: Http, bills: bool
) -> None:
    own.set_account(billsDeleted=bills)
    uuid = own.call("POST", "/pools", POOL)["uuid"]
    until(lambda: own.call("GET", f"/pools/{uuid}")["state"] == "FullyExecuting")
    own.advance_clock(100)
    own.call("DELETE", f"/pools/{uuid}")
    until(lambda: pools(own) == 0)
    answer = http("GET", f"/credits/v1/pools/{uuid}/credits")
    own.set_account(billsDeleted=True)
    assert answer.status_code == (200 if bills else 404)
    if bills:
        assert answer.json()["credits"] >= 0.01
