"""Decide whether the last user of a shared pool keeps it for the next scheduled run. A pure function.

Two sums are compared, both in euros. To keep the pool costs its idle nodes until the next run. To close it costs the
node-seconds of another boot, and the run waits for that boot. The user says how many euros a run without that wait is
worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.parts import ManagedTasksQueuePolicy

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import ElasticProperty, Pool


@dataclass(frozen=True, kw_only=True)
class LingerFacts:
    """The facts about a pool that nothing needs now.

    :param gap: time until the next scheduled run; None: no run is planned, or that is not known.
    :param keep_warm: how long Qarnot keeps an idle node; None: until the pool is closed.
    :param idle: for how long its nodes have been idle.
    :param nodes: nodes that are up.
    :param worth: euros that a run without a boot is worth.
    :param price: euros for a node-second; None if it is unknown.
    :param boot_node_seconds: node-seconds that a boot costs.
    :param is_busy: whether unfinished Qarnot tasks remain on the pool. They hold nodes for a time that nothing limits.
    """

    gap: timedelta | None
    keep_warm: timedelta | None
    nodes: int
    worth: float
    price: float | None = None
    boot_node_seconds: float = 0.0
    idle: timedelta = timedelta()
    is_busy: bool = False


@dataclass(frozen=True, kw_only=True)
class LingerDecision:
    """Whether the pool is kept, why, and how many euros that costs at most, if no run comes."""

    keeps: bool
    reason: str
    at_most: float = 0.0


def decide_linger(facts: LingerFacts) -> LingerDecision:
    """Decide whether to keep a pool for the next scheduled run.

    A pool whose nodes Qarnot would not shut down is never kept, and neither is one whose nodes would be gone before
    the run. So a run that does not come costs the rest of ``keep_warm``, of idle nodes.
    """
    if facts.is_busy:
        return _close("unfinished Qarnot tasks remain on it, and only its end aborts them")
    if facts.gap is None:
        return _close("no next run is known")
    if facts.keep_warm is None:
        return _close("nothing but its end would shut down its nodes")
    if facts.nodes < 1:
        return _close("none of its nodes is up")
    stays = facts.keep_warm - facts.idle
    if facts.gap > stays:
        wait = f"the next run comes in {facts.gap.total_seconds():.0f} s"
        return _close(f"{wait}, and its nodes shut down in {max(0.0, stays.total_seconds()):.0f} s")
    if facts.price is None:
        return _close("its price is not known")
    kept = facts.gap.total_seconds() * facts.nodes * facts.price
    saved = facts.boot_node_seconds * facts.price + facts.worth
    sums = (
        f"{facts.nodes} idle nodes for {facts.gap.total_seconds():.0f} s cost {kept:.4f} EUR, and no boot is worth "
        f"{saved:.4f} EUR"
    )
    if kept > saved:
        return _close(sums)
    at_most = stays.total_seconds() * facts.nodes * facts.price
    return LingerDecision(keeps=True, reason=sums, at_most=at_most)


def _close(reason: str) -> LingerDecision:
    return LingerDecision(keeps=False, reason=reason)


def time_to_zero(pool: Pool) -> timedelta | None:
    """Return after how much idle time Qarnot shuts down all nodes of *pool*; None if it keeps some."""
    if pool.scaling is not None:
        policies = pool.scaling.policies
        scales = all(isinstance(one, ManagedTasksQueuePolicy) and _is_zero(one) for one in policies)
        times = [getattr(one, "min_idle_time", timedelta()) for one in policies]
        return max(times) if scales and times else None
    elastic = pool.elastic
    if elastic is None or not elastic.is_elastic or not _is_zero(elastic) or elastic.min_idle_time is None:
        return None
    return elastic.min_idle_time


def _is_zero(limits: ManagedTasksQueuePolicy | ElasticProperty) -> bool:
    return not limits.min_total_slots and not limits.min_idle_slots
