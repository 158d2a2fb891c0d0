"""What an answer of the API means: the message in an error body, and the exception for a status.

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

#: Worth another try: the official clients retry these too (408: the C# one).
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
#: Among them, what a server says before it has done anything.
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
    """Whether a body is what the API answers with: an object, a list, a text in quotes, or nothing at all."""
    return body.lstrip()[:1] in ("", "{", "[", '"')


def _plain(body: str, content_type: str) -> str:
    """Text that is not JSON; of a web page only its title, for it is a proxy speaking."""
    if "html" in content_type.lower() or body.lstrip()[:1] == "<":
        return _title(body[:_MAX_PAGE]) or "an HTML page"
    return body


def _title(page: str) -> str:
    """Return the title of a web page, or its first heading. One pass for each, as pages can be made to be slow."""
    for name in ("title", "h1"):
        begin = re.search(rf"<{name}\b", page, re.IGNORECASE)
        start = page.find(">", begin.end()) + 1 if begin else 0
        end = re.compile(rf"</{name}>", re.IGNORECASE).search(page, start) if start else None
        if end:
            return page[start : end.start()]
    return ""


def _in_json(data: Any) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        messages = [_in_json(item) for item in data]
        return "; ".join(dict.fromkeys(message for message in messages if message))
    if not isinstance(data, Mapping):
        return ""
    fields = {str(key).lower(): value for key, value in data.items()}
    parts = []
    for key in ("message", "error", "detail", "title"):
        value = fields.get(key)
        text = value if isinstance(value, str) else _in_json(value) if isinstance(value, Mapping) else ""
        if text:
            parts.append(text)
            break
    errors = fields.get("errors")
    if isinstance(errors, Mapping):
        parts += [f"{name}: {' '.join(_texts(texts))}" for name, texts in errors.items()]
    return "; ".join(parts)


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


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
    """The exception for a refusing answer. ``where``: kind, ref, method, path.

    ``at``: the API's address; ``foreign``: the answer is not in the API's own form, so another may have given it.
    """
    details: dict[str, Any] = {"status": status, "server_message": message or None, **where}
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
    # A 402 about hardware constraints is a refusal of the request, not an empty account.
    if status == 402 and "hardware constraint" not in lowered:
        return QarnotCreditsError(**details)
    if status == 403:
        quota = _QUOTA.search(lowered)
        if quota or "quota" in lowered:
            return QarnotQuotaError(quota=quota[1] if quota else None, **details)
    if status == 404:
        if creating and "bucket" in lowered:
            return QarnotBucketNotFoundError(**details)
        if at and (foreign or urlsplit(at).path):
            details["remedy"] = f"{QarnotNotFoundError.remedy} Or the API is not at {at}: {_CHECK_HOST}"
        return QarnotNotFoundError(foreign=foreign, **details)
    # Documented for tasks as 400 "shortname-uniqueness"; for pools nothing is, so be generous.
    if creating and (_TAKEN.search(lowered) or status == 409):
        return QarnotNameTakenError(**details)
    return QarnotRefusedError(**details)
