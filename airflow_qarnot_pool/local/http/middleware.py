"""Middleware of the HTTP server: check the sender, normalise paths, log requests and apply faults."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_qarnot_pool.local.http import page
from airflow_qarnot_pool.local.http.faults import (
    FaultRule,
    Faults,
    LoggedRequest,
    RequestLog,
)
from airflow_qarnot_pool.local.http.rate_limit import RateLimit
from airflow_qarnot_pool.local.schemas.addresses import DISCARDED_BYTES, Addresses

CONTROL = "/_local"
OPEN_PATHS = frozenset({"/settings", "/versions"})
_VERSION = re.compile(r"^/v\d+(\.\d+)?(?=/|$)")
_TOO_MANY = b'{"message":"Too many requests"}'
_GARBAGE = b"<html><body>upstream went away</body>"
_PAGE = b"<html><head><title>%d</title></head><body>The gateway answers for the service.</body></html>"


def plain_path(path: str) -> str:
    """Normalise a path, as `//v1/pools/` to `/pools`: SDKs may add a version and slashes."""
    path = re.sub(r"/{2,}", "/", path)
    path = _VERSION.sub("", path)
    return path.rstrip("/") or "/"


class Middleware:
    def __init__(
        self,
        app: ASGIApp,
        token: str,
        addresses: Addresses,
        faults: Faults,
        log: RequestLog,
        clock: Callable[[], float | None] = time.time,
        rate_limit: RateLimit | None = None,
    ) -> None:
        self._app, self._faults, self._log, self._clock = app, faults, log, clock
        self._rate_limit = rate_limit
        self._token, self._addresses = token.encode(), addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if reason := self._addresses.refusal(_headers(scope, b"host"), _headers(scope, b"origin")):
            await _refuse(scope, receive, send, 403, reason)
            return
        path = plain_path(scope["path"])
        scope = {**scope, "path": path, "raw_path": path.encode(), "root_path": ""}
        if page.is_wanted(scope):
            await page.response()(scope, receive, send)
            return
        if path == CONTROL or path.startswith(CONTROL + "/"):
            await self._admit(scope, receive, send)
            return
        entry = self._log.arrived(scope["method"], path, scope["query_string"].decode("latin-1"))
        answer = _logging(entry, send, self._clock)
        if self._rate_limit is not None and (wait := self._rate_limit.wait()):
            await self._turn_away(
                scope, receive, answer, 429, _TOO_MANY, {"retry-after": str(math.ceil(wait))}
            )
            return
        rule = self._faults.choose(scope["method"], path)
        if rule is None:
            await self._admit(scope, receive, answer)
        else:
            entry.fault = rule.kind
            await self._fault(rule, scope, receive, send, answer)

    async def _fault(self, rule: FaultRule, scope: Scope, receive: Receive, send: Send, answer: Send) -> None:
        if rule.kind == "status":
            headers = {} if rule.retry_after is None else {"retry-after": f"{rule.retry_after:g}"}
            body = json.dumps({"message": rule.message}).encode()
            await self._turn_away(scope, receive, answer, rule.status, body, headers)
        elif rule.kind == "proxy":
            html = {"content-type": "text/html"}
            await self._turn_away(scope, receive, answer, rule.status, _PAGE % rule.status, html)
        elif rule.kind == "reset":
            await _hang_up(receive, send, reset=True)
        elif rule.kind == "lost":
            await self._admit(scope, receive, _Swallowed())
            await _hang_up(receive, send)
        elif rule.kind == "garbage":
            await self._admit(scope, receive, _Swallowed())
            await _respond(answer, 200, _GARBAGE, {"content-type": "text/html"})
        elif rule.when == "before":
            await asyncio.sleep(rule.seconds)
            await self._admit(scope, receive, answer)
        else:
            held = _Swallowed()
            await self._admit(scope, receive, held)
            await asyncio.sleep(rule.seconds)
            for message in held.messages:
                await answer(message)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS or self._has_token(scope):
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send, 401, "Bad authentication token")

    def _has_token(self, scope: Scope) -> bool:
        token = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(token, self._token)

    async def _turn_away(
        self, scope: Scope, receive: Receive, send: Send, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        """Respond in place of the application, and read the body of the request if its sender has the token."""
        maximum = None if self._has_token(scope) else DISCARDED_BYTES
        await _turn_away(scope, receive, send, status, body, headers, maximum)


class _Swallowed:
    """Keeps a response that is not sent, or not yet."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)


def _logging(entry: LoggedRequest, send: Send, clock: Callable[[], float | None]) -> Send:
    """Log the status, and date the response by the shown clock, if there is one."""

    async def logging(message: Message) -> None:
        if message["type"] == "http.response.start":
            entry.status = message["status"]
            if (now := clock()) is not None:
                dated = (b"date", formatdate(now, usegmt=True).encode())
                message = {**message, "headers": [*message["headers"], dated]}
        await send(message)

    return logging


def _headers(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


async def _discard_body(receive: Receive, maximum: int | None) -> None:
    """Read the body of a request and keep none of it."""
    read = 0
    while maximum is None or read < maximum:
        message = await receive()
        read += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def _turn_away(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    body: bytes,
    headers: dict[str, str],
    maximum: int | None,
) -> None:
    """Respond without the body of the request. A client that waits for a 100 before it sends one gets none."""
    if _headers(scope, b"expect"):
        headers = {**headers, "connection": "close"}
    else:
        await _discard_body(receive, maximum)
    await _respond(send, status, body, headers)


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    """Refuse a request of an unknown sender, and do not read the whole body of it."""
    body = json.dumps({"message": message}).encode()
    await _turn_away(scope, receive, send, status, body, {"connection": "close"}, DISCARDED_BYTES)


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    all_headers = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    encoded = [(key.encode(), value.encode()) for key, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _hang_up(receive: Receive, send: Send, *, reset: bool = False) -> None:
    """Drop the connection without a response, through uvicorn's transport because ASGI cannot."""
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("faults that drop the connection need uvicorn as the server")
    connection = transport.get_extra_info("socket")
    if reset and connection is not None:
        # Without lingering, closing sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass
