"""Report the cost of a pool that closes: in the log, and as XCom if requested."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api.errors import QarnotError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.costs.model import PoolCost
    from airflow_qarnot_pool.operators.bases.base import QarnotOperator

#: XCom key of the report.
COST_KEY = "qarnot_cost"
#: Seconds for one request of a report, because the teardown must not wait for it.
REQUEST_TIMEOUT = 5.0


def log_cost(operator: QarnotOperator, context: Context, pool: str, *, whole_run: bool, counts: bool) -> None:
    """Log the cost of *pool*. With *whole_run*, push it and the cost of the DAG run as XCom, too.

    Never raises, because the pool is already closing.

    :param counts: emit the metrics, which count each pool once.
    """
    from airflow_qarnot_pool.costs.idle import idle_time_of
    from airflow_qarnot_pool.costs.queries import cost_of_pool
    from airflow_qarnot_pool.ownership.quota import record_pool_cost

    settings = operator.hook.settings
    client = operator.client.limited(retries=0, timeout=REQUEST_TIMEOUT, deadline=REQUEST_TIMEOUT)
    reference = settings.reference_datacenter
    try:
        closed = client.pools.get(pool)
        found = cost_of_pool(client, pool, reference, pool=closed)
        if found.cost.euros is not None:
            record_pool_cost(client, settings.namespace, closed, found.cost.euros)
        if counts:
            count_closed_pool(found, context["ti"].dag_id)
        idle = idle_time_of(found, datetime.now(UTC))
        operator.log.info("Pool %s has cost %s so far", pool, found.cost)
        for run, share in found.by_run().items():
            if len(found.by_run()) > 1:
                operator.log.info("  of which %s %s: %s", run.dag_id or "others", run.run_id, share)
        if idle is not None:
            operator.log.info("%s", idle)
            if said := idle.describe_wait_for(tasks_beside(operator)):
                operator.log.info("%s", said)
        if whole_run:
            report: dict[str, Any] = {
                "pool": {**pool_json(found), "idle": idle.to_json() if idle else None},
                "run": _run(operator, client, context, reference),
                "reference": reference,
            }
            context["ti"].xcom_push(key=COST_KEY, value=report)
        log_size(operator, closed, found)
    except QarnotError as error:
        operator.log.warning("What pool %s has cost could not be found out: %s", pool, error)
    except Exception:
        operator.log.exception("What pool %s has cost could not be found out", pool)


def log_size(operator: QarnotOperator, pool: Pool, cost: PoolCost) -> None:
    """Log the time and the cost at the size that would have been right, if the record of the pool tells them."""
    from airflow_qarnot_pool.sizing.curve import curve_of, record_of
    from airflow_qarnot_pool.sizing.records import upstreams_in

    has_dag = operator.has_dag()  # type: ignore[no-untyped-call]
    record = record_of(pool, cost, upstreams_in(operator.dag) if has_dag else None, datetime.now(UTC))
    if record is not None:
        operator.log.info("%s", curve_of(record))


def tasks_beside(teardown: Any) -> list[str]:
    """Return the ids of Airflow tasks that run while the pool is open, or its work waits, and that do not use it."""
    setups = [one for one in teardown.upstream_list if one.is_setup] if teardown.has_dag() else []
    before = {task_id for one in setups for task_id in one.get_flat_relative_ids(upstream=True)}
    inside = teardown.get_flat_relatives(upstream=True) if setups else []
    return sorted(one.task_id for one in inside if one.task_id not in before and _is_local(one))


def _is_local(task: Any) -> bool:
    """Return whether an Airflow task runs on a worker and does not use Qarnot; an EmptyOperator runs nowhere."""
    operator = getattr(task, "operator_class", type(task))
    classes = operator.__mro__ if isinstance(operator, type) else ()
    ours = any(cls.__module__.startswith("airflow_qarnot_pool.") for cls in classes)
    return not ours and not getattr(task, "inherits_from_empty_operator", False)


def pool_json(pool: PoolCost) -> dict[str, Any]:
    """``{uuid, name, cost, shares: [{dag_id, run_id, cost}]}``."""
    return {
        "uuid": pool.uuid,
        "name": pool.name,
        "cost": pool.cost.to_json(),
        "shares": [{**run._asdict(), "cost": cost.to_json()} for run, cost in pool.by_run().items()],
    }


def _run(
    operator: QarnotOperator, client: QarnotClient, context: Context, reference: str | None
) -> dict[str, Any]:
    from airflow_qarnot_pool.costs.queries import cost_of_run

    ti = context["ti"]
    # Not its start, which a clear of a finished run sets anew: the work before the clear has a cost, too.
    since = getattr(context["dag_run"], "run_after", None)
    namespace = operator.hook.settings.namespace
    run = cost_of_run(client, namespace, ti.dag_id, ti.run_id, reference, since=since)
    operator.log.info("DAG run %s has cost %s so far", ti.run_id, run.total)
    return run.to_json()


def count_closed_pool(pool: PoolCost, dag_id: str) -> None:
    """Emit the metrics of a pool that a teardown of DAG *dag_id* closes. Each DAG that used it has its share."""
    if pool.cost.euros is not None:
        metrics.gauge("cost.last_pool_euros", pool.cost.euros, dag_id=dag_id)
    for user, cost in pool.share_by(lambda task: task.run.dag_id, pool.opened_by.dag_id).items():
        counts = {
            "cost.microeuros": None if cost.euros is None else cost.euros * 1e6,
            "carbon.milligrams": None if cost.carbon_g is None else cost.carbon_g * 1000,
            "node_seconds.paid": cost.node_seconds,
            "node_seconds.idle": cost.idle_node_seconds,
        }
        for name, count in counts.items():
            if count is not None:
                metrics.incr(name, count, dag_id=user)
