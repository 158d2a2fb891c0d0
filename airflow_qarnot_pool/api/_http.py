"""One HTTP exchange with requests, limited in time and size. Imported by the first request."""

from __future__ import annotations

import functools
import io
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

#: Maximum bytes of JSON, because parsed JSON takes about eight times as much memory.
MAX_JSON = 64 * 1024 * 1024
#: Maximum bytes of text that is read as a whole. Larger outputs are streamed.
MAX_TEXT = 256 * 1024 * 1024
MAX_ERROR_BODY = 64 * 1024
_CHUNK = 64 * 1024


class _BoundedReader(io.RawIOBase):
    """Reads a socket until a deadline.

    A socket's own timeout restarts with every byte, so a slow server could hold a request forever.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._raw = cast(io.RawIOBase, sock.makefile("rb", buffering=0))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the response took too long")
        self._sock.settimeout(remaining)
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
    """Applies the read timeout of a connection to the whole response, headers and body."""

    def getresponse(self) -> Any:
        with self._bounded():
            return cast(Any, super()).getresponse()

    def _tunnel(self) -> None:
        try:
            with self._bounded():
                cast(Any, super())._tunnel()
        except OSError as error:
            # The request has not been sent yet.
            raise urllib3.exceptions.ProxyError("no tunnel through the proxy", error) from error

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Set the deadline of one response, because the connection is reused for later ones."""
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
    """Sends the token as Authorization. An `auth` object, because a .netrc entry could replace a header."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = self._token
        return request


def new_session(*, user_agent: str, retries: urllib3.Retry | int = 0) -> requests.Session:
    """Return a session that keeps connections alive. The read timeout of a request bounds its whole response."""
    session = requests.Session()
    adapter = _Adapter(max_retries=retries)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers["User-Agent"] = user_agent
    session.headers["Accept"] = "application/json, text/plain, */*"
    session.headers["Accept-Encoding"] = "gzip, deflate"
    return session


class TooLarge(Exception):
    """A response is larger than its limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit:,} bytes")


def read(response: requests.Response, limit: int) -> bytes:
    """Read a body of at most *limit* bytes. The body of an error is cut to the size of a message."""
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
    """Yield a body in chunks of limited size, however much it is compressed."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    pieces = response.raw.stream(_CHUNK, decode_content=False)
    if encoding in ("", "identity"):
        yield from pieces
    elif encoding in ("gzip", "x-gzip", "deflate"):
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # detects gzip and zlib
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
        raise requests.exceptions.ContentDecodingError(f"unexpected encoding: {encoding[:40]}")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an exchange failed."""

    reason: str
    #: Whether the server may have processed the request.
    may_have_acted: bool = False
    #: Whether every further attempt would fail too.
    is_permanent: bool = False


def explain(error: Exception, limit: float) -> Failure:
    """Explain an exception of the HTTP libraries.

    Does not use their messages, which may contain the password of a proxy.

    :param limit: seconds that the exchange could take.
    """
    causes = _causes(error)
    if reason := _misconfiguration(error, causes):
        return Failure(reason, is_permanent=True)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Failure(f"no connection within {limit:.0f} s")
    never_sent = isinstance(error, requests.exceptions.ProxyError) or any(
        isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes
    )
    return Failure(_interruption(error, causes, limit), may_have_acted=not never_sent)


def _misconfiguration(error: Exception, causes: list[BaseException]) -> str | None:
    """Return the reason of a failure that only another configuration can remove."""
    for cause in causes:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause) or isinstance(cause, ssl.CertificateError):
            return "the server's TLS certificate cannot be verified"
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return "the server does not speak TLS on this port (does its URL start with http://?)"
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidProxyURL)):
        return "the URL of the API or of the proxy is not valid"
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "the scheme of the proxy URL needs another package"
    return None


def _interruption(error: Exception, causes: list[BaseException], limit: float) -> str:
    """Return the reason of a failure that may pass."""
    if any(isinstance(cause, (TimeoutError, urllib3.exceptions.ReadTimeoutError)) for cause in causes):
        return f"no complete response within {limit:.0f} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the HTTP proxy does not respond, or refuses"
    if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
        return "the host name cannot be resolved"
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system is not None:
        return str(system.strerror).lower()
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return "the response cannot be decoded"
    return "the connection was interrupted"


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and all exceptions inside it, in any of the forms that the HTTP libraries use."""
    causes: list[BaseException] = []
    queue: list[Any] = [error]
    while queue:
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            queue += [getattr(cause, "reason", None), cause.__cause__, cause.__context__, *cause.args]
    return causes
