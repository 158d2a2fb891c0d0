"""Pure functions from the responses of Qarnot and Airflow to the content of the Pools page. Datetimes are aware.

A row, and everything in it, is JSON. Times are ISO texts, durations seconds, money euros, energy Wh and carbon g.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from airflow_qarnot_pool.api.errors import QarnotUnknownStateError
from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task
from airflow_qarnot_pool.api.states import (
    POOL_TRANSIENT,
    Phase,
    PoolState,
    TaskState,
    parse_task_state,
    pool_phase,
)
from airflow_qarnot_pool.costs.model import pool_cost
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, label
from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES

#: How long a pool may be idle without a warning, or its ``keep_warm`` if that is longer.
IDLE_AFTER = timedelta(minutes=5)
#: How long a pool of fixed size may boot without a warning.
SLOW_BOOT_AFTER = timedelta(minutes=15)
#: How long the teardown of a finished DAG run may take without a warning.
TEARDOWN_TIME = timedelta(minutes=2)
#: How long a lost node is reported, even if another has replaced it.
LOSS_SHOWN_FOR = timedelta(minutes=10)

GROUPS = {
    TaskState.SUBMITTED: "queued",
    TaskState.PARTIALLY_DISPATCHED: "queued",
    TaskState.FULLY_DISPATCHED: "queued",
    TaskState.PARTIALLY_EXECUTING: "running",
    TaskState.FULLY_EXECUTING: "running",
    TaskState.UPLOADING_RESULTS: "running",
    TaskState.DOWNLOADING_RESULTS: "running",
    TaskState.PENDING_CANCEL: "running",
    TaskState.SUCCESS: "succeeded",
    TaskState.FAILURE: "failed",
    TaskState.CANCELLED: "cancelled",
    TaskState.PENDING_DELETE: "cancelled",
}
UNFINISHED = ("queued", "running")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """The fields of a Qarnot task that the list needs."""

    pool: str
    group: str
    moved: datetime | None
    dag_id: str | None
    run_id: str | None


@dataclass(frozen=True, kw_only=True)
class ObservedHistory:
    """Facts about a pool from earlier polls, which the API does not return afterwards."""

    states: tuple[tuple[str, datetime], ...] = ()
    ready: int = 0
    wanted: int = 0
    lost: int = 0
    lost_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class PoolFigures:
    """Cost of a pool in euros, energy and carbon. None if the account may not see it."""

    euros: float | None = None
    carbon: CarbonFacts | None = None
    at: datetime | None = None
    final: bool = False
    #: The share of each DAG run, 0 to 1. None if they were not requested, because one run has all of the pool.
    shares: Mapping[tuple[str, str], float] | None = None


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Input of the rows of one connection."""

    now: datetime
    connection: str
    pools: Sequence[Pool] = ()
    #: By pool. None before the first read.
    tasks: Mapping[str, Sequence[TaskRow]] | None = field(default_factory=dict)
    #: State by (dag_id, run_id). Runs that Airflow does not know are missing.
    runs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    figures: Mapping[str, PoolFigures] = field(default_factory=dict)
    histories: Mapping[str, ObservedHistory] = field(default_factory=dict)
    console_url: str = ""


def phase_of(pool: Pool) -> str:
    """Return ``booting``, ``open``, ``closing``, ``closed``, ``failed`` or ``unknown``."""
    try:
        phase = pool_phase(pool.state)
    except QarnotUnknownStateError:
        return "unknown"
    if pool.state == PoolState.FAILURE:
        return "failed"
    return {
        Phase.TRANSIENT: "booting",
        Phase.LIVE: "open",
        Phase.ENDING: "closing",
        Phase.TERMINAL: "closed",
    }[phase]


def is_open(pool: Pool) -> bool:
    """Return whether the pool may still cost money."""
    return phase_of(pool) not in ("closed", "failed")


def group_of(state: str) -> str:
    """Return the group in which a Qarnot task in *state* is counted."""
    try:
        return GROUPS[parse_task_state(state)]
    except QarnotUnknownStateError:
        return "running"


def target_slots(pool: Pool) -> int:
    """Return the number of slots that the pool should have now, according to the server."""
    if pool.target_running_instance_count is not None:
        return pool.target_running_instance_count
    return pool.instance_count or pool.total_slot_capacity or 0


def keep_warm_of(pool: Pool) -> timedelta | None:
    """Return how long an idle node of a pool that follows its load stays, or None for a pool of fixed size."""
    if pool.scaling:
        times = [getattr(policy, "min_idle_time", None) for policy in pool.scaling.policies]
        return max((time for time in times if isinstance(time, timedelta)), default=timedelta())
    if pool.elastic and pool.elastic.is_elastic:
        return pool.elastic.min_idle_time or timedelta()
    return None


def updated_history(observed: ObservedHistory | None, pool: Pool, now: datetime) -> ObservedHistory:
    """Return *observed* with the facts of one more poll, *pool*."""
    previous = observed or ObservedHistory()
    lost = max(0, _lost(observed, pool))
    since = pool.state_transition_time or now
    states = previous.states
    if not states or (pool.state, since) != states[-1]:
        before = pool.previous_state, pool.previous_state_transition_time
        if states and before[0] and before[1] and before[1] > states[-1][1]:
            states = (*states, (before[0], before[1]))  # a state between two polls
        states = (*states, (pool.state, since))[-50:]
    return ObservedHistory(
        states=states,
        ready=pool.ready_slots,
        wanted=target_slots(pool),
        lost=previous.lost + lost,
        lost_at=now if lost else previous.lost_at,
    )


def _lost(observed: ObservedHistory | None, pool: Pool) -> int:
    """Return how many slots of a pool of fixed size were lost since the last poll.

    A pool that follows its load gives slots back, which is no loss.
    """
    if phase_of(pool) != "open" or keep_warm_of(pool) is not None:
        return 0
    ready, wanted = pool.ready_slots, target_slots(pool)
    full, partly = PoolState.FULLY_EXECUTING, PoolState.PARTIALLY_EXECUTING
    if observed is None:
        return wanted - ready if (pool.previous_state, pool.state) == (full, partly) else 0
    if wanted < observed.wanted:
        return 0
    if ready < observed.ready:
        return observed.ready - ready
    # The number is the same, but another node may have replaced a lost one since the last poll.
    state, since = observed.states[-1] if observed.states else (None, None)
    dipped = (
        (state, pool.state, pool.previous_state) == (full, full, partly)
        and since is not None
        and pool.state_transition_time is not None
        and pool.state_transition_time > since
    )
    return 1 if dipped else 0


def build_rows(page: PageData) -> list[dict[str, Any]]:
    """Return one row for each pool. Open pools come first, and younger pools before older ones."""
    rows = [_row(page, pool) for pool in page.pools]
    rows.sort(key=lambda row: row["created"] or "", reverse=True)
    rows.sort(key=lambda row: row["phase"] in ("closed", "failed"))
    return rows


def _row(page: PageData, pool: Pool) -> dict[str, Any]:
    tasks = None if page.tasks is None else page.tasks.get(pool.uuid, ())
    owner = owner_of(pool, page.runs)
    observed = page.histories.get(pool.uuid) or ObservedHistory()
    phase = phase_of(pool)
    return {
        "uuid": pool.uuid,
        "connection": page.connection,
        "name": pool.name or pool.shortname or pool.uuid,
        "shortname": pool.shortname,
        "state": pool.state or "unknown",
        "phase": phase,
        "created": _iso(pool.creation_date),
        "ended": _iso(_ended_at(pool)),
        "ready": pool.ready_slots if is_open(pool) else 0,
        "wanted": target_slots(pool) if phase in ("booting", "open") else 0,
        "tasks": None if tasks is None else count_tasks(tasks),
        "owner": owner,
        "runs": _shares_by_run(pool, page, tasks),
        "figures": figures_of(page.figures.get(pool.uuid)),
        "warnings": warnings_of(pool, tasks, owner, observed, page.now),
        "console": f"{page.console_url}/pools/{quote(pool.uuid)}" if page.console_url else None,
        "closable": phase in ("booting", "open", "unknown"),
    }


def _ended_at(pool: Pool) -> datetime | None:
    return pool.end_date or (None if is_open(pool) else pool.state_transition_time)


def count_tasks(tasks: Iterable[TaskRow]) -> dict[str, int]:
    """Return the number of Qarnot tasks in each group."""
    tally = Counter(task.group for task in tasks)
    return {name: tally.get(name, 0) for name in ("queued", "running", "succeeded", "failed", "cancelled")}


def runs_of(pool: Pool, tasks: Iterable[TaskRow]) -> set[tuple[str, str]]:
    """Return the DAG runs of a pool: the one that opened it, and those that use it."""
    named = [(label(pool.labels, "dag_id"), label(pool.labels, "run_id"))]
    named += [(task.dag_id, task.run_id) for task in tasks]
    return {(dag_id, run_id) for dag_id, run_id in named if dag_id and run_id}


def _shares_by_run(
    pool: Pool, page: PageData, tasks: Sequence[TaskRow] | None
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the Qarnot tasks and the share of the figures of each DAG run of a pool."""
    by_run: dict[tuple[str | None, str | None], list[TaskRow]] = {}
    for task in tasks or ():
        by_run.setdefault((task.dag_id, task.run_id), []).append(task)
    figures = page.figures.get(pool.uuid)
    shares = (figures and figures.shares) or {}
    # A run without tasks on the pool pays nothing once another run pays a share.
    idle_share = 0.0 if shares else None
    return {
        run: {
            "tasks": None if tasks is None else count_tasks(by_run.get(run, ())),
            "figures": figures_of(figures, shares.get(run, None if run in by_run else idle_share)),
        }
        for run in runs_of(pool, tasks or ())
    }


def owner_of(pool: Pool, runs: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Return the owner of the pool.

    Its ``kind`` is ``run``, ``shared`` or ``unknown``. ``run_state`` is None if the run does not exist.
    """
    shared = label(pool.labels, "shared")
    dag_id, run_id = label(pool.labels, "dag_id"), label(pool.labels, "run_id")
    owner: dict[str, Any] = {"kind": "unknown", "dag_id": dag_id, "run_id": run_id, "shared": shared}
    if shared is not None:
        return {**owner, "kind": "shared"}
    if not dag_id or not run_id:
        return owner
    return {
        **owner,
        "kind": "run",
        "task_id": label(pool.labels, "task_id"),
        "run_state": runs.get((dag_id, run_id)),
        "link": run_link(dag_id, run_id),
    }


def figures_of(figures: PoolFigures | None, share: float | None = 1.0) -> dict[str, Any] | None:
    """Return cost, energy and carbon so far, or this *share* of them. None if they were not read yet."""
    if figures is None or share is None:
        return None
    carbon = figures.carbon or CarbonFacts()
    saved = carbon.saved_carbon_footprint_compute_heat
    if saved is None:
        saved = carbon.saved_carbon_footprint_compute
    parts = {
        "euros": figures.euros,
        "energy_wh": carbon.total_consumed_energy_wh,
        "carbon_g": carbon.carbon_footprint,
        "saved_g": saved,
    }
    return {
        **{name: None if value is None else value * share for name, value in parts.items()},
        "saved_percent": carbon.saved_carbon_footprint_percent,
        "datacenter": carbon.equivalent_datacenter_name,
        "at": _iso(figures.at),
    }


def shares_of(pool: Pool, tasks: Iterable[Task]) -> dict[tuple[str, str], float]:
    """Return the share of each DAG run in the cost of *pool*, 0 to 1."""
    return {
        (run.dag_id, run.run_id): cost.euros or 0.0
        for run, cost in pool_cost(pool, tasks, 1.0, None).by_run().items()
    }


def row_of_run(row: Mapping[str, Any], run: tuple[str, str]) -> dict[str, Any] | None:
    """Return a row for the tab of a DAG run, or None if the run does not use the pool.

    ``mine`` is the run's share of a pool that other runs use, or may use: ``{tasks, figures}``, each None if it is not
    known yet. It is None if the run has the whole pool.
    """
    parts: Mapping[tuple[str, str], dict[str, Any]] = row["runs"]
    if run not in parts:
        return None
    owner = row["owner"]
    alone = owner["kind"] == "run" and len(parts) == 1
    if owner["kind"] == "shared":
        owner = {**owner, "dag_id": None, "run_id": None}  # the first run, which may be of any DAG
    return {**without_runs(row), "owner": owner, "mine": None if alone else parts[run]}


def without_runs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without the data for the tabs of DAG runs, which names runs of other DAGs."""
    return {name: value for name, value in row.items() if name != "runs"}


def warnings_of(
    pool: Pool,
    tasks: Sequence[TaskRow] | None,
    owner: Mapping[str, Any],
    observed: ObservedHistory,
    now: datetime,
) -> list[dict[str, str]]:
    """Return the warnings about a pool, the most urgent first: ``[{kind, text}]``."""
    phase = phase_of(pool)
    warnings: list[tuple[str, str]] = []
    if phase == "unknown":
        warnings.append(("state", f"This release does not know the state {pool.state!r}"))
    if pool.errors:
        warnings.append(("errors", f"Qarnot reports: {pool.error_text}"))
    if phase in ("booting", "open"):
        warnings += _owner_warnings(pool, owner, now)
        warnings += _loss_warnings(observed, now)
    if phase == "open" and tasks is not None:
        warnings += _idle_warnings(pool, tasks, now)
    if phase == "booting":
        warnings += _boot_warnings(pool, now)
    return [{"kind": kind, "text": text} for kind, text in warnings]


def _owner_warnings(pool: Pool, owner: Mapping[str, Any], now: datetime) -> Iterable[tuple[str, str]]:
    age = now - (pool.creation_date or now)
    if owner["kind"] == "run" and age > TEARDOWN_TIME:
        if owner["run_state"] in FINISHED_RUN_STATES:
            yield "owner", f"Its DAG run has ended ({owner['run_state']})"
        elif owner["run_state"] is None:
            yield "owner", "Airflow has no such DAG run any more"


def _loss_warnings(observed: ObservedHistory, now: datetime) -> Iterable[tuple[str, str]]:
    if observed.lost and observed.lost_at and now - observed.lost_at < LOSS_SHOWN_FOR:
        slots = "1 slot was" if observed.lost == 1 else f"{observed.lost} slots were"
        yield "nodes", f"{slots} lost; {observed.ready} of {observed.wanted} run"


def _idle_warnings(pool: Pool, tasks: Sequence[TaskRow], now: datetime) -> Iterable[tuple[str, str]]:
    idle = _idle_time(pool, tasks, now)
    if idle > max(IDLE_AFTER, keep_warm_of(pool) or IDLE_AFTER):
        slots = "1 slot" if pool.ready_slots == 1 else f"{pool.ready_slots} slots"
        yield "idle", f"No work for {format_duration(idle)}, and {slots} billed"


def _boot_warnings(pool: Pool, now: datetime) -> Iterable[tuple[str, str]]:
    age = now - (pool.creation_date or now)
    if keep_warm_of(pool) is None and age > SLOW_BOOT_AFTER and pool.state in POOL_TRANSIENT:
        yield "boot", f"Still no node after {format_duration(age)}"


def _idle_time(pool: Pool, tasks: Sequence[TaskRow], now: datetime) -> timedelta:
    """Return how long no Qarnot task has been queued or running on the pool. Zero if no slot is billed."""
    if not pool.ready_slots or pool.queued_or_running_task_instances_count:
        return timedelta()
    if any(task.group in UNFINISHED for task in tasks):
        return timedelta()
    times = [pool.creation_date, *(task.moved for task in tasks)]
    if pool.previous_state in POOL_TRANSIENT:
        times.append(pool.state_transition_time)  # booting is not idling
    return now - max((time for time in times if time is not None), default=now)


def build_detail(
    row: Mapping[str, Any], pool: Pool, tasks: Sequence[Task], observed: ObservedHistory, most: int
) -> dict[str, Any]:
    """Return one pool in full: its row, timeline, nodes, errors and its youngest *most* Qarnot tasks.

    The ``run`` of an error is that of its Qarnot task, ``(dag_id, run_id)``. It is None for errors of the pool.
    """
    listed = sorted(tasks, key=lambda task: _iso(task.creation_date) or "", reverse=True)
    status = pool.status
    return {
        "row": dict(row),
        "timeline": timeline(pool, observed),
        "use": node_use_of(pool, tasks),
        "nodes": [
            {
                "id": node.instance_id,
                "phase": node.phase,
                "seconds": node.execution_time.total_seconds() if node.execution_time else None,
                "cpu_percent": node.cpu_usage,
                "memory_mb": node.current_memory_mb,
                "model": node.cpu_model,
            }
            for node in (status.running_instances if status else ())
        ],
        "errors": [
            *({"of": "pool", "text": str(error), "run": None} for error in pool.errors),
            *(
                {"of": task.name or task.uuid, "text": text, "run": _run_of(task)}
                for task in listed
                for text in _errors(task)
            ),
        ][:50],
        "tasks": [_task(task) for task in listed[:most]],
        "task_count": len(listed),
    }


def detail_of_run(detail: Mapping[str, Any], run: tuple[str, str]) -> dict[str, Any] | None:
    """Return a :func:`build_detail` for the tab of a DAG run, without the Qarnot tasks of other runs.

    None if the run does not use the pool, or did not when the detail was read.
    """
    row = row_of_run(detail["row"], run)
    if row is None:
        return None
    # The run's own pool has Qarnot tasks of no DAG, too. It may have tasks of another run that the row lacks yet.
    runs = (run,) if row["mine"] else (run, (None, None))
    tasks = [task for task in detail["tasks"] if (task["dag_id"], task["run_id"]) in runs]
    others = len(detail["tasks"]) - len(tasks)
    return {
        **detail,
        "row": row,
        "errors": [error for error in detail["errors"] if error["run"] in (None, *runs)],
        "tasks": tasks,
        "task_count": len(tasks) if row["mine"] else detail["task_count"] - others,
    }


def _run_of(task: Task) -> tuple[str | None, str | None]:
    return label(task.labels, "dag_id"), label(task.labels, "run_id")


def _errors(task: Task) -> list[str]:
    """Return the errors of a Qarnot task, which are those of its instances if they are known."""
    by_instance = sorted({str(instance.error) for instance in task.completed_instances if instance.error})
    return by_instance[:5] or [str(error) for error in task.errors[:5]]


def node_use_of(pool: Pool, tasks: Sequence[Task]) -> dict[str, float | None]:
    """Return the node-seconds paid and the idle ones among them. None if Qarnot does not report them."""
    cost = pool_cost(pool, tasks, None, None).cost
    return {"node_seconds": cost.node_seconds, "idle_node_seconds": cost.idle_node_seconds}


def _task(task: Task) -> dict[str, Any]:
    dag_id, run_id = _run_of(task)
    task_id, map_index = label(task.labels, "task_id"), label(task.labels, "map_index")
    return {
        "uuid": task.uuid,
        "name": task.name or task.shortname or task.uuid,
        "state": task.state,
        "group": group_of(task.state),
        "instances": task.instances,
        "failed_instances": len(task.failed_instances),
        "created": _iso(task.creation_date),
        "ended": _iso(task.end_date),
        "seconds": task.execution_time.total_seconds() if task.execution_time else None,
        "warm_up": label(task.labels, "role") == WARM_UP_ROLE,
        "dag_id": dag_id,
        "run_id": run_id,
        "task_id": task_id,
        "map_index": map_index if map_index not in (None, "-1") else None,
        "link": task_link(dag_id, run_id, task_id, map_index),
    }


def timeline(pool: Pool, observed: ObservedHistory) -> list[dict[str, Any]]:
    """Return the states of a pool with their times, oldest first, from the API and from earlier polls."""
    known = [
        ("Submitted", pool.creation_date),
        *observed.states,
        (pool.previous_state, pool.previous_state_transition_time),
        (pool.state, pool.state_transition_time),
    ]
    order = {state: place for place, state in enumerate(PoolState)}
    # Times have whole seconds. Within a second the usual order of states decides.
    ordered = {(at, order.get(state, len(order)), state) for state, at in known if state and at is not None}  # type: ignore[call-overload]
    steps: list[dict[str, Any]] = []
    for at, _, state in sorted(ordered):
        if not steps or steps[-1]["state"] != state:
            steps.append({"state": str(state), "at": _iso(at)})
    return steps


def run_link(dag_id: str | None, run_id: str | None) -> str | None:
    """Return the path of a DAG run in the Airflow UI, relative to the UI."""
    if not dag_id or not run_id:
        return None
    return f"dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def task_link(
    dag_id: str | None, run_id: str | None, task_id: str | None, map_index: str | None
) -> str | None:
    """Return the path of a task instance in the Airflow UI, relative to the UI."""
    run = run_link(dag_id, run_id)
    if run is None or not task_id:
        return run
    mapped = f"/mapped/{quote(map_index, safe='')}" if map_index not in (None, "", "-1") else ""
    return f"{run}/tasks/{quote(task_id, safe='')}{mapped}"


def format_duration(span: timedelta) -> str:
    """Return a duration in its two largest units: ``3 h 5 min``."""
    seconds = int(span.total_seconds())
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    if hours == 0:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
