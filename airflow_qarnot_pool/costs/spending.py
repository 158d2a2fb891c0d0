"""Read what a pool or a DAG run has spent, and close pools that reached a limit."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.costs.limits import CostLimit, LimitCheck, Spending, find_shortage, is_open
from airflow_qarnot_pool.ownership.identity import label, run_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Budget, Pool


#: What a pool of the run has cost is final so long after its end: figures may come late.
COST_FINAL_AFTER = timedelta(minutes=10)


def spending_of(
    client: QarnotClient, watched: CostLimit, settled: dict[str, float] | None = None
) -> Spending:
    """What was spent: one request, and for a run's limit two searches and one more for each of its other pools.

    Deleted pools count if the run's record names them: at what billing still says, or else at what was recorded.

    :param settled: what pools that ended long ago have cost; kept by the caller from one look to the next.
    """
    resource = client.pools if watched.kind == "pool" else client.tasks
    own = _cost_of(resource, watched.uuid) if watched.uuid else None
    if watched.max_run_cost is None:
        return Spending(own=own)
    from airflow_qarnot_pool.ownership.records import recorded_costs

    settled = {} if settled is None else settled
    # A Qarnot task with nodes of its own is no pool of the run, and counts all the same while it is watched.
    pools = pools_of_run(client, watched)
    of_the_run = watched.kind == "task" or watched.uuid in {pool.uuid for pool in pools}
    known = {watched.uuid: own} if watched.uuid and of_the_run else {}
    still_open = []
    for pool in pools:
        if pool.uuid not in known:
            known[pool.uuid] = settled.get(pool.uuid) or _cost_of(client.pools, pool.uuid)
        if is_open(pool):
            still_open.append(pool.uuid)
        elif (cost := known[pool.uuid]) is not None and _ended_long_ago(pool):
            settled[pool.uuid] = cost
    forgotten = []
    recorded = recorded_costs(client, watched.namespace, watched.run)
    for uuid in recorded.keys() - known.keys():
        cost = settled.get(uuid)
        if cost is None:
            told = _cost_of(client.pools, uuid)
            cost = recorded[uuid] if told is None else told
        if cost is None:
            forgotten.append(uuid)
        else:
            known[uuid] = settled[uuid] = cost
    return Spending(
        own=own,
        # A cost that is not known is not 0. The others' may reach the limit all the same.
        run=sum(cost for cost in known.values() if cost is not None),
        open_pools=tuple(still_open),
        of_the_run=of_the_run,
        forgotten=tuple(sorted(forgotten)),
    )


def pools_of_run(client: QarnotClient, watched: CostLimit) -> list[Pool]:
    """The pools that the run has opened in all its lives, shared ones not among them."""
    from airflow_qarnot_pool.api import filters
    from airflow_qarnot_pool.ownership.identity import namespace_tag

    wanted = [filters.equal("Tags", namespace_tag(watched.namespace))]
    if watched.since:
        since = parse_stored_time(watched.since) - timedelta(seconds=5)
        wanted.append(filters.ge("CreationDate", since))
    found = client.pools.search_all(
        filters.and_(*wanted), fields=("Uuid", "State", "Labels", "Tags", "EndDate")
    )
    return [one for one in found if run_of(one) == watched.run and label(one.labels, "shared") is None]


def close_pools(client: QarnotClient, watched: CostLimit, verdict: LimitCheck) -> None:
    """End what *verdict* says; fine when it is over already.

    :raises QarnotError: the first one met; whatever else could be ended is.
    """
    from airflow_qarnot_pool.ownership.termination import end

    failed: QarnotError | None = None
    for uuid in verdict.close:
        own_task = watched.kind == "task" and uuid == watched.uuid
        try:
            end(client.tasks if own_task else client.pools, uuid)
        except QarnotError as error:
            failed = failed or error
    if failed is not None:
        raise failed


def is_any_open(client: QarnotClient, watched: CostLimit, verdict: LimitCheck) -> bool:
    """Whether there is anything left to end; yes where Qarnot does not say."""
    from airflow_qarnot_pool.ownership.decisions import Usability, usability_of

    for uuid in verdict.close:
        own_task = watched.kind == "task" and uuid == watched.uuid
        with suppress(QarnotNotFoundError):
            try:
                found = client.tasks.get(uuid) if own_task else client.pools.get(uuid)
            except (QarnotRefusedError, QarnotProtocolError, QarnotUnavailableError):
                return True
            if usability_of(found) is Usability.LIVE:
                return True
    return False


def check_estimate(
    client: QarnotClient, estimate: float, project: str | None, slots: int | None
) -> str | None:
    """Ask whether the account can cover a pool: two requests, three where a project is known to have budgets."""
    account = client.account.info()
    project = project or next((one.uuid for one in account.projects if one.is_default), None)
    budgets: list[Budget] = []
    if project:
        with suppress(QarnotRefusedError, QarnotNotFoundError):  # not every account may see budgets
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
