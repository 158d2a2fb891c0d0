"""Pure functions from the responses of Qarnot and Airflow to the rows of the Pools page. Datetimes are aware.

A row, and everything in it, is JSON. Times are ISO texts, durations seconds, money euros, energy Wh and carbon g. A row
has no ages, so that it changes only if a fact does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task
from airflow_qarnot_pool.api.states import POOL_TRANSIENT
from airflow_qarnot_pool.costs.limits import limits_from_labels
from airflow_qarnot_pool.costs.model import pool_cost, user_tags
from airflow_qarnot_pool.ownership.identity import RunKey, label, run_of
from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES
from airflow_qarnot_pool.ownership.termination import closes_when_idle
from airflow_qarnot_pool.plugins.history import ObservedHistory
from airflow_qarnot_pool.plugins.listing import RowEntry
from airflow_qarnot_pool.plugins.phases import (
    UNFINISHED,
    ended_at,
    is_closable,
    is_open,
    keep_warm_of,
    load_of,
    phase_of,
    target_slots,
    word_of,
)
from airflow_qarnot_pool.plugins.resizing import max_slots_of, obstacle_of, obstacle_to_idle_close
from airflow_qarnot_pool.plugins.severity import Situation, rank_of, task_warnings_of, warnings_of
from airflow_qarnot_pool.plugins.texts import clean_label, clean_line, run_link, shape_of, to_iso

#: Maximum number of DAG runs, of DAGs, of Airflow task ids and of tags in a row. The search finds all of them.
MAX_USERS, MAX_DAGS, MAX_TASK_IDS, MAX_TAGS = 10, 100, 30, 20
#: Maximum number of kinds of errors in a row, and characters of each.
MAX_ERRORS, MAX_ERROR = 3, 200
#: Maximum number of kinds of errors of a pool that a search finds, because each failed task may have a kind of its own.
MAX_KINDS = 200
TASK_GROUPS = ("queued", "running", "succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """The fields of a Qarnot task that the list needs."""

    pool: str
    group: str
    moved: datetime | None
    dag_id: str | None
    run_id: str | None
    task_id: str | None = None
    #: The first of its errors, if it has failed.
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class PoolFigures:
    """Cost of a pool in euros, energy and carbon. None if the account may not see it."""

    euros: float | None = None
    carbon: CarbonFacts | None = None
    final: bool = False
    #: The share of each DAG run, 0 to 1. None if they were not requested, because one run has all of the pool.
    shares: Mapping[tuple[str, str], float] | None = None
    #: Euros per slot and hour, from the bill and the time for which nodes were up.
    slot_hour: float | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """State of a DAG run in Airflow, and its end."""

    state: str
    ended: datetime | None = None


class Closings(NamedTuple):
    """User and time of the closes from this page, by pool: those at once, and those once the pool is idle."""

    now: Mapping[str, tuple[str, datetime]]
    when_idle: Mapping[str, tuple[str, datetime]]


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Input of the rows of one connection."""

    now: datetime
    connection: str
    #: The pools that get a row.
    pools: Sequence[Pool] = ()
    #: All pools of the connection, which the spending of a DAG run is the sum of. None: those that get a row.
    all_pools: Sequence[Pool] | None = None
    #: By pool. None before the first read.
    tasks: Mapping[str, Sequence[TaskRow]] | None = field(default_factory=dict)
    #: By (dag_id, run_id). Runs that Airflow does not know are missing.
    runs: Mapping[tuple[str, str], RunFacts] = field(default_factory=dict)
    figures: Mapping[str, PoolFigures] = field(default_factory=dict)
    histories: Mapping[str, ObservedHistory] = field(default_factory=dict)
    closings: Closings = field(default_factory=lambda: Closings({}, {}))
    console_url: str = ""


def build_rows(page: PageData) -> list[RowEntry]:
    """Return one row for each pool: the most urgent first, then open before ended, then young before old."""
    spending = _spending_of_runs(page)
    entries = [_entry(page, pool, spending) for pool in page.pools]
    entries.sort(key=lambda entry: entry.row["created"] or "", reverse=True)
    entries.sort(key=lambda entry: (entry.row["rank"], entry.row["phase"] in ("closed", "failed")))
    return entries


def _entry(page: PageData, pool: Pool, spending: Mapping[RunKey, float]) -> RowEntry:
    tasks = None if page.tasks is None else page.tasks.get(pool.uuid, ())
    work = tasks or ()
    by_run: dict[tuple[str | None, str | None], list[TaskRow]] = {}
    for task in work:
        by_run.setdefault((task.dag_id, task.run_id), []).append(task)
    figures = page.figures.get(pool.uuid)
    row = {
        **_identity(page, pool),
        **_state(pool, work),
        **_urgency(page, pool, tasks, spending),
        "tasks": None if tasks is None else count_tasks(work),
        "figures": _with_rate(figures_of(figures), figures, pool),
    }
    runs = _user_runs(by_run)
    task_ids, errors = _task_ids(work), _errors((*map(str, pool.errors), *_errors_of(work)))
    row |= {
        "dag_ids": _dag_ids(row["owner"], runs),
        **_users(runs),
        "task_ids": task_ids[:MAX_TASK_IDS],
        "errors": errors[:MAX_ERRORS],
    }
    more_runs = (name for _, *names in runs[MAX_USERS:] for name in names)
    left_out = _left_out(user_tags(pool)[MAX_TAGS:], more_runs, task_ids, errors)
    shares = _shares_by_run(pool, figures, by_run)
    parts = {run: {**shares[run], **_part(by_run.get(run, ()), page)} for run in shares}
    return RowEntry({**row, "has_more": bool(left_out)}, parts, left_out)


def _part(tasks: Sequence[TaskRow], page: PageData) -> dict[str, Any]:
    """Return what the tab of a DAG run shows of its Qarnot tasks on a pool."""
    failures = [task.moved for task in tasks if task.group == "failed"]
    task_ids, errors = _task_ids(tasks), _errors(_errors_of(tasks))
    return {
        "tasks": None if page.tasks is None else count_tasks(tasks),
        "task_ids": task_ids[:MAX_TASK_IDS],
        "errors": errors[:MAX_ERRORS],
        "warnings": task_warnings_of(len(failures), max(filter(None, failures), default=None), page.now),
        "left_out": _left_out((), (), task_ids, errors),
    }


def _left_out(
    tags: Iterable[str], names: Iterable[str], task_ids: Sequence[str], errors: Sequence[Mapping[str, Any]]
) -> str:
    """Return in lower case, each in a line: *tags* and *names*, and the task ids and errors that a row leaves out."""
    more_errors = (error["text"] for error in errors[MAX_ERRORS:])
    return "\n".join((*tags, *names, *task_ids[MAX_TASK_IDS:], *more_errors)).lower()


def _errors_of(tasks: Iterable[TaskRow]) -> list[str]:
    return [task.error for task in tasks if task.error is not None]


def _errors(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return the kinds of errors, the most frequent first: ``[{text, count}]``."""
    kinds: dict[str, list[str]] = {}
    for text in texts:
        kinds.setdefault(shape_of(text), []).append(text)
    most = sorted(kinds.values(), key=lambda each: (-len(each), min(each)))
    return [{"text": clean_line(min(each), MAX_ERROR), "count": len(each)} for each in most[:MAX_KINDS]]


def _identity(page: PageData, pool: Pool) -> dict[str, Any]:
    # The audit log has an entry before the request, which Qarnot may refuse.
    closing = None if is_closable(pool) else page.closings.now.get(pool.uuid)
    wanted = page.closings.when_idle.get(pool.uuid) if closes_when_idle(pool) else None
    return {
        "uuid": pool.uuid,
        "connection": page.connection,
        "name": clean_line(pool.name or pool.shortname or pool.uuid),
        "shortname": clean_label(pool.shortname),
        "tags": [clean_line(tag) for tag in user_tags(pool)[:MAX_TAGS]],
        "created": to_iso(pool.creation_date),
        "ended": to_iso(ended_at(pool)),
        "closed_by": closing and _user_at(*closing),
        # To be closed by the reaper. Who wants it is not known if the entry is old.
        "closes_when_idle": closes_when_idle(pool),
        "idle_close_by": wanted and _user_at(*wanted),
        "console": f"{page.console_url}/pools/{quote(pool.uuid)}" if page.console_url else None,
    }


def _user_at(user: str, at: datetime) -> dict[str, Any]:
    return {"user": clean_line(user), "at": to_iso(at)}


def _state(pool: Pool, tasks: Sequence[TaskRow]) -> dict[str, Any]:
    """Return the state of the pool and of its slots."""
    phase, may_cost = phase_of(pool), is_open(pool)
    busy, queued = load_of(pool) if may_cost else (0, 0)
    return {
        "state": clean_line(pool.state or "unknown"),
        "phase": phase,
        "word": word_of(pool, has_worked=any(task.group not in UNFINISHED for task in tasks)),
        "ready": pool.ready_slots if may_cost else 0,
        "wanted": target_slots(pool) if phase in ("booting", "open") else 0,
        "max_slots": max_slots_of(pool),
        "follows_load": keep_warm_of(pool) is not None,
        "busy": busy,
        "queued": queued,
        "closable": is_closable(pool),
        "resizable": obstacle_of(pool) is None,
        "idle_closable": obstacle_to_idle_close(pool) is None,
    }


def _urgency(
    page: PageData, pool: Pool, tasks: Sequence[TaskRow] | None, spending: Mapping[RunKey, float]
) -> dict[str, Any]:
    """Return the warnings about the pool, with its owner and limits, which some of them are about."""
    owner, run = owner_of(pool, page.runs), page.runs.get(run_of(pool))
    failures = [task.moved for task in tasks or () if task.group == "failed"]
    figures, limit = page.figures.get(pool.uuid), limits_from_labels(pool)
    situation = Situation(
        pool=pool,
        owner=owner,
        observed=page.histories.get(pool.uuid) or ObservedHistory(),
        idle_since=None if tasks is None else _idle_since(pool, tasks),
        run_ended=run.ended if run else None,
        failed_tasks=len(failures),
        failed_at=max(filter(None, failures), default=None),
        limit=limit,
        euros=figures.euros if figures else None,
        run_euros=spending.get(run_of(pool)),
    )
    warnings = warnings_of(situation, page.now)
    return {
        "rank": rank_of(warnings),
        "severity": warnings[0]["kind"] if warnings else "",
        "warnings": warnings,
        "idle_since": to_iso(situation.idle_since),
        "owner": owner,
        "limit": {"max_cost": limit and limit.max_cost, "max_run_cost": limit and limit.max_run_cost},
    }


def _spending_of_runs(page: PageData) -> dict[RunKey, float]:
    """Return the known cost of the pools that each DAG run has for itself."""
    spending: dict[RunKey, float] = {}
    for pool in page.pools if page.all_pools is None else page.all_pools:
        figures = page.figures.get(pool.uuid)
        if figures and figures.euros is not None and label(pool.labels, "shared") is None:
            run = run_of(pool)
            spending[run] = spending.get(run, 0.0) + figures.euros
    return spending


def _idle_since(pool: Pool, tasks: Sequence[TaskRow]) -> datetime | None:
    """Return since when no Qarnot task has been queued or running on the pool. None if no slot is billed."""
    if phase_of(pool) != "open" or not pool.ready_slots or pool.queued_or_running_task_instances_count:
        return None
    if any(task.group in UNFINISHED for task in tasks):
        return None
    times = [pool.creation_date, *(task.moved for task in tasks)]
    if pool.previous_state in POOL_TRANSIENT:
        times.append(pool.state_transition_time)  # booting is not idling
    return max((time for time in times if time is not None), default=None)


def count_tasks(tasks: Iterable[TaskRow]) -> dict[str, int]:
    """Return the number of Qarnot tasks in each group."""
    tally = Counter(task.group for task in tasks)
    return {name: tally.get(name, 0) for name in TASK_GROUPS}


def _user_runs(
    by_run: Mapping[tuple[str | None, str | None], Sequence[TaskRow]],
) -> list[tuple[int, str, str]]:
    """Return the DAG runs that have Qarnot tasks on the pool: ``(-unfinished, dag_id, run_id)``, sorted."""
    return sorted(
        (-sum(task.group in UNFINISHED for task in tasks), dag_id, run_id)
        for (dag_id, run_id), tasks in by_run.items()
        if dag_id and run_id
    )


def _users(runs: Sequence[tuple[int, str, str]]) -> dict[str, Any]:
    """Return the DAG runs of :func:`_user_runs` as JSON, and their number."""
    return {
        "users": [
            {
                "dag_id": clean_line(dag_id),
                "run_id": clean_line(run_id),
                "link": run_link(dag_id, run_id),
                "unfinished": -unfinished,
            }
            for unfinished, dag_id, run_id in runs[:MAX_USERS]
        ],
        "user_count": len(runs),
    }


def _dag_ids(owner: Mapping[str, Any], runs: Iterable[tuple[int, str, str]]) -> list[str]:
    """Return the DAGs that a filter finds the pool by. A shared pool belongs to its users."""
    own = owner["dag_id"] if owner["kind"] == "run" else None
    names = {clean_line(dag_id) for _, dag_id, _ in runs} | ({own} if own else set())
    return sorted(names)[:MAX_DAGS]


def _task_ids(tasks: Iterable[TaskRow]) -> list[str]:
    return [clean_line(name) for name in sorted({task.task_id for task in tasks if task.task_id})]


def runs_of(pool: Pool, tasks: Iterable[TaskRow]) -> set[tuple[str, str]]:
    """Return the DAG runs of a pool: the one that opened it, and those that use it."""
    named = [(label(pool.labels, "dag_id"), label(pool.labels, "run_id"))]
    named += [(task.dag_id, task.run_id) for task in tasks]
    return {(dag_id, run_id) for dag_id, run_id in named if dag_id and run_id}


def _shares_by_run(
    pool: Pool,
    figures: PoolFigures | None,
    by_run: Mapping[tuple[str | None, str | None], Sequence[TaskRow]],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the share of the figures of each DAG run of a pool."""
    shares = (figures and figures.shares) or {}
    # A run without tasks on the pool pays nothing once another run pays a share.
    idle_share = 0.0 if shares else None
    return {
        run: {"figures": figures_of(figures, shares.get(run, None if run in by_run else idle_share))}
        for run in runs_of(pool, (tasks[0] for tasks in by_run.values()))
    }


def owner_of(pool: Pool, runs: Mapping[tuple[str, str], RunFacts]) -> dict[str, Any]:
    """Return the owner of the pool.

    Its ``kind`` is ``run``, ``shared``, ``executor`` or ``unknown``. ``run_state`` is None if the run does not exist.
    ``over`` says that the run has ended, or does not exist. A pool of the executor belongs to all schedulers of a
    namespace.
    """
    shared, executor = label(pool.labels, "shared"), label(pool.labels, "executor")
    dag_id, run_id = label(pool.labels, "dag_id"), label(pool.labels, "run_id")
    kind = "run" if dag_id and run_id else "unknown"
    if shared is not None:
        kind = "shared" if executor is None else "executor"
    run = runs.get((dag_id or "", run_id or "")) if kind == "run" else None
    state = run.state if run else None
    return {
        "kind": kind,
        "dag_id": clean_label(dag_id),
        "run_id": clean_label(run_id),
        "task_id": clean_label(label(pool.labels, "task_id")) if kind == "run" else None,
        "shared": clean_label(shared),
        "executor": clean_label(executor),
        "namespace": clean_label(label(pool.labels, "namespace")) if kind == "executor" else None,
        "run_state": state,
        "link": run_link(dag_id, run_id) if kind == "run" else None,
        "over": kind == "run" and (state is None or state in FINISHED_RUN_STATES),
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
        "datacenter": clean_label(carbon.equivalent_datacenter_name),
        "per_hour": None,
    }


def _with_rate(
    shown: dict[str, Any] | None, figures: PoolFigures | None, pool: Pool
) -> dict[str, Any] | None:
    """Return the figures of a pool with the euros an hour that its slots cost now."""
    if shown is None or figures is None:
        return None
    return {**shown, "per_hour": rate_of(pool, figures.slot_hour)}


def rate_of(pool: Pool, slot_hour: float | None) -> float | None:
    """Return the euros an hour that the ready slots cost; None if the price is not known yet."""
    if not is_open(pool) or not pool.ready_slots:
        return 0.0
    return None if slot_hour is None else round(slot_hour * pool.ready_slots, 4)


#: Seconds for which nodes must have been up before the price is known. The bill is read a little after the pool.
MIN_PRICED_SECONDS = 60.0


def slot_hour_of(pool: Pool, euros: float | None) -> float | None:
    """Return the euros that a slot costs an hour; None if nodes were not up for long enough."""
    seconds = pool.executed_seconds
    if euros is None or seconds is None or seconds < MIN_PRICED_SECONDS:
        return None
    return euros / seconds * 3600 / (pool.slots_per_node or 1)


def shares_of(pool: Pool, tasks: Iterable[Task]) -> dict[tuple[str, str], float]:
    """Return the share of each DAG run in the cost of *pool*, 0 to 1."""
    return {
        (run.dag_id, run.run_id): cost.euros or 0.0
        for run, cost in pool_cost(pool, tasks, 1.0, None).by_run().items()
    }


def row_of_run(entry: RowEntry, run: tuple[str, str]) -> dict[str, Any] | None:
    """Return a row for the tab of a DAG run, or None if the run does not use the pool.

    ``mine`` is the run's share of a pool that other runs use, or may use: ``{tasks, figures}``, each None if it is not
    known yet. It is None if the run has the whole pool. Other runs are not named.
    """
    if run not in entry.runs:
        return None
    part, owner = entry.runs[run], entry.row["owner"]
    alone = owner["kind"] == "run" and len(entry.runs) == 1
    if owner["kind"] == "shared":
        owner = {**owner, "dag_id": None, "run_id": None}  # the first run, which may be of any DAG
    warnings, errors = entry.row["warnings"], entry.row["errors"]
    if not alone:
        warnings = [warning for warning in warnings if warning["kind"] != "tasks"] + part["warnings"]
        errors = part["errors"]
    return {
        **entry.row,
        "owner": owner,
        "rank": rank_of(warnings),
        "severity": warnings[0]["kind"] if warnings else "",
        "warnings": warnings,
        "errors": errors,
        "users": [],
        "dag_ids": [clean_line(run[0])],
        "task_ids": part["task_ids"],
        "has_more": bool(part["left_out"]),
        "closed_by": None,
        "idle_close_by": None,
        "mine": None if alone else {"tasks": part["tasks"], "figures": part["figures"]},
    }
