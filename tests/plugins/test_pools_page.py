"""The Pools page in Airflow's own application: who may do what, what is shown, and what it asks of Qarnot."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.plugins.conftest import PAGE, Maker, identity, until

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from airflow_qarnot_pool.local import LocalQarnot

As = Callable[[str | None], "TestClient"]
CLOSE = {"X-Qarnot-Pools": "close"}


def listed(client: TestClient) -> dict[str, Any]:
    answer = client.get(f"{PAGE}/api/pools")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def row_of(client: TestClient, uuid: str, **wanted: Any) -> dict[str, Any]:
    """The row of a pool as soon as it is as wanted."""

    def look() -> dict[str, Any] | None:
        for row in listed(client)["pools"]:
            if row["uuid"] == uuid and all(row[name] == value for name, value in wanted.items()):
                return dict(row)
        return None

    return dict(until(look, f"pool {uuid} with {wanted}"))


def detail_of(client: TestClient, uuid: str, ready: Callable[[dict[str, Any]], Any] = bool) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = client.get(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}").json()["pool"]
        return found if found and ready(found) else None

    return dict(until(look, f"pool {uuid} in full"))


NOBODY = "00000000-0000-4000-8000-000000000000"
ROUTES = [
    # method, path, status by role: anonymous, viewer, user, op, admin
    ("GET", "/", (401, 200, 200, 200, 200)),
    ("GET", "/static/pools.js", (401, 200, 200, 200, 200)),
    ("GET", "/static/pools.css", (401, 200, 200, 200, 200)),
    ("GET", "/static/icon.svg", (401, 200, 200, 200, 200)),
    ("GET", "/api/pools", (401, 403, 403, 200, 200)),
    ("GET", f"/api/connections/qarnot_default/pools/{NOBODY}", (401, 403, 403, 200, 200)),
    ("GET", "/api/dags/frames/pools?run_id=manual__1", (401, 200, 200, 200, 200)),
    (
        "GET",
        f"/api/dags/frames/connections/qarnot_default/pools/{NOBODY}?run_id=manual__1",
        (401, 404, 404, 404, 404),
    ),
    ("POST", f"/api/connections/qarnot_default/pools/{NOBODY}/close", (401, 403, 403, 404, 404)),
]


@pytest.mark.parametrize(("method", "path", "expected"), ROUTES, ids=[f"{m} {p}" for m, p, _ in ROUTES])
def test_every_route_asks_who_is_there(
    as_role: As, method: str, path: str, expected: tuple[int, ...]
) -> None:
    found = []
    for role in (None, "viewer", "user", "op", "admin"):
        answer = as_role(role).request(method, PAGE + path, headers=CLOSE)
        found.append(answer.status_code)
        assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert tuple(found) == expected


def test_the_tab_of_a_run_needs_the_right_to_read_runs_of_that_dag(
    as_role: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's simple auth manager lets every role read runs; others decide by DAG."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

    viewer, asked = as_role("viewer"), []

    def may(*, method: str, details: Any = None, access_entity: Any = None, user: Any) -> bool:
        asked.append((method, access_entity))
        return details is None or details.id != "secret"

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", may)
    for path, allowed in (
        ("pools", 200),
        (f"connections/qarnot_default/pools/{NOBODY}", 404),
    ):
        for dag_id, expected in (("secret", 403), ("frames", allowed)):
            answer = viewer.get(f"{PAGE}/api/dags/{dag_id}/{path}", params={"run_id": "manual__1"})
            assert (answer.status_code, dag_id) == (expected, dag_id)
    assert set(asked) == {("GET", DagAccessEntity.RUN)}


def test_the_table_of_routes_is_whole(airflow_app: Any, admin: TestClient) -> None:
    """A route that nobody tried as a stranger must not exist."""
    admin.get(f"{PAGE}/")
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin

    app = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app
    tried = len({path.split("?")[0] for _, path, _ in ROUTES if "/static/" not in path}) + 1
    assert len([route for route in app.routes if hasattr(route, "methods")]) == tried


def test_a_pool_from_booting_to_closed(make: Maker, admin: TestClient) -> None:
    uuid = make.pool("warm pool", size=2)
    row = row_of(admin, uuid, phase="open", ready=2)
    assert (row["state"], row["wanted"], row["name"]) == ("FullyExecuting", 2, "warm pool")
    assert row["owner"]["link"] == "dags/frames/runs/manual__1"
    assert row["console"] == f"https://console.example/pools/{uuid}"
    task = make.task(uuid, "true")
    until(lambda: row_of(admin, uuid)["tasks"]["succeeded"] == 1, "the task's end in the list")
    found = detail_of(admin, uuid, lambda pool: pool["tasks"] and pool["tasks"][0]["group"] == "succeeded")
    assert [one["uuid"] for one in found["tasks"]] == [task]
    assert found["tasks"][0]["link"] == "dags/frames/runs/manual__1/tasks/work"
    assert [step["state"] for step in found["timeline"]][-1] == "FullyExecuting"
    assert len(found["nodes"]) == 2
    answer = admin.post(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close", headers=CLOSE)
    assert answer.status_code == 200, answer.text
    row_of(admin, uuid, phase="closed", closable=False)


def test_the_cost_is_shown(make: Maker, admin: TestClient, server: LocalQarnot) -> None:
    uuid = make.pool()
    row_of(admin, uuid, phase="open")
    row = until(lambda: (found := row_of(admin, uuid))["figures"] and found, "figures")
    assert row["figures"]["euros"] >= 0
    assert row["figures"]["datacenter"] == "Conventional datacenter"
    assert row["figures"]["saved_g"] >= 0


def test_closing_is_written_to_the_audit_log(make: Maker, as_role: As) -> None:
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    uuid = make.pool(owner=identity("audited"))
    answer = as_role("op").post(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close", headers=CLOSE)
    assert answer.status_code == 200, answer.text
    with create_session() as session:
        [entry] = session.scalars(select(Log).where(Log.dag_id == "audited")).all()
        assert (entry.event, entry.owner, entry.run_id) == ("qarnot.close_pool", "op", "manual__1")
        assert uuid in entry.extra


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**CLOSE, "Origin": "https://evil.example"},
        {**CLOSE, "Sec-Fetch-Site": "cross-site"},
        {**CLOSE, "Sec-Fetch-Site": "same-site"},
        {**CLOSE, "Origin": "null"},
    ],
    ids=["no header", "foreign origin", "cross-site", "sister site", "sandboxed"],
)
def test_another_site_cannot_close_a_pool(make: Maker, admin: TestClient, headers: dict[str, str]) -> None:
    uuid = make.pool()
    answer = admin.post(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close", headers=headers)
    assert answer.status_code == 403
    assert make.client.pools.get(uuid).state not in ("Closing", "Closed")


def test_the_page_of_this_airflow_can(make: Maker, admin: TestClient) -> None:
    uuid = make.pool()
    headers = {**CLOSE, "Origin": "http://airflow.example", "Sec-Fetch-Site": "same-origin"}
    answer = admin.post(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close", headers=headers)
    assert answer.status_code == 200, answer.text


def test_a_pool_that_is_not_ours_is_neither_shown_nor_closed(
    make: Maker, admin: TestClient, server: LocalQarnot
) -> None:
    ours = make.pool()
    foreign = [
        make.pool(owner=identity(namespace="another")),
        make.pool(labels={"airflow.format": "1", "airflow.namespace": "another"}),
    ]
    row_of(admin, ours, phase="open")
    shown = {row["uuid"] for row in listed(admin)["pools"]}
    for uuid in foreign:
        assert uuid not in shown
        answer = admin.post(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close", headers=CLOSE)
        assert answer.status_code == 404
        assert make.client.pools.get(uuid).state not in ("Closing", "Closed")
        path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}"
        found = until(lambda path=path: (got := admin.get(path).json())["error"] and got, "the refusal")
        assert found["pool"] is None


def test_only_the_pages_connections_and_uuids_are_known(admin: TestClient) -> None:
    assert admin.get(f"{PAGE}/api/connections/aws_default/pools/{NOBODY}").status_code == 404
    for what in ("list", "a-shortname", "..%2F..%2Finfo"):
        assert admin.get(f"{PAGE}/api/connections/qarnot_default/pools/{what}").status_code == 404


def test_a_run_sees_its_own_pools_and_of_a_shared_one_its_own_tasks(make: Maker, as_role: As) -> None:
    mine = make.pool(owner=identity("frames", "one"))
    others = make.pool(owner=identity("frames", "two"))
    shared = make.pool(owner=identity("setup", "zero"), labels={"airflow.shared": "nightly"})
    task = make.task(shared, owner=identity("frames", "one", "work"))
    make.task(shared, owner=identity("secret_dag", "one", "work"), name="of another DAG")
    viewer = as_role("viewer")

    def look() -> list[dict[str, Any]] | None:
        rows = viewer.get(f"{PAGE}/api/dags/frames/pools", params={"run_id": "one"}).json()["pools"]
        return rows if len(rows) == 2 else None

    assert {row["uuid"] for row in until(look, "both pools of the run")} == {mine, shared}
    base = f"{PAGE}/api/dags/frames/connections/qarnot_default/pools"
    assert viewer.get(f"{base}/{others}", params={"run_id": "one"}).status_code == 404

    def full() -> dict[str, Any] | None:
        found: dict[str, Any] | None = viewer.get(f"{base}/{shared}", params={"run_id": "one"}).json()["pool"]
        return found if found and found["tasks"] else None

    found = until(full, "the shared pool in full")
    assert [one["uuid"] for one in found["tasks"]] == [task]
    assert "secret_dag" not in str(found)


def test_names_from_outside_stay_text(make: Maker, admin: TestClient) -> None:
    """JSON to the page, which builds text nodes only (tests/ui tries it in a browser); here: no HTML from it."""
    uuid = make.pool("<script>alert(1)</script>")
    answer = admin.get(f"{PAGE}/api/pools")
    row_of(admin, uuid)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_the_token_stays_on_the_server(make: Maker, admin: TestClient, server: LocalQarnot) -> None:
    uuid = make.pool()
    row_of(admin, uuid, phase="open")
    for path in ("/api/pools", f"/api/connections/qarnot_default/pools/{uuid}", "/", "/static/pools.js"):
        assert server.token not in admin.get(PAGE + path).text


def test_many_who_look_ask_qarnot_no_more_than_one(make: Maker, as_role: As, server: LocalQarnot) -> None:
    """What one refresh takes, and that twenty who ask again and again while it is fresh cause no other."""
    uuid = make.pool()
    row_of(as_role("admin"), uuid, phase="open")
    looks = [0]
    stop = threading.Event()

    def watch() -> None:
        client = as_role("admin")
        while not stop.is_set():
            listed(client)
            looks[0] += 1

    server.clear_requests()
    watchers = [threading.Thread(target=watch) for _ in range(20)]
    for one in watchers:
        one.start()
    until(lambda: sum(r["path"].endswith("/pools/search") for r in server.requests()) >= 3, "three rounds")
    stop.set()
    for one in watchers:
        one.join()
    log = server.requests()
    rounds = [request["at"] for request in log if request["path"].endswith("/pools/search")]
    # A round asks for pools, for changed tasks, and for the cost of a few pools; the page's interval is 1 s.
    assert all(later - earlier >= 0.95 for earlier, later in itertools.pairwise(rounds))
    assert len(log) <= (len(rounds) + 1) * (2 + 2 * 4)
    assert looks[0] > 20 * len(rounds)


def test_when_qarnot_is_away_what_was_known_is_shown_with_its_age(
    make: Maker, admin: TestClient, server: LocalQarnot
) -> None:
    uuid = make.pool()
    row_of(admin, uuid, phase="open")
    server.faults([{"method": "POST", "path": ".*/search", "kind": "status", "status": 503, "times": 100}])
    try:
        found = until(lambda: (got := listed(admin))["connections"][0]["error"] and got, "the error")
        [look] = found["connections"]
        assert "Qarnot" in look["error"]
        assert look["age"] > 0
        assert uuid in {row["uuid"] for row in found["pools"]}
    finally:
        server.faults([])
    until(lambda: listed(admin)["connections"][0]["error"] is None, "the recovery")


def test_the_list_is_there_after_one_request_and_complete_after_two(
    make: Maker, airflow_app: Any, server: LocalQarnot
) -> None:
    """However many pools and Qarnot tasks: costs come after that, for a few pools at a time."""
    from airflow_qarnot_pool.plugins.cache import LIST
    from airflow_qarnot_pool.plugins.queries import FIGURES_PER_ROUND, Fetcher

    server.set_account(maxPool=None, maxInstances=None, maxRunningPool=None)
    pools = [make.pool(f"{n}", owner=identity(f"many_{n}")) for n in range(20)]
    for n, uuid in enumerate(pools):
        make.task(uuid, "sleep 600", owner=identity(f"many_{n}", task_id="work"))
    fetcher, seen = Fetcher("qarnot_default"), []

    def asked() -> list[str]:
        # A page that shows that a search was not cut belongs to the search.
        paths = [f"{one['method']} {one['path']}".partition("?")[0] for one in server.requests()]
        return [path for path in paths if not path.endswith("/paginate")]

    server.clear_requests()
    whole = fetcher(LIST, lambda rows: seen.append((asked(), rows)))
    (at_first, bare), (then, counted) = seen
    assert at_first == ["POST /pools/search"]
    assert set(pools) <= {row["uuid"] for row in bare}
    assert {row["tasks"] for row in bare} == {None}
    assert then == ["POST /pools/search", "POST /tasks/search"]
    assert all(
        row["tasks"]["queued"] + row["tasks"]["running"] == 1 for row in counted if row["uuid"] in pools
    )
    assert len(asked()) <= 2 + 2 * FIGURES_PER_ROUND
    assert len(whole) == len(bare)
    server.clear_requests()
    fetcher(LIST, lambda rows: pytest.fail("what was whole is not taken apart again"))
    assert len(asked()) <= 2 + 2 * FIGURES_PER_ROUND


def test_cached_files_are_not_sent_again(make: Maker, admin: TestClient, as_role: As) -> None:
    uuid = make.pool(owner=identity("sent", "once"))
    row_of(admin, uuid, phase="open")
    run = {"run_id": "once"}
    for client, path, given in (
        (admin, "pools", {}),
        (as_role("viewer"), "dags/sent/pools", run),
    ):

        def again(client: TestClient = client, path: str = path, given: dict[str, str] = given) -> bool:
            """The same version means nothing is sent; while another is made, all is."""
            first = client.get(f"{PAGE}/api/{path}", params=given).json()
            then = client.get(f"{PAGE}/api/{path}", params={**given, "have": first["version"]}).json()
            assert uuid in {row["uuid"] for row in first["pools"]}
            assert (then["pools"] is None) is (then["version"] == first["version"])
            return then["pools"] is None

        until(again, "two looks at the same answer")
