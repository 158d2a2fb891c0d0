"""Limits on cost: what reaches them, what is said, what cannot be paid."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.models import Account, Budget
from airflow_qarnot_pool.costs.limits import (
    CostLimit,
    LimitLevel,
    Spending,
    check_limits,
    find_shortage,
)
from airflow_qarnot_pool.costs.parameters import LimitParameters, parse_amount
from airflow_qarnot_pool.exceptions import QarnotCostLimitError, QarnotError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POOL = CostLimit(uuid="p-1", max_cost=10.0, dag_id="etl", run_id="r-1")
RUN = CostLimit(uuid="p-1", max_run_cost=20.0, dag_id="etl", run_id="r-1")
BOTH = CostLimit(uuid="p-1", max_cost=10.0, max_run_cost=20.0, dag_id="etl", run_id="r-1")

CASES: dict[str, tuple[CostLimit, Spending, LimitLevel, tuple[str, ...]]] = {
    "little": (POOL, Spending(own=7.99), LimitLevel.FINE, ()),
    "unknown": (POOL, Spending(own=None), LimitLevel.FINE, ()),
    "at the warning": (POOL, Spending(own=8.0), LimitLevel.WARNING, ()),
    "short of it": (POOL, Spending(own=9.999), LimitLevel.WARNING, ()),
    "at the limit": (POOL, Spending(own=10.0), LimitLevel.OVER, ("p-1",)),
    "far over": (POOL, Spending(own=100.0), LimitLevel.OVER, ("p-1",)),
    "a warning of its own": (
        CostLimit(uuid="p-1", max_cost=10.0, warn_at=0.5),
        Spending(own=5.0),
        LimitLevel.WARNING,
        (),
    ),
    "the run is fine, its pool is not limited": (RUN, Spending(own=19.0, run=15.0), LimitLevel.FINE, ()),
    "the run is over": (
        RUN,
        Spending(own=1.0, run=20.0, open_pools=("p-1", "p-2")),
        LimitLevel.OVER,
        ("p-1", "p-2"),
    ),
    "the run is over, and works on a shared pool": (
        RUN,
        Spending(own=1.0, run=20.0, open_pools=("p-2",), of_the_run=False),
        LimitLevel.OVER,
        ("p-2",),
    ),
    "the run's cost is not known": (RUN, Spending(own=1.0), LimitLevel.FINE, ()),
    "the worse of both counts": (BOTH, Spending(own=10.0, run=16.0), LimitLevel.OVER, ("p-1",)),
    "the worse of both counts, the other way round": (
        BOTH,
        Spending(own=8.0, run=21.0, open_pools=("p-2",)),
        LimitLevel.OVER,
        ("p-1", "p-2"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_judging(name: str) -> None:
    watched, spending, level, close = CASES[name]
    verdict = check_limits(watched, spending)
    assert (verdict.level, verdict.close) == (level, close)
    assert bool(verdict.message) is (level > LimitLevel.FINE)


def test_the_message_names_limit_cost_and_pool() -> None:
    assert check_limits(POOL, Spending(own=12.345)).message == (
        "Pool p-1 has cost 12.35 EUR, which reaches its max_cost of 10.00 EUR; it was closed"
    )
    assert check_limits(POOL, Spending(own=8.5)).message == (
        "Pool p-1 has cost 8.50 EUR, 85% of its max_cost of 10.00 EUR"
    )
    assert check_limits(RUN, Spending(own=1.0, run=20.5)).message == (
        "DAG run r-1 of etl, with pool p-1, has cost 20.50 EUR, which reaches its max_run_cost of 20.00 EUR; "
        "it was closed"
    )
    alone = CostLimit(uuid="t-1", kind="task", max_cost=0.5)
    assert check_limits(alone, Spending(own=0.5)).message == (
        "Qarnot task t-1 has cost 0.5000 EUR, which reaches its max_cost of 0.5000 EUR; it was ended"
    )


def budget(**fields: Any) -> Budget:
    return Budget.from_json({"alias": "ours", "totalAmountInCents": 5000, "isArchived": False, **fields})


ACCOUNT = {"maxRunningPool": 5, "runningPoolCount": 4, "maxInstances": 10, "runningInstanceCount": 6}
SHORT: dict[str, tuple[tuple[Any, ...], str | None]] = {
    "enough": ((5.0, 5.0, [budget(remainingAmountInCents=500)], ACCOUNT, 4), None),
    "nothing known": ((5.0, None, [], None, None), None),
    "credits": ((5.0, 4.5, [], None, None), "the account has 4.50 EUR of credits left"),
    "a budget": (
        (5.0, 100.0, [budget(remainingAmountInCents=499)], None, None),
        "the budget ours has 4.99 EUR of 50.00 EUR left",
    ),
    "a budget that only alerts": (
        (5.0, 100.0, [budget(remainingAmountInCents=1, budgetOverrunPolicy="AlertOnly")], None, None),
        None,
    ),
    "an archived budget": ((5.0, 9.0, [budget(remainingAmountInCents=1, isArchived=True)], None, None), None),
    "a budget that is over": (
        (5.0, 9.0, [budget(remainingAmountInCents=1, expirationDateUtc="2025-12-31T00:00:00Z")], None, None),
        None,
    ),
    "a budget to come": (
        (5.0, 9.0, [budget(remainingAmountInCents=1, startDateUtc="2026-02-01T00:00:00Z")], None, None),
        None,
    ),
    "pools": (
        (5.0, 9.0, [], {"maxRunningPool": 5, "runningPoolCount": 5}, 1),
        "the account uses 5 of its 5 running pools, and this takes 1 more",
    ),
    "instances": (
        (5.0, 9.0, [], ACCOUNT, 5),
        "the account uses 6 of its 10 running instances, and this takes 5 more",
    ),
}


@pytest.mark.parametrize("name", SHORT)
def test_objects_that_a_limit_cannot_cover(name: str) -> None:
    (estimate, credits, budgets, account, slots), expected = SHORT[name]
    known = None if account is None else Account.from_json(account)
    assert find_shortage(estimate, credits, budgets, known, slots, NOW) == expected


@pytest.mark.parametrize("value", [0, -1, "much", float("nan"), float("inf"), True, [1]])
def test_nonsense_is_refused_by_name(value: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="max_cost"):
        LimitParameters.of(value, None)
    with pytest.raises(QarnotInvalidSpecError, match="max_run_cost"):
        LimitParameters.of(None, value)


def test_the_threshold_of_warnings_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__COST_WARNING_THRESHOLD", "0.5")
    limits = LimitParameters.of(1, None)
    assert limits is not None
    assert limits.warn_at == 0.5
    monkeypatch.setenv("AIRFLOW__QARNOT__COST_WARNING_THRESHOLD", "1.5")
    with pytest.raises(QarnotInvalidSpecError, match="cost_warning_threshold"):
        LimitParameters.of(1, None)


def test_amounts_may_come_from_templates() -> None:
    assert [parse_amount("x", one) for one in (None, "", "None", "2.5", 3)] == [None, None, None, 2.5, 3.0]
    assert LimitParameters.of(None, "") is None


def test_kwargs_there_and_back_and_of_another_release() -> None:
    assert CostLimit.from_kwargs(BOTH.to_kwargs()) == BOTH
    assert CostLimit.from_kwargs({"uuid": "p-1", "max_cost": 10.0, "from_the_future": 1}).warn_at == 0.8


def test_a_reached_limit_is_never_retried() -> None:
    from airflow_qarnot_pool.version_compat import AirflowFailException

    error = QarnotCostLimitError("too dear", kind="pool", ref="p-1")
    assert isinstance(error, AirflowFailException)
    assert isinstance(error, QarnotError)
    assert str(error).startswith("too dear. Raise the limit")
