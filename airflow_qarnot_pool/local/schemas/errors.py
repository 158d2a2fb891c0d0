"""Refuse requests with an `ApiError`, which has the status and the body of the response."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ApiError(Exception):
    """A refused request.

    :param status: HTTP status code.
    :param message: the `message` in the body that the SDKs read.
    :param problem: messages by field. With them the body is `application/problem+json` in place of `{"message"}`, as
        Qarnot's responses to page requests and scaling checks.
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


def invalid(kind: str, fields: Iterable[str], note: str = "") -> ApiError:
    """Return a 400 in Qarnot's words: `Invalid task file. Invalid fields: name, range-length`. A note follows."""
    return ApiError(400, f"Invalid {kind} file. Invalid fields: {', '.join(fields)}{note and f' ({note})'}")


def missing(kind: str, name: str) -> ApiError:
    return ApiError(404, f"No such {kind}: {name}")
