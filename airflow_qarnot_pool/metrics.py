"""Metrics through Airflow's own stats, and decisions as named events in log and trace; see docs/metrics.md.

Nothing here ever raises or costs a request. Importing it imports nothing of Airflow; the first metric does.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.transport import Exchange
    from airflow_qarnot_pool.claim import Claim, Decision
    from airflow_qarnot_pool.costs import PoolCost
    from airflow_qarnot_pool.reaper import Report

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
        from airflow_qarnot_pool.compat import stats

        if not math.isfinite(value):
            return
        if what == "incr":
            value = round(value)  # StatsD counts whole numbers
        getattr(stats(), what)(PREFIX + name, value, tags={key: str(one) for key, one in tags.items()})
    except Exception:
        log.debug("The metric %s could not be sent", name, exc_info=True)


# --- what is measured


def exchanged(exchange: Exchange) -> None:
    """A request to Qarnot and its answer, or none."""
    kind = exchange.path.strip("/").split("/", 1)[0].split("?")[0] or "account"
    tags: dict[str, Any] = {"method": exchange.method, "resource": kind}
    incr("requests", **tags, status=exchange.status or "none")
    if exchange.attempt > 1:
        incr("retries", **tags)
    timing("request.duration", exchange.seconds, **tags)


def polled(kind: str, conn_id: str, waiters: int, size: int, seconds: float) -> None:
    """A round of a shared poll: how many wait, for how many objects, and how long the round took."""
    tags = {"kind": kind, "conn_id": conn_id}
    gauge("poll.waiters", waiters, **tags)
    gauge("poll.size", size, **tags)
    timing("poll.duration", seconds, **tags)


def decided(logger: Any, kind: str, claim: Claim) -> None:
    """How a remote object was come by: a fresh submit, or an earlier try's that spared one."""
    decision = str(claim.decision)
    incr(f"claims.{decision}", kind=kind)
    if decision != "fresh_submit":
        incr("duplicates_avoided", kind=kind)
    logger.info("qarnot.%s: %s %s, generation %d", decision, kind, claim.uuid, claim.generation)
    attributes = {"qarnot.kind": kind, "qarnot.uuid": claim.uuid, "qarnot.generation": claim.generation}
    event(f"qarnot.{decision}", attributes)


def decided_many(logger: Any, decision: Decision, count: int) -> None:
    """The same for so many Qarnot tasks of a fan-out at once."""
    if not count:
        return
    incr(f"claims.{decision}", count, kind="task")
    if decision != "fresh_submit":
        incr("duplicates_avoided", count, kind="task")
    logger.info("qarnot.%s: %d task%s", decision, count, "" if count == 1 else "s")
    event(f"qarnot.{decision}", {"qarnot.kind": "task", "qarnot.count": count})


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


def closed(pool: PoolCost, dag_id: str) -> None:
    """What a pool had cost when its teardown told it to close."""
    cost = pool.cost
    if cost.credits is not None:
        incr("cost.microeuros", cost.credits * 1e6, dag_id=dag_id)
        gauge("cost.last_pool_euros", cost.credits, dag_id=dag_id)
    if cost.carbon_g is not None:
        incr("carbon.milligrams", cost.carbon_g * 1000, dag_id=dag_id)
    if cost.node_seconds is not None:
        incr("node_seconds.paid", cost.node_seconds, dag_id=dag_id)
        incr("node_seconds.idle", cost.idle_node_seconds or 0.0, dag_id=dag_id)


def reaped(report: Report) -> None:
    """What the reaper found and did."""
    counts = report.to_json()
    if not report.dry_run:
        incr("pools.reaped", counts["closed"], namespace=report.namespace)
        incr("tasks.reaped", counts["aborted"], namespace=report.namespace)
    tags = {"namespace": report.namespace}
    gauge("pools.open", report.open_pools, **tags)
    gauge("slots.wanted", report.slots_wanted, **tags)
    gauge("slots.ready", report.slots_ready, **tags)
