"""One HTTP exchange on requests, bounded in time and size. Imported only when the first request is made."""

from __future__ import annotations

import functools
import io
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

#: Maximum bytes of JSON. Parsed it takes about eight times as much memory.
MAX_JSON = 64 * 1024 * 1024
#: Maximum bytes of text that is read as a whole. Outputs of any size are read in pieces.
MAX_TEXT = 256 * 1024 * 1024
MAX_ERROR_BODY = 64 * 1024
_CHUNK = 64 * 1024


class _BoundedReader(io.RawIOBase):
    """Reads a socket, each time with what is left of one deadline.

    A socket's own timeout starts anew with every byte, so that a server that drips could hold a request forever.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._raw = cast(io.RawIOBase, sock.makefile("rb", buffering=0))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _BoundedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_BoundedReader(sock, deadline))


class _BoundedExchange:
    """Makes a connection's read timeout a bound on the whole answer, headers and body."""

    def getresponse(self) -> Any:
        with self._bounded():
            return cast(Any, super()).getresponse()

    def _tunnel(self) -> None:
        try:
            with self._bounded():
                cast(Any, super())._tunnel()
        except OSError as error:
            # Nothing of the request is on its way yet.
            raise urllib3.exceptions.ProxyError("no tunnel through the proxy", error) from error

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """For one answer: a connection that is used again has the next one at another time."""
        this = cast(Any, self)
        deadline = time.monotonic() + this.timeout
        this.response_class = functools.partial(_BoundedResponse, deadline=deadline)
        try:
            yield
        finally:
            del this.response_class


class _HTTPConnection(_BoundedExchange, HTTPConnection):
    pass


class _HTTPSConnection(_BoundedExchange, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class Token(requests.auth.AuthBase):
    """The raw token as Authorization. As `auth`, so that a .netrc entry for the host cannot replace it."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = self._token
        return request


def new_session(*, user_agent: str) -> requests.Session:
    """A session with kept-alive connections and nothing of its own in the way of retries."""
    session = requests.Session()
    adapter = _Adapter(max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers["User-Agent"] = user_agent
    session.headers["Accept"] = "application/json, text/plain, */*"
    session.headers["Accept-Encoding"] = "gzip, deflate"
    return session


class TooLarge(Exception):
    """An answer has more bytes than its kind can have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit:,} bytes")


def read(response: requests.Response, limit: int) -> bytes:
    """Read a body of at most *limit* bytes to its end; of a refusal only as much as a message can be."""
    if not response.ok:
        limit = MAX_ERROR_BODY
    body = bytearray()
    for chunk in chunks(response):
        body += chunk
        if len(body) > limit:
            if response.ok:
                raise TooLarge(limit)
            break
    return bytes(body[:limit])


def chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield a body in pieces of bounded size, however much it is compressed."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    pieces = response.raw.stream(_CHUNK, decode_content=False)
    if encoding in ("", "identity"):
        yield from pieces
    elif encoding in ("gzip", "x-gzip", "deflate"):
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two
        try:
            for piece in pieces:
                while piece and not stream.eof:
                    yield stream.decompress(piece, _CHUNK)
                    piece = stream.unconsumed_tail
        except zlib.error as error:
            raise requests.exceptions.ContentDecodingError(str(error)) from None
        if not stream.eof:
            raise requests.exceptions.ContentDecodingError("the compressed body is cut off")
    else:
        raise requests.exceptions.ContentDecodingError(f"an encoding that was not asked for: {encoding[:40]}")


def explain(error: Exception, limit: float) -> tuple[str, bool, bool]:
    """Why an exchange broke off: the reason, whether the server may have acted, whether it is for good.

    The text is ours: that of the libraries may name proxies with their passwords.
    """
    causes = _causes(error)
    for cause in causes:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause) or isinstance(cause, ssl.CertificateError):
            return "the server's TLS certificate cannot be verified", False, True
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return "the server does not speak TLS on this port (is its URL one with http://?)", False, True
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidProxyURL)):
        return "the URL of the API or of the proxy is not valid", False, True
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "the URL of the proxy is of a kind that needs another package", False, True
    untouched = isinstance(
        error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)
    ) or any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {limit:.0f} s", False, False
    if any(isinstance(cause, (TimeoutError, urllib3.exceptions.ReadTimeoutError)) for cause in causes):
        return f"no complete answer within {limit:.0f} s", not untouched, False
    if isinstance(error, requests.exceptions.ProxyError):
        return "the HTTP proxy does not answer, or refuses", False, False
    if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
        return "the host name cannot be resolved", False, False
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system is not None:
        return str(system.strerror).lower(), not untouched, False
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return "the answer cannot be decoded", not untouched, False
    return "the connection broke off", not untouched, False


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and all it wraps, in any of the ways the HTTP libraries do."""
    found: list[BaseException] = []
    todo: list[Any] = [error]
    while todo:
        one = todo.pop(0)
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            todo += [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]
    return found
