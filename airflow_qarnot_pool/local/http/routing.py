"""Turn plain functions into routes, with JSON responses and errors in Qarnot's words."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.fields import parse

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend


class Call:
    """One request with its body."""

    def __init__(self, backend: Backend, request: Request, body: bytes) -> None:
        self.backend, self._request, self._body = backend, request, body

    @property
    def json(self) -> Any:
        return parse(self._body)

    @property
    def id(self) -> str:
        return str(self._request.path_params["u"])

    def path(self, name: str) -> str:
        return str(self._request.path_params[name])

    def query(self, name: str) -> str | None:
        folded = {key.lower(): value for key, value in self._request.query_params.items()}
        return folded.get(name.lower())

    @property
    def tags(self) -> list[str]:
        return self._request.query_params.getlist("tag")


Handler = Callable[[Call], Any]


class Raw(Response):
    """A response that is not JSON, or not a 200."""


def text(content: str) -> Raw:
    """Return text with a charset, because the Python SDK reads Latin-1 without one."""
    return Raw(content, media_type="text/plain; charset=utf-8")


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Raw:
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    kind = "application/problem+json" if status >= 400 and "errors" in content else "application/json"
    return Raw(body, status_code=status, headers=headers, media_type=kind)


def created(kind: str, uuid: str) -> Raw:
    return as_json({"uuid": uuid}, headers={"Location": f"/{kind}/{uuid}"})


def route(backend: Backend, method: str, path: str, handler: Handler) -> Route:
    """Return the route of a handler, which may be async.

    A handler returns None (200 without a body), a JSON value or a Response.
    """

    async def endpoint(request: Request) -> Response:
        try:
            call = Call(backend, request, await request.body())
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            backend.touch()
            result = handler(call)
            if isawaitable(result):
                result = await result
        except ApiError as error:
            return as_json(error.body(), error.status)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return as_json({"message": f"The local Qarnot failed: {type(error).__name__}: {error}"}, 500)
        finally:
            backend.touch()
            if method != "GET":
                backend.note()
            # The response shows only what a restart would show, too.
            backend.save()
        if result is None:
            return Response(status_code=200)
        return result if isinstance(result, Response) else as_json(result)

    return Route(path, endpoint, methods=[method])


async def not_found(request: Request, error: Exception) -> Response:
    return as_json({"message": f"No such address: {request.method} {request.url.path}"}, 404)


async def wrong_method(request: Request, error: Exception) -> Response:
    return as_json({"message": f"{request.method} is not possible at {request.url.path}"}, 405)
