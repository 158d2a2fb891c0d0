"""When the executor sends a request again that has failed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotQuotaError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.waiting.intervals import backoff_delay, requested_pause

log = logging.getLogger(__name__)

#: Seconds between two requests that fail, at first.
FIRST_PAUSE = 1.0
#: Maximum seconds of it, and the maximum if Qarnot asks for more. New work is submitted after that at the latest.
MAX_PAUSE, MAX_REQUESTED_PAUSE = 15.0, 60.0
#: Seconds for which Qarnot must refuse the same before it counts, because a proxy or a replica may do so for a while.
REFUSED_FOR = 60.0


def is_permanent(error: QarnotError) -> bool:
    """Return whether the same request may be refused again, by Qarnot or by a check before it is sent.

    A page of a proxy says nothing about it.
    """
    if error.foreign or isinstance(error, QarnotQuotaError):
        return False
    return isinstance(error, (QarnotInvalidSpecError, QarnotNotFoundError, QarnotRefusedError))


@dataclass(frozen=True)
class _Failure:
    count: int
    due: float
    error: Exception


class Pauses:
    """The pauses after errors. Each part of the work has its own, so one that fails delays no other.

    The name of a part completes a sentence of the log: "QarnotExecutor could not ...".
    """

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    def __bool__(self) -> bool:
        return bool(self._failures)

    def is_due(self, part: str) -> bool:
        """Return whether *part* may be tried now."""
        return part not in self._failures or time.monotonic() >= self._failures[part].due

    def succeeded(self, part: str) -> None:
        """Forget the errors of *part*."""
        self._failures.pop(part, None)

    def failed(self, part: str, error: Exception) -> None:
        """Record and log an error of *part*."""
        count = self._failures[part].count + 1 if part in self._failures else 1
        requested = requested_pause(error)
        pause = min(backoff_delay(FIRST_PAUSE, count, requested, FIRST_PAUSE), MAX_PAUSE)
        pause = max(pause, min(requested, MAX_REQUESTED_PAUSE))
        self._failures[part] = _Failure(count, time.monotonic() + pause, error)
        if count == 1 or count % 10 == 0:
            sentence = "QarnotExecutor could not %s, attempt %d. Trying again in %.0f s: %s"
            is_known = isinstance(error, QarnotError)
            level, trace = (logging.WARNING, None) if is_known else (logging.ERROR, error)
            log.log(level, sentence, part, count, pause, error, exc_info=trace)

    def last_error(self, part: str) -> str:
        """Return the last error of *part*; empty if it has none."""
        return str(self._failures[part].error) if part in self._failures else ""

    def clear(self) -> None:
        """Let everything be due."""
        self._failures.clear()
