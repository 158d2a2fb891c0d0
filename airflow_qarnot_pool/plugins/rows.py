"""From what Qarnot and Airflow answered to what the Pools page shows. Pure functions; times are aware datetimes.

A row, and everything below it, is JSON: times are ISO texts, durations seconds, money euros, energy Wh, carbon g.
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
from airflow_qarnot_pool.maintenance.reaper import FINISHED_RUN_STATES
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, label

#: A pool may be without work this long before the page says so (longer where ``keep_warm`` is).
IDLE_AFTER = timedelta(minutes=5)
#: A pool of fixed size that is not up after this long is worth a look.
SLOW_BOOT_AFTER = timedelta(minutes=15)
#: A finished DAG run's teardown gets this long.
TEARDOWN_TIME = timedelta(minutes=2)
#: A lost node is told of this long, also when another took its place.
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
    """The little that the list keeps of a Qarnot task."""

    pool: str
    group: str
    moved: datetime | None
    dag_id: str | None
    run_id: str | None


@dataclass(frozen=True, kw_only=True)
class ObservedHistory:
    """What earlier looks at a pool saw, and the API does not tell afterwards."""

    history: tuple[tuple[str, datetime], ...] = ()
    ready: int = 0
    wanted: int = 0
    lost: int = 0
    lost_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class PoolFigures:
    """What a pool has cost: euros, energy and carbon. None where the account may not see it."""

    euros: float | None = None
    carbon: CarbonFacts | None = None
    at: datetime | None = None
    final: bool = False
    #: Each DAG run's part of it, 0 to 1; None where nobody has asked for them, as one run has all of it.
    shares: Mapping[tuple[str, str], float] | None = None


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Everything the rows of one connection are made of."""

    now: datetime
    connection: str
    pools: Sequence[Pool] = ()
    #: By pool; None where they have not been read yet.
    tasks: Mapping[str, Sequence[TaskRow]] | None = field(default_factory=dict)
    #: State by (dag_id, run_id); runs that Airflow does not know are missing.
    runs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    figures: Mapping[str, PoolFigures] = field(default_factory=dict)
    histories: Mapping[str, ObservedHistory] = field(default_factory=dict)
    console_url: str = ""


def phase_of(pool: Pool) -> str:
    """``booting``, ``open``, ``closing``, ``closed``, ``failed`` or ``unknown``."""
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
    """Whether it may cost anything still."""
    return phase_of(pool) not in ("closed", "failed")


def group_of(state: str) -> str:
    """Where a Qarnot task in this state is counted."""
    try:
        return GROUPS[parse_task_state(state)]
    except QarnotUnknownStateError:
        return "running"


def target_slots(pool: Pool) -> int:
    """How many slots the pool should have now, as far as the server says."""
    if pool.target_running_instance_count is not None:
        return pool.target_running_instance_count
    return pool.instance_count or pool.total_slot_capacity or 0


def keep_warm_of(pool: Pool) -> timedelta | None:
    """How long an idle node of a pool that follows its load stays; None for a pool of fixed size."""
    if pool.scaling:
        times = [getattr(policy, "min_idle_time", None) for policy in pool.scaling.policies]
        return max((one for one in times if isinstance(one, timedelta)), default=timedelta())
    if pool.elastic and pool.elastic.is_elastic:
        return pool.elastic.min_idle_time or timedelta()
    return None


def updated_history(observed: ObservedHistory | None, pool: Pool, now: datetime) -> ObservedHistory:
    """What is known of *pool* with this look at it."""
    known = observed or ObservedHistory()
    ready, wanted = pool.ready_slots, target_slots(pool)
    gone = max(0, _lost(observed, pool))
    since = pool.state_transition_time or now
    history = known.history
    if not history or (pool.state, since) != history[-1]:
        before = pool.previous_state, pool.previous_state_transition_time
        if history and before[0] and before[1] and before[1] > history[-1][1]:
            history = (*history, (before[0], before[1]))  # one it was in between two looks
        history = (*history, (pool.state, since))[-50:]
    return ObservedHistory(
        history=history,
        ready=ready,
        wanted=wanted,
        lost=known.lost + gone,
        lost_at=now if gone else known.lost_at,
    )


def _lost(observed: ObservedHistory | None, pool: Pool) -> int:
    """How many slots went since the last look that nobody gave back; pools that follow their load give them back."""
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
    # As many as before, but not all the time: another node took the place of a lost one meanwhile.
    state, since = observed.history[-1] if observed.history else (None, None)
    dipped = (
        (state, pool.state, pool.previous_state) == (full, full, partly)
        and since is not None
        and pool.state_transition_time is not None
        and pool.state_transition_time > since
    )
    return 1 if dipped else 0


def build_rows(page: PageData) -> list[dict[str, Any]]:
    """One row for each pool, the open ones first, then the youngest first."""
    made = [_row(page, pool) for pool in page.pools]
    made.sort(key=lambda row: row["created"] or "", reverse=True)
    made.sort(key=lambda row: row["phase"] in ("closed", "failed"))
    return made


def _row(page: PageData, pool: Pool) -> dict[str, Any]:
    notes = (page.tasks or {}).get(pool.uuid, ())
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
        "ended": _iso(pool.end_date or (pool.state_transition_time if not is_open(pool) else None)),
        "ready": pool.ready_slots if is_open(pool) else 0,
        "wanted": target_slots(pool) if phase in ("booting", "open") else 0,
        "tasks": None if page.tasks is None else count_tasks(notes),
        "owner": owner,
        "runs": _parts(pool, page, notes),
        "figures": figures_of(page.figures.get(pool.uuid)),
        "warnings": warnings_of(pool, None if page.tasks is None else notes, owner, observed, page.now),
        "console": f"{page.console_url}/pools/{quote(pool.uuid)}" if page.console_url else None,
        "closable": phase in ("booting", "open", "unknown"),
    }


def count_tasks(notes: Iterable[TaskRow]) -> dict[str, int]:
    """How many Qarnot tasks are in each group."""
    tally = Counter(note.group for note in notes)
    return {name: tally.get(name, 0) for name in ("queued", "running", "succeeded", "failed", "cancelled")}


def runs_of(pool: Pool, notes: Iterable[TaskRow]) -> set[tuple[str, str]]:
    """The DAG runs that have to do with a pool: the one that opened it, and those that use it."""
    named = [(label(pool.labels, "dag_id"), label(pool.labels, "run_id"))]
    named += [(note.dag_id, note.run_id) for note in notes]
    return {(dag_id, run_id) for dag_id, run_id in named if dag_id and run_id}


def _parts(pool: Pool, page: PageData, notes: Sequence[TaskRow]) -> dict[tuple[str, str], dict[str, Any]]:
    """Of each DAG run that has to do with a pool: its Qarnot tasks, and its part of the figures."""
    by_run: dict[tuple[str | None, str | None], list[TaskRow]] = {}
    for note in notes:
        by_run.setdefault((note.dag_id, note.run_id), []).append(note)
    figures = page.figures.get(pool.uuid)
    shares = (figures and figures.shares) or {}
    # Whoever runs nothing on it pays nothing of it, once somebody does.
    nothing = 0.0 if shares else None
    return {
        run: {
            "tasks": None if page.tasks is None else count_tasks(by_run.get(run, ())),
            "figures": figures_of(figures, shares.get(run, None if run in by_run else nothing)),
        }
        for run in runs_of(pool, notes)
    }


def owner_of(pool: Pool, runs: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Whose pool it is. ``kind``: ``run``, ``shared`` or ``unknown``; ``run_state`` is None for no such run."""
    shared = label(pool.labels, "shared")
    dag_id, run_id = label(pool.labels, "dag_id"), label(pool.labels, "run_id")
    found: dict[str, Any] = {"kind": "unknown", "dag_id": dag_id, "run_id": run_id, "shared": shared}
    if shared is not None:
        return {**found, "kind": "shared"}
    if not dag_id or not run_id:
        return found
    return {
        **found,
        "kind": "run",
        "task_id": label(pool.labels, "task_id"),
        "run_state": runs.get((dag_id, run_id)),
        "link": run_link(dag_id, run_id),
    }


def figures_of(figures: PoolFigures | None, share: float | None = 1.0) -> dict[str, Any] | None:
    """Cost, energy and carbon so far, or this *share* of them; None where nobody has asked yet."""
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
    """A row as the tab of a DAG run shows it; None where the run has nothing to do with the pool.

    ``mine`` is the run's part of a pool that other runs use, or may use, too: ``{tasks, figures}``, each None where
    it is not known yet. It is None where the whole pool is the run's.
    """
    parts: Mapping[tuple[str, str], dict[str, Any]] = row["runs"]
    if run not in parts:
        return None
    owner = row["owner"]
    alone = owner["kind"] == "run" and len(parts) == 1
    if owner["kind"] == "shared":
        owner = {**owner, "dag_id": None, "run_id": None}  # whoever was first: any DAG may have been
    return {**without_runs(row), "owner": owner, "mine": None if alone else parts[run]}


def without_runs(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what is there only for the tabs of DAG runs: it names runs of other DAGs."""
    return {name: value for name, value in row.items() if name != "runs"}


def warnings_of(
    pool: Pool,
    notes: Sequence[TaskRow] | None,
    owner: Mapping[str, Any],
    observed: ObservedHistory,
    now: datetime,
) -> list[dict[str, str]]:
    """What somebody should look at: ``[{kind, text}]``, the most urgent first."""
    phase = phase_of(pool)
    found: list[tuple[str, str]] = []
    if phase == "unknown":
        found.append(("state", f"This release does not know the state {pool.state!r}"))
    if pool.errors:
        found.append(("errors", f"Qarnot says: {pool.error_text}"))
    if phase in ("booting", "open"):
        found += _owner_warnings(pool, owner, now)
        if observed.lost and observed.lost_at and now - observed.lost_at < LOSS_SHOWN_FOR:
            slots = "1 slot was" if observed.lost == 1 else f"{observed.lost} slots were"
            found.append(("nodes", f"{slots} lost; {observed.ready} of {observed.wanted} run"))
    idle = timedelta() if notes is None else _idle(pool, notes, now)
    if phase == "open" and idle > max(IDLE_AFTER, keep_warm_of(pool) or IDLE_AFTER):
        slots = "1 slot" if pool.ready_slots == 1 else f"{pool.ready_slots} slots"
        found.append(("idle", f"No work for {format_duration(idle)}, and {slots} billed"))
    if phase == "booting" and keep_warm_of(pool) is None and pool.creation_date:
        age = now - pool.creation_date
        if age > SLOW_BOOT_AFTER and pool.state in POOL_TRANSIENT:
            found.append(("boot", f"Still no node after {format_duration(age)}"))
    return [{"kind": kind, "text": text} for kind, text in found]


def _owner_warnings(pool: Pool, owner: Mapping[str, Any], now: datetime) -> Iterable[tuple[str, str]]:
    since = now - (pool.creation_date or now)
    if owner["kind"] == "run" and since > TEARDOWN_TIME:
        if owner["run_state"] in FINISHED_RUN_STATES:
            yield "owner", f"Its DAG run is over ({owner['run_state']})"
        elif owner["run_state"] is None:
            yield "owner", "Airflow has no such DAG run any more"


def _idle(pool: Pool, notes: Sequence[TaskRow], now: datetime) -> timedelta:
    """How long nothing has been queued or running on it; zero while nothing is billed."""
    if not pool.ready_slots or pool.queued_or_running_task_instances_count:
        return timedelta()
    if any(note.group in UNFINISHED for note in notes):
        return timedelta()
    known = [pool.creation_date, *(note.moved for note in notes)]
    if pool.previous_state in POOL_TRANSIENT:
        known.append(pool.state_transition_time)  # booting is not idling
    return now - max((one for one in known if one is not None), default=now)


def build_detail(
    row: Mapping[str, Any], pool: Pool, tasks: Sequence[Task], observed: ObservedHistory, most: int
) -> dict[str, Any]:
    """One pool in full: its row, timeline, nodes, errors and tasks (the youngest *most* of them).

    The ``run`` of an error is that of its Qarnot task, ``(dag_id, run_id)``; None where it is the pool's.
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


def detail_of_run(found: Mapping[str, Any], run: tuple[str, str]) -> dict[str, Any] | None:
    """A :func:`build_detail` as the tab of a DAG run shows it: nothing of the Qarnot tasks of other runs.

    None where the run has nothing to do with the pool, or had not when the detail was read.
    """
    row = row_of_run(found["row"], run)
    if row is None:
        return None
    # On its own pool are Qarnot tasks of no DAG, too. One of another run may be there that the row does not know yet.
    mine = (run,) if row["mine"] else (run, (None, None))
    tasks = [task for task in found["tasks"] if (task["dag_id"], task["run_id"]) in mine]
    others = len(found["tasks"]) - len(tasks)
    return {
        **found,
        "row": row,
        "errors": [error for error in found["errors"] if error["run"] in (None, *mine)],
        "tasks": tasks,
        "task_count": len(tasks) if row["mine"] else found["task_count"] - others,
    }


def _run_of(task: Task) -> tuple[str | None, str | None]:
    return label(task.labels, "dag_id"), label(task.labels, "run_id")


def _errors(task: Task) -> list[str]:
    """What went wrong with a Qarnot task: by instance, where that is known."""
    by_instance = sorted({str(one.error) for one in task.completed_instances if one.error})
    return by_instance[:5] or [str(error) for error in task.errors[:5]]


def node_use_of(pool: Pool, tasks: Sequence[Task]) -> dict[str, float | None]:
    """Node-seconds paid, and those of them in which nothing ran; None where Qarnot does not say."""
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
    """The states of a pool with their times, oldest first: what the API tells, and what earlier looks saw."""
    told = [
        ("Submitted", pool.creation_date),
        *observed.history,
        (pool.previous_state, pool.previous_state_transition_time),
        (pool.state, pool.state_transition_time),
    ]
    order = {state: place for place, state in enumerate(PoolState)}
    # Times have whole seconds; within one the usual order of states decides.
    seen = {(at, order.get(state, len(order)), state) for state, at in told if state and at is not None}  # type: ignore[call-overload]
    steps: list[dict[str, Any]] = []
    for at, _, state in sorted(seen):
        if not steps or steps[-1]["state"] != state:
            steps.append({"state": str(state), "at": _iso(at)})
    return steps


def run_link(dag_id: str | None, run_id: str | None) -> str | None:
    """Path of a DAG run in the Airflow UI, relative to where the UI is."""
    if not dag_id or not run_id:
        return None
    return f"dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def task_link(
    dag_id: str | None, run_id: str | None, task_id: str | None, map_index: str | None
) -> str | None:
    """Path of a task instance in the Airflow UI, relative to where the UI is."""
    run = run_link(dag_id, run_id)
    if run is None or not task_id:
        return run
    mapped = f"/mapped/{quote(map_index, safe='')}" if map_index not in (None, "", "-1") else ""
    return f"{run}/tasks/{quote(task_id, safe='')}{mapped}"


def format_duration(span: timedelta) -> str:
    """A duration in the two largest units that it has: ``3 h 5 min``."""
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
