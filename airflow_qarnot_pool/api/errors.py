"""The exceptions of the Qarnot API.

Every message names the problem, the object and a remedy. An exception also has the HTTP status and the message of the
server. It can be pickled, because Airflow passes exceptions between processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound="QarnotError")

#: Maximum characters of a message, because it is logged, stored, passed to callbacks and mailed.
MAX_MESSAGE = 20_000
#: Maximum characters of each part of a message, such as the server's text or a name.
MAX_PART = 2_000
#: Maximum characters between a cut and the next space. A cut inside a word could leave half of a secret, which its
#: mask would no longer match.
_MAX_WORD = 400
_BLANK = re.compile(r"\s")
#: Number of items that :func:`named_items` shows.
SHOWN_ITEMS = 20


def end_of(text: str, limit: int) -> str:
    """Return the last *limit* characters of *text*, from the start of a word if one starts soon."""
    if len(text) <= limit:
        return text
    if limit <= 0:
        return ""
    end = text[len(text) - limit :]
    blank = None if text[len(text) - len(end) - 1].isspace() else _BLANK.search(end, 0, _MAX_WORD)
    return end[blank.end() :] if blank else end


def start_of(text: str, limit: int) -> str:
    """Return the first *limit* characters of *text*, up to the end of a word if one ends late."""
    return end_of(text[: limit + 1][::-1], limit)[::-1]


def named_items(items: Sequence[int]) -> str:
    """Return the first of *items* as text, such as ``items 1, 2``."""
    text = f"item{'s' * (len(items) != 1)} {', '.join(map(str, items[:SHOWN_ITEMS]))}"
    return f"{text} ..." if len(items) > SHOWN_ITEMS else text


def shortened(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return *text* with at most *limit* characters: some of its start, a note, and its end."""
    if len(text) <= limit:
        return text
    note = f" [... of {len(text):,} characters the middle is left out ...] "
    head = start_of(text, limit // 8)
    return head + note + end_of(text, limit - len(head) - len(note))


def _rebuild(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


def _part(text: Any) -> Any:
    return shortened(text, MAX_PART) if isinstance(text, str) else text


class QarnotError(Exception):
    """Base of all errors of this provider.

    ``message`` defaults to a sentence of the class. All text is limited in length.
    ``str(error)`` adds the request, the response and the remedy.

    ``foreign``: the response is not in the form of the API, which means that a proxy may have sent it.
    """

    summary = "The request to Qarnot failed"
    remedy: str | None = None
    #: The place in a DAG that caused the error, if that is known.
    place: str | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        server_message: str | None = None,
        kind: str | None = None,
        ref: str | None = None,
        method: str | None = None,
        path: str | None = None,
        remedy: str | None = None,
        foreign: bool = False,
    ) -> None:
        self.status = status
        self.foreign = foreign
        self.server_message = _part(server_message)
        self.kind = kind
        self.ref = _part(ref)
        self.method = method
        self.path = _part(path)
        if remedy is not None:
            self.remedy = _part(remedy)
        self.message = shortened(message or self._sentence())
        super().__init__(shortened(self._compose()))

    def locate(self, place: str) -> None:
        """Start the message with *place*, unless an inner place does."""
        if self.place is None:
            self.place = _part(place)
            self.args = (shortened(f"{self.place}: {self}"),)

    def _subject(self) -> str:
        """Return the object of the request: ``the pool 'x'``, ``the pools`` or ``the object``."""
        kind = self.kind or "object"
        return f"the {kind} {self.ref!r}" if self.ref else f"the {kind}"

    def _sentence(self) -> str:
        return self.summary

    def _compose(self) -> str:
        text = self.message.rstrip(".")
        if response := self._response():
            text += f" ({response.rstrip('.')})"
        if text[-1:] not in ("?", "!"):
            text += "."
        if self.remedy:
            text += f" {self.remedy}"
        return text

    def _response(self) -> str:
        """Return the request and the response in words. Empty if neither is known."""
        known = bool(self.method and self.path)
        request = f"{self.method} {self.path}" if known else "Qarnot"
        message = f": {self.server_message}" if self.server_message else ""
        if self.status is not None:
            return f"{request} answered {self.status}{message}"
        return f"{request}{message}" if known or message else ""

    def __reduce__(self) -> tuple[Callable[..., QarnotError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class QarnotInvalidSpecError(QarnotError, ValueError):
    """A parameter is not valid. Raised before any request. ``field`` is the parameter."""

    summary = "The request is not valid"

    def __init__(self, message: str | None = None, *, field: str | None = None, **details: Any) -> None:
        self.field = field
        super().__init__(message, **details)


class QarnotRefusedError(QarnotError):
    """Qarnot rejected the request (400, 403 and other 4xx)."""

    def _sentence(self) -> str:
        return (
            f"Qarnot refused the request for {self._subject()}" if self.ref else "Qarnot refused the request"
        )


class QarnotNameTakenError(QarnotRefusedError):
    """The shortname belongs to another object."""

    remedy = "Use the existing object, or choose another shortname."

    def _sentence(self) -> str:
        return f"Another {self.kind or 'object'} already has the shortname {self.ref!r}"


class QarnotQuotaError(QarnotRefusedError):
    """A quota of the account is reached. ``quota``: "pools", "tasks", "jobs", ..., or None if unknown."""

    remedy = (
        "Finished objects count too: delete some, or wait until others end, or ask Qarnot for a higher quota."
    )

    def __init__(self, message: str | None = None, *, quota: str | None = None, **details: Any) -> None:
        self.quota = quota
        super().__init__(message, **details)

    def _sentence(self) -> str:
        return f"The account's quota of {self.quota or 'this kind of object'} is reached"


class QarnotCreditsError(QarnotError):
    """The account has no credits left (402)."""

    summary = "The Qarnot account does not have enough credits"
    remedy = "Add credits to the account. Nothing was started."


class QarnotCredentialsError(QarnotError):
    """The API token is missing, wrong or expired (401)."""

    summary = "Qarnot did not accept the API token"
    remedy = "Check the token (the password field) of the Airflow connection."


class QarnotNotFoundError(QarnotError):
    """The object does not exist (404)."""

    remedy = "Check the uuid or shortname; a finished object may have been deleted by its time to live."

    def _sentence(self) -> str:
        kind = self.kind or "object"
        return f"There is no {kind} {self.ref!r} on this account" if self.ref else f"There is no such {kind}"


class QarnotBucketNotFoundError(QarnotNotFoundError):
    """A bucket of a new object does not exist (404 on create)."""

    remedy = "Create the bucket, or correct its name. Resource buckets must exist before they are used."

    def _sentence(self) -> str:
        return f"A bucket of the new {self.kind or 'object'} does not exist"


class QarnotDeletedError(QarnotNotFoundError):
    """An object was deleted before its final state was seen. Raised by callers; never counts as success."""

    remedy = "A user deleted it, or its time to live was too short. Its result is unknown."

    def _sentence(self) -> str:
        return f"{self._subject().capitalize()} was deleted before its end was seen"


class QarnotUnavailableError(QarnotError):
    """Qarnot could not be reached, or returned 429 or 5xx, until the retries or the deadline ran out.

    ``ambiguous``: the request may have taken effect. ``retry_after``: the seconds that the server asked to wait, if it
    did.
    """

    summary = "Qarnot is not available"

    def __init__(
        self,
        message: str | None = None,
        *,
        ambiguous: bool = False,
        retry_after: float | None = None,
        **details: Any,
    ) -> None:
        self.ambiguous = ambiguous
        self.retry_after = retry_after
        if ambiguous and details.get("remedy") is None:
            details["remedy"] = "The request may have taken effect. Check before you send it again."
        super().__init__(message, **details)


class QarnotProtocolError(QarnotError):
    """A response does not match the documentation of the API."""

    summary = "Qarnot's response cannot be parsed"
    remedy = "Check that the connection's host is the Qarnot API, and that no proxy responds in its place."


class QarnotUnknownStateError(QarnotProtocolError):
    """The object is in a state that this release does not know, and which therefore means nothing to it."""

    remedy = "Check the object in the Qarnot console. A newer release of this provider may know the state."

    def __init__(self, message: str | None = None, *, state: str | None = None, **details: Any) -> None:
        self.state = _part(state)
        super().__init__(message, **details)

    def _sentence(self) -> str:
        return f"{self._subject().capitalize()} is in the unknown state {self.state!r}"
