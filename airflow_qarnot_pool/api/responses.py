"""Interpret responses of the API: the message in an error body, and the exception for a status.

Pure functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from airflow_qarnot_pool.api.errors import (
    QarnotBucketNotFoundError,
    QarnotCredentialsError,
    QarnotCreditsError,
    QarnotError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
    start_of,
)
from airflow_qarnot_pool.api.limits import parse_json

#: Statuses that are retried, as the official clients do (408: only the C# one).
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
#: Those of them that a server sends before it has processed the request.
UNTOUCHED = frozenset({429})

_CHECK_HOST = "then check the host field of the Airflow connection."
_MAX_MESSAGE = 1000
#: Maximum characters of a web page that are searched for its title.
_MAX_PAGE = 16_384
#: Maximum characters of a Retry-After header. Dates have 29.
_MAX_HEADER = 100
#: Maximum seconds that a Retry-After header can ask for: a year, which every date and duration can hold.
_MAX_SECONDS = 365 * 86400.0
_QUOTA = re.compile(r"maximum number of (?:running )?([a-z]+) reached")
_TAKEN = re.compile(r"shortname.*(uniqu|already|exist|taken|duplicat|in use)|already.*shortname", re.DOTALL)


def server_message(body: str, content_type: str = "", *, redact: Callable[[str], str] = str) -> str:
    """Return the sentence in an error body in any of the API's shapes: short, and empty if there is none.

    :param redact: removes secrets. It runs before the text is cut, because half of a secret is not recognized.
    """
    try:
        data = parse_json(body)
    except ValueError:
        text = _plain(body, content_type)
    else:
        text = _in_json(data)
    text = redact(" ".join(text.split()))
    return text if len(text) <= _MAX_MESSAGE else start_of(text, _MAX_MESSAGE - 3) + "..."


def is_json_like(body: str) -> bool:
    """Return whether a body can be a response of the API: an object, a list, a quoted text, or empty."""
    return body.lstrip()[:1] in ("", "{", "[", '"')


def _plain(body: str, content_type: str) -> str:
    """Return text that is not JSON. Only the title of a web page, because a proxy has sent it."""
    if "html" in content_type.lower() or body.lstrip()[:1] == "<":
        return _title(body[:_MAX_PAGE]) or "an HTML page"
    return body


def _title(page: str) -> str:
    """Return the title of a web page, or its first heading.

    Searches once for each tag, because a page may be made to slow down a regular expression.
    """
    for name in ("title", "h1"):
        begin = re.search(rf"<{name}\b", page, re.IGNORECASE)
        start = page.find(">", begin.end()) + 1 if begin else 0
        end = re.compile(rf"</{name}>", re.IGNORECASE).search(page, start) if start else None
        if end:
            return page[start : end.start()]
    return ""


def _in_json(data: Any) -> str:
    """Return the messages in a parsed error body."""
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        return "; ".join(dict.fromkeys(filter(None, map(_in_json, data))))
    if isinstance(data, Mapping):
        return "; ".join(_in_object({str(key).lower(): value for key, value in data.items()}))
    return ""


def _in_object(fields: Mapping[str, Any]) -> list[str]:
    """Return the message of an error object, and the errors of single fields."""
    candidates = (fields.get(key) for key in ("message", "error", "detail", "title"))
    texts = (_in_json(value) for value in candidates if isinstance(value, (str, Mapping)))
    messages = [text for text in texts if text][:1]
    errors = fields.get("errors")
    if isinstance(errors, Mapping):
        messages += [f"{name}: {' '.join(_texts(texts))}" for name, texts in errors.items()]
    return messages


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header (seconds or an HTTP date) asks for; None if it has none."""
    if not value or len(value) > _MAX_HEADER:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            seconds = (moment - (now or datetime.now(UTC))).total_seconds()
        except (TypeError, ValueError, OverflowError, IndexError):
            return None
    return min(max(0.0, seconds), _MAX_SECONDS) if math.isfinite(seconds) else None


def error_from_response(
    status: int,
    message: str,
    *,
    creating: bool = False,
    ambiguous: bool = False,
    retry_after: float | None = None,
    at: str | None = None,
    foreign: bool = False,
    **where: Any,
) -> QarnotError:
    """Return the exception for an error response. ``where``: kind, ref, method, path.

    :param creating: whether the request creates an object.
    :param at: the URL of the API.
    :param foreign: whether the body is not in the form of the API, which means that a proxy may have sent it.
    """
    details: dict[str, Any] = {
        "status": status,
        "server_message": message or None,
        "foreign": foreign,
        **where,
    }
    lowered = message.lower()
    if status in TRANSIENT or status >= 500:
        return QarnotUnavailableError(
            f"Qarnot at {at} is not available" if at else None,
            ambiguous=ambiguous,
            retry_after=retry_after,
            **details,
        )
    if status < 400:
        return QarnotProtocolError(
            "Qarnot answered with a redirect, which is not followed because it would carry the token along",
            remedy="Give the connection the API's own URL (https, no redirect).",
            **details,
        )
    if status == 401:
        return QarnotCredentialsError(**details)
    # A 402 about hardware constraints rejects the request. It does not mean that the account is empty.
    if status == 402 and "hardware constraint" not in lowered:
        return QarnotCreditsError(**details)
    if status == 404:
        return _not_found(lowered, creating, at, details)
    return _rejection(status, lowered, creating, details)


def _rejection(status: int, message: str, creating: bool, details: dict[str, Any]) -> QarnotError:
    quota = _QUOTA.search(message)
    # A bulk creation of which all items fail may have the status of a bad request.
    if quota or (status == 403 and "quota" in message):
        return QarnotQuotaError(quota=quota[1] if quota else None, **details)
    # Documented for tasks as 400 "shortname-uniqueness", and not at all for pools.
    if creating and (_TAKEN.search(message) or status == 409):
        return QarnotNameTakenError(**details)
    return QarnotRefusedError(**details)


def _not_found(message: str, creating: bool, at: str | None, details: dict[str, Any]) -> QarnotError:
    if creating and "bucket" in message:
        return QarnotBucketNotFoundError(**details)
    if at and (details["foreign"] or urlsplit(at).path):
        details["remedy"] = f"{QarnotNotFoundError.remedy} Or the API is not at {at}: {_CHECK_HOST}"
    return QarnotNotFoundError(**details)
