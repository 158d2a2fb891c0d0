"""The routes of the Pools page. Each route authenticates and authorizes the user, and reads from the cache.

``page`` and ``static`` need a user who is logged in. The pools of a connection need the right to read that connection,
and the pools of a DAG run the right to read that run. The output of a Qarnot task needs the right to read the logs of
its DAG, too. Closing and resizing a pool need the right to edit the connection.
"""
# No `from __future__ import annotations`: FastAPI evaluates the annotations.

import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from importlib.resources import files
from os.path import splitext
from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.configuration import conf
from airflow.models.connection import Connection
from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError, QarnotRefusedError
from airflow_qarnot_pool.api.fields import is_uuid
from airflow_qarnot_pool.plugins.actions import NotResizableError
from airflow_qarnot_pool.plugins.airflow_db import (
    CLOSE_EVENT,
    IDLE_CLOSE_EVENT,
    RESIZE_EVENT,
    is_id,
    write_audit,
)
from airflow_qarnot_pool.plugins.cache import LIST, CacheEntry
from airflow_qarnot_pool.plugins.details import detail_of_run, full_detail
from airflow_qarnot_pool.plugins.listing import Listing, found_in, words_of
from airflow_qarnot_pool.plugins.queries import TaskOutput, output_key
from airflow_qarnot_pool.plugins.registry import MAX_SHOWN, ConnectionRegistry, listing_of
from airflow_qarnot_pool.plugins.resizing import MAX_IDLE, MAX_SLOTS, MIN_IDLE
from airflow_qarnot_pool.plugins.rows import row_of_run
from airflow_qarnot_pool.version_compat import api_security

security = api_security()
CurrentUser = Annotated[Any, Depends(security.get_user)]

#: Header of requests that close or resize a pool. A page of another site cannot send it without a CORS preflight.
ACTION_HEADER = "X-Qarnot-Pools"
#: Types of the static files. Files of other types are not served.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: The page loads from its own site only, and only Airflow's own pages may frame it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: Text for users who may not read the connection that has the error.
HIDDEN_ERROR = "Qarnot could not be read. Ask somebody who may read the connection."


def make_app() -> FastAPI:
    """Build the web application of the page from Airflow's configuration."""
    return _build_app(ConnectionRegistry.from_configuration())


def _build_app(registry: ConnectionRegistry) -> FastAPI:
    app = FastAPI(title="Qarnot pools", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.registry = registry

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    _add_files(app)
    _add_lists(app, registry)
    _add_details(app, registry)
    _add_outputs(app, registry)
    _add_actions(app, registry)
    return app


def _add_files(app: FastAPI) -> None:
    logged_in = [Depends(security.get_user)]

    @app.get("/", dependencies=logged_in)
    def page() -> Response:
        return Response(_file("index.html"), media_type="text/html; charset=utf-8")

    @app.get("/static/{name}", dependencies=logged_in)
    def static(name: str) -> Response:
        if name not in _static_files():
            raise HTTPException(404, "There is no such file")
        return Response(_file(name), media_type=_static_files()[name])


def _read_connection() -> Any:
    return Depends(security.requires_access_connection(method="GET"))


def _edit_connection() -> Any:
    return Depends(security.requires_access_connection(method="PUT"))


def _read_run(entity: DagAccessEntity = DagAccessEntity.RUN) -> Any:
    return Depends(security.requires_access_dag("GET", entity))


def _add_lists(app: FastAPI, registry: ConnectionRegistry) -> None:
    @app.get("/api/pools")
    def pools(user: CurrentUser, shown: str = "", have: str = "", search: str = "") -> JSONResponse:
        """Return all pools of the connections that the user may read, or the changes.

        :param shown: uuids of the displayed pools.
        :param have: version of the list that the page has.
        :param search: words to be found in what the rows leave out.
        """
        readable = _readable(registry, user)
        uuids = [uuid for uuid in shown.split(",", MAX_SHOWN)[:MAX_SHOWN] if is_uuid(uuid)]
        for conn_id in readable:
            registry.prioritize(conn_id, uuids)
        entries = {conn_id: registry.caches[conn_id].get() for conn_id in readable}
        version, content = _changes(entries, have)
        connections = [_connection(user, conn_id, entry) for conn_id, entry in entries.items()]
        listings = [entry.value or Listing() for entry in entries.values()]
        left_out = {uuid: pool.left_out for listing in listings for uuid, pool in listing.entries.items()}
        found = found_in(left_out, words_of(search))
        return _list_response(
            registry, entries, version=version, connections=connections, found=found, **content
        )

    @app.get("/api/dags/{dag_id}/pools", dependencies=[_read_run()])
    def pools_of_run(
        user: CurrentUser, dag_id: str, run_id: str, have: str = "", search: str = ""
    ) -> JSONResponse:
        """Return the pools that a DAG run created, and shared pools that it uses, with its share of them."""
        entries = {conn_id: cache.get() for conn_id, cache in registry.caches.items()}
        run = (dag_id, run_id)
        rows, connections = [], []
        left_out: dict[str, str] = {}
        for conn_id, entry in entries.items():
            pools = [pool for pool in (entry.value or Listing()).entries.values() if run in pool.runs]
            used = [row for pool in pools if (row := row_of_run(pool, run))]
            if used:
                registry.prioritize(conn_id, [row["uuid"] for row in used])
                may_read = _is_allowed(user, "GET", conn_id)
                connections.append(_connection(user, conn_id, entry, may_read=may_read))
                rows += used if may_read else [{**row, "connection": None} for row in used]
                left_out |= {pool.row["uuid"]: pool.runs[run]["left_out"] for pool in pools}
        failed = [entry for entry in entries.values() if entry.error and not entry.complete]
        if not rows and failed:  # whether the run uses the connection is not known, so it is not named
            connections.append(_connection(user, "", failed[0], may_read=False))
        # Few rows, and no changes of rows of other runs.
        version = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        content = {"full": have != version, "pools": rows if have != version else [], "gone": []}
        found = found_in(left_out, words_of(search))
        return _list_response(
            registry, entries, version=version, connections=connections, found=found, **content
        )

    @app.get("/api/history")
    def history(user: CurrentUser) -> JSONResponse:
        """Return the slots and the cost of the last day of the connections that the user may read."""
        # A page that shows only this must keep the list fresh, too.
        entries = {conn_id: registry.caches[conn_id].get() for conn_id in _readable(registry, user)}
        accounts = [
            {**_connection(user, conn_id, entry), **registry.fetchers[conn_id].account()}
            for conn_id, entry in entries.items()
        ]
        return _list_response(registry, entries, connections=accounts)


def _add_details(app: FastAPI, registry: ConnectionRegistry) -> None:
    @app.get("/api/connections/{connection_id:path}/pools/{uuid}", dependencies=[_read_connection()])
    def pool(connection_id: str, uuid: str, user: CurrentUser, have: str = "") -> JSONResponse:
        """Return one pool in full.

        :param have: version of the pool that the page has.
        """
        entry = registry.cache(connection_id, uuid).get(uuid)
        may_edit = _is_allowed(user, "PUT", connection_id)
        return _pool_response(registry, entry, have, full_detail, may_edit=may_edit)

    @app.get("/api/dags/{dag_id}/pools/{uuid}", dependencies=[_read_run()])
    def pool_of_run(dag_id: str, uuid: str, run_id: str, user: CurrentUser, have: str = "") -> JSONResponse:
        """Return one pool of a DAG run in full, and of a shared pool only the run's own tasks."""
        run = (dag_id, run_id)
        found = registry.find(uuid, run)
        if isinstance(found, CacheEntry):
            return _pool_response(registry, _hidden(found, may_read=False), have, full_detail, may_edit=False)
        conn_id, _ = found
        entry = registry.cache(conn_id, uuid).get(uuid)
        may_read = _is_allowed(user, "GET", conn_id)

        def build(detail: Any) -> dict[str, Any] | None:
            # None if it was read before the run used the pool. It is older than the list then, so a newer one comes.
            seen = detail_of_run(detail, run)
            if seen and not may_read:
                seen["row"]["connection"] = None
            return seen

        may_edit = _is_allowed(user, "PUT", conn_id)
        return _pool_response(registry, _hidden(entry, may_read), have, build, may_edit=may_edit)


def _add_outputs(app: FastAPI, registry: ConnectionRegistry) -> None:
    @app.get(
        "/api/connections/{connection_id:path}/pools/{uuid}/tasks/{task}/output",
        dependencies=[_read_connection()],
    )
    def output(connection_id: str, uuid: str, task: str, user: CurrentUser, request: Request) -> JSONResponse:
        """Return the end of the output of a Qarnot task. If it names a DAG, the user must be able to read its logs."""
        entry = registry.cache(connection_id, uuid, task).get(output_key(uuid, task))
        found: TaskOutput | None = entry.value
        if found and found.run.dag_id:
            if not is_id(found.run.dag_id):
                raise HTTPException(403, "The task names a DAG that Airflow cannot have")
            security.requires_access_dag("GET", DagAccessEntity.TASK_LOGS, found.run.dag_id)(request, user)
        return _output_response(entry, found)

    @app.get(
        "/api/dags/{dag_id}/pools/{uuid}/tasks/{task}/output",
        dependencies=[_read_run(DagAccessEntity.TASK_LOGS)],
    )
    def output_of_run(dag_id: str, uuid: str, task: str, run_id: str, user: CurrentUser) -> JSONResponse:
        """Return the end of the output of a Qarnot task of a DAG run."""
        run = (dag_id, run_id)
        found = registry.find(uuid, run)
        if isinstance(found, CacheEntry):
            return _output_response(_hidden(found, may_read=False), None)
        conn_id, listed = found
        row = row_of_run(listed, run)
        runs = (run,) if row is None or row["mine"] else (run, ("", ""))  # those of the listed Qarnot tasks
        entry = registry.cache(conn_id, uuid, task).get(output_key(uuid, task))
        output: TaskOutput | None = entry.value
        if output and output.run not in runs:
            raise HTTPException(404, f"No Qarnot task {task} belongs to this DAG run")
        return _output_response(_hidden(entry, _is_allowed(user, "GET", conn_id)), output)


def _add_actions(app: FastAPI, registry: ConnectionRegistry) -> None:
    base = "/api/connections/{connection_id:path}/pools/{uuid}"

    @app.get(f"{base}/close", dependencies=[_edit_connection()])
    def preview_close(connection_id: str, uuid: str) -> JSONResponse:
        """Return what a close of the pool would do."""
        listed = listing_of(registry.cache(connection_id, uuid)).entries.get(uuid)
        figures = listed.row["figures"] if listed else None
        with_answer = _Answering(registry, connection_id, uuid, refreshes=False)
        preview = with_answer(lambda: registry.actions[connection_id].preview_close(uuid))
        return JSONResponse({**preview, "per_hour": figures and figures["per_hour"]})

    @app.post(f"{base}/close", dependencies=[_edit_connection(), Depends(_require_same_site)])
    def close(connection_id: str, uuid: str, user: CurrentUser) -> JSONResponse:
        """Close a pool, after an entry in Airflow's audit log."""

        def audit(pool: Any) -> None:
            write_audit(CLOSE_EVENT, user, connection_id, pool, {})

        answering = _Answering(registry, connection_id, uuid)
        closes = answering(lambda: registry.actions[connection_id].close(uuid, audit))
        message = "Qarnot closes the pool" if closes else "The pool was closing, or has ended, already"
        return JSONResponse({"closed": True, "already": not closes, "message": message})

    @app.post(f"{base}/close-when-idle", dependencies=[_edit_connection(), Depends(_require_same_site)])
    def close_when_idle(
        connection_id: str, uuid: str, user: CurrentUser, wanted: Annotated[bool, Body(embed=True)]
    ) -> JSONResponse:
        """Let the reaper close a pool once it is idle, or no more, after an entry in Airflow's audit log."""

        def audit(pool: Any) -> None:
            write_audit(IDLE_CLOSE_EVENT, user, connection_id, pool, {"wanted": wanted})

        answering = _Answering(registry, connection_id, uuid)
        answering(lambda: registry.actions[connection_id].close_when_idle(uuid, wanted, audit))
        return JSONResponse({"closes_when_idle": wanted})

    @app.post(f"{base}/resize", dependencies=[_edit_connection(), Depends(_require_same_site)])
    def resize(
        connection_id: str,
        uuid: str,
        user: CurrentUser,
        slots: Annotated[int, Body(ge=1, le=MAX_SLOTS)],
        idle_seconds: Annotated[
            float | None, Body(ge=MIN_IDLE.total_seconds(), le=MAX_IDLE.total_seconds())
        ] = None,
    ) -> JSONResponse:
        """Change the number of slots of a pool, and let idle nodes go, after an entry in Airflow's audit log."""
        idle = None if idle_seconds is None else timedelta(seconds=idle_seconds)

        def audit(pool: Any) -> None:
            more = {"slots": slots, "idle_seconds": idle_seconds}
            write_audit(RESIZE_EVENT, user, connection_id, pool, more)

        answering = _Answering(registry, connection_id, uuid)
        answering(lambda: registry.actions[connection_id].resize(uuid, slots, idle, audit))
        return JSONResponse({"message": f"Qarnot was asked for {slots} slots"})


class _Answering:
    """Calls an action on a pool, turns its errors into responses, and lets the cache read the pool again."""

    def __init__(
        self, registry: ConnectionRegistry, conn_id: str, uuid: str, *, refreshes: bool = True
    ) -> None:
        self._cache = registry.cache(conn_id, uuid)
        self._uuid, self._refreshes = uuid, refreshes

    def __call__(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except NotResizableError as error:
            raise HTTPException(409, str(error)) from None
        except QarnotNotFoundError as error:
            raise HTTPException(404, str(error)) from None
        except QarnotError as error:
            status = 409 if isinstance(error, QarnotRefusedError) else 502
            raise HTTPException(status, str(error)) from None
        finally:
            if self._refreshes:
                self._cache.get(LIST, newer=True)
                self._cache.refresh(self._uuid)


@cache
def _static_files() -> dict[str, str]:
    """Return the media types of the static files by name."""
    folder = files("airflow_qarnot_pool.plugins").joinpath("static")
    types = {file.name: MEDIA_TYPES.get(splitext(file.name)[1]) for file in folder.iterdir()}
    return {name: media_type for name, media_type in types.items() if media_type}


@cache
def _file(name: str) -> bytes:
    return files("airflow_qarnot_pool.plugins").joinpath("static", name).read_bytes()


def _is_allowed(user: Any, method: Any, conn_id: str) -> bool:
    details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
    return get_auth_manager().is_authorized_connection(method=method, details=details, user=user)


def _readable(registry: ConnectionRegistry, user: Any) -> list[str]:
    """Return the connections that the user may read. 403 if there are none."""
    readable = [conn_id for conn_id in registry.caches if _is_allowed(user, "GET", conn_id)]
    if not readable:
        raise HTTPException(
            403, "This page needs the permission to read connections. A DAG run's own tab needs less."
        )
    return readable


def _list_response(
    registry: ConnectionRegistry, entries: dict[str, CacheEntry], **content: Any
) -> JSONResponse:
    """Return a response from the lists of several connections."""
    return JSONResponse(
        {
            "now": time.time(),
            "every": registry.max_age,
            "known": all(entry.complete for entry in entries.values()),
            "refreshing": any(entry.refreshing for entry in entries.values()),
            **content,
        }
    )


def _connection(user: Any, conn_id: str, entry: CacheEntry, *, may_read: bool = True) -> dict[str, Any]:
    return {
        "id": conn_id if may_read else None,
        "age": entry.age,
        "error": _hidden(entry, may_read).error,
        "refreshing": entry.refreshing,
        "may_edit": may_read and _is_allowed(user, "PUT", conn_id),
    }


def _hidden(entry: CacheEntry, may_read: bool) -> CacheEntry:
    """Return the entry without the text of its error if the user may not read the connection."""
    return entry if may_read or entry.error is None else replace(entry, error=HIDDEN_ERROR)


def _changes(entries: dict[str, CacheEntry], have: str) -> tuple[str, dict[str, Any]]:
    """Return the version of the lists, and what has changed since the version *have*."""
    known = dict(each.rpartition(".")[::2] for each in have.split(",")[:100])
    listings = {entry.source: entry.value or Listing() for entry in entries.values()}
    version = ",".join(f"{source}.{listing.revision}" for source, listing in listings.items())
    rows: list[dict[str, Any]] = []
    gone: list[str] = []
    for source, listing in listings.items():
        revision = known.get(source, "")
        since = listing.since(int(revision) if revision.isdecimal() and len(revision) < 10 else None)
        if since is None or len(known) != len(listings):
            full = [entry.row for listing in listings.values() for entry in listing.entries.values()]
            return version, {"full": True, "pools": full, "gone": []}
        rows += since[0]
        gone += since[1]
    return version, {"full": False, "pools": rows, "gone": gone}


def _pool_response(
    registry: ConnectionRegistry,
    entry: CacheEntry,
    have: str,
    build: Callable[[Any], dict[str, Any] | None],
    *,
    may_edit: bool,
) -> JSONResponse:
    unchanged = entry.value is not None and have == entry.version
    detail = None if entry.value is None or unchanged else build(entry.value)
    is_known = unchanged or detail is not None
    return JSONResponse(
        {
            "now": time.time(),
            "every": registry.max_age,
            "age": entry.age if is_known else None,
            "error": entry.error,
            "refreshing": entry.refreshing,
            "may_edit": may_edit,
            "version": entry.version if is_known else "",
            "unchanged": unchanged,
            "pool": detail,
        }
    )


def _output_response(entry: CacheEntry, output: TaskOutput | None) -> JSONResponse:
    return JSONResponse(
        {
            "now": time.time(),
            "age": entry.age,
            "error": entry.error,
            "refreshing": entry.refreshing,
            "output": output and output.streams,
        }
    )


def _require_same_site(request: Request) -> None:
    """Refuse requests that a page of another site makes a browser send, because the cookie proves no intent."""
    headers = request.headers
    origin = headers.get("origin")
    # Behind a proxy Host may be an inner name. The configuration then has the address that users open.
    own = {
        headers.get("host"),
        urlsplit(conf.get("api", "base_url", fallback="") or "").netloc or None,
    }
    if (
        headers.get(ACTION_HEADER) is None
        or headers.get("sec-fetch-site", "same-origin") != "same-origin"
        or (origin is not None and urlsplit(origin).netloc not in own)
    ):
        raise HTTPException(403, "Pools are closed from the Pools page of this Airflow only")
