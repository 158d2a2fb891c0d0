"""Limits on the cost of a pool and of a DAG run.

:func:`check_limits` and :func:`find_shortage` decide without I/O. :mod:`airflow_qarnot_pool.costs.spending` reads the
figures from Qarnot. Limits are checked by every trigger that waits for the pool or for a Qarnot task on it. One
subscription serves all of them, and continues between waits until the pool closes. Operators that wait on the worker
check limits, too, and every operator checks before it submits a task. The reaper checks the limits that are stored on
the pool (:func:`limits_from_labels`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
)
from airflow_qarnot_pool.api.limits import parsing_stored_state
from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.ownership.identity import MAX_COST_LABEL, MAX_RUN_COST_LABEL, RunKey, label, run_of
from airflow_qarnot_pool.waiting.conditions import CAPITALIZED_NOUNS, Kind

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account, Budget, Pool

#: Share of a limit at which a warning is logged.
WARN_AT = 0.8
#: Labels of a pool, for those who know nothing of the DAG that has made it.
LIMIT_LABELS = {"max_cost": MAX_COST_LABEL, "max_run_cost": MAX_RUN_COST_LABEL}


class LimitLevel(IntEnum):
    """How what was spent stands to its limits."""

    FINE = 0
    WARNING = 1
    OVER = 2


@dataclass(frozen=True, kw_only=True)
class LimitParameters:
    """The most that an object (a pool, or a Qarnot task with nodes of its own) and its DAG run may cost, in euros."""

    max_cost: float | None = None
    max_run_cost: float | None = None
    warn_at: float = WARN_AT

    @classmethod
    def of(cls, max_cost: Any, max_run_cost: Any, warn_at: Any = WARN_AT) -> LimitParameters | None:
        """Check what an operator was given; None where there is no limit.

        :raises QarnotInvalidSpecError: names the parameter.
        """
        share = parse_amount("cost_warning", warn_at)
        if share is None or not 0 < share <= 1:
            raise QarnotInvalidSpecError(
                f"cost_warning is no share of the limit, got {warn_at!r}",
                field="cost_warning",
                remedy="Give a number of more than 0 and at most 1.",
            )
        limits = cls(
            max_cost=parse_amount("max_cost", max_cost),
            max_run_cost=parse_amount("max_run_cost", max_run_cost),
            warn_at=share,
        )
        return None if limits.max_cost is None and limits.max_run_cost is None else limits

    def labels(self) -> dict[str, str]:
        """What is written on the pool; :func:`limits_from_labels` reads it."""
        given = {LIMIT_LABELS[name]: getattr(self, name) for name in LIMIT_LABELS}
        return {name: repr(limit) for name, limit in given.items() if limit is not None}


def parse_amount(name: str, value: Any) -> float | None:
    """A number of more than 0, which may come as text out of a template; None for none."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    with suppress(TypeError, ValueError):
        number = float(value)
        if number > 0 and math.isfinite(number) and not isinstance(value, bool):
            return number
    raise QarnotInvalidSpecError(
        f"{name} must be a number of more than 0, got {value!r}", field=name, remedy="Give euros as a number."
    )


@dataclass(frozen=True, kw_only=True)
class CostLimit:
    """An object with limits, as trigger kwargs carry it."""

    #: Empty where it is not made yet: then only the run's limit counts.
    uuid: str = ""
    kind: Kind = "pool"
    max_cost: float | None = None
    max_run_cost: float | None = None
    warn_at: float = WARN_AT
    namespace: str = ""
    dag_id: str = ""
    run_id: str = ""
    #: ISO time before which the run has made nothing.
    since: str | None = None

    def to_kwargs(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> CostLimit:
        """Read back what :meth:`to_kwargs` of this or an earlier release wrote."""
        with parsing_stored_state("The cost limits of a trigger"):
            return cls(**{name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs})

    def labels(self) -> dict[str, str]:
        """The limits as :meth:`LimitParameters.labels` writes them."""
        return LimitParameters(max_cost=self.max_cost, max_run_cost=self.max_run_cost).labels()

    @property
    def run(self) -> RunKey:
        """The DAG run whose limit it is."""
        return RunKey(self.dag_id, self.run_id)


def limits_from_labels(pool: Pool, since: datetime | None = None) -> CostLimit | None:
    """The limits that are written on *pool*; None where there are none.

    :param since: when the first pool of its DAG run was made, where that is known.
    """
    found: dict[str, float | None] = {}
    for name, key in LIMIT_LABELS.items():
        with suppress(QarnotInvalidSpecError):  # somebody else's label says nothing
            found[name] = parse_amount(name, pool.labels.get(key))
    if label(pool.labels, "shared") is not None:
        found["max_run_cost"] = None  # it is no run's own
    if all(limit is None for limit in found.values()):
        return None
    run = run_of(pool)
    return CostLimit(
        uuid=pool.uuid,
        namespace=label(pool.labels, "namespace") or "",
        dag_id=run.dag_id,
        run_id=run.run_id,
        since=since.isoformat() if since else None,
        max_cost=found.get("max_cost"),
        max_run_cost=found.get("max_run_cost"),
    )


def may_still_cost(watched: CostLimit, pool: Pool, others: Iterable[CostLimit]) -> bool:
    """Whether to watch on when nothing waits any more, because *pool* is still open and of our making.

    :param others: what else is watched; of several who share a pool one is enough.
    """
    if watched.kind != "pool" or not is_open(pool) or label(pool.labels, "namespace") != watched.namespace:
        return False
    runs_own = run_of(pool) == watched.run and label(pool.labels, "shared") is None
    counts = (watched.max_cost, watched.max_run_cost if runs_own else None)
    if counts == (None, None):
        return False
    return not any(
        other.uuid == watched.uuid and (other.max_cost, other.max_run_cost if runs_own else None) == counts
        for other in others
    )


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Euros spent by the object, and by all pools of its DAG run. None: not asked for, or not known."""

    own: float | None = None
    run: float | None = None
    #: Pools of the run that are still open.
    open_pools: tuple[str, ...] = ()
    #: Whether the object is one of the run's own: a shared pool, or somebody else's, is not.
    of_the_run: bool = True
    #: Deleted pools of the run whose cost cannot be found out. Then ``run`` is what the others have cost.
    forgotten: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LimitCheck:
    """What *message* says about what was spent, and which pools have to close."""

    level: LimitLevel
    message: str = ""
    close: tuple[str, ...] = ()


def check_limits(watched: CostLimit, spending: Spending) -> LimitCheck:
    """Compare what was spent with the limits; the worse of both counts."""
    it = f"{CAPITALIZED_NOUNS[watched.kind]} {watched.uuid}"
    run, own = f"DAG run {watched.run_id} of {watched.dag_id}", (watched.uuid,) * spending.of_the_run
    if spending.of_the_run:
        run += f", with {it.lower() if watched.kind == 'pool' else it},"
    found = []
    for spent, limit, name, who, close in (
        (spending.own, watched.max_cost, "max_cost", it, (watched.uuid,)),
        (
            spending.run,
            watched.max_run_cost,
            "max_run_cost",
            run,
            tuple(dict.fromkeys((*own, *spending.open_pools))),
        ),
    ):
        if limit is None or spent is None or spent < limit * watched.warn_at:
            continue
        cost = f"{who} has cost {format_euros(spent)}"
        if spent >= limit:
            end = "was closed" if watched.kind == "pool" else "was ended"
            text = f"{cost}, which reaches its {name} of {format_euros(limit)}; it {end}"
            found.append(LimitCheck(level=LimitLevel.OVER, message=text, close=close))
        else:
            text = f"{cost}, {spent / limit:.0%} of its {name} of {format_euros(limit)}"
            found.append(LimitCheck(level=LimitLevel.WARNING, message=text))
    return max(found, key=lambda one: one.level, default=LimitCheck(level=LimitLevel.FINE))


def find_shortage(
    estimate: float,
    credits: float | None,
    budgets: Iterable[Budget],
    account: Account | None,
    slots: int | None,
    now: datetime,
) -> str | None:
    """Why a pool of *slots* that is to cost *estimate* euros cannot be covered, with the figures; None if it can."""
    if credits is not None and credits < estimate:
        return f"the account has {format_euros(credits)} of credits left"
    for budget in budgets:
        if budget.is_archived or budget.remaining_cents is None or budget.overrun_policy == "AlertOnly":
            continue
        if (budget.expiration_date and budget.expiration_date < now) or (
            budget.start_date and budget.start_date > now
        ):
            continue
        left = budget.remaining_cents / 100
        if left < estimate:
            whole = "" if budget.total_cents is None else f" of {format_euros(budget.total_cents / 100)}"
            return f"the budget {budget.alias or budget.uuid} has {format_euros(left)}{whole} left"
    if account is not None:
        for used, most, added, what in (
            (account.running_pool_count, account.max_running_pool, 1, "running pools"),
            (account.running_instance_count, account.max_instances, slots or 1, "running instances"),
        ):
            if most is not None and (used or 0) + added > most:
                return f"the account uses {used or 0} of its {most} {what}, and this takes {added} more"
    return None


# --- asking Qarnot


def is_open(pool: Pool) -> bool:
    from airflow_qarnot_pool.ownership.decisions import Usability, usability_of

    return usability_of(pool) is Usability.LIVE
