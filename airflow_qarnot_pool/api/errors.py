"""Everything that can go wrong with the Qarnot API, as one exception tree.

Every error says what happened, to which object, and what to do about it; it carries the HTTP status and the
server's own words, and it survives pickling (Airflow moves exceptions between processes).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

E = TypeVar("E", bound="QarnotError")

#: Maximum characters of a message. It is logged, stored, passed to callbacks and sent by mail.
MAX_MESSAGE = 20_000
#: Maximum characters of its single parts: the server's own words, a name.
MAX_PART = 2_000
#: Characters at most between a cut and the next blank. A cut inside a word could show half of a secret, which no
#: longer matches its mask.
_MAX_WORD = 400
_BLANK = re.compile(r"\s")


def end_of(text: str, limit: int) -> str:
    """Return the last *limit* characters of *text*, from the beginning of a word if one begins soon."""
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


def shortened(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return *text* with at most *limit* characters: its end, some of its beginning, and a note between them."""
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
    """Something went wrong between us and Qarnot.

    ``message`` is the sentence of what happened; where it is left out, the class's own sentence is used. All text
    is bounded: it keeps its end and some of its beginning.
    ``str(error)`` adds the request, the answer and the remedy.
    """

    summary = "Qarnot could not do what was asked"
    remedy: str | None = None

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
    ) -> None:
        self.status = status
        self.server_message = _part(server_message)
        self.kind = kind
        self.ref = _part(ref)
        self.method = method
        self.path = _part(path)
        if remedy is not None:
            self.remedy = _part(remedy)
        self.message = shortened(message or self._sentence())
        super().__init__(shortened(self._compose()))

    def _subject(self) -> str:
        """``the pool 'x'``, ``the pools`` or ``the object``: whom the request was about."""
        kind = self.kind or "object"
        return f"the {kind} {self.ref!r}" if self.ref else f"the {kind}"

    def _sentence(self) -> str:
        return self.summary

    def _compose(self) -> str:
        request = f"{self.method} {self.path}" if self.method and self.path else "Qarnot"
        answer = ""
        if self.status is not None:
            answer = f"{request} answered {self.status}"
            if self.server_message:
                answer += f": {self.server_message}"
        elif self.server_message:
            answer = f"{request}: {self.server_message}"
        elif self.method and self.path:
            answer = request
        text = self.message.rstrip(".")
        if answer:
            text += f" ({answer.rstrip('.')})"
        if text[-1:] not in ("?", "!"):
            text += "."
        if self.remedy:
            text += f" {self.remedy}"
        return text

    def __reduce__(self) -> tuple[Callable[..., QarnotError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class QarnotInvalidSpecError(QarnotError, ValueError):
    """What was asked for cannot be right; refused before any request. ``field`` names the culprit."""

    summary = "the request is not valid"

    def __init__(self, message: str | None = None, *, field: str | None = None, **details: Any) -> None:
        self.field = field
        super().__init__(message, **details)


class QarnotRefusedError(QarnotError):
    """Qarnot understood the request and said no (400, 403 and other 4xx)."""

    def _sentence(self) -> str:
        return (
            f"Qarnot refused what was asked of {self._subject()}"
            if self.ref
            else "Qarnot refused the request"
        )


class QarnotNameTakenError(QarnotRefusedError):
    """The shortname belongs to another object."""

    remedy = "Look the shortname up and use what is there, or choose another one."

    def _sentence(self) -> str:
        return f"Another {self.kind or 'object'} already has the shortname {self.ref!r}"


class QarnotQuotaError(QarnotRefusedError):
    """A quota of the account is reached. ``quota``: "pools", "tasks", "jobs", ...; None where it is not named."""

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
    remedy = "Add credits to the account; nothing was started."


class QarnotCredentialsError(QarnotError):
    """The API token is missing, wrong or expired (401)."""

    summary = "Qarnot did not accept the API token"
    remedy = "Check the token (the password field) of the Airflow connection."


class QarnotNotFoundError(QarnotError):
    """The object does not exist (404).

    ``foreign``: the response is not in the API's own form, so a proxy may have sent it.
    """

    remedy = "Check the uuid or shortname; a finished object may have been deleted by its time to live."

    def __init__(self, message: str | None = None, *, foreign: bool = False, **details: Any) -> None:
        self.foreign = foreign
        super().__init__(message, **details)

    def _sentence(self) -> str:
        kind = self.kind or "object"
        return f"There is no {kind} {self.ref!r} on this account" if self.ref else f"There is no such {kind}"


class QarnotBucketNotFoundError(QarnotNotFoundError):
    """A bucket named in a creation request does not exist (404 on create)."""

    remedy = "Create the bucket, or correct its name; resource buckets must exist before they are used."

    def _sentence(self) -> str:
        return f"A bucket that the new {self.kind or 'object'} names does not exist"


class QarnotDeletedError(QarnotNotFoundError):
    """An object that did exist is gone before anybody saw how it ended. Raised by callers, never success."""

    remedy = "Somebody deleted it, or its time to live was too short; its outcome is not known."

    def _sentence(self) -> str:
        return f"{self._subject().capitalize()} is gone before its end was seen"


class QarnotUnavailableError(QarnotError):
    """Qarnot could not be reached, or kept answering 429 or 5xx, until retries or the deadline ran out.

    ``ambiguous``: the request may have taken effect all the same. ``retry_after``: seconds the server asked
    us to wait, where it said so.
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
            details["remedy"] = "The request may have taken effect: look before sending it again."
        super().__init__(message, **details)


class QarnotProtocolError(QarnotError):
    """The answer is not what the API is documented to say."""

    summary = "Qarnot's answer cannot be understood"
    remedy = "Check that the connection's host is the Qarnot API and that no proxy answers in its place."


class QarnotUnknownStateError(QarnotProtocolError):
    """The object is in a state this release does not know, so nothing can be concluded from it."""

    remedy = "Look at the object in the Qarnot console; a newer release of this provider may know the state."

    def __init__(self, message: str | None = None, *, state: str | None = None, **details: Any) -> None:
        self.state = _part(state)
        super().__init__(message, **details)

    def _sentence(self) -> str:
        return f"{self._subject().capitalize()} is in the unknown state {self.state!r}"
