"""Read the records of earlier runs from Qarnot, which keeps ended pools and their Qarnot tasks for some days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.costs.model import pool_cost
from airflow_qarnot_pool.costs.queries import UNKNOWN_FIGURE, suppress_deleted
from airflow_qarnot_pool.ownership.identity import is_ending, is_ours, label, namespace_tag
from airflow_qarnot_pool.sizing.curve import PastRun, choose, points_of, record_of, table_of
from airflow_qarnot_pool.sizing.demand import Upstreams, upstreams_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool

#: Maximum number of runs of which a size is chosen, and of pools that are read to find them.
MAX_RUNS = 3
MAX_READS = 6
_FIELDS = ("State", "CreationDate", "Tags", "Labels")


@dataclass(frozen=True, slots=True)
class PoolOpener:
    """The Airflow task that opens a pool in each run of its DAG."""

    dag_id: str
    task_id: str
    map_index: str = "-1"

    @classmethod
    def of(cls, pool: Pool) -> PoolOpener:
        """Read the labels of *pool*."""
        labels = pool.labels
        return cls(
            label(labels, "dag_id") or "", label(labels, "task_id") or "", label(labels, "map_index") or "-1"
        )


def ended_pools(client: QarnotClient, namespace: str, dag_id: str) -> dict[PoolOpener, list[Pool]]:
    """Return the ended pools of the runs of a DAG, newest first, with some of their fields. This takes a search.

    A run that has opened several, as a clear of one of its tasks does, has none: each has only a part of its work.
    """
    tagged = filters.equal("Tags", namespace_tag(namespace))
    found: dict[PoolOpener, list[Pool]] = {}
    for pool in client.pools.search_all(tagged, fields=_FIELDS):
        opener = PoolOpener.of(pool)
        if opener.dag_id == dag_id and is_ours(pool, namespace) and is_ending(pool):
            found.setdefault(opener, []).append(pool)
    for opener, pools in found.items():
        runs = Counter(label(pool.labels, "run_id") for pool in pools)
        found[opener] = pools = [pool for pool in pools if runs[label(pool.labels, "run_id")] == 1]
        pools.sort(
            key=lambda pool: pool.creation_date.timestamp() if pool.creation_date else 0.0, reverse=True
        )
    return found


def records_of(
    client: QarnotClient, pools: Iterable[Pool], upstreams: Upstreams | None, max_runs: int = MAX_RUNS
) -> list[PastRun]:
    """Return the records of the first *max_runs* pools that have one. This takes three requests for each pool."""
    records: list[PastRun] = []
    for pool, _ in zip(pools, range(max_runs + MAX_READS - MAX_RUNS), strict=False):
        with suppress_deleted():
            record = _record(client, pool.uuid, upstreams)
            if record is not None:
                records.append(record)
        if len(records) == max_runs:
            break
    return records


def _record(client: QarnotClient, uuid: str, upstreams: Upstreams | None) -> PastRun | None:
    pool = client.pools.get(uuid)
    tasks = client.pools.tasks(uuid)
    euros = None
    with suppress(*UNKNOWN_FIGURE):
        euros = client.pools.credits(uuid)
    return record_of(pool, pool_cost(pool, tasks, euros, None), upstreams, datetime.now(UTC))


def estimate_of(
    client: QarnotClient, namespace: str, dag: Any, task_id: str, largest: int | None = None
) -> dict[str, Any]:
    """Return what a run of a DAG will take and cost at the size to choose, from its last runs, as JSON.

    ``{runs, size, seconds, euros, table}``, with the size in slots. All but ``runs`` are None without a record.

    :param dag: the DAG of Airflow, such as ``context["dag"]``.
    :param task_id: id of the task that opens the pool.
    :param largest: maximum slots, such as 8 for a pool with ``instance_count="auto:8"``.
    """
    pools = ended_pools(client, namespace, dag.dag_id).get(PoolOpener(dag.dag_id, task_id), ())
    records = records_of(client, pools, upstreams_in(dag))
    if not records:
        return {"runs": 0, "size": None, "seconds": None, "euros": None, "table": None}
    chosen = choose(points_of(records, largest))
    return {
        "runs": len(records),
        "size": chosen.size,
        "seconds": round(chosen.seconds, 1),
        "euros": round(chosen.euros, 6),
        "table": table_of(records),
    }


def upstreams_in(dag: Any) -> Upstreams:
    """Return the upstreams of all tasks of a DAG of Airflow."""
    return upstreams_of(dag.dag_id, {task.task_id: task.downstream_task_ids for task in dag.tasks})
