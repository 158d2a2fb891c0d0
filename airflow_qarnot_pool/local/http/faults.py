"""Choose the fault rule that applies to a request, and log requests. No I/O."""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_qarnot_pool.local.schemas.errors import ApiError

KINDS = ("status", "proxy", "reset", "lost", "delay", "garbage")
LOG_LENGTH = 200_000


@dataclass(slots=True)
class FaultRule:
    """One fault, which applies `times` times (None: without end).

    Kinds:

    - status: the response has `status` (and `retry_after` seconds); the request has no effect;
    - proxy: a proxy responds with `status` and an HTML page; the request has no effect;
    - reset: the connection is reset; the request has no effect;
    - lost: the request takes effect; the connection closes without a response;
    - garbage: the request takes effect; the response is a 200 that is not JSON;
    - delay: the request takes effect; the response is `seconds` late (`when` "before": so is the effect).
    """

    kind: str
    method: str | None = None
    path: re.Pattern[str] | None = None
    times: int | None = None
    status: int = 503
    retry_after: float | None = None
    seconds: float = 1.0
    message: str = "Fault injected"
    probability: float = 1.0
    when: str = "after"

    def matches(self, method: str, path: str) -> bool:
        if self.times is not None and self.times <= 0:
            return False
        if self.method is not None and self.method != method:
            return False
        return self.path is None or self.path.search(path) is not None


class Faults:
    def __init__(self) -> None:
        self.rules: list[FaultRule] = []
        self._random = random.Random(0)

    def replace(self, body: Any) -> None:
        """Replace the rules by a list, or by `{"seed", "rules"}`. Raises ApiError 400."""
        seed, items = (body.get("seed", 0), body.get("rules", [])) if isinstance(body, dict) else (0, body)
        if not isinstance(items, list):
            raise ApiError(400, 'Faults are a list of rules, or {"seed": n, "rules": [...]}')
        self.rules = [_read(item) for item in items]
        self._random = random.Random(seed)

    def choose(self, method: str, path: str) -> FaultRule | None:
        """Return the first matching rule that is not used up and whose probability hits, and count its use."""
        for rule in self.rules:
            if rule.matches(method, path) and (
                rule.probability >= 1 or self._random.random() < rule.probability
            ):
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return None


def _read(item: Any) -> FaultRule:
    if not isinstance(item, dict) or item.get("kind") not in KINDS:
        raise ApiError(400, f"A fault needs a kind, one of {', '.join(KINDS)}: {item!r}")
    keys = {
        "kind", "method", "path", "times", "status", "retry_after", "seconds", "message", "probability", "when"
    }  # fmt: skip
    if unknown := set(item) - keys:
        raise ApiError(400, f"Unknown keys in a fault: {', '.join(sorted(unknown))}")
    fields = {key: value for key, value in item.items() if value is not None}
    try:
        if "path" in fields:
            fields["path"] = re.compile(fields["path"])
        if fields.get("when", "after") not in ("after", "before"):
            raise ValueError('when is "after" or "before"')
        if "method" in fields:
            fields["method"] = fields["method"].upper()
        for key, convert in (("times", int), ("status", int), ("seconds", float), ("probability", float)):
            if key in fields:
                fields[key] = convert(fields[key])
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise ApiError(400, f"Bad fault {item!r}: {error}") from None
    return FaultRule(**fields)


@dataclass(slots=True)
class LoggedRequest:
    method: str
    path: str
    query: str
    at: float
    status: int | None = None
    """None if no response was sent (lost, reset), or not yet."""
    fault: str | None = None

    def body(self) -> dict[str, Any]:
        entry = {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "status": self.status,
            "at": self.at,
        }
        return entry if self.fault is None else {**entry, "fault": self.fault}


class RequestLog:
    """Requests in the order of their arrival; `at` is in real epoch seconds."""

    def __init__(self) -> None:
        self._entries: deque[LoggedRequest] = deque(maxlen=LOG_LENGTH)

    def arrived(self, method: str, path: str, query: str) -> LoggedRequest:
        entry = LoggedRequest(method, path, query, time.time())
        self._entries.append(entry)
        return entry

    def clear(self) -> None:
        self._entries.clear()

    def body(self) -> Sequence[dict[str, Any]]:
        return [entry.body() for entry in self._entries]
