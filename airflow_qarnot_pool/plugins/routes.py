"""The routes of the Pools page. Each route authenticates and authorizes the user, and reads from the cache.

``page`` and ``static`` need a user who is logged in. The pools of a connection need the right to read that connection,
and the pools of a DAG run the right to read that run. Closing a pool needs the right to edit the connection.
"""
# No `from __future__ import annotations`: FastAPI evaluates the annotations.

import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.configuration import conf
from airflow.models.connection import Connection
from airflow.models.log import Log
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.api.fields import Refusal, is_uuid, number
from airflow_qarnot_pool.ownership.identity import label
from airflow_qarnot_pool.parameters.configuration import get_option
from airflow_qarnot_pool.plugins.cache import LIST, Cache, CacheEntry
from airflow_qarnot_pool.plugins.queries import Fetcher, describe_error
from airflow_qarnot_pool.plugins.rows import (
    detail_of_run,
    is_open,
    row_of_run,
    without_runs,
)
from airflow_qarnot_pool.version_compat import api_security

log = logging.getLogger(__name__)

security = api_security()
CurrentUser = Annotated[Any, Depends(security.get_user)]

#: Header of requests that close a pool. A page of another site cannot send it without a CORS preflight.
ACTION_HEADER = "X-Qarnot-Pools"
STATIC = {
    "pools.css": "text/css; charset=utf-8",
    "pools.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
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
#: Maximum number of uuids in a request that count as displayed.
MAX_SHOWN = 50


class ConnectionRegistry:
    """The caches of the connections that the page shows."""

    def __init__(self, conn_ids: Sequence[str], max_age: float) -> None:
        self.max_age = max_age
        self.fetchers = {conn_id: Fetcher(conn_id) for conn_id in conn_ids}
        self.caches = {
            conn_id: Cache(fetcher, max_age=max_age, describe=describe_error)
            for conn_id, fetcher in self.fetchers.items()
        }

    def cache(self, conn_id: str, uuid: str) -> Cache:
        """Return the cache of a connection. 404 if the page does not show it, or if *uuid* is malformed."""
        if conn_id not in self.caches:
            raise HTTPException(404, f"The Pools page does not show the connection {conn_id[:250]!r}")
        if not is_uuid(uuid):
            raise HTTPException(404, f"{uuid[:80]!r} is no uuid of a pool")
        return self.caches[conn_id]

    def prioritize(self, conn_id: str, uuids: Sequence[str]) -> None:
        """Prioritize the cost figures of the pools currently displayed."""
        shown = self.fetchers[conn_id].shown
        shown.update(dict.fromkeys(uuids[:MAX_SHOWN], time.monotonic()))
        while len(shown) > 10 * MAX_SHOWN:
            shown.pop(next(iter(shown)))


def make_app() -> FastAPI:
    """Build the web application of the page from Airflow's configuration."""
    max_age = get_option("pools_page_refresh", number(1, 3600), 5.0)
    return _build_app(
        ConnectionRegistry(get_option("pools_page_connections", _conn_ids, ["qarnot_default"]), max_age)
    )


def _conn_ids(names: str) -> list[str]:
    conn_ids = [name.strip() for name in names.split(",") if name.strip()]
    if not conn_ids:
        raise Refusal(f"is {names!r}, which names no connection", "Give connection ids, separated by commas.")
    return conn_ids


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
    _add_close(app, registry)
    return app


def _add_files(app: FastAPI) -> None:
    logged_in = [Depends(security.get_user)]

    @app.get("/", dependencies=logged_in)
    def page() -> Response:
        return Response(_file("index.html"), media_type="text/html; charset=utf-8")

    @app.get("/static/{name}", dependencies=logged_in)
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "There is no such file")
        return Response(_file(name), media_type=STATIC[name])


def _read_connection() -> Any:
    return Depends(security.requires_access_connection(method="GET"))


def _read_run() -> Any:
    return Depends(security.requires_access_dag("GET", DagAccessEntity.RUN))


def _add_lists(app: FastAPI, registry: ConnectionRegistry) -> None:
    @app.get("/api/pools")
    def pools(user: CurrentUser, shown: str = "", have: str = "") -> JSONResponse:
        """Return all pools of the connections that the user may read.

        :param shown: uuids of the displayed pools.
        :param have: version of the response that the page has. The pools are sent if the version differs.
        """
        readable = [conn_id for conn_id in registry.caches if _is_allowed(user, "GET", conn_id)]
        if not readable:
            raise HTTPException(
                403, "This page needs the permission to read connections. A DAG run's own tab needs less."
            )
        uuids = [uuid for uuid in shown.split(",", MAX_SHOWN)[:MAX_SHOWN] if is_uuid(uuid)]
        for conn_id in readable:
            registry.prioritize(conn_id, uuids)
        entries = {}
        for conn_id in readable:
            entry = registry.caches[conn_id].get()
            entries[conn_id] = replace(entry, value=[without_runs(row) for row in entry.value or ()])
        return _list_response(registry, user, entries, have)

    @app.get("/api/dags/{dag_id}/pools", dependencies=[_read_run()])
    def pools_of_run(user: CurrentUser, dag_id: str, run_id: str, have: str = "") -> JSONResponse:
        """Return the pools that a DAG run created, and shared pools that it uses, with its share of them."""
        entries = {conn_id: cache.get() for conn_id, cache in registry.caches.items()}
        for conn_id, entry in entries.items():
            rows = [row for pool in entry.value or () if (row := row_of_run(pool, (dag_id, run_id)))]
            registry.prioritize(conn_id, [row["uuid"] for row in rows])
            entries[conn_id] = replace(entry, value=rows)
        return _list_response(registry, user, entries, have)


def _add_details(app: FastAPI, registry: ConnectionRegistry) -> None:
    @app.get("/api/connections/{connection_id}/pools/{uuid}", dependencies=[_read_connection()])
    def pool(connection_id: str, uuid: str, user: CurrentUser) -> JSONResponse:
        """Return one pool in full."""
        return _pool_response(registry, user, connection_id, uuid)

    @app.get("/api/dags/{dag_id}/connections/{connection_id}/pools/{uuid}", dependencies=[_read_run()])
    def pool_of_run(
        dag_id: str, connection_id: str, uuid: str, run_id: str, user: CurrentUser
    ) -> JSONResponse:
        """Return one pool of a DAG run in full, and of a shared pool only the run's own tasks."""
        rows = registry.cache(connection_id, uuid).get().value or ()
        if not any(row["uuid"] == uuid and (dag_id, run_id) in row["runs"] for row in rows):
            raise HTTPException(404, f"No pool {uuid} belongs to this DAG run")
        return _pool_response(registry, user, connection_id, uuid, only=(dag_id, run_id))


def _add_close(app: FastAPI, registry: ConnectionRegistry) -> None:
    edit_connection = Depends(security.requires_access_connection(method="PUT"))

    @app.post(
        "/api/connections/{connection_id}/pools/{uuid}/close",
        dependencies=[edit_connection, Depends(_require_same_site)],
    )
    def close(connection_id: str, uuid: str, user: CurrentUser) -> JSONResponse:
        """Close a pool, after an entry in Airflow's audit log."""
        cache, fetcher = registry.cache(connection_id, uuid), registry.fetchers[connection_id]
        try:
            pool = fetcher.pool_to_close(uuid)
            if not is_open(pool):
                return JSONResponse({"closed": True, "message": f"The pool is {pool.state} already"})
            _audit(user, connection_id, pool)
            fetcher.close_pool(uuid)
        except QarnotNotFoundError as error:
            raise HTTPException(404, str(error)) from None
        except QarnotError as error:
            raise HTTPException(502, str(error)) from None
        finally:
            cache.get(LIST, newer=True)
            cache.get(uuid, newer=True)
        return JSONResponse({"closed": True, "message": "Qarnot closes the pool"})


@cache
def _file(name: str) -> bytes:
    return files("airflow_qarnot_pool.plugins").joinpath("static", name).read_bytes()


def _is_allowed(user: Any, method: Any, conn_id: str) -> bool:
    details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
    return get_auth_manager().is_authorized_connection(method=method, details=details, user=user)


def _list_response(
    registry: ConnectionRegistry, user: Any, entries: dict[str, CacheEntry], have: str
) -> JSONResponse:
    version = ",".join(entry.version for entry in entries.values())
    rows = [row for entry in entries.values() for row in entry.value or ()]
    return JSONResponse(
        {
            "now": time.time(),
            "every": registry.max_age,
            "connections": [
                {
                    "id": conn_id,
                    "age": entry.age,
                    "error": entry.error,
                    "refreshing": entry.refreshing,
                    "may_close": _is_allowed(user, "PUT", conn_id),
                }
                for conn_id, entry in entries.items()
            ],
            "version": version,
            "pools": None if have == version else rows,
        }
    )


def _pool_response(
    registry: ConnectionRegistry,
    user: Any,
    conn_id: str,
    uuid: str,
    *,
    only: tuple[str, str] | None = None,
) -> JSONResponse:
    entry = registry.cache(conn_id, uuid).get(uuid)
    detail = entry.value
    if detail and only:
        # None if it was read before the run used the pool. It is older than the list then, so a newer one will come.
        detail = detail_of_run(detail, only)
    elif detail:
        detail = {**detail, "row": without_runs(detail["row"])}
    return JSONResponse(
        {
            "now": time.time(),
            "age": entry.age if detail else None,
            "error": entry.error,
            "refreshing": entry.refreshing,
            "may_close": _is_allowed(user, "PUT", conn_id),
            "pool": detail,
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


def _id(pool: Any, name: str) -> str | None:
    """Return the id in one of our labels, cut to Airflow's column, because all who have the token can write labels."""
    value = label(pool.labels, name)
    return value[:250] if value else None


def _audit(user: Any, conn_id: str, pool: Any) -> None:
    """Write the user and the pool that is closed to Airflow's audit log."""
    extra = {"connection_id": conn_id, "pool": pool.uuid, "name": pool.name, "state": pool.state}
    with create_session() as session:
        session.add(
            Log(
                event="qarnot.close_pool",
                owner=user.get_name(),
                owner_display_name=user.get_name(),
                extra=json.dumps(extra),
                dag_id=_id(pool, "dag_id"),
                run_id=_id(pool, "run_id"),
                task_id=_id(pool, "task_id"),
            )
        )
    log.info("%s closes pool %s (%r) of connection %s", user.get_name(), pool.uuid, pool.name, conn_id)
