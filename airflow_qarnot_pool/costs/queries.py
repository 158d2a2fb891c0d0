"""Ask Qarnot for the figures of pools, Qarnot tasks and DAG runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.costs.model import Cost, PoolCost, RunCost, TaskUsage, cost_from, pool_cost
from airflow_qarnot_pool.ownership.identity import RunKey, namespace_tag, run_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task


def cost_of_pool(
    client: QarnotClient, uuid: str, reference: str | None = None, *, pool: Pool | None = None
) -> PoolCost:
    """What a pool has cost so far. Four requests, three where *pool* has been looked at already.

    :param reference: data centre to compare with, as Qarnot names it; None: Qarnot's own choice.
    :raises QarnotNotFoundError: there is no such pool (any more).
    """
    pool = pool or client.pools.get(uuid)
    credits, facts = _figures(client.pools, pool.uuid, reference)
    return pool_cost(pool, client.pools.tasks(pool.uuid), credits, facts)


def cost_of_task(client: QarnotClient, uuid: str, reference: str | None = None) -> Cost:
    """What a Qarnot task has cost so far: its own cost, or its share of the pool it runs on."""
    task = client.tasks.get(uuid)
    if task.pool:
        pool = cost_of_pool(client, task.pool, reference)
        return pool.by(lambda one: one.uuid, "").get(uuid, Cost())
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
    """What a DAG run has cost so far, over all its pools: after a clear there are several.

    Two listings, then three requests for each pool and two for each Qarnot task without a pool. What Qarnot has
    deleted by now (finished objects live a week, see ``completion_ttl``) cannot be counted any more.

    :param since: when the run began, which keeps the listings short; None looks at everything of *namespace*.
    """
    run = RunKey(dag_id, run_id)
    pools, tasks = list_created(client, namespace, since)
    mine = [task for task in tasks if run_of(task) == run]
    used = dict.fromkeys(task.pool for task in mine if task.pool)
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
            for task in mine
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
    """Every pool and Qarnot task of *namespace* that was created in a period (its end not included).

    :param slack: begin a little earlier, as the server's clock need not agree with ours to the second.
    """
    from airflow_qarnot_pool.api import filters

    wanted = [filters.equal("Tags", namespace_tag(namespace))]
    if since is not None:
        wanted.append(filters.ge("CreationDate", since - timedelta(seconds=5 if slack else 0)))
    if until is not None:
        wanted.append(filters.lt("CreationDate", until))
    mine = filters.and_(*wanted)
    return list(client.pools.iterate(mine)), list(client.tasks.iterate(mine))


def cost_of_standalone_task(client: QarnotClient, task: Task, reference: str | None) -> Cost:
    """The cost of a Qarnot task on nodes of its own: nothing says how long those were up beside executing."""
    seconds = task.executed_seconds
    return cost_from(*_figures(client.tasks, task.uuid, reference), seconds, seconds)


def _figures(resource: Any, uuid: str, reference: str | None) -> tuple[float | None, CarbonFacts | None]:
    """Credits and carbon. Not every account may see both: what is refused, or not there yet, is not known."""
    from airflow_qarnot_pool.api.errors import QarnotNotFoundError, QarnotProtocolError, QarnotRefusedError

    credits = facts = None
    unknown = (QarnotRefusedError, QarnotNotFoundError, QarnotProtocolError)
    with suppress(*unknown):
        credits = resource.credits(uuid)
    with suppress(*unknown):
        facts = resource.carbon_facts(uuid, reference)
    return credits, facts


def suppress_deleted() -> suppress:
    """What is deleted between two requests has no cost that anybody could tell any more."""
    from airflow_qarnot_pool.api.errors import QarnotNotFoundError

    return suppress(QarnotNotFoundError)
