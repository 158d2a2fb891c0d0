"""The Pools page in Airflow's own application: who may do what, what is shown, and what it asks of Qarnot."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.plugins.conftest import PAGE, PATIENCE, Maker, add_instance, add_run, identity, until

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
    ("GET", f"/api/dags/frames/pools/{NOBODY}?run_id=manual__1", (401, 404, 404, 404, 404)),
    ("GET", "/api/history", (401, 403, 403, 200, 200)),
    (
        "GET",
        f"/api/connections/qarnot_default/pools/{NOBODY}/tasks/{NOBODY}/output",
        (401, 403, 403, 200, 200),
    ),
    (
        "GET",
        f"/api/dags/frames/pools/{NOBODY}/tasks/{NOBODY}/output?run_id=manual__1",
        (401, 404, 404, 404, 404),
    ),
    ("GET", f"/api/connections/qarnot_default/pools/{NOBODY}/close", (401, 403, 403, 404, 404)),
    ("POST", f"/api/connections/qarnot_default/pools/{NOBODY}/close", (401, 403, 403, 404, 404)),
    ("POST", f"/api/connections/qarnot_default/pools/{NOBODY}/close-when-idle", (401, 403, 403, 404, 404)),
    ("POST", f"/api/connections/qarnot_default/pools/{NOBODY}/resize", (401, 403, 403, 404, 404)),
]


@pytest.mark.parametrize(("method", "path", "expected"), ROUTES, ids=[f"{m} {p}" for m, p, _ in ROUTES])
def test_every_route_asks_who_is_there(
    as_role: As, method: str, path: str, expected: tuple[int, ...]
) -> None:
    until(lambda: listed(as_role("admin"))["known"], "the lists")
    found = []
    for role in (None, "viewer", "user", "op", "admin"):
        body = {"slots": 1, "wanted": True}
        answer = as_role(role).request(method, PAGE + path, headers=CLOSE, json=body)
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
    until(lambda: listed(as_role("admin"))["known"], "the lists")

    def may(*, method: str, details: Any = None, access_entity: Any = None, user: Any) -> bool:
        asked.append((method, access_entity))
        return details is None or details.id != "secret"

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", may)
    for path, allowed in (
        ("pools", 200),
        (f"pools/{NOBODY}", 404),
        (f"pools/{NOBODY}/tasks/{NOBODY}/output", 404),
    ):
        for dag_id, expected in (("secret", 403), ("frames", allowed)):
            answer = viewer.get(f"{PAGE}/api/dags/{dag_id}/{path}", params={"run_id": "manual__1"})
            assert (answer.status_code, dag_id) == (expected, dag_id)
    assert set(asked) == {("GET", DagAccessEntity.RUN), ("GET", DagAccessEntity.TASK_LOGS)}


def test_acting_needs_the_right_to_edit_and_looking_does_not(
    admin: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No role of the simple auth manager may read a connection and not edit it; others have such users."""
    from airflow.api_fastapi.app import get_auth_manager

    monkeypatch.setattr(
        get_auth_manager(), "is_authorized_connection", lambda *, method, **_: method == "GET"
    )
    base = f"{PAGE}/api/connections/qarnot_default/pools/{NOBODY}"
    assert admin.get(base).json()["may_edit"] is False
    assert [each["may_edit"] for each in listed(admin)["connections"]] == [False]
    assert admin.get(f"{base}/close").status_code == 403
    for action in ("close", "close-when-idle", "resize"):
        body = {"slots": 1, "wanted": True}
        assert admin.post(f"{base}/{action}", headers=CLOSE, json=body).status_code == 403


def test_the_table_of_routes_is_whole(airflow_app: Any, admin: TestClient) -> None:
    """A route that nobody tried as a stranger must not exist."""
    admin.get(f"{PAGE}/")
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin

    app = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app
    tried = len({(method, path.split("?")[0]) for method, path, _ in ROUTES if "/static/" not in path}) + 1
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


def audit_entries(dag_id: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        entries = session.scalars(select(Log).where(Log.dag_id == dag_id).order_by(Log.id)).all()
        return [(one.event, one.owner, one.run_id, json.loads(one.extra)) for one in entries]


def test_closing_is_written_to_the_audit_log_once_and_shown(make: Maker, as_role: As) -> None:
    """Also if others close the pool while it closes."""
    uuid = make.pool(owner=identity("audited"))
    path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close"
    answers = [as_role(role).post(path, headers=CLOSE).json() for role in ("op", "admin")]
    assert [answer["already"] for answer in answers] == [False, True]
    [(event, owner, run_id, extra)] = audit_entries("audited")
    assert (event, owner, run_id, extra["pool"]) == ("qarnot.close_pool", "op", "manual__1", uuid)
    row = row_of(as_role("admin"), uuid, phase="closed")
    assert row["closed_by"]["user"] == "op"
    assert as_role("admin").post(path, headers=CLOSE).json()["already"]
    assert len(audit_entries("audited")) == 1


def test_two_clicks_at_once_are_one_entry(make: Maker, airflow_app: Any) -> None:
    from airflow_qarnot_pool.plugins.actions import PoolActions

    uuid, actions, audited = make.pool(), PoolActions("qarnot_default"), []

    def audit(pool: Any) -> None:
        audited.append(pool.uuid)
        assert actions.close(uuid, audit) is False  # the second click, while the first one is under way

    assert actions.close(uuid, audit) is True
    assert audited == [uuid]
    assert actions.close(uuid, audit) is False


def test_labels_that_no_database_takes_break_neither_the_list_nor_a_close(
    make: Maker, admin: TestClient
) -> None:
    """Anybody who has the token can write labels, and PostgreSQL refuses a NUL."""
    labels = {"airflow.dag_id": "a\x00b", "airflow.run_id": "x" * 5000, "airflow.task_id": "\u202e"}
    uuid = make.pool("odd\u202ename", labels=labels)
    row = row_of(admin, uuid, phase="open")
    assert row["owner"]["dag_id"] == "a\ufffdb"
    answer = admin.post(f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close", headers=CLOSE)
    assert answer.status_code == 200, answer.text


def test_ids_that_no_database_takes_are_not_asked_for(airflow_app: Any) -> None:
    """SQLite takes them all. PostgreSQL fails, and with it the whole list."""
    from airflow_qarnot_pool.plugins.airflow_db import askable_runs

    odd = ["a\x00b", "a\ud800b", "x" * 251]
    runs = [
        ("dag", "run"),
        *((each, "run") for each in odd),
        *(("dag", each) for each in odd),
        ("dag", "run"),
    ]
    assert askable_runs(runs) == [("dag", "run")]


def test_states_of_task_instances_are_read_by_their_ids_earlier_tries_too(airflow_app: Any) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_qarnot_pool.plugins.airflow_db import instance_states

    add_run("stated", "run")
    first, other = (add_instance("stated", "run", task_id, state="failed") for task_id in ("fit", "score"))
    with create_session() as session:
        instance = session.scalar(select(TaskInstance).where(TaskInstance.task_id == "fit"))
        assert instance is not None
        following: Any = instance.prepare_db_for_next_try(session)
        (following or instance).state = "running"
    with create_session() as session:
        second = UUID(str(session.scalar(select(TaskInstance.id).where(TaskInstance.task_id == "fit"))))
    expected = {first: "failed", second: "running", other: "failed"}
    assert instance_states([first, second, other, UUID(int=1)]) == expected
    assert instance_states([]) == {}


def test_what_a_close_would_do(make: Maker, admin: TestClient) -> None:
    uuid = make.pool(owner=identity("preview"), size=1)
    row_of(admin, uuid, phase="open")
    path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close"
    assert admin.get(path).json()["text"] == "Nothing runs on it."
    for run_id in ("one", "two", "two"):
        make.task(uuid, "sleep 600", owner=identity("preview", run_id, "work"))
    preview = admin.get(path).json()
    assert preview["text"].startswith("3 unfinished Qarnot tasks of 2 DAG runs are cancelled.")
    assert [(one["run_id"], one["unfinished"]) for one in preview["users"]] == [("two", 2), ("one", 1)]
    assert (preview["running"], preview["queued"], preview["ready"], preview["closable"]) == (1, 2, 1, True)
    assert make.client.pools.get(uuid).state not in ("Closing", "Closed")


def test_a_pool_is_resized_and_its_idle_nodes_go(make: Maker, admin: TestClient) -> None:
    uuid = make.pool(owner=identity("resized"), size=1)
    path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/resize"
    assert admin.post(path, json={"slots": 3}).status_code == 403, "without the header"
    for body in ({"slots": 0}, {"slots": 5001}, {"slots": 1, "idle_seconds": 1}, {}):
        assert admin.post(path, headers=CLOSE, json=body).status_code == 422
    assert admin.post(path, headers=CLOSE, json={"slots": 3}).status_code == 200
    row_of(admin, uuid, ready=3, wanted=3, resizable=True)
    assert admin.post(path, headers=CLOSE, json={"slots": 2, "idle_seconds": 600}).status_code == 200
    [policy] = make.client.pools.get(uuid).scaling.policies  # type: ignore[union-attr]
    assert (policy.min_total_slots, policy.max_total_slots, policy.min_idle_slots) == (0, 2, 0)  # type: ignore[union-attr]
    entries = audit_entries("resized")
    assert [(event, extra["slots"], extra["idle_seconds"]) for event, _, _, extra in entries] == [
        ("qarnot.resize_pool", 3, None),
        ("qarnot.resize_pool", 2, 600.0),
    ]
    make.client.pools.close(uuid)
    answer = admin.post(path, headers=CLOSE, json={"slots": 1})
    assert answer.status_code == 409
    assert "Clos" in answer.json()["detail"]
    assert len(audit_entries("resized")) == 2


def test_the_reaper_closes_a_pool_when_it_is_idle(make: Maker, admin: TestClient) -> None:
    from airflow_qarnot_pool.maintenance.reaper import reap

    uuid = make.pool(owner=identity("cooling"), size=1)
    task = make.task(uuid, "sleep 600", owner=identity("cooling", task_id="work"))
    row_of(admin, uuid, word="busy")
    path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}/close-when-idle"
    assert admin.post(path, json={"wanted": True}).status_code == 403, "without the header"
    assert admin.post(path, headers=CLOSE, json={}).status_code == 422
    for wanted in (True, True, False, True):
        assert admin.post(path, headers=CLOSE, json={"wanted": wanted}).json() == {"closes_when_idle": wanted}
    assert [extra["wanted"] for *_, extra in audit_entries("cooling")] == [True, False, True]
    row = row_of(admin, uuid, closes_when_idle=True, closable=True)
    assert (row["idle_close_by"]["user"], row["closed_by"]) == ("admin", None)

    def action_in(minutes: float) -> str:
        moment = datetime.now(UTC) + timedelta(minutes=minutes)
        report = reap(make.client, "page", lambda *_: "running", now=lambda: moment)
        return next(entry.action for entry in report.entries if entry.uuid == uuid)

    assert action_in(20) == "keep", "it works"
    make.client.tasks.end(task)
    until(lambda: make.client.tasks.get(task).state == "Cancelled", "its end")
    assert action_in(4) == "keep"
    assert action_in(6) == "close"
    row_of(admin, uuid, phase="closed", closed_by=None)
    assert admin.post(path, headers=CLOSE, json={"wanted": False}).status_code == 409
    assert len(audit_entries("cooling")) == 3


def test_the_requests_of_everything_are_counted(make: Maker, airflow_app: Any, server: LocalQarnot) -> None:
    """With shared pools, which take most. The numbers are those of the documentation."""
    from airflow_qarnot_pool.plugins.actions import PoolActions
    from airflow_qarnot_pool.plugins.cache import LIST
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin
    from airflow_qarnot_pool.plugins.queries import Fetcher, output_key

    labels = {"airflow.shared": "nightly"}
    pools = [make.pool(owner=identity(f"count_{n}"), labels=labels) for n in range(6)]
    tasks = [make.task(uuid, "sleep 600", owner=identity("count")) for uuid in pools]
    until(lambda: make.client.pools.get(pools[0]).ready_slots, "a node")
    fetcher, actions = Fetcher("qarnot_default"), PoolActions("qarnot_default")
    fetcher(LIST)

    def audit(pool: Any) -> None: ...

    def is_alone() -> bool:
        """Return whether the page of the tests before has ended its last round."""
        app = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app
        return app is None or all(cache._thread is None for cache in app.state.registry.caches.values())

    until(is_alone, "the end of other requests")

    for most, act in (
        (2 + 3 * 4, lambda: fetcher(LIST)),
        (4, lambda: fetcher(pools[0])),
        (3, lambda: fetcher(output_key(pools[0], tasks[0]))),
        (3, lambda: actions.preview_close(pools[0])),
        (2, lambda: actions.resize(pools[0], 2, None, audit)),
        (2, lambda: actions.close_when_idle(pools[0], True, audit)),
        (2, lambda: actions.close(pools[0], audit)),
    ):
        fetcher._figures_at.clear()
        server.clear_requests()
        act()  # type: ignore[no-untyped-call]
        paths = [f"{one['method']} {one['path']}".partition("?")[0] for one in server.requests()]
        # A page that shows that a search was not cut belongs to the search.
        assert 1 < len([path for path in paths if not path.endswith("/paginate")]) <= most, paths


def test_the_output_of_a_qarnot_task(
    make: Maker, as_role: As, server: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an own pool only, bounded, and for those who may read the logs of its DAG."""
    from airflow.api_fastapi.app import get_auth_manager

    from airflow_qarnot_pool.plugins import output, queries

    monkeypatch.setattr(output, "MAX_SHOWN", 12)
    uuid, other = make.pool(owner=identity("talks")), make.pool(owner=identity("talks", "two"))
    task = make.task(uuid, "sh -c 'echo a long line; echo problem >&2'", owner=identity("talks"))
    until(lambda: make.client.tasks.get(task).state == "Success", "its end")
    admin, viewer = as_role("admin"), as_role("viewer")
    path = f"{PAGE}/api/connections/qarnot_default/pools/{{}}/tasks/{task}/output"
    found = until(lambda: admin.get(path.format(uuid)).json()["output"], "the output")
    assert found["stdout"] == {"text": "a long line\n"[-12:], "cut": True, "read": None}
    assert found["stderr"]["text"] == "0> problem\n"
    error = until(lambda: admin.get(path.format(other)).json()["error"], "the refusal")
    assert "no Qarnot task" in error

    # Of a task that has ended, the output is read again only for a while. The end of a part is called that.
    fetcher = queries.Fetcher("qarnot_default")
    monkeypatch.setattr(output, "MAX_READ", 5)
    part = fetcher(queries.output_key(uuid, task)).streams["stdout"]
    assert part["read"] > 5
    monkeypatch.setattr(queries, "OUTPUT_FINAL_AFTER", timedelta(-1))
    final = fetcher(queries.output_key(uuid, task))
    server.clear_requests()
    assert fetcher(queries.output_key(uuid, task)) is final
    assert not [one for one in server.requests() if task in one["path"]]
    # The tab of a run that has the pool for itself lists the tasks of no DAG, and shows their output.
    labels = {
        name: text
        for name, text in identity().labels(1, "x").items()
        if "dag" not in name and "run" not in name
    }
    nobodys = make.task(uuid, "echo hello", labels=labels)
    path_of_nobodys = f"{PAGE}/api/dags/talks/pools/{uuid}/tasks/{nobodys}/output"
    row_of(admin, uuid)
    until(
        lambda: viewer.get(path_of_nobodys, params={"run_id": "manual__1"}).json()["output"],
        "the output of nobody's task",
    )

    path_of_run = f"{PAGE}/api/dags/talks/pools/{uuid}/tasks/{task}/output"
    assert viewer.get(path_of_run, params={"run_id": "manual__1"}).json()["output"] == found
    assert viewer.get(path_of_run, params={"run_id": "two"}).status_code == 404

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", lambda **_: False)
    assert admin.get(path.format(uuid)).status_code == 403
    assert viewer.get(path_of_run, params={"run_id": "manual__1"}).status_code == 403


def test_the_account_of_the_last_day(make: Maker, admin: TestClient) -> None:
    uuid = make.pool(size=2)
    row_of(admin, uuid, phase="open", ready=2)

    def look() -> dict[str, Any] | None:
        [account] = admin.get(f"{PAGE}/api/history").json()["connections"]
        return account if account["points"] and account["points"][-1][3] >= 2 else None

    account = until(look, "the slots")
    _, pools, wanted, ready, busy, queued, _ = account["points"][-1]
    assert (pools, wanted) == (account["open"][-1][1], ready)
    assert (busy, queued) == (0, 0)
    assert account["gaps"][0][0] == account["from"]
    # A page that shows only this keeps the list fresh, and says how old it is.
    assert (account["error"], account["may_edit"]) == (None, True)
    make.client.pools.close(uuid)

    def closed() -> bool:
        found = admin.get(f"{PAGE}/api/history").json()
        [account] = found["connections"]
        assert found["known"]
        assert account["age"] >= 0
        return bool(account["points"][-1][3] < ready)

    until(closed, "the end of the slots")


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


def test_only_the_pages_connections_and_uuids_are_known(
    admin: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin

    admin.get(f"{PAGE}/")
    registry = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app.state.registry
    for known in (registry.caches, registry.fetchers, registry.actions):
        monkeypatch.setitem(known, "team/qarnot", known["qarnot_default"])
    base = f"{PAGE}/api/connections/team%2Fqarnot/pools/{NOBODY}"
    assert admin.get(base).status_code == 200
    assert admin.get(f"{base}/tasks/{NOBODY}/output").status_code == 200
    assert "There is no pool" in admin.get(f"{base}/close").json()["detail"]
    assert admin.get(f"{PAGE}/api/connections/aws_default/pools/{NOBODY}").status_code == 404
    for what in ("list", "a-shortname", "..%2F..%2Finfo"):
        assert admin.get(f"{PAGE}/api/connections/qarnot_default/pools/{what}").status_code == 404


def test_a_run_waits_for_the_lists_after_a_restart(
    make: Maker, as_role: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_qarnot_pool.plugins.cache import Cache
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin
    from airflow_qarnot_pool.plugins.queries import Fetcher

    uuid, viewer = make.pool(owner=identity("frames", "one")), as_role("viewer")
    fetcher, is_up, errors = Fetcher("qarnot_default"), threading.Event(), ["a secret reason"]

    def fetch(key: str, first: Callable[[Any], None]) -> Any:
        is_up.wait(PATIENCE)
        if errors:
            raise RuntimeError(errors.pop())
        return fetcher(key, first)

    def ask(path: str) -> Any:
        return viewer.get(f"{PAGE}/api/dags/frames/pools/{path}", params={"run_id": "one"})

    viewer.get(f"{PAGE}/")
    registry = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app.state.registry
    monkeypatch.setitem(registry.caches, "qarnot_default", Cache(fetch, max_age=0.1))
    for path, name in ((uuid, "pool"), (f"{uuid}/tasks/{NOBODY}/output", "output")):
        answer = ask(path)
        assert answer.status_code == 200
        assert [answer.json()[key] for key in (name, "age", "error", "refreshing")] == [
            None,
            None,
            None,
            True,
        ]
    is_up.set()
    error = until(lambda: ask(uuid).json()["error"], "the failure")
    assert error.startswith("Qarnot could not be read")
    assert until(lambda: ask(uuid).json()["pool"], "the pool")["row"]["uuid"] == uuid
    until(lambda: ask(NOBODY).status_code == 404, "what no list has")


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
    until(lambda: listed(as_role("admin"))["known"], "the lists")
    base = f"{PAGE}/api/dags/frames/pools"
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
    assert set(pools) <= bare.entries.keys()
    assert {entry.row["tasks"] for entry in bare.entries.values()} == {None}
    assert then == ["POST /pools/search", "POST /tasks/search"]
    assert all(
        sum(counted.entries[uuid].row["tasks"][group] for group in ("queued", "running")) == 1
        for uuid in pools
    )
    assert len(asked()) <= 2 + 2 * FIGURES_PER_ROUND
    assert whole.entries.keys() == bare.entries.keys()
    server.clear_requests()
    fetcher(LIST, lambda rows: pytest.fail("what was whole is not taken apart again"))
    assert len(asked()) <= 2 + 2 * FIGURES_PER_ROUND


def test_a_pool_in_full_has_the_facts_of_the_requests_that_made_it(make: Maker, airflow_app: Any) -> None:
    """Also before the list was read, and with what the other pools of its run have cost."""
    from airflow_qarnot_pool.plugins.cache import LIST
    from airflow_qarnot_pool.plugins.queries import Fetcher
    from airflow_qarnot_pool.plugins.rows import PoolFigures

    uuid = make.pool(owner=identity("facts", "one"), labels={"airflow.max_run_cost": "50"})
    other = make.pool(owner=identity("facts", "one", "open_another"))
    task = make.task(uuid, "true", owner=identity("facts", "one", "work"))
    until(lambda: make.client.tasks.get(task).state == "Success", "its end")
    fetcher = Fetcher("qarnot_default")
    row = fetcher(uuid).entry.row
    assert (row["tasks"]["succeeded"], row["task_ids"]) == (1, ["work"])
    fetcher(LIST)
    task = make.task(uuid, "false", owner=identity("facts", "one", "later"))
    until(lambda: make.client.tasks.get(task).state == "Failure", "its failure")
    fetcher._figures[other] = PoolFigures(euros=99.0)
    row = fetcher(uuid).entry.row
    assert (row["tasks"]["failed"], row["task_ids"]) == (1, ["later", "work"])
    assert "budget" in [warning["kind"] for warning in row["warnings"]]


def test_only_changes_are_sent(make: Maker, admin: TestClient, as_role: As) -> None:
    uuid, still = make.pool(owner=identity("sent", "once")), make.pool(owner=identity("sent", "other"))
    row_of(admin, uuid, phase="open")
    row_of(admin, still, phase="open")

    def changes(path: str, have: str, **params: str) -> dict[str, Any]:
        client = admin if path == "pools" else as_role("viewer")
        return dict(client.get(f"{PAGE}/api/{path}", params={**params, "have": have}).json())

    whole = listed(admin)
    assert whole["full"]
    make.client.pools.close(uuid)

    def look() -> dict[str, Any] | None:
        found = changes("pools", whole["version"])
        return found if any(row["phase"] == "closed" for row in found["pools"]) else None

    delta = until(look, "the change")
    assert not delta["full"]
    assert uuid in {row["uuid"] for row in delta["pools"]}
    make.client.pools.delete(uuid)
    gone = until(lambda: uuid in (found := changes("pools", whole["version"]))["gone"] and found, "its end")
    assert uuid not in {row["uuid"] for row in gone["pools"]}
    # A version of another process, or none, is sent everything.
    for have in ("", "other.7", "x", f"{whole['version']},more.1"):
        assert changes("pools", have)["full"]

    def again() -> bool:
        """The same rows have the same version."""
        first = changes("dags/sent/pools", "", run_id="other")
        then = changes("dags/sent/pools", first["version"], run_id="other")
        assert [row["uuid"] for row in first["pools"]] == [still]
        return not then["full"] and then["pools"] == []

    until(again, "two looks at the same answer")


def test_a_pool_in_full_is_sent_once(make: Maker, admin: TestClient) -> None:
    uuid = make.pool()
    row_of(admin, uuid, phase="open")
    make.client.pools.close(uuid)
    row_of(admin, uuid, phase="closed")
    path = f"{PAGE}/api/connections/qarnot_default/pools/{uuid}"

    def again() -> bool:
        first = admin.get(path).json()
        then = admin.get(path, params={"have": first["version"]}).json()
        return bool(first["pool"]) and then["unchanged"] and then["pool"] is None and then["age"] is not None

    until(again, "two looks at the same answer")


def test_a_run_is_told_that_nothing_could_be_read_yet(
    as_role: As, airflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its tab would ask for ever, and say nothing. The connection is not named."""
    from airflow_qarnot_pool.plugins.cache import Cache
    from airflow_qarnot_pool.plugins.pools_page import QarnotPoolsPlugin

    def fetch(key: str, first: Callable[[Any], None]) -> Any:
        raise RuntimeError("a secret reason")

    viewer = as_role("viewer")
    viewer.get(f"{PAGE}/")
    registry = QarnotPoolsPlugin.fastapi_apps[0]["app"]._app.state.registry
    monkeypatch.setitem(registry.caches, "qarnot_default", Cache(fetch, max_age=0.1))

    def look() -> Any:
        found = viewer.get(f"{PAGE}/api/dags/frames/pools", params={"run_id": "one"}).json()
        return found["connections"] and found

    found = until(look, "the failure")
    assert (found["known"], found["pools"]) == (False, [])
    [told] = found["connections"]
    assert (told["id"], told["may_edit"]) == (None, False)
    assert told["error"].startswith("Qarnot could not be read")


def test_the_search_of_the_server_finds_what_rows_leave_out(
    make: Maker, as_role: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_qarnot_pool.plugins import rows

    monkeypatch.setattr(rows, "MAX_TASK_IDS", 1)
    uuid = make.pool(owner=identity("found"))
    for task_id in ("first", "second"):
        make.task(uuid, "true", owner=identity("found", task_id=task_id))
    admin, viewer = as_role("admin"), as_role("viewer")
    row_of(admin, uuid, has_more=True, task_ids=["first"])

    def found(client: TestClient, path: str, **params: str) -> Any:
        return client.get(f"{PAGE}/api/{path}", params={**params, "search": "SECOND  first"}).json()["found"]

    assert found(admin, "pools") == {"second": [uuid], "first": []}
    of_run = "dags/found/pools"
    assert found(viewer, of_run, run_id="manual__1") == {"second": [uuid], "first": []}
    assert found(viewer, of_run, run_id="other") == {"second": [], "first": []}


def test_a_run_sees_only_connections_that_it_uses_and_without_rights_none(
    make: Maker, as_role: As, airflow_app: Any, server: LocalQarnot
) -> None:
    uuid = make.pool(owner=identity("quiet", "one"))
    viewer, admin = as_role("viewer"), as_role("admin")
    row_of(admin, uuid)
    until(lambda: listed(admin)["known"], "the lists")

    def of(client: TestClient, dag_id: str) -> dict[str, Any]:
        return dict(client.get(f"{PAGE}/api/dags/{dag_id}/pools", params={"run_id": "one"}).json())

    assert (of(viewer, "loud")["connections"], of(viewer, "loud")["known"]) == ([], True)
    [known] = of(admin, "quiet")["connections"]
    assert (known["id"], known["may_edit"]) == ("qarnot_default", True)
    server.faults([{"method": "POST", "path": ".*/search", "kind": "status", "status": 503, "times": 100}])
    try:
        found = until(lambda: (got := of(viewer, "quiet"))["connections"][0]["error"] and got, "the error")
    finally:
        server.faults([])
    assert found["pools"][0]["connection"] is None
    assert (found["connections"][0]["id"], found["connections"][0]["may_edit"]) == (None, False)
    assert found["connections"][0]["error"].startswith("Qarnot could not be read")
    assert "qarnot_default" not in str(found)
    until(lambda: listed(admin)["connections"][0]["error"] is None, "the recovery")
