"""Limits on the cost of a pool and of a DAG run.

:func:`check_limits` and :func:`find_shortage` decide without I/O. :mod:`airflow_qarnot_pool.costs.spending` reads the
figures from Qarnot. Limits are checked by every trigger that waits for the pool or for a Qarnot task on it. One
subscription serves all of them, and continues between waits until the pool closes. Operators that wait on the worker
check limits, too, and every operator checks before it submits a task. The reaper checks the limits that are stored on
the pool (:func:`limits_from_labels`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.limits import parsing_stored_state
from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.costs.parameters import LIMIT_LABELS, WARN_AT, LimitParameters, parse_amount
from airflow_qarnot_pool.ownership.decisions import Usability, usability_of
from airflow_qarnot_pool.ownership.identity import RunKey, label, run_of
from airflow_qarnot_pool.waiting.conditions import CAPITALIZED_NOUNS, NOUNS, Kind

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account, Budget, Pool


class LimitLevel(IntEnum):
    """How close the spending is to its limits."""

    FINE = 0
    WARNING = 1
    OVER = 2


@dataclass(frozen=True, kw_only=True)
class CostLimit:
    """An object and its limits, in the form of trigger kwargs."""

    #: Empty if the object is not created yet. Then only the limit of the run counts.
    uuid: str = ""
    kind: Kind = "pool"
    max_cost: float | None = None
    max_run_cost: float | None = None
    warn_at: float = WARN_AT
    namespace: str = ""
    dag_id: str = ""
    run_id: str = ""
    #: ISO time before which the run has created no object.
    since: str | None = None

    def to_kwargs(self) -> dict[str, Any]:
        """Return a JSON form for trigger kwargs."""
        return asdict(self)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> CostLimit:
        """Read the result of :meth:`to_kwargs`."""
        with parsing_stored_state("The cost limits of a trigger"):
            return cls(**{name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs})

    def labels(self) -> dict[str, str]:
        """Return the limits in the form of :meth:`LimitParameters.labels`."""
        return LimitParameters(max_cost=self.max_cost, max_run_cost=self.max_run_cost).labels()

    @property
    def run(self) -> RunKey:
        """The DAG run that the limit belongs to."""
        return RunKey(self.dag_id, self.run_id)


def limits_from_labels(pool: Pool, since: datetime | None = None) -> CostLimit | None:
    """Return the limits that are stored on *pool*; None if there are none.

    :param since: creation time of the first pool of its DAG run, if it is known.
    """
    limits: dict[str, float | None] = {}
    for name, key in LIMIT_LABELS.items():
        with suppress(QarnotInvalidSpecError):  # an invalid label was set by another program
            limits[name] = parse_amount(name, pool.labels.get(key))
    if label(pool.labels, "shared") is not None:
        limits["max_run_cost"] = None  # a shared pool does not belong to one run
    if all(limit is None for limit in limits.values()):
        return None
    run = run_of(pool)
    return CostLimit(
        uuid=pool.uuid,
        namespace=label(pool.labels, "namespace") or "",
        dag_id=run.dag_id,
        run_id=run.run_id,
        since=since.isoformat() if since else None,
        max_cost=limits.get("max_cost"),
        max_run_cost=limits.get("max_run_cost"),
    )


def may_still_cost(limit: CostLimit, pool: Pool, others: Iterable[CostLimit]) -> bool:
    """Return whether the limit must still be checked although no task waits, because *pool* is open and ours.

    :param others: the other limits that are checked. One of several limits on a shared pool is enough.
    """
    if limit.kind != "pool" or not is_open(pool) or label(pool.labels, "namespace") != limit.namespace:
        return False
    is_own = run_of(pool) == limit.run and label(pool.labels, "shared") is None
    effective = (limit.max_cost, limit.max_run_cost if is_own else None)
    if effective == (None, None):
        return False
    return not any(
        other.uuid == limit.uuid and (other.max_cost, other.max_run_cost if is_own else None) == effective
        for other in others
    )


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Euros spent by the object, and by all pools of its DAG run. None: not requested, or unknown."""

    own: float | None = None
    run: float | None = None
    #: Pools of the run that are still open.
    open_pools: tuple[str, ...] = ()
    #: Whether the object belongs to the run. A shared pool, or a pool of another run, does not.
    of_the_run: bool = True
    #: Deleted pools of the run whose cost is unknown. Then ``run`` is the cost of the other pools.
    forgotten: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LimitCheck:
    """The result of a comparison of spending and limits, and the pools to close."""

    level: LimitLevel
    message: str = ""
    close: tuple[str, ...] = ()


def check_limits(limit: CostLimit, spending: Spending) -> LimitCheck:
    """Compare the spending with the limits, and return the worse result of the two."""
    title = f"{CAPITALIZED_NOUNS[limit.kind]} {limit.uuid}"
    run = f"DAG run {limit.run_id} of {limit.dag_id}"
    pools = spending.open_pools
    if spending.of_the_run:
        run += f", with {NOUNS[limit.kind]} {limit.uuid},"
        pools = tuple(dict.fromkeys((limit.uuid, *pools)))
    checks = [
        _check_limit("max_cost", limit.max_cost, spending.own, limit, title, (limit.uuid,)),
        _check_limit("max_run_cost", limit.max_run_cost, spending.run, limit, run, pools),
    ]
    return max(checks, key=lambda check: check.level)


def _check_limit(
    name: str,
    maximum: float | None,
    spent: float | None,
    limit: CostLimit,
    title: str,
    close: tuple[str, ...],
) -> LimitCheck:
    """Compare *spent* with one limit. *title* is the subject of the message, *close* the pools to close."""
    if maximum is None or spent is None or spent < maximum * limit.warn_at:
        return LimitCheck(level=LimitLevel.FINE)
    cost = f"{title} has cost {format_euros(spent)}"
    if spent < maximum:
        message = f"{cost}, {spent / maximum:.0%} of its {name} of {format_euros(maximum)}"
        return LimitCheck(level=LimitLevel.WARNING, message=message)
    end = "was closed" if limit.kind == "pool" else "was ended"
    message = f"{cost}, which reaches its {name} of {format_euros(maximum)}; it {end}"
    return LimitCheck(level=LimitLevel.OVER, message=message, close=close)


def find_shortage(
    estimate: float,
    credits: float | None,
    budgets: Iterable[Budget],
    account: Account | None,
    slots: int | None,
    now: datetime,
) -> str | None:
    """Return why the account cannot cover a pool of *slots* with an *estimate* in euros; None if it can."""
    if credits is not None and credits < estimate:
        return f"the account has {format_euros(credits)} of credits left"
    shortages = [_budget_shortage(budget, estimate, now) for budget in budgets]
    if account is not None:
        shortages += [
            _quota_shortage(account.running_pool_count, account.max_running_pool, 1, "running pools"),
            _quota_shortage(
                account.running_instance_count, account.max_instances, slots or 1, "running instances"
            ),
        ]
    return next(filter(None, shortages), None)


def _budget_shortage(budget: Budget, estimate: float, now: datetime) -> str | None:
    if budget.is_archived or budget.remaining_cents is None or budget.overrun_policy == "AlertOnly":
        return None
    has_expired = budget.expiration_date and budget.expiration_date < now
    if has_expired or (budget.start_date and budget.start_date > now):
        return None
    remaining = budget.remaining_cents / 100
    if remaining >= estimate:
        return None
    total = "" if budget.total_cents is None else f" of {format_euros(budget.total_cents / 100)}"
    return f"the budget {budget.alias or budget.uuid} has {format_euros(remaining)}{total} left"


def _quota_shortage(used: int | None, maximum: int | None, added: int, objects: str) -> str | None:
    if maximum is None or (used or 0) + added <= maximum:
        return None
    return f"the account uses {used or 0} of its {maximum} {objects}, and this takes {added} more"


def is_open(pool: Pool) -> bool:
    """Return whether *pool* still accepts tasks, and so may still cost."""
    return usability_of(pool) is Usability.LIVE
