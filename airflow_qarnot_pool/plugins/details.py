"""One pool in full, for the Pools page and for the tab of a DAG run. Pure functions.

All Qarnot tasks are kept until a run is chosen, so that limits apply to the tasks of that run only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import UUID

from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.costs.model import is_warm_up, pool_cost
from airflow_qarnot_pool.ownership.identity import instance_of, label
from airflow_qarnot_pool.plugins import pictures
from airflow_qarnot_pool.plugins.history import ObservedHistory, boot_phases, events_of, timeline
from airflow_qarnot_pool.plugins.listing import RowEntry
from airflow_qarnot_pool.plugins.phases import ended_at, group_of
from airflow_qarnot_pool.plugins.rows import row_of_run
from airflow_qarnot_pool.plugins.texts import (
    clean_block,
    clean_label,
    clean_line,
    shape_of,
    task_link,
    to_iso,
)

#: Maximum number of Qarnot tasks, of groups of errors and of the tasks that each names.
MAX_TASKS, MAX_ERRORS, MAX_ERROR_TASKS = 200, 20, 5
#: Maximum number of Airflow task instances whose states are read from Airflow's database.
MAX_INSTANCES = 1_000
#: Failed tasks are listed first.
_ORDER = {"failed": 0, "running": 1, "queued": 2, "succeeded": 3, "cancelled": 3}


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """The fields of a Qarnot task that the page shows."""

    uuid: str
    name: str
    state: str
    instances: int | None
    failed_instances: int
    created: datetime | None
    ended: datetime | None
    seconds: float | None
    is_warm_up: bool
    dag_id: str | None
    run_id: str | None
    task_id: str | None
    map_index: str | None
    try_number: str | None
    errors: tuple[str, ...]
    #: State of the Airflow task that the executor runs in it. None for another Qarnot task, and if it is not known.
    airflow_state: str | None = None

    @classmethod
    def of(cls, task: Task, airflow_state: str | None = None) -> TaskFacts:
        """Read *task* and its labels."""
        labels = task.labels
        return cls(
            uuid=task.uuid,
            name=clean_line(task.name or task.shortname or task.uuid),
            state=task.state,
            instances=task.instances,
            failed_instances=len(task.failed_instances),
            created=task.creation_date,
            ended=task.end_date,
            seconds=None if task.execution_time is None else task.execution_time.total_seconds(),
            is_warm_up=is_warm_up(label(labels, "role")),
            dag_id=label(labels, "dag_id"),
            run_id=label(labels, "run_id"),
            task_id=label(labels, "task_id"),
            map_index=label(labels, "map_index"),
            try_number=label(labels, "try_number"),
            errors=_errors_of(task),
            airflow_state=airflow_state,
        )

    @property
    def run(self) -> tuple[str | None, str | None]:
        """The DAG run of the task."""
        return self.dag_id, self.run_id

    @property
    def failed_at(self) -> str | None:
        """The time of its errors, as ISO text."""
        return to_iso(self.ended or self.created)

    def names(self) -> dict[str, Any]:
        """Return the task's names and links, as JSON."""
        link = task_link(self.dag_id, self.run_id, self.task_id, self.map_index)
        number = self.try_number if self.try_number and self.try_number.isdecimal() else None
        return {
            "uuid": self.uuid,
            "name": self.name,
            "dag_id": clean_label(self.dag_id),
            "run_id": clean_label(self.run_id),
            "task_id": clean_label(self.task_id),
            "map_index": clean_label(self.map_index) if self.map_index not in (None, "-1") else None,
            "link": link,
            "log": f"{link}?try_number={number[:9]}" if link and self.task_id and number else link,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the task as it is listed."""
        return {
            **self.names(),
            "state": clean_line(self.state),
            "group": group_of(self.state),
            "instances": self.instances,
            "failed_instances": self.failed_instances,
            "created": to_iso(self.created),
            "ended": to_iso(self.ended),
            "seconds": self.seconds,
            "warm_up": self.is_warm_up,
            "error": self.errors[0] if self.errors else None,
            "airflow_state": self.airflow_state,
        }


def _errors_of(task: Task) -> tuple[str, ...]:
    """Return the errors of a Qarnot task, which are those of its instances if they are known."""
    by_instance = sorted({str(instance.error) for instance in task.completed_instances if instance.error})
    texts = by_instance[:5] or [str(error) for error in task.errors[:5]]
    return tuple(clean_block(text) for text in texts)


@dataclass(frozen=True, kw_only=True)
class PoolDetail:
    """Everything that is known of one pool. ``whole`` is the JSON that does not depend on the run."""

    entry: RowEntry
    whole: Mapping[str, Any]
    pool_errors: tuple[str, ...]
    tasks: tuple[TaskFacts, ...]
    bars: tuple[pictures.Bar, ...]
    nodes: pictures.NodeCount


def build_detail(
    entry: RowEntry,
    pool: Pool,
    tasks: Sequence[Task],
    observed: ObservedHistory,
    starts: pictures.Starts | None = None,
    sizes: Mapping[str, Any] | None = None,
    airflow_states: Mapping[UUID, str] | None = None,
) -> PoolDetail:
    """Return one pool in full.

    :param starts: observed starts of nodes and of the instances of arrays.
    :param sizes: makespan and cost of the pool at several sizes. None: they are not known.
    :param airflow_states: states of the Airflow task instances that the executor runs, by id.
    """
    instances = airflow_states or {}
    starts = {} if starts is None else starts
    work = [task for task in tasks if not is_warm_up(label(task.labels, "role"))]
    bars = tuple(pictures.fitted(bar for task in work for bar in pictures.bars_of(task, starts)))
    start, ended = _start_of(pool, tasks), ended_at(pool)
    whole = {
        "timeline": timeline(pool, observed),
        "boot": boot_phases(pool, observed),
        "use": node_use_of(pool, tasks),
        "nodes": _nodes(pool, starts),
        "events": events_of(pool, observed),
        "sizes": sizes,
        "pictures": {
            "from": start.timestamp() if start else None,
            "until": ended.timestamp() if ended else None,
            "slots": pictures.slots_over_time(pool, observed),
            "work": pictures.work_over_time(work, bars),
            "cost": pictures.cost_over_time(pool, observed),
        },
    }
    return PoolDetail(
        entry=entry,
        whole=whole,
        pool_errors=tuple(clean_block(str(error)) for error in pool.errors[:MAX_ERRORS]),
        tasks=tuple(TaskFacts.of(task, _airflow_state_of(task, instances)) for task in tasks),
        bars=bars,
        nodes=pictures.NodeCount.of(pool, observed),
    )


def _start_of(pool: Pool, tasks: Iterable[Task]) -> datetime | None:
    """Return when the pictures start: with the pool, or with the oldest Qarnot task of the executor that is there.

    Such a pool is open for weeks, and its Qarnot tasks are deleted after a day.
    """
    times = [task.creation_date for task in tasks if task.creation_date and instance_of(task)]
    return min(times, default=pool.creation_date)


def newest_instances(tasks: Iterable[Task]) -> list[UUID]:
    """Return the ids of the Airflow task instances that the executor runs in the newest of *tasks*."""
    newest = sorted(tasks, key=lambda task: to_iso(task.creation_date) or "", reverse=True)
    found = (instance for task in newest if (instance := instance_of(task)) is not None)
    return list(islice(dict.fromkeys(found), MAX_INSTANCES))


def _airflow_state_of(task: Task, states: Mapping[UUID, str]) -> str | None:
    instance = instance_of(task)
    return None if instance is None else states.get(instance)


def full_detail(detail: PoolDetail) -> dict[str, Any]:
    """Return a detail as JSON, with the Qarnot tasks of all runs."""
    return _detail(detail, detail.entry.row, detail.tasks)


def detail_of_run(detail: PoolDetail, run: tuple[str, str]) -> dict[str, Any] | None:
    """Return a detail for the tab of a DAG run, without the Qarnot tasks of other runs.

    None if the run does not use the pool, or did not when the detail was read.
    """
    row = row_of_run(detail.entry, run)
    if row is None:
        return None
    # The run's own pool has Qarnot tasks of no DAG, too. It may have tasks of another run that the row lacks yet.
    runs = (run,) if row["mine"] else (run, (None, None))
    return _detail(detail, row, [task for task in detail.tasks if task.run in runs])


def _detail(detail: PoolDetail, row: Mapping[str, Any], tasks: Sequence[TaskFacts]) -> dict[str, Any]:
    listed = sorted(tasks, key=lambda task: to_iso(task.created) or "", reverse=True)
    listed.sort(key=lambda task: _ORDER[group_of(task.state)])
    by_uuid = {task.uuid: task for task in tasks}
    picture = pictures.gantt([bar for bar in detail.bars if bar.task in by_uuid], detail.nodes)
    return {
        "row": dict(row),
        **detail.whole,
        "pictures": {
            **detail.whole["pictures"],
            "gantt": {
                **picture,
                "tasks": [
                    {**by_uuid[uuid].names(), "created": to_iso(by_uuid[uuid].created)}
                    for uuid in picture["tasks"]
                ],
            },
        },
        "errors": _grouped_errors(detail.pool_errors, tasks),
        "tasks": [task.to_json() for task in listed[:MAX_TASKS]],
        "task_count": len(tasks),
    }


def _grouped_errors(pool_errors: Iterable[str], tasks: Iterable[TaskFacts]) -> list[dict[str, Any]]:
    """Return the errors, those that differ only in numbers as one: first those of the pool, then the newest."""
    groups: dict[tuple[str, str], list[tuple[str, TaskFacts | None]]] = {}
    for text in pool_errors:
        groups.setdefault(("pool", shape_of(text)), []).append((text, None))
    for task in tasks:
        for text in task.errors:
            groups.setdefault(("task", shape_of(text)), []).append((text, task))
    errors = [_error(kind, found) for (kind, _), found in groups.items()]
    errors.sort(key=lambda error: str(error["last"] or ""), reverse=True)
    errors.sort(key=lambda error: error["of"] != "pool")
    return errors[:MAX_ERRORS]


def _error(kind: str, found: Sequence[tuple[str, TaskFacts | None]]) -> dict[str, Any]:
    """Return a group of errors as JSON. Its text is that of the newest one."""
    named = {task.uuid: (task, text) for text, task in reversed(found) if task is not None}
    newest = sorted(named.values(), key=lambda each: each[0].failed_at or "", reverse=True)
    times = [task.failed_at for task, _ in newest if task.failed_at]
    return {
        "of": kind,
        "text": newest[0][1] if newest else found[0][0],
        "count": len(found),
        "first": min(times, default=None),
        "last": max(times, default=None),
        "tasks": [task.names() for task, _ in newest[:MAX_ERROR_TASKS]],
    }


def _nodes(pool: Pool, starts: pictures.Starts) -> list[dict[str, Any]]:
    return [
        {
            "id": node.instance_id,
            "phase": clean_label(node.phase),
            "since": _since(starts, pool.uuid, node.instance_id),
            "cpu_percent": node.cpu_usage,
            "memory_mb": node.current_memory_mb,
            "model": clean_label(node.cpu_model),
        }
        for node in (pool.status.running_instances if pool.status else ())
    ]


def _since(starts: pictures.Starts, uuid: str, instance: int | None) -> str | None:
    if instance is None or (uuid, instance) not in starts:
        return None
    with suppress(OverflowError, ValueError, OSError):
        return to_iso(datetime.fromtimestamp(starts[uuid, instance][1], UTC))
    return None


def node_use_of(pool: Pool, tasks: Sequence[Task]) -> dict[str, float | None]:
    """Return the node-seconds paid and the idle ones among them. None if Qarnot does not report them."""
    cost = pool_cost(pool, tasks, None, None).cost
    return {"node_seconds": cost.node_seconds, "idle_node_seconds": cost.idle_node_seconds}
