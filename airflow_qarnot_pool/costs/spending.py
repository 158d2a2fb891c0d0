"""Read the spending of a pool or a DAG run, and close pools that have reached a limit."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.costs.limits import CostLimit, LimitCheck, Spending, find_shortage, is_open
from airflow_qarnot_pool.ownership.decisions import Usability, usability_of
from airflow_qarnot_pool.ownership.identity import label, namespace_tag, run_of
from airflow_qarnot_pool.ownership.records import recorded_costs
from airflow_qarnot_pool.ownership.termination import end

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Budget, Pool

#: How long after a pool has ended its cost can still change, because Qarnot publishes figures late.
COST_FINAL_AFTER = timedelta(minutes=10)


def spending_of(client: QarnotClient, limit: CostLimit, settled: dict[str, float] | None = None) -> Spending:
    """Return the spending: one request, and for the limit of a run two searches and one for each of its other pools.

    Deleted pools count if they are recorded. Their cost is the one that Qarnot still returns, else the recorded one.

    :param settled: final costs of pools that ended long ago. The caller keeps them from one poll to the next.
    """
    resource = client.pools if limit.kind == "pool" else client.tasks
    own = _cost_of(resource, limit.uuid) if limit.uuid else None
    if limit.max_run_cost is None:
        return Spending(own=own)
    settled = {} if settled is None else settled
    pools = pools_of_run(client, limit)
    # A Qarnot task without a pool is no pool of the run, but its cost counts while it runs.
    of_the_run = limit.kind == "task" or limit.uuid in {pool.uuid for pool in pools}
    costs = {limit.uuid: own} if limit.uuid and of_the_run else {}
    _add_costs(client, pools, costs, settled)
    forgotten = _add_costs_of_deleted(client, limit, costs, settled)
    return Spending(
        own=own,
        # An unknown cost is not 0. The cost of the other pools may reach the limit all the same.
        run=sum(filter(None, costs.values())),
        open_pools=tuple(pool.uuid for pool in pools if is_open(pool)),
        of_the_run=of_the_run,
        forgotten=tuple(sorted(forgotten)),
    )


def _add_costs(
    client: QarnotClient, pools: list[Pool], costs: dict[str, float | None], settled: dict[str, float]
) -> None:
    """Add the costs of *pools* to *costs*, and the final ones to *settled*."""
    for pool in pools:
        if pool.uuid not in costs:
            costs[pool.uuid] = settled.get(pool.uuid) or _cost_of(client.pools, pool.uuid)
        cost = costs[pool.uuid]
        if cost is not None and not is_open(pool) and _ended_long_ago(pool):
            settled[pool.uuid] = cost


def _add_costs_of_deleted(
    client: QarnotClient, limit: CostLimit, costs: dict[str, float | None], settled: dict[str, float]
) -> list[str]:
    """Add the costs of deleted pools of the run, and return the pools whose cost is unknown."""
    unknown = []
    recorded = recorded_costs(client, limit.namespace, limit.run)
    for uuid in recorded.keys() - costs.keys():
        cost = settled.get(uuid)
        if cost is None:
            billed = _cost_of(client.pools, uuid)
            cost = recorded[uuid] if billed is None else billed
        if cost is None:
            unknown.append(uuid)
        else:
            costs[uuid] = settled[uuid] = cost
    return unknown


def pools_of_run(client: QarnotClient, limit: CostLimit) -> list[Pool]:
    """Return the pools that the run has opened, before and after clears, except shared ones."""
    conditions = [filters.equal("Tags", namespace_tag(limit.namespace))]
    if limit.since:
        since = parse_stored_time(limit.since) - timedelta(seconds=5)
        conditions.append(filters.ge("CreationDate", since))
    pools = client.pools.search_all(
        filters.and_(*conditions), fields=("Uuid", "State", "Labels", "Tags", "EndDate")
    )
    return [pool for pool in pools if run_of(pool) == limit.run and label(pool.labels, "shared") is None]


def close_pools(client: QarnotClient, limit: CostLimit, check: LimitCheck) -> None:
    """End the objects that *check* names. Do nothing for objects that have ended already.

    :raises QarnotError: the first error. All other objects are ended nevertheless.
    """
    first_error: QarnotError | None = None
    for uuid in check.close:
        try:
            end(_resource_of(client, limit, uuid), uuid)
        except QarnotError as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error


def is_any_open(client: QarnotClient, limit: CostLimit, check: LimitCheck) -> bool:
    """Return whether any object that *check* names may still run. An unreadable state counts as running."""
    for uuid in check.close:
        with suppress(QarnotNotFoundError):
            try:
                remote = _resource_of(client, limit, uuid).get(uuid)
            except (QarnotRefusedError, QarnotProtocolError, QarnotUnavailableError):
                return True
            if usability_of(remote) is Usability.LIVE:
                return True
    return False


def _resource_of(client: QarnotClient, limit: CostLimit, uuid: str) -> Any:
    """Return the resource of *uuid*, which is a pool unless the limit belongs to a Qarnot task."""
    return client.tasks if limit.kind == "task" and uuid == limit.uuid else client.pools


def check_estimate(
    client: QarnotClient, estimate: float, project: str | None, slots: int | None
) -> str | None:
    """Return why the account cannot cover a pool: two requests, three if a project is known to have budgets."""
    account = client.account.info()
    project = project or next((project.uuid for project in account.projects if project.is_default), None)
    budgets: list[Budget] = []
    if project:
        with suppress(QarnotRefusedError, QarnotNotFoundError):  # not every account may read budgets
            budgets = client.account.budgets(project)
    credits = None
    with suppress(QarnotRefusedError, QarnotNotFoundError, QarnotProtocolError):
        credits = client.account.credits()
    return find_shortage(estimate, credits, budgets, account, slots, datetime.now(UTC))


def _cost_of(resource: Any, uuid: str) -> float | None:
    with suppress(QarnotNotFoundError):
        cost: float = resource.credits(uuid)
        return cost
    return None


def _ended_long_ago(pool: Pool) -> bool:
    return pool.end_date is not None and datetime.now(UTC) - pool.end_date > COST_FINAL_AFTER
