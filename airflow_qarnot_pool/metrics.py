"""Metrics through Airflow's own stats, and decisions as named events in log and trace; see docs/metrics.md.

Nothing here ever raises or costs a request. Importing it imports nothing of Airflow; the first metric does.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

PREFIX = "qarnot."


def incr(name: str, count: float = 1, **tags: Any) -> None:
    """Count something."""
    _send("incr", name, count, tags)


def gauge(name: str, value: float, **tags: Any) -> None:
    """Say how much there is of something now."""
    _send("gauge", name, value, tags)


def timing(name: str, seconds: float, **tags: Any) -> None:
    """Say how long something took; sent in milliseconds, as StatsD wants it."""
    _send("timing", name, seconds * 1000, tags)


def _send(what: str, name: str, value: float, tags: dict[str, Any]) -> None:
    try:
        from airflow_qarnot_pool.version_compat import stats

        if not math.isfinite(value):
            return
        if what == "incr":
            value = round(value)  # StatsD counts whole numbers
        getattr(stats(), what)(PREFIX + name, value, tags={key: str(one) for key, one in tags.items()})
    except Exception:
        log.debug("The metric %s could not be sent", name, exc_info=True)


# --- what is measured


def event(name: str, attributes: dict[str, Any]) -> None:
    """An event on the span that Airflow has open for the running task, where it traces."""
    # Only where somebody has loaded it: Airflow does, and without a span there is nothing to tell.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    try:
        trace.get_current_span().add_event(name, attributes)
    except Exception:
        log.debug("The event %s could not be traced", name, exc_info=True)
