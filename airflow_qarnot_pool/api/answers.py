"""What an answer of the API means: the message in an error body, and the exception for a status.

Pure functions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
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
)

#: Worth another try: the official clients retry these too (408: the C# one).
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
#: Among them, what a server says before it has done anything.
UNTOUCHED = frozenset({429})

_CHECK_HOST = "then check the host field of the Airflow connection."
_MAX_MESSAGE = 1000
_QUOTA = re.compile(r"maximum number of (?:running )?([a-z]+) reached")
_TAKEN = re.compile(r"shortname.*(uniqu|already|exist|taken|duplicat|in use)|already.*shortname", re.DOTALL)


def server_message(body: str, content_type: str = "") -> str:
    """The sentence in an error body, whichever of the API's shapes it has; short, and empty if there is none."""
    try:
        data = json.loads(body)
    except ValueError:
        data = None
        text = _plain(body, content_type)
    else:
        text = _in_json(data)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."


def looks_like_json(body: str) -> bool:
    """Whether a body is what the API answers with: an object, a list, a text in quotes, or nothing at all."""
    return body.lstrip()[:1] in ("", "{", "[", '"')


def _plain(body: str, content_type: str) -> str:
    """Text that is not JSON; of a web page only its title, for it is a proxy speaking."""
    if "html" in content_type.lower() or body.lstrip()[:1] == "<":
        title = re.search(r"<(title|h1)[^>]*>(.*?)</\1>", body, re.IGNORECASE | re.DOTALL)
        return title[2] if title else "an HTML page"
    return body


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
    """Seconds that a Retry-After header (seconds or an HTTP date) asks to wait; None if there is none."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def error_for(
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
        return QarnotNotFoundError(**details)
    # Documented for tasks as 400 "shortname-uniqueness"; for pools nothing is, so be generous.
    if creating and (_TAKEN.search(lowered) or status == 409):
        return QarnotNameTakenError(**details)
    return QarnotRefusedError(**details)
