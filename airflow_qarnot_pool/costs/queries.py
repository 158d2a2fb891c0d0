"""Read the figures of pools, Qarnot tasks and DAG runs from Qarnot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotCreditsError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.costs.model import (
    Cost,
    PoolCost,
    RunCost,
    TaskUsage,
    cost_from,
    execution_cost,
    pool_cost,
)
from airflow_qarnot_pool.ownership.identity import RunKey, namespace_tag, run_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task

#: How much later than on Qarnot's clock it may be on Airflow's. Qarnot's storage refuses requests from a clock that
#: differs by more than 15 minutes.
CLOCK_SLACK = timedelta(minutes=15)
#: Errors that mean that a figure is refused to the account, or does not exist yet.
UNKNOWN_FIGURE = (QarnotRefusedError, QarnotCreditsError, QarnotNotFoundError, QarnotProtocolError)


def cost_of_pool(
    client: QarnotClient, uuid: str, reference: str | None = None, *, pool: Pool | None = None
) -> PoolCost:
    """Return the cost of a pool so far. This takes four requests, or three if *pool* is given.

    :param reference: name of the data centre to compare with. None: the default of Qarnot.
    :raises QarnotNotFoundError: the pool does not exist, or is deleted.
    """
    pool = pool or client.pools.get(uuid)
    credits, facts = _figures(client.pools, pool.uuid, reference)
    return pool_cost(pool, client.pools.tasks(pool.uuid), credits, facts)


def cost_of_task(client: QarnotClient, uuid: str, reference: str | None = None) -> Cost:
    """Return the cost of a Qarnot task so far, which is a share of the cost of its pool if it has one."""
    task = client.tasks.get(uuid)
    if task.pool:
        pool = cost_of_pool(client, task.pool, reference)
        return pool.share_by(lambda task: task.uuid, "").get(uuid, Cost())
    return cost_of_standalone_task(client, task, reference)


def cost_of_run(
    client: QarnotClient,
    namespace: str,
    dag_id: str,
    run_id: str,
    reference: str | None = None,
    *,
    since: datetime | None = None,
) -> RunCost:
    """Return the cost of a DAG run so far, over all its pools. After a clear there are several.

    This takes two listings, three requests for each pool and two for each Qarnot task without a pool. Deleted objects
    cannot be counted. Finished objects are kept for a week, see ``completion_ttl``.

    :param since: start of the run, which keeps the listings short. None: list all objects of *namespace*.
    """
    run = RunKey(dag_id, run_id)
    pools, tasks = list_created(client, namespace, since)
    own = [task for task in tasks if run_of(task) == run]
    used = dict.fromkeys(task.pool for task in own if task.pool)
    opened = {pool.uuid: pool for pool in pools}
    costs = []
    for uuid in dict.fromkeys([*(pool.uuid for pool in pools if run_of(pool) == run), *used]):
        with suppress_deleted():
            costs.append(cost_of_pool(client, uuid, reference, pool=opened.get(uuid)))
    return RunCost(
        run=run,
        pools=tuple(costs),
        standalone=tuple(
            (TaskUsage.of(task), cost_of_standalone_task(client, task, reference))
            for task in own
            if not task.pool
        ),
    )


def list_created(
    client: QarnotClient,
    namespace: str,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    slack: bool = True,
) -> tuple[Sequence[Pool], Sequence[Task]]:
    """Return every pool and Qarnot task of *namespace* that was created in a period, excluding its end.

    :param slack: start the period :data:`CLOCK_SLACK` earlier, because it starts by the clock of Airflow.
    """
    conditions = [filters.equal("Tags", namespace_tag(namespace))]
    if since is not None:
        conditions.append(filters.ge("CreationDate", since - (CLOCK_SLACK if slack else timedelta())))
    if until is not None:
        conditions.append(filters.lt("CreationDate", until))
    in_period = filters.and_(*conditions)
    return list(client.pools.iterate(in_period)), list(client.tasks.iterate(in_period))


def cost_of_standalone_task(client: QarnotClient, task: Task, reference: str | None) -> Cost:
    """Return the cost of a Qarnot task without a pool. Qarnot does not report how long its nodes were up."""
    seconds = task.executed_seconds
    return cost_from(*_figures(client.tasks, task.uuid, reference), seconds, seconds)


def billed_cost_of_pool(client: QarnotClient, pool: Pool, reference: str | None = None) -> Cost:
    """Return the cost of a pool so far, without the part of it that was used. This takes two requests."""
    return cost_from(*_figures(client.pools, pool.uuid, reference), pool.executed_seconds, None)


def cost_of_execution(
    client: QarnotClient, pool: Pool, seconds: float | None, reference: str | None = None
) -> Cost:
    """Return the cost of execution seconds on a pool, without idle time. This takes two requests.

    Unlike a share of the cost of the pool it needs no listing, so it may be asked for each of thousands of tasks.
    """
    return execution_cost(billed_cost_of_pool(client, pool, reference), seconds, pool.slots_per_node or 1)


def _figures(resource: Any, uuid: str, reference: str | None) -> tuple[float | None, CarbonFacts | None]:
    """Return credits and carbon facts. A figure is None if it is refused to the account, or does not exist yet."""
    credits = facts = None
    with suppress(*UNKNOWN_FIGURE):
        credits = resource.credits(uuid)
    with suppress(*UNKNOWN_FIGURE):
        facts = resource.carbon_facts(uuid, reference)
    return credits, facts


def suppress_deleted() -> suppress:
    """Ignore an object that is deleted between two requests, because its cost can no longer be read."""
    return suppress(QarnotNotFoundError)
