"""Send requests to Qarnot, with deadlines, retries, and an exception for every failure.

Built on requests and tenacity, which the first request imports. The rules:

- Every attempt has a timeout. Every request has a deadline for all its attempts and the waits between them.
- Reads and idempotent requests are retried after connection errors, timeouts, 408, 429, 5xx and unreadable responses.
- Other requests are retried only if they cannot have taken effect (no connection, 429), or if the caller can look up
  the result of the earlier attempt (``recover``).
- Waits grow exponentially with jitter. A Retry-After is respected; one past the deadline ends the retries.
- Redirects are not followed. The token is in no log, repr or error.
"""

from __future__ import annotations

import codecs
import copy
import logging
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

from airflow_qarnot_pool import __version__
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.fields import SECRET, find_secrets
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.api.responses import (
    TRANSIENT,
    UNTOUCHED,
    error_from_response,
    is_json_like,
    retry_after,
    server_message,
)

if TYPE_CHECKING:
    import requests
    import tenacity

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 30.0
DEFAULT_DEADLINE = 120.0
DEFAULT_RETRIES = 6
MAX_WAIT = 20.0

_AUTHORITY = re.compile(r"([^:/]+://)[^/]*@")
#: Ends of the paths of POST requests that change nothing.
_READING = ("/search", "/paginate")

#: Called with the remaining seconds after a request whose response was lost. Returns the response, or None if the
#: request did not take effect.
Recover = Callable[[float], Any]


def backoff(attempt: int) -> float:
    """Return the seconds to wait after an attempt (from 1): 0.5, 1, 2, ... up to 20, of which up to half is random."""
    longest = float(min(MAX_WAIT, 0.5 * 2 ** min(attempt - 1, 10)))
    return random.uniform(longest / 2, longest)


class ResponseInterruptedError(QarnotUnavailableError):
    """A streamed response was interrupted. A new request may succeed."""


class _Again(Exception):
    """A failure to retry after ``wait`` seconds."""

    def __init__(self, error: QarnotError, wait: float) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class _NoResponse(Exception):
    """The exchange was interrupted. ``touched``: the server may have processed it. ``permanent``: do not retry."""

    def __init__(self, reason: str, *, touched: bool, permanent: bool = False, remedy: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.touched = touched
        self.permanent = permanent
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response, read to its end."""

    status: int
    body: bytes
    content_type: str
    retry_after: str | None
    #: The body in pieces, in place of ``body``, if the request asked for it.
    pieces: Iterator[str] | None = None

    @property
    def is_list(self) -> bool:
        """Whether it lists the results of a bulk request, as opposed to an error of the whole request."""
        return self.status not in TRANSIENT and self.body.lstrip()[:1] == b"["


@dataclass(frozen=True, slots=True)
class Exchange:
    """One attempt of a request, for an observer. ``status`` is None if no response arrived."""

    method: str
    path: str
    status: int | None
    seconds: float
    attempt: int


#: Called after every attempt. Must not raise.
Observer = Callable[[Exchange], None]


@dataclass(slots=True)
class _Call:
    """One request and the state of its attempts."""

    method: str
    path: str
    ends: float
    json: Any = None
    params: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None
    idempotent: bool = False
    kind: str | None = None
    ref: str | None = None
    text: bool = False
    pieces: bool = False
    shape: type | tuple[type, ...] | None = None
    creating: bool = False
    bulk: bool = False
    anonymous: bool = False
    recover: Recover | None = None
    attempts: int = 0
    #: The response to the last attempt was too large.
    too_large: bool = False
    #: An earlier attempt may have taken effect.
    ambiguous: bool = False

    @property
    def where(self) -> dict[str, Any]:
        return {"kind": self.kind, "ref": self.ref, "method": self.method, "path": self.path}

    @property
    def changes(self) -> bool:
        """Whether the request changes something on Qarnot."""
        return self.method != "GET" and not self.path.endswith(_READING)


class Transport:
    """Sends requests to one API with one token. Threads may share it; each has its own connections.

    :param timeout: maximum seconds of one attempt.
    :param deadline: maximum seconds of a request and all its attempts.
    :param retries: maximum number of attempts after the first.
    :param sleep: replaced in tests, as are *clock* and *wait*.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        deadline: float = DEFAULT_DEADLINE,
        retries: int = DEFAULT_RETRIES,
        verify: bool | str | os.PathLike[str] = True,
        proxy: str | None = None,
        user_agent: str | None = None,
        observer: Observer | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[int], float] = backoff,
    ) -> None:
        if not _is_web_address(url):
            raise QarnotInvalidSpecError(
                "The URL of the Qarnot API is not an http(s) URL",
                field="url",
                remedy="Try https://api.qarnot.com.",
            )
        token = (token or "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise QarnotInvalidSpecError(
                "The Qarnot API token is missing or has characters no token has",
                field="token",
                remedy="Copy it again from the Qarnot console into the password field of the connection.",
            )
        for name, value in (("timeout", timeout), ("deadline", deadline)):
            if not value > 0:
                raise QarnotInvalidSpecError(
                    f"The {name} is {value}", field=name, remedy="Give seconds, more than zero."
                )
        #: Without a login, which cannot be sent because the token uses its header, and which would be logged.
        self.url = strip_login(url.strip()).rstrip("/")
        self.timeout = float(timeout)
        self.deadline = float(deadline)
        self.retries = int(retries)
        self.verify: bool | str = verify if isinstance(verify, bool) else os.fspath(verify)
        self.user_agent = user_agent or f"airflow-qarnot-pool/{__version__}"
        self._token = token
        self._proxy = proxy or None
        self._observer = observer
        self._sleep = sleep
        self._clock = clock
        self._wait = wait
        self._sessions = _Sessions()
        #: The ``Date`` of the latest response of the API, and when it arrived (``time.monotonic``).
        self.dated: tuple[datetime, float] | None = None

    def limited(
        self, *, deadline: float | None = None, timeout: float | None = None, retries: int | None = None
    ) -> Self:
        """Return a transport with other limits and the same connections."""
        other = copy.copy(self)
        other.deadline = self.deadline if deadline is None else float(deadline)
        other.timeout = self.timeout if timeout is None else float(timeout)
        other.retries = self.retries if retries is None else int(retries)
        return other

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
        idempotent: bool,
        kind: str | None = None,
        ref: str | None = None,
        text: bool = False,
        pieces: bool = False,
        shape: type | tuple[type, ...] | None = None,
        creating: bool = False,
        bulk: bool = False,
        anonymous: bool = False,
        recover: Recover | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Send a request and return its response: text, parsed JSON of type *shape*, or None without a *shape*.

        :param path: quoted path, with a leading slash.
        :param kind: the kind of object that the request is about, for errors.
        :param ref: the uuid or shortname of that object, for errors.
        :param pieces: whether to return an iterator over text of any length. It raises ResponseInterruptedError if the
            connection is interrupted. That is not retried here.
        :param creating: whether the request creates an object, which decides the meaning of 400 and 404.
        :param bulk: whether an error response can be a list with the result of each item.
        :param anonymous: whether to send the request without the token.
        :raises QarnotError: the request failed.
        """
        import tenacity

        limit = self.deadline if deadline is None else min(deadline, self.deadline)
        call = _Call(
            method=method,
            path=path,
            json=json,
            params=params,
            idempotent=idempotent,
            kind=kind,
            ref=ref,
            text=text,
            pieces=pieces,
            shape=shape,
            creating=creating,
            bulk=bulk,
            anonymous=anonymous,
            recover=recover,
            ends=self._clock() + limit,
        )

        def stop(state: tenacity.RetryCallState) -> bool:
            again = _failure(state)
            return call.attempts > self.retries or self._clock() + again.wait >= call.ends

        def log_retry(state: tenacity.RetryCallState) -> None:
            again = _failure(state)
            log.warning(
                "%s %s failed (%s); attempt %d, the next in %.1f s",
                method,
                path,
                again.error.server_message or again.error.message,
                call.attempts,
                again.wait,
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Again),
            wait=lambda state: _failure(state).wait,
            stop=stop,
            before_sleep=log_retry,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._attempt, call)
        except _Again as again:
            raise again.error from None

    def try_once(
        self, method: str, path: str, *, json: Any = None, params: Sequence[tuple[str, Any]] | None = None
    ) -> Response:
        """Make one attempt, and return the response whatever its status is. Its body does not show the token.

        :raises QarnotUnavailableError: no complete response arrived. The request may have taken effect.
        """
        call = _Call(method, path, self._clock() + self.timeout, json=json, params=params, attempts=1)
        try:
            answer = self._observed(call)
            return replace(answer, body=answer.body.replace(self._token.encode(), SECRET.encode()))
        except _NoResponse as failure:
            raise QarnotUnavailableError(
                f"Qarnot at {self.url} cannot be reached: {failure.reason}",
                ambiguous=failure.touched and call.changes,
                **call.where,
            ) from None

    def _attempt(self, call: _Call) -> Any:
        """Make one attempt. Raises _Again for another one."""
        if (recovered := self._recovered(call)) is not None:
            return recovered
        call.attempts += 1
        try:
            answer = self._observed(call)
            if answer.status >= 300 and not (call.bulk and answer.is_list):
                raise self._refusal(call, answer)
            return self._decoded(call, answer)
        except _NoResponse as failure:
            raise self._unreachable(call, failure) from None
        except QarnotUnavailableError as error:
            if error.status not in TRANSIENT:
                raise
            raise self._again(call, error, touched=error.status not in UNTOUCHED and call.changes) from None
        except QarnotProtocolError as error:
            raise self._unreadable(call, error) from None
        except QarnotNotFoundError:
            # An earlier attempt may have deleted the object.
            if call.method == "DELETE" and call.ambiguous:
                return None
            raise
        except QarnotNameTakenError:
            if (recovered := self._recovered(call)) is not None:
                return recovered
            raise

    def _unreachable(self, call: _Call, failure: _NoResponse) -> Exception:
        """Return the exception for an attempt without a response."""
        touched = failure.touched and call.changes
        error = QarnotUnavailableError(
            f"Qarnot at {self.url} cannot be reached: {failure.reason}",
            ambiguous=touched or call.ambiguous,
            remedy=failure.remedy,
            **call.where,
        )
        return error if failure.permanent else self._again(call, error, touched=touched)

    def _unreadable(self, call: _Call, error: QarnotProtocolError) -> Exception:
        """Return the exception for a response that cannot be used. Another attempt may get a better one."""
        is_redirect = error.status is not None and error.status >= 300
        if is_redirect or (call.too_large and not call.changes):
            return error
        if call.changes and not call.idempotent and call.recover is None:
            return QarnotUnavailableError(error.message, ambiguous=True, status=error.status, **call.where)
        return self._again(call, error, touched=call.changes)

    def _recovered(self, call: _Call) -> Any:
        """Return the response that an earlier attempt lost. None if that attempt had no effect."""
        if call.recover is None or not call.ambiguous:
            return None
        remaining = call.ends - self._clock()
        try:
            return call.recover(max(remaining, 0.001))
        except QarnotUnavailableError as error:
            raise QarnotUnavailableError(
                error.message,
                ambiguous=True,
                status=error.status,
                server_message=error.server_message,
                retry_after=error.retry_after,
                **call.where,
            ) from None

    def _again(self, call: _Call, error: QarnotError, *, touched: bool) -> Exception:
        """Return the exception for another attempt if that is safe, else *error*."""
        call.ambiguous = call.ambiguous or touched
        if touched and not call.idempotent and call.recover is None:
            return error
        requested = getattr(error, "retry_after", None)
        wait = self._wait(call.attempts)
        return _Again(error, wait if requested is None else max(requested, min(wait, 0.5)))

    def _refusal(self, call: _Call, answer: Response) -> QarnotError:
        body = answer.body.decode("utf-8", "replace")
        message = server_message(body, answer.content_type, redact=lambda text: self._redacted(text, call))
        return error_from_response(
            answer.status,
            message,
            at=self.url,
            foreign=not is_json_like(body),
            creating=call.creating,
            ambiguous=call.ambiguous or (call.changes and answer.status not in UNTOUCHED),
            retry_after=retry_after(answer.retry_after),
            **call.where,
        )

    def _decoded(self, call: _Call, answer: Response) -> Any:
        if answer.pieces is not None:
            return answer.pieces
        if call.text:
            return answer.body.decode("utf-8", "replace")
        if call.shape is None:
            return None
        try:
            optional = isinstance(None, call.shape)
            data = None if optional and not answer.body.strip() else parse_json(answer.body)
        except ValueError:
            data = _UNREADABLE
        if data is _UNREADABLE or not isinstance(data, call.shape):
            start = self._redacted(answer.body[:2000].decode("utf-8", "replace"), call)[:80]
            raise QarnotProtocolError(
                f"Qarnot's response cannot be parsed; it starts with {start!r}",
                status=answer.status,
                **call.where,
            )
        return data

    def _redacted(self, text: str, call: _Call) -> str:
        """Return *text* of the server without the secrets of the request."""
        for secret in (self._token, *find_secrets(call.json)):
            text = text.replace(secret, SECRET)
        return text

    def _observed(self, call: _Call) -> Response:
        started_at, status = self._clock(), None
        try:
            answer = self._exchange(call)
            status = answer.status
            return answer
        finally:
            if self._observer is not None:
                seconds = self._clock() - started_at
                self._observer(Exchange(call.method, call.path, status, seconds, call.attempts))

    def _exchange(self, call: _Call) -> Response:
        """Make one attempt, and read the response to its end.

        :raises _NoResponse: no complete response arrived.
        """
        import requests
        import urllib3

        from airflow_qarnot_pool.api import _http

        # Only the deadline limits a streamed output, because it may be large.
        remaining = call.ends - self._clock()
        limit = remaining if call.pieces else min(self.timeout, remaining)
        if limit <= 0:
            raise _NoResponse("the deadline has passed", touched=False, permanent=True)
        # Not set on the session, because the environment would override it. A new dict, because requests modifies it.
        proxies = {"http": self._proxy, "https": self._proxy} if self._proxy else None
        try:
            response = self._session().request(
                call.method,
                self.url + call.path,
                json=call.json,
                params=call.params,
                timeout=cast(Any, urllib3.Timeout(connect=min(self.timeout, limit), total=limit)),
                verify=self.verify,
                proxies=proxies,
                allow_redirects=False,
                stream=True,
                auth=_http.Token(None if call.anonymous else self._token),
            )
            if response.status_code < 300:
                self._record_date(response.headers.get("Date"))
            answer = Response(
                status=response.status_code,
                body=b"",
                content_type=response.headers.get("Content-Type", ""),
                retry_after=response.headers.get("Retry-After"),
            )
            if call.pieces and response.status_code < 300:
                return replace(answer, pieces=self._pieces(call, response, limit))
            with response:
                max_bytes = _http.MAX_TEXT if call.text else _http.MAX_JSON
                return replace(answer, body=_http.read(response, max_bytes))
        except _http.TooLarge as error:
            call.too_large = True
            raise QarnotProtocolError(
                f"Qarnot's response is too large: {error}",
                status=answer.status,
                remedy="Request fewer objects, or fewer fields, at a time.",
                **call.where,
            ) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            failure = _http.explain(error, limit)
            remedy = "Give the connection the right CA bundle, or check the host name."
            raise _NoResponse(
                failure.reason,
                touched=failure.may_have_acted,
                permanent=failure.is_permanent,
                remedy=remedy if failure.is_permanent else None,
            ) from None

    def _pieces(self, call: _Call, response: requests.Response, limit: float) -> Iterator[str]:
        """Yield the text of a response as it arrives."""
        import requests
        import urllib3

        from airflow_qarnot_pool.api import _http

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            with response:
                for chunk in _http.chunks(response):
                    if self._clock() > call.ends:  # a small compressed body can expand without end
                        raise TimeoutError
                    yield decoder.decode(chunk)
                yield decoder.decode(b"", final=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason = _http.explain(error, limit).reason
            raise ResponseInterruptedError(
                f"The response from {self.url} was interrupted: {reason}", **call.where
            ) from None

    def _record_date(self, text: str | None) -> None:
        """Remember the time of the server's clock."""
        with suppress(TypeError, ValueError):
            date = parsedate_to_datetime(text or "")
            self.dated = (date if date.tzinfo else date.replace(tzinfo=UTC), time.monotonic())

    def _session(self) -> requests.Session:
        from airflow_qarnot_pool.api._http import new_session

        return self._sessions.get(lambda: new_session(user_agent=self.user_agent))

    def close(self) -> None:
        """Close all connections, also those of other threads."""
        self._sessions.close()

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("A Transport holds connections and a token, and cannot be pickled")

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other


def strip_login(url: str) -> str:
    """Return *url* without the user and password before its host."""
    authority = _AUTHORITY.match(url)
    return authority[1] + url[authority.end() :] if authority else url


def _is_web_address(url: Any) -> bool:
    """Return whether *url* is an http(s) URL, with or without a login before its host."""
    try:
        parts = urlsplit(url.strip())
        # An @ after the host means that the login contains a slash.
        return bool(
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port is None or parts.port >= 0)
            and "@" not in parts.path + parts.query + parts.fragment
        )
    except (AttributeError, TypeError, ValueError):
        return False


class _Unreadable:
    pass


_UNREADABLE = _Unreadable()


def _failure(state: tenacity.RetryCallState) -> _Again:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, _Again)
    return error


class _Sessions:
    """One session for each thread and process, because neither may share a session of requests."""

    def __init__(self) -> None:
        # The import takes long. Nothing slow should come between the decision to send a request and the request.
        from airflow_qarnot_pool.api import _http  # noqa: F401

        self._local = threading.local()
        self._all: weakref.WeakSet[requests.Session] = weakref.WeakSet()
        self._lock = threading.Lock()

    def get(self, make: Callable[[], requests.Session]) -> requests.Session:
        pid, session = getattr(self._local, "mine", (None, None))
        if session is None or pid != os.getpid():
            session = make()
            self._local.mine = (os.getpid(), session)
            with self._lock:
                self._all.add(session)
        return session

    def close(self) -> None:
        with self._lock:
            sessions = list(self._all)
        for session in sessions:
            session.close()
