"""A server that answers what a test tells it to, well or badly, and remembers every request.

Only for the transport; everything else is tried against the local Qarnot.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """An answer. ``body``: JSON unless it is bytes."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, handler: Handler) -> None:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        handler.send_response(self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        if "Content-Length" not in self.headers:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def reset(handler: Handler) -> None:
    """Drop the connection without a word."""
    handler.close_connection = True
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def hang(handler: Handler) -> None:
    """Say nothing until the test is over."""
    handler.close_connection = True
    handler.server.over.wait()  # type: ignore[attr-defined]


def drip(handler: Handler) -> None:
    """Send header bytes for ever, a few at a time."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    with contextlib.suppress(OSError):
        while not handler.server.over.wait(0.02):  # type: ignore[attr-defined]
            handler.wfile.write(b"x")


def drip_body(handler: Handler) -> None:
    """Send a body for ever, a few bytes at a time."""
    handler.close_connection = True
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{"uuid": "')
    with contextlib.suppress(OSError):
        while not handler.server.over.wait(0.02):  # type: ignore[attr-defined]
            handler.wfile.write(b"x")


class Tunnel:
    """What a proxy does for https: leads to where the request says, until it is cut."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def __call__(self, handler: Handler) -> None:
        handler.close_connection = True
        host, _, port = handler.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self._open.append(handler.connection)
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=_pipe, args=(there, handler.connection), daemon=True).start()
            _pipe(handler.connection, there)

    def cut(self) -> None:
        while self._open:
            self._open.pop().shutdown(socket.SHUT_RDWR)


def _pipe(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        stub: Stub = self.server.stub  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        body = json.loads(raw) if raw else None
        request = Request(self.command, self.path, dict(self.headers), body)
        with stub.lock:
            stub.requests.append(request)
            answer = stub.answers.popleft() if stub.answers else stub.default
        if (
            callable(answer)
            and not isinstance(answer, Reply)
            and answer not in (reset, hang, drip, drip_body)
        ):
            answer = answer(request)
        answer(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = _answer

    def log_message(self, *args: Any) -> None:
        pass


Behaviour = Reply | Callable[..., Any]


class Stub:
    """Answers with ``answers`` in order, then with ``default``; a function of the request may stand for each."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: deque[Behaviour] = deque()
        self.default: Behaviour = Reply()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.stub = self  # type: ignore[attr-defined]
        self._server.over = threading.Event()  # type: ignore[attr-defined]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"

    def will(self, *answers: Behaviour) -> Stub:
        self.answers.extend(answers)
        return self

    @property
    def log(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]


@contextlib.contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Stub]:
    stub = Stub(tls)
    server = stub._server
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()
