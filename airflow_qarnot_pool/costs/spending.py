"""Read the spending of a pool or a DAG run, and close pools that have reached a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from airflow_qarnot_pool.costs.queries import CLOCK_SLACK, UNKNOWN_FIGURE
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

    A search may miss a pool. So a recorded pool that it does not return is requested, and counts as deleted only if
    that is denied, too. A deleted pool counts with the cost that Qarnot still returns, else with the recorded one.

    :param settled: final costs of pools that ended long ago. The caller keeps them from one poll to the next.
    """
    resource = client.pools if limit.kind == "pool" else client.tasks
    own = _cost_of(resource, limit.uuid) if limit.uuid else None
    if limit.max_run_cost is None:
        return Spending(own=own)
    settled = {} if settled is None else settled
    pools = {pool.uuid: pool for pool in pools_of_run(client, limit)}
    recorded = recorded_costs(client, limit.namespace, limit.run)
    missed = [_find(client, uuid) for uuid in recorded.keys() - pools.keys() - settled.keys()]
    pools |= {pool.uuid: pool for pool in missed if pool is not None}
    billed = billed_costs(client, pools, recorded.keys() | pools.keys(), {limit.uuid: own}, settled)
    return _run_spending(limit, own, pools, recorded, billed)


def _run_spending(
    limit: CostLimit,
    own: float | None,
    pools: Mapping[str, Pool],
    recorded: Mapping[str, float | None],
    billed: Mapping[str, float | None],
) -> Spending:
    """Return the spending of a DAG run.

    :param pools: those that are not deleted.
    :param recorded: the recorded costs.
    :param billed: the costs that Qarnot returns, for the pools of both.
    """
    costs = {uuid: recorded.get(uuid) if cost is None else cost for uuid, cost in billed.items()}
    forgotten = sorted(uuid for uuid in recorded.keys() - pools.keys() if costs[uuid] is None)
    is_task = limit.kind == "task"
    if is_task:
        costs[limit.uuid] = own  # it is no pool of the run, but its cost counts while it runs
    return Spending(
        own=own,
        # An unknown cost is not 0. The cost of the other pools may reach the limit all the same.
        run=sum(filter(None, costs.values())),
        open_pools=tuple(uuid for uuid, pool in pools.items() if is_open(pool)),
        of_the_run=is_task or limit.uuid in costs,
        forgotten=tuple(forgotten),
    )


def _find(client: QarnotClient, uuid: str) -> Pool | None:
    """Return a pool, or None if Qarnot itself, and not a proxy, responds that it does not exist."""
    try:
        return client.pools.get(uuid)
    except QarnotNotFoundError as error:
        if error.foreign:
            raise QarnotUnavailableError(error.message, kind="pool", ref=uuid) from error
        return None


def billed_costs(
    client: QarnotClient,
    pools: Mapping[str, Pool],
    uuids: Iterable[str],
    known: Mapping[str, float | None],
    settled: dict[str, float],
) -> dict[str, float | None]:
    """Return the cost of each pool that Qarnot returns, and add the final ones to *settled*.

    The cost of a pool that was never seen to end is not final: it may only seem deleted.
    """
    costs: dict[str, float | None] = {}
    for uuid in uuids:
        if uuid in settled:
            costs[uuid] = settled[uuid]
            continue
        cost = costs[uuid] = known[uuid] if uuid in known else _cost_of(client.pools, uuid)
        if cost is not None and uuid in pools and _is_final(pools[uuid]):
            settled[uuid] = cost
    return costs


def pools_of_run(client: QarnotClient, limit: CostLimit) -> list[Pool]:
    """Return the pools that the run has opened, before and after clears, except shared ones."""
    conditions = [filters.equal("Tags", namespace_tag(limit.namespace))]
    if limit.since:
        since = parse_stored_time(limit.since) - CLOCK_SLACK
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
    with suppress(*UNKNOWN_FIGURE):
        credits = client.account.credits()
    return find_shortage(estimate, credits, budgets, account, slots, datetime.now(UTC))


def _cost_of(resource: Any, uuid: str) -> float | None:
    with suppress(QarnotNotFoundError):
        cost: float = resource.credits(uuid)
        return cost
    return None


def _is_final(pool: Pool) -> bool:
    """Return whether the cost of *pool* can no longer change."""
    if is_open(pool) or pool.end_date is None:
        return False
    return datetime.now(UTC) - pool.end_date > COST_FINAL_AFTER
