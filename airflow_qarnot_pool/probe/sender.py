"""Single requests to the service, and whether a response is its own.

A gateway may answer in place of the service, and a response may be lost. No experiment may take such a response for an
answer of the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotCreditsError,
    QarnotQuotaError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.api.responses import (
    TRANSIENT,
    error_from_response,
    is_json_like,
    retry_after,
    server_message,
)
from airflow_qarnot_pool.api.transport import Response, Transport

_MAX_SHOWN = 160
_MAX_RETRY_AFTER = 60.0


class Undecided(Exception):
    """The experiment cannot be decided, for the reason in the message."""


class Disturbed(Undecided):
    """A response is lost, or is not of the service. The experiment may succeed with new objects.

    ``retry_after``: seconds that the service asked to wait.
    """

    retry_after = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the service. ``data`` is parsed JSON, or the text of an output."""

    status: int
    data: Any = None
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request was accepted."""
        return self.status < 300

    def field(self, name: str) -> Any:
        """Return a field of an object, or None."""
        return self.data.get(name) if isinstance(self.data, dict) else None

    def __str__(self) -> str:
        return f"{self.status} {self.message}"[:_MAX_SHOWN].strip()


def _disturbance(status: int, content_type: str, *, is_valid: bool) -> str | None:
    """Return why a response is not an answer of the service; None if it may be one.

    :param is_valid: whether the body may be of the service.
    """
    if status in TRANSIENT or status >= 500:
        return f"the service answered {status}"
    if "html" in content_type.lower() or not is_valid or 300 <= status < 400:
        return f"a gateway answered {status}"
    return None


def read_answer(status: int, content_type: str, body: str, *, is_text: bool = False) -> Answer:
    """Interpret a response.

    :param is_text: whether the request is for an output, which has any text.
    :raises Disturbed: the service is not available, or something between has answered.
    :raises Undecided: a quota or the credits of the account are used up.
    :raises QarnotCredentialsError: the token is not valid.
    """
    if disturbance := _disturbance(status, content_type, is_valid=is_text or is_json_like(body)):
        raise Disturbed(disturbance)
    if status < 300 and is_text:
        return Answer(status, body)
    try:
        data = parse_json(body) if body.strip() else None
    except ValueError:
        raise Disturbed(f"the response {status} is cut off") from None
    if status < 300:
        return Answer(status, data)
    message = server_message(body, content_type)
    error = error_from_response(status, message, creating=True)
    if isinstance(error, QarnotCredentialsError):
        raise error
    if isinstance(error, (QarnotQuotaError, QarnotCreditsError)):
        raise Undecided(f"the account has no room: {status} {message}")
    return Answer(status, data, message)


class Sender:
    """Sends single requests."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        #: Number of requests that were answered 429.
        self.limited = 0

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Sequence[tuple[str, Any]] | None = None,
        is_text: bool = False,
    ) -> Answer:
        """Send one request once. Raises as ``read_answer``, and Disturbed if no response arrives."""
        try:
            response: Response = self._transport.try_once(method, path, json=body, params=params)
        except QarnotUnavailableError as error:
            raise Disturbed(error.message) from None
        self.limited += response.status == 429
        text = response.body.decode("utf-8", "replace")
        try:
            return read_answer(response.status, response.content_type, text, is_text=is_text)
        except Disturbed as disturbance:
            disturbance.retry_after = min(retry_after(response.retry_after) or 0.0, _MAX_RETRY_AFTER)
            raise
