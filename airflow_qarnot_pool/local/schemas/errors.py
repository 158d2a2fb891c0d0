"""The one way a request is refused: an `ApiError` carries the status and the body the client reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ApiError(Exception):
    """A refused request.

    :param status: HTTP status code.
    :param message: what the SDKs read as `message` in the body.
    :param problem: per-field messages; when given, the body is `application/problem+json`
        (what Qarnot answers for page requests and scaling checks) instead of `{"message"}`.
    """

    def __init__(self, status: int, message: str, problem: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.problem = problem

    def body(self) -> dict[str, Any]:
        if self.problem is None:
            return {"message": self.message}
        return {
            "type": "https://tools.ietf.org/html/rfc7231#section-6.5.1",
            "title": self.message,
            "status": self.status,
            "traceId": "local",
            "errors": self.problem,
        }


def invalid(kind: str, fields: Iterable[str]) -> ApiError:
    """400 in the wording of Qarnot's own examples: `Invalid task file. Invalid fields: name, range-length`."""
    return ApiError(400, f"Invalid {kind} file. Invalid fields: {', '.join(fields)}")


def missing(kind: str, name: str) -> ApiError:
    return ApiError(404, f"No such {kind}: {name}")
