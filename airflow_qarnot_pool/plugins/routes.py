"""The routes of the Pools page. Each asks who is there and what he may; the rest is the cache's.

``page`` and ``static`` need a user who is logged in. What a connection's account has needs the right to read that
connection, the pools of a DAG run the right to read that run; closing needs the right to edit the connection.
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
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.api.fields import Refusal, number
from airflow_qarnot_pool.api.resource import is_uuid
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

#: Requests that change something carry it. Another site's page cannot send it without being asked first (CORS).
ACTION_HEADER = "X-Qarnot-Pools"
STATIC = {
    "pools.css": "text/css; charset=utf-8",
    "pools.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}
#: Everything comes from here; only Airflow's own pages may frame it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: Most uuids of one look that count as seen by somebody.
MAX_SHOWN = 50


class ConnectionRegistry:
    """The caches of the connections that the page shows."""

    def __init__(self, conn_ids: Sequence[str], every: float) -> None:
        self.every = every
        self.fetchers = {conn_id: Fetcher(conn_id) for conn_id in conn_ids}
        self.caches = {
            conn_id: Cache(fetcher, every=every, describe=describe_error)
            for conn_id, fetcher in self.fetchers.items()
        }

    def cache(self, conn_id: str, uuid: str) -> Cache:
        """The cache of a connection that the page is about; 404 for any other, and for what is no uuid."""
        if conn_id not in self.caches:
            raise HTTPException(404, f"The Pools page does not show the connection {conn_id[:250]!r}")
        if not is_uuid(uuid):
            raise HTTPException(404, f"{uuid[:80]!r} is no uuid of a pool")
        return self.caches[conn_id]

    def shown(self, conn_id: str, uuids: Sequence[str]) -> None:
        """Somebody has these pools in front of him: their figures come first."""
        known = self.fetchers[conn_id].shown
        known.update(dict.fromkeys(uuids[:MAX_SHOWN], time.monotonic()))
        while len(known) > 10 * MAX_SHOWN:
            known.pop(next(iter(known)))


def make_app() -> FastAPI:
    """The page's web application, as the configuration wants it."""
    every = get_option("pools_page_refresh", number(1, 3600), 5.0)
    return _build_app(
        ConnectionRegistry(get_option("pools_page_connections", _conn_ids, ["qarnot_default"]), every)
    )


def _conn_ids(names: str) -> list[str]:
    conn_ids = [name.strip() for name in names.split(",") if name.strip()]
    if not conn_ids:
        raise Refusal(f"is {names!r}, which names no connection", "Give connection ids, separated by commas.")
    return conn_ids


def _build_app(registry: ConnectionRegistry) -> FastAPI:
    app = FastAPI(title="Qarnot pools", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.registry = registry
    read_connection = [Depends(security.requires_access_connection(method="GET"))]
    edit_connection = [
        Depends(security.requires_access_connection(method="PUT")),
        Depends(_require_same_site),
    ]
    read_run = [Depends(security.requires_access_dag("GET", DagAccessEntity.RUN))]
    logged_in = [Depends(security.get_user)]

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/", dependencies=logged_in)
    def page() -> Response:
        return Response(_file("index.html"), media_type="text/html; charset=utf-8")

    @app.get("/static/{name}", dependencies=logged_in)
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "There is no such file")
        return Response(_file(name), media_type=STATIC[name])

    @app.get("/api/pools")
    def pools(user: CurrentUser, shown: str = "", have: str = "") -> JSONResponse:
        """All pools of the connections that this user may read.

        :param shown: uuids of those on the user's screen.
        :param have: version of the answer that the page has; the pools are sent when there is another.
        """
        readable = [conn_id for conn_id in registry.caches if _is_allowed(user, "GET", conn_id)]
        if not readable:
            raise HTTPException(
                403, "This page needs the permission to read connections. A DAG run's own tab needs less."
            )
        uuids = [uuid for uuid in shown.split(",", MAX_SHOWN)[:MAX_SHOWN] if is_uuid(uuid)]
        for conn_id in readable:
            registry.shown(conn_id, uuids)
        looks = {}
        for conn_id in readable:
            look = registry.caches[conn_id].get()
            looks[conn_id] = replace(look, value=[without_runs(row) for row in look.value or ()])
        return _list_response(
            registry, looks, {conn_id: _is_allowed(user, "PUT", conn_id) for conn_id in readable}, have
        )

    @app.get("/api/dags/{dag_id}/pools", dependencies=read_run)
    def pools_of_run(user: CurrentUser, dag_id: str, run_id: str, have: str = "") -> JSONResponse:
        """The pools of one DAG run: those it made, and shared ones that it uses, with its part of them."""
        looks = {conn_id: cache.get() for conn_id, cache in registry.caches.items()}
        for conn_id, look in looks.items():
            mine = [row for one in look.value or () if (row := row_of_run(one, (dag_id, run_id)))]
            registry.shown(conn_id, [row["uuid"] for row in mine])
            looks[conn_id] = replace(look, value=mine)
        return _list_response(
            registry, looks, {conn_id: _is_allowed(user, "PUT", conn_id) for conn_id in looks}, have
        )

    @app.get("/api/connections/{connection_id}/pools/{uuid}", dependencies=read_connection)
    def pool(connection_id: str, uuid: str, user: CurrentUser) -> JSONResponse:
        """One pool in full."""
        return _pool_response(
            registry, connection_id, uuid, may_close=_is_allowed(user, "PUT", connection_id)
        )

    @app.get("/api/dags/{dag_id}/connections/{connection_id}/pools/{uuid}", dependencies=read_run)
    def pool_of_run(
        dag_id: str, connection_id: str, uuid: str, run_id: str, user: CurrentUser
    ) -> JSONResponse:
        """One pool of a DAG run in full; of a shared pool only the run's own tasks."""
        listed = registry.cache(connection_id, uuid).get().value or ()
        if not any(row["uuid"] == uuid and (dag_id, run_id) in row["runs"] for row in listed):
            raise HTTPException(404, f"No pool {uuid} belongs to this DAG run")
        return _pool_response(
            registry,
            connection_id,
            uuid,
            may_close=_is_allowed(user, "PUT", connection_id),
            only=(dag_id, run_id),
        )

    @app.post("/api/connections/{connection_id}/pools/{uuid}/close", dependencies=edit_connection)
    def close(connection_id: str, uuid: str, user: CurrentUser) -> JSONResponse:
        """Close a pool. Written to Airflow's audit log before it is done."""
        cache, fetcher = registry.cache(connection_id, uuid), registry.fetchers[connection_id]
        try:
            found = fetcher.pool_to_close(uuid)
            if not is_open(found):
                return JSONResponse({"closed": True, "message": f"The pool is {found.state} already"})
            _audit(user, connection_id, found)
            fetcher.close_pool(uuid)
        except QarnotNotFoundError as error:
            raise HTTPException(404, str(error)) from None
        except QarnotError as error:
            raise HTTPException(502, str(error)) from None
        finally:
            cache.get(LIST, newer=True)
            cache.get(uuid, newer=True)
        return JSONResponse({"closed": True, "message": "Qarnot closes the pool"})

    return app


@cache
def _file(name: str) -> bytes:
    return files("airflow_qarnot_pool.plugins").joinpath("static", name).read_bytes()


def _is_allowed(user: Any, method: Any, conn_id: str) -> bool:
    details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
    return get_auth_manager().is_authorized_connection(method=method, details=details, user=user)


def _list_response(
    registry: ConnectionRegistry, looks: dict[str, CacheEntry], may_close: dict[str, bool], have: str
) -> JSONResponse:
    version = ",".join(look.version for look in looks.values())
    rows = [row for look in looks.values() for row in look.value or ()]
    return JSONResponse(
        {
            "now": time.time(),
            "every": registry.every,
            "connections": [
                {
                    "id": conn_id,
                    "age": look.age,
                    "error": look.error,
                    "refreshing": look.refreshing,
                    "may_close": may_close[conn_id],
                }
                for conn_id, look in looks.items()
            ],
            "version": version,
            "pools": None if have == version else rows,
        }
    )


def _pool_response(
    registry: ConnectionRegistry,
    conn_id: str,
    uuid: str,
    *,
    may_close: bool,
    only: tuple[str, str] | None = None,
) -> JSONResponse:
    look = registry.cache(conn_id, uuid).get(uuid)
    found = look.value
    if found and only:
        # None: it was read before the run came, and is older than the list, so a newer one is on its way.
        found = detail_of_run(found, only)
    elif found:
        found = {**found, "row": without_runs(found["row"])}
    return JSONResponse(
        {
            "now": time.time(),
            "age": look.age if found else None,
            "error": look.error,
            "refreshing": look.refreshing,
            "may_close": may_close,
            "pool": found,
        }
    )


def _require_same_site(request: Request) -> None:
    """Refuse what a page of another site has a browser send: the cookie alone is no proof of intent."""
    headers = request.headers
    origin = headers.get("origin")
    # Behind a proxy Host may be an inner name; then the address people use is in the configuration.
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
    """An id among our labels, no longer than Airflow's column: anybody with the token can write labels."""
    value = label(pool.labels, name)
    return value[:250] if value else None


def _audit(user: Any, conn_id: str, pool: Any) -> None:
    """Write to Airflow's audit log who closes which pool."""
    from airflow.models.log import Log
    from airflow.utils.session import create_session

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
