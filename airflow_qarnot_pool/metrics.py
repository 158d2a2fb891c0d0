"""Metrics in Airflow's stats, and decisions as events in traces; see docs/metrics.md.

Nothing here raises or sends a request to Qarnot. The first metric imports Airflow's stats, and not this module.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

log = logging.getLogger(__name__)

PREFIX = "qarnot."


def incr(name: str, count: float = 1, **tags: Any) -> None:
    """Increment a counter."""
    _send("incr", name, count, tags)


def gauge(name: str, value: float, **tags: Any) -> None:
    """Set a gauge."""
    _send("gauge", name, value, tags)


def timing(name: str, seconds: float, **tags: Any) -> None:
    """Record a duration. It is sent in milliseconds, the unit of StatsD."""
    _send("timing", name, seconds * 1000, tags)


def _send(method: str, name: str, value: float, tags: dict[str, Any]) -> None:
    try:
        from airflow_qarnot_pool.version_compat import stats

        if not math.isfinite(value):
            return
        if method == "incr":
            value = round(value)  # Counters of StatsD are whole numbers.
        getattr(stats(), method)(PREFIX + name, value, tags={key: str(tag) for key, tag in tags.items()})
    except Exception:
        log.debug("The metric %s could not be sent", name, exc_info=True)


def event(name: str, attributes: dict[str, Any]) -> None:
    """Add an event to the span of the running Airflow task, if Airflow traces it."""
    # Not imported here. If Airflow has not imported it, there is no span.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    try:
        trace.get_current_span().add_event(name, attributes)
    except Exception:
        log.debug("The event %s could not be traced", name, exc_info=True)
