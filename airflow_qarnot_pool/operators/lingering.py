"""Ask whether a shared pool that has no user is kept for the next scheduled run of a DAG."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.operators.bases.warm_up import warm_up_name
from airflow_qarnot_pool.ownership.liveness import planned_run
from airflow_qarnot_pool.sizing.boots import read_boots
from airflow_qarnot_pool.sizing.linger import LingerFacts, decide_linger, time_to_zero
from airflow_qarnot_pool.timetables.next_run import next_run_time

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.operators.bases.pool import PoolOperator
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

#: Seconds for one request, because an open pool may cost while they are sent.
REQUEST_TIMEOUT = 5.0
#: Maximum number of Qarnot tasks, the latest, among which the last end is searched.
MAX_TASKS = 100


def reason_to_linger(
    operator: PoolOperator,
    context: Context,
    identity: TaskInstanceIdentity,
    worth: float,
    pool: Pool,
    is_busy: bool,
) -> str | None:
    """Return why *pool* is kept for the next run of the DAG; None to close it, also if anything is not known.

    :param worth: euros that a run without a boot is worth.
    :param is_busy: whether unfinished Qarnot tasks remain on the pool.
    """
    try:
        now = datetime.now(UTC)
        start = _next_run(context, now)
        gap = None if start is None else start - now
        decision = decide_linger(_facts(operator.client, identity, pool, gap, worth, is_busy))
    except Exception as error:  # of Airflow, or of a timetable; an unused pool must be closed
        operator.log.warning(
            "Closing pool %s, because it cannot be decided whether to keep it: %s", pool.uuid, error
        )
        return None
    operator.log.info(
        "Pool %s is %s: %s", pool.uuid, "kept" if decision.keeps else "not kept", decision.reason
    )
    if not decision.keeps:
        return None
    return f"the run of {context['ti'].dag_id} at {start:%Y-%m-%d %H:%M:%S %Z} (at most {decision.at_most:.4f} EUR)"


def _next_run(context: Context, now: datetime) -> datetime | None:
    """Return when the next run of the DAG starts, which may have been due before now."""
    try:
        planned = planned_run(context["ti"].dag_id)
    except LookupError:  # the DAG is deleted
        return None
    return next_run_time(context["dag"], context["dag_run"], now, planned)


def _facts(
    client: QarnotClient,
    identity: TaskInstanceIdentity,
    pool: Pool,
    gap: timedelta | None,
    worth: float,
    is_busy: bool,
) -> LingerFacts:
    keep_warm = time_to_zero(pool)
    facts = LingerFacts(
        gap=None if gap is None else max(gap, timedelta()),
        keep_warm=keep_warm,
        nodes=-(-pool.ready_slots // (pool.slots_per_node or 1)),
        worth=worth,
        is_busy=is_busy,
    )
    if is_busy or facts.gap is None or keep_warm is None or facts.gap > keep_warm:
        return facts  # which decides already
    limited = client.limited(retries=0, timeout=REQUEST_TIMEOUT, deadline=REQUEST_TIMEOUT)
    boots = read_boots(limited, identity, warm_up_name(str(pool.name)))
    return replace(
        facts,
        price=limited.pools.credits(pool.uuid) / pool.executed_seconds if pool.executed_seconds else None,
        boot_node_seconds=boots[0].node_seconds if boots else 0.0,
        idle=_idle_time(limited, pool),
    )


def _idle_time(client: QarnotClient, pool: Pool) -> timedelta:
    """Return the time since the last end of a Qarnot task on *pool*, or since its creation."""
    on_pool = filters.equal("PoolUuid", pool.uuid)
    latest = client.tasks.iterate(on_pool, limit=MAX_TASKS, order_by="creationDate", descending=True)
    ends = [task.end_date for task in islice(latest, MAX_TASKS) if task.end_date is not None]
    since = max(ends, default=pool.creation_date)
    return timedelta() if since is None else max(timedelta(), datetime.now(UTC) - since)
