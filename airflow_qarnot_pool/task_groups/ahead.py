"""A companion DAG that opens the shared pool of another DAG ahead of its scheduled runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.bases.warm_up import BOOT_DEADLINE
from airflow_qarnot_pool.operators.create_pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.open_ahead import QarnotOpenAheadOperator
from airflow_qarnot_pool.parameters.templating import is_templated, reveal_secrets
from airflow_qarnot_pool.parameters.validation import Duration, as_duration
from airflow_qarnot_pool.timetables.ahead import AheadTimetable
from airflow_qarnot_pool.timetables.next_run import check_timed

SUFFIX = ".open_ahead"
TASK_ID = "open_pool"
#: Maximum of ``lead``. The DAG's schedule may change within it, and the companion then opens no pool.
MAX_LEAD = timedelta(hours=6)
RETRIES, RETRY_DELAY = 3, timedelta(seconds=10)
#: Parameters of the pool. All users of a shared pool must give the same.
_POOL_PARAMETERS = (
    "qarnot_conn_id",
    "shared",
    "instance_count",
    "slots_per_node",
    "resource_buckets",
    "environment",
    "pool_spec",
    "ready_when",
    "keep_warm",
    "warm_up",
    "max_cost",
)


def open_ahead(
    dag: DAG,
    *,
    shared: str | None = None,
    lead: Duration = BOOT_DEADLINE,
    boot_time: Duration = None,
    dag_id: str | None = None,
) -> DAG:
    """Create a companion DAG, which opens the shared pool of *dag* ahead of each scheduled run, and return it.

    .. code-block:: python

        with DAG("nightly", schedule="0 3 * * *") as dag, QarnotPoolGroup("nodes", shared="nightly"):
            ...

        open_ahead(dag)

    The nodes are up at the scheduled time, and the run finds them. The companion is scheduled *lead* before the run,
    waits until the time of the run minus the expected boot, and opens the pool if the run is still to come. If the run
    does not open the pool within ``keep_warm``, the companion closes it, and Qarnot has shut down the nodes by then.
    See docs/on-time.md.

    Call this in the file of the DAG, after its ``with``. The companion is paused and unpaused separately.

    :param dag: a DAG with a schedule of times, and a shared pool that is warmed up.
    :param shared: name of the pool, if the DAG has several shared ones.
    :param lead: how long before the scheduled time the companion starts, as a timedelta or seconds. The pool is opened
        no earlier. At most 6 hours.
    :param boot_time: expected boot, as a timedelta or seconds. Default: the 90th percentile of the last boots of the
        pool, or two minutes without a record.
    :param dag_id: id of the companion; default: that of the DAG and ``.open_ahead``.
    :raises QarnotInvalidSpecError: the DAG has no schedule of times, or no such pool.
    """
    earlier = as_duration("lead", lead)
    if earlier is None or earlier > MAX_LEAD:
        raise QarnotInvalidSpecError(
            f"lead must be a duration of at most {MAX_LEAD}, got {lead!r}",
            field="lead",
            remedy="Give about the longest boot.",
        )
    if not isinstance(dag, DAG):
        raise QarnotInvalidSpecError(
            f"dag must be a DAG, got {type(dag).__name__}",
            field="dag",
            remedy="Call open_ahead(dag) after its `with`.",
        )
    opener = _opener_of(dag, shared)
    arguments = {name: getattr(opener, name) for name in _POOL_PARAMETERS}
    _check_opener(opener, arguments, dag)
    check_timed(dag.timetable, dag.dag_id)
    companion = DAG(
        dag_id or f"{dag.dag_id}{SUFFIX}",
        description=f"Opens the pool {opener.shared} ahead of the runs of {dag.dag_id}",
        schedule=AheadTimetable(dag.timetable, earlier),
        start_date=dag.start_date,
        end_date=dag.end_date,
        catchup=False,
        tags=dag.tags,
    )
    companion.fileloc = dag.fileloc
    with companion:
        QarnotOpenAheadOperator(
            task_id=TASK_ID,
            for_dag_id=dag.dag_id,
            lead=earlier,
            boot_time=boot_time,
            owner=opener.owner,
            queue=opener.queue,
            retries=RETRIES,
            retry_delay=RETRY_DELAY,
            **{name: value for name, value in arguments.items() if value is not None},
        )
    opener.opened_ahead_by, opener.opened_ahead_lead = companion.dag_id, earlier
    return companion


def _opener_of(dag: DAG, shared: str | None) -> QarnotCreatePoolOperator:
    """Return the task of *dag* that opens the shared pool.

    :raises QarnotInvalidSpecError: there is none, or there are several.
    """
    openers = [
        task
        for task in dag.tasks
        if isinstance(task, QarnotCreatePoolOperator)
        and task.shared is not None
        and shared in (None, task.shared)
    ]
    if len(openers) == 1:
        return openers[0]
    found = ", ".join(sorted(task.task_id for task in openers)) or "none"
    pool = "a shared pool" if shared is None else f"the shared pool {shared!r}"
    raise QarnotInvalidSpecError(
        f"dag {dag.dag_id!r} must have one task that opens {pool}, got {found}",
        field="shared",
        remedy="Give the name of a pool: QarnotPoolGroup(shared='name'), and open_ahead(dag, shared='name').",
    )


def _check_opener(opener: QarnotCreatePoolOperator, arguments: dict[str, Any], dag: DAG) -> None:
    """Refuse a pool that the companion cannot open as the run would.

    :raises QarnotInvalidSpecError: names the parameter.
    """
    where = f"of {opener.task_id} in DAG {dag.dag_id!r}"
    for name, value in arguments.items():
        if is_templated(reveal_secrets(value)):
            raise QarnotInvalidSpecError(
                f"{name} {where} must be known when the DAG is parsed, got a template",
                field=name,
                remedy="Give a value, because the companion DAG has other runs and would render another one.",
            )
