"""Limit on the cost of a pool of the executor in a day.

A pool of the executor lives for longer than a day. Its name may stand for several pools of Qarnot: for tasks of other
slots, with other options, or closed when it was idle. So its cost is the sum of theirs since midnight in UTC.
:func:`check_day` decides without I/O.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.fields import number
from airflow_qarnot_pool.costs.limits import LimitCheck, LimitLevel, is_open
from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.costs.parameters import WARN_AT
from airflow_qarnot_pool.costs.queries import UNKNOWN_FIGURE
from airflow_qarnot_pool.costs.spending import billed_costs
from airflow_qarnot_pool.executors.pool import pool_tag
from airflow_qarnot_pool.ownership.records import cost_at_start
from airflow_qarnot_pool.parameters.configuration import get_option

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.executors.options import PoolOptions

log = logging.getLogger(__name__)

#: Seconds for which a cost that was read counts.
READ_EVERY = 60.0


def check_day(
    name: str, maximum: float, spent: float | None, day: datetime, warn_at: float = WARN_AT
) -> LimitCheck:
    """Compare the cost of a pool with its maximum in a day.

    :param spent: euros since the start of *day*; None if Qarnot does not report them.
    :param warn_at: share of the maximum from which on the result is a warning.
    """
    if spent is None:
        message = f"Qarnot does not report the cost of pool {name!r}, so its max_cost_per_day has no effect"
        return LimitCheck(level=LimitLevel.WARNING, message=message)
    if spent < maximum * warn_at:
        return LimitCheck(level=LimitLevel.FINE)
    cost = f"Pool {name!r} has cost {format_euros(spent)} since {_time(day)}"
    limit = f"its max_cost_per_day of {format_euros(maximum)}"
    if spent < maximum:
        return LimitCheck(level=LimitLevel.WARNING, message=f"{cost}, {spent / maximum:.0%} of {limit}")
    message = (
        f"{cost}, which reaches {limit}. No task is submitted to it before {_time(day + timedelta(days=1))}."
    )
    return LimitCheck(level=LimitLevel.OVER, message=message)


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A cost in a day, and when it was read on the clock of ``time.monotonic``."""

    day: datetime
    spent: float | None
    read: float


class DailyCosts:
    """The costs of the pools of the executor since midnight, which are read once a minute at most."""

    def __init__(self) -> None:
        self._warn_at = float(get_option("cost_warning_threshold", number(0.01, 1), WARN_AT))
        self._readings: dict[str, _Reading] = {}
        #: Final costs of pools that have ended, by uuid.
        self._settled: dict[str, float] = {}
        #: Costs at the start of the day, by uuid.
        self._starts: dict[str, float] = {}
        self._warned: dict[str, datetime] = {}

    def refusal(self, client: QarnotClient, namespace: str, pool: PoolOptions) -> str | None:
        """Return why no task may be submitted to *pool* today; None if one may.

        :raises QarnotError: its cost cannot be read now.
        """
        maximum = pool.max_cost_per_day
        if maximum is None:
            return None
        day = _now().replace(hour=0, minute=0, second=0, microsecond=0)
        spent = self._spent(client, namespace, pool.name, day)
        check = check_day(pool.name, maximum, spent, day, self._warn_at)
        if check.level is LimitLevel.WARNING and self._warned.get(pool.name) != day:
            self._warned[pool.name] = day
            log.warning("%s", check.message)
        return check.message if check.level is LimitLevel.OVER else None

    def _spent(self, client: QarnotClient, namespace: str, name: str, day: datetime) -> float | None:
        last = self._readings.get(name)
        if last is None or last.day != day or time.monotonic() - last.read >= READ_EVERY:
            try:
                spent = self._read(client, namespace, name, day)
            except UNKNOWN_FIGURE:
                spent = None
            last = self._readings[name] = _Reading(day=day, spent=spent, read=time.monotonic())
        return last.spent

    def _read(self, client: QarnotClient, namespace: str, name: str, day: datetime) -> float | None:
        """Return the euros since the start of *day*; None if the cost of each pool is unknown."""
        pools = _pools_of_day(client, namespace, name, day)
        costs = billed_costs(client, pools, pools, {}, self._settled)
        known = {uuid: cost for uuid, cost in costs.items() if cost is not None}
        if pools and not known:
            return None
        return sum(
            max(0.0, cost - self._start_of(client, namespace, pools[uuid], day, cost))
            for uuid, cost in known.items()
        )

    def _start_of(
        self, client: QarnotClient, namespace: str, pool: Pool, day: datetime, cost: float
    ) -> float:
        """Return the cost of *pool* at the start of *day*, which is its *cost* now if nobody has asked before."""
        if pool.creation_date is None or pool.creation_date >= day:
            return 0.0
        key = f"{pool.uuid} {day:%Y-%m-%d}"
        if key not in self._starts:
            self._starts = {
                known: start for known, start in self._starts.items() if known.endswith(key[-10:])
            }
            self._starts[key] = cost_at_start(client, namespace, pool.uuid, key[-10:], cost)
        return self._starts[key]


def _pools_of_day(client: QarnotClient, namespace: str, name: str, day: datetime) -> dict[str, Pool]:
    """Return the pools of Qarnot with the name *name* of the executor that may have cost on *day*, by uuid."""
    fields = ("Uuid", "State", "Labels", "Tags", "CreationDate", "EndDate")
    found = client.pools.search_all(filters.equal("Tags", pool_tag(namespace, name)), fields=fields)
    return {
        pool.uuid: pool for pool in found if is_open(pool) or pool.end_date is None or pool.end_date >= day
    }


def _now() -> datetime:
    return datetime.now(UTC)
