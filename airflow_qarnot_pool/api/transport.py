"""How a request gets to Qarnot and back: deadlines, retries, and what failures mean.

Built on requests and tenacity, which are imported with the first request and not before. The rules:

- every attempt has a time limit, and every request a deadline that all its attempts, waits included, share;
- reads and idempotent requests are sent again after connection errors, time-outs, 408, 429, 5xx and unreadable
  answers; other requests only when they cannot have taken effect (no connection, 429), or when the caller can
  look up what became of the first one (``recover``);
- waits grow exponentially with jitter; a Retry-After is honoured, and ends the matter if it is past the deadline;
- redirects are not followed; the token is in no log, repr or error.
"""

from __future__ import annotations

import codecs
import copy
import logging
import os
import random
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
from airflow_qarnot_pool.api.limits import parse_json, strip_login
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

# POSTs that only look, so that a lost answer leaves nothing behind.
_READING = ("/search", "/paginate")

#: Called after a request may have taken effect unseen, with the seconds left: its answer, or None if it did not.
Recover = Callable[[float], Any]


def backoff(attempt: int) -> float:
    """Seconds to wait after the attempt of that number (from 1): 0.5, 1, 2, ... up to 20, halved at random."""
    longest = float(min(MAX_WAIT, 0.5 * 2 ** min(attempt - 1, 10)))
    return random.uniform(longest / 2, longest)


class ResponseInterruptedError(QarnotUnavailableError):
    """An answer that is read in pieces has no end. Asking again may bring it."""


class _Again(Exception):
    """A failure worth another attempt after ``wait`` seconds."""

    def __init__(self, error: QarnotError, wait: float) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class _NoAnswer(Exception):
    """The exchange broke off. ``touched``: the server may have acted. ``permanent``: no use trying again."""

    def __init__(self, reason: str, *, touched: bool, permanent: bool = False, remedy: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.touched = touched
        self.permanent = permanent
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer, read to its end."""

    status: int
    body: bytes
    content_type: str
    retry_after: str | None
    #: The body in pieces, in place of ``body``, if it was asked for so.
    pieces: Iterator[str] | None = None

    @property
    def is_list(self) -> bool:
        """Whether it is the list of a bulk request, and not about the request as a whole."""
        return self.status not in TRANSIENT and self.body.lstrip()[:1] == b"["


@dataclass(frozen=True, slots=True)
class Exchange:
    """One attempt of a request, for an observer. ``status``: None where no answer came."""

    method: str
    path: str
    status: int | None
    seconds: float
    attempt: int


#: Told of every attempt; must not raise.
Observer = Callable[[Exchange], None]


@dataclass(slots=True)
class _Call:
    """One request through all its attempts."""

    method: str
    path: str
    json: Any
    params: Mapping[str, Any] | Sequence[tuple[str, Any]] | None
    idempotent: bool
    kind: str | None
    ref: str | None
    text: bool
    pieces: bool
    shape: type | tuple[type, ...] | None
    creating: bool
    bulk: bool
    anonymous: bool
    recover: Recover | None
    ends: float
    attempts: int = 0
    #: The answer to the last attempt had more bytes than can be read.
    too_large: bool = False
    #: An earlier attempt may have taken effect.
    ambiguous: bool = False

    @property
    def where(self) -> dict[str, Any]:
        return {"kind": self.kind, "ref": self.ref, "method": self.method, "path": self.path}

    @property
    def changes(self) -> bool:
        """Whether it changes something when it takes effect."""
        return self.method != "GET" and not self.path.endswith(_READING)


class Transport:
    """Sends requests to one API with one token. May be shared by threads; each has its own connections.

    ``timeout``: seconds for one attempt. ``deadline``: seconds for a request and all its attempts. ``retries``:
    attempts after the first. ``sleep``, ``clock`` and ``wait`` are there to be replaced in tests.
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
        #: Without a login: it could not be sent, as the token takes its header, and would be shown.
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
        #: The ``Date`` of the newest response of the API, and when it came (``time.monotonic``).
        self.dated: tuple[datetime, float] | None = None

    def limited(
        self, *, deadline: float | None = None, timeout: float | None = None, retries: int | None = None
    ) -> Self:
        """The same transport, connections included, with other limits."""
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
        """Send a request and return its answer: text, decoded JSON of the given ``shape``, or None without one.

        With ``pieces`` the answer is an iterator over text of any length, which takes little memory and ends in a
        BrokenOffError if the connection breaks off; such a failure is not retried here.
        ``path`` begins with a slash and is already quoted. ``kind`` and ``ref`` say whom it is about, for
        errors. ``creating`` sorts out what 400 and 404 mean; ``bulk``: a refusal that lists
        what became of each item is an answer too; ``anonymous``: without the token. Raises a QarnotError.
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

        def tell(state: tenacity.RetryCallState) -> None:
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
            before_sleep=tell,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._attempt, call)
        except _Again as again:
            raise again.error from None

    def _attempt(self, call: _Call) -> Any:
        if call.ambiguous and call.recover is not None:
            found = self._recovered(call)
            if found is not None:
                return found
        call.attempts += 1
        try:
            answer = self._observed(call)
            if answer.status >= 300 and not (call.bulk and answer.is_list):
                raise self._refusal(call, answer)
            return self._decoded(call, answer)
        except _NoAnswer as failure:
            touched = failure.touched and call.changes
            error: QarnotError = QarnotUnavailableError(
                f"Qarnot at {self.url} cannot be reached: {failure.reason}",
                ambiguous=touched or call.ambiguous,
                remedy=failure.remedy,
                **call.where,
            )
            if failure.permanent:
                raise error from None
            raise self._again(call, error, touched=touched) from None
        except QarnotUnavailableError as error:
            touched = error.status not in UNTOUCHED and call.changes
            if error.status in TRANSIENT:
                raise self._again(call, error, touched=touched) from None
            raise
        except QarnotProtocolError as error:
            # A redirect stays one; an unreadable answer may be readable the next time.
            if error.status is not None and error.status >= 300:
                raise
            if call.changes and not call.idempotent and call.recover is None:
                raise QarnotUnavailableError(
                    error.message, ambiguous=True, status=error.status, **call.where
                ) from None
            if call.too_large and not call.changes:
                raise
            raise self._again(call, error, touched=call.changes) from None
        except QarnotNotFoundError:
            # The first attempt deleted it; the second one finds nothing to delete.
            if call.method == "DELETE" and call.ambiguous:
                return None
            raise
        except QarnotNameTakenError:
            found = self._recovered(call) if call.ambiguous and call.recover is not None else None
            if found is not None:
                return found
            raise

    def _recovered(self, call: _Call) -> Any:
        """What an earlier attempt of a create made after all; None if nothing."""
        assert call.recover is not None
        left = call.ends - self._clock()
        try:
            return call.recover(max(left, 0.001))
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
        """Another attempt where that is safe, else the error itself."""
        call.ambiguous = call.ambiguous or touched
        if touched and not call.idempotent and call.recover is None:
            return error
        asked = getattr(error, "retry_after", None)
        wait = self._wait(call.attempts)
        return _Again(error, wait if asked is None else max(asked, min(wait, 0.5)))

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
                f"Qarnot's answer cannot be understood; it begins with {start!r}",
                status=answer.status,
                **call.where,
            )
        return data

    def _redacted(self, text: str, call: _Call) -> str:
        """The server's words without what only the server should have seen."""
        for secret in (self._token, *find_secrets(call.json)):
            text = text.replace(secret, SECRET)
        return text

    def _observed(self, call: _Call) -> Response:
        begun, status = self._clock(), None
        try:
            answer = self._exchange(call)
            status = answer.status
            return answer
        finally:
            if self._observer is not None:
                seconds = self._clock() - begun
                self._observer(Exchange(call.method, call.path, status, seconds, call.attempts))

    def _exchange(self, call: _Call) -> Response:
        """One attempt: the answer read to its end, or _NoAnswer."""
        import requests
        import urllib3

        from airflow_qarnot_pool.api import _http

        # A large output takes as long as it takes, within the deadline.
        left = call.ends - self._clock()
        limit = left if call.pieces else min(self.timeout, left)
        if limit <= 0:
            raise _NoAnswer("the deadline is over", touched=False, permanent=True)
        # Not of the session: there those of the environment would win. A dict of its own, which requests writes to.
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
                self._note_date(response.headers.get("Date"))
            answer = Response(
                status=response.status_code,
                body=b"",
                content_type=response.headers.get("Content-Type", ""),
                retry_after=response.headers.get("Retry-After"),
            )
            if call.pieces and response.status_code < 300:
                return replace(answer, pieces=self._pieces(call, response, limit))
            with response:
                most = _http.MAX_TEXT if call.text else _http.MAX_JSON
                return replace(answer, body=_http.read(response, most))
        except _http.TooLarge as error:
            call.too_large = True
            raise QarnotProtocolError(
                f"Qarnot's answer is too large: {error}",
                status=answer.status,
                remedy="Ask for fewer objects, or fewer fields of each, at a time.",
                **call.where,
            ) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason, touched, permanent = _http.explain(error, limit)
            raise _NoAnswer(
                reason,
                touched=touched,
                permanent=permanent,
                remedy="Give the connection the right CA bundle, or check the host name."
                if permanent
                else None,
            ) from None

    def _pieces(self, call: _Call, response: requests.Response, limit: float) -> Iterator[str]:
        """Yield the text of an answer as it arrives."""
        import requests
        import urllib3

        from airflow_qarnot_pool.api import _http

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            with response:
                for chunk in _http.chunks(response):
                    if self._clock() > call.ends:  # compressed, it may be endless although little is sent
                        raise TimeoutError
                    yield decoder.decode(chunk)
                yield decoder.decode(b"", final=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason, _, _ = _http.explain(error, limit)
            raise ResponseInterruptedError(
                f"Qarnot's answer from {self.url} broke off: {reason}", **call.where
            ) from None

    def _note_date(self, text: str | None) -> None:
        """Remember what the server's clock showed."""
        with suppress(TypeError, ValueError):
            date = parsedate_to_datetime(text or "")
            self.dated = (date if date.tzinfo else date.replace(tzinfo=UTC), time.monotonic())

    def _session(self) -> requests.Session:
        from airflow_qarnot_pool.api._http import new_session

        return self._sessions.get(lambda: new_session(user_agent=self.user_agent))

    def close(self) -> None:
        """Close all connections, those of other threads too."""
        self._sessions.close()

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a Transport holds connections and a token and is not to be pickled")

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other


def _is_web_address(url: Any) -> bool:
    """Return whether *url* is an http(s) URL, perhaps with a login before its host."""
    try:
        parts = urlsplit(url.strip())
        # An @ after the host is part of a password that has a slash in it.
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
    """A session for each thread and process: requests' sessions belong to one thread, sockets to one process."""

    def __init__(self) -> None:
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
