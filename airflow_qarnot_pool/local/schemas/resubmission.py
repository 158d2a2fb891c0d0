"""Create tasks from other tasks: retry, resume, recover, clone (Qarnot API: qarnot-api.md 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend.models import Task
from airflow_qarnot_pool.local.schemas import formats, requests, responses
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid
from airflow_qarnot_pool.local.schemas.fields import fold

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

KINDS = ("retry", "resume", "recover", "clone")


def instances(task: Task, kind: str) -> list[int]:
    """Return the ids of the instances to run again: failed ones, cancelled ones, both, or all."""
    if kind == "clone":
        return sorted(task.instances)
    failed = task.failed if kind in ("retry", "recover") else []
    cancelled = task.cancelled if kind in ("resume", "recover") else []
    return sorted([*failed, *cancelled])


def _instances_again(task: Task, kind: str) -> tuple[int | None, str | None]:
    """Return instanceCount or advancedRanges of the new task."""
    ids = instances(task, kind)
    if not ids:
        raise ApiError(400, f"Invalid operation: the task has no instance to {kind}")
    if kind == "clone" and task.ranges is None:
        return len(ids), None
    return None, formats.ranges(ids)


def creation(backend: Backend, task: Task, kind: str, overrides: Any) -> requests.TaskCreation:
    """Return the creation of the new task. Raises ApiError 400 if it would have no instances."""
    source = responses.TASK.full(backend, task)
    # Unlike a response this has the values of secrets, and no field twice.
    source["constants"] = [{"key": key, "value": value} for key, value in task.constants.items()]
    source |= {"shortname": None, "maxRetriesPerInstance": None, "dependencies": None}
    if not isinstance(overrides, (Mapping, type(None))):
        raise invalid("task", ["overrides"])
    changes = fold(overrides)
    has_own_instances = bool({"instancecount", "advancedranges"} & set(changes))
    count, ranges = (None, None) if has_own_instances else _instances_again(task, kind)
    source |= {"instanceCount": count, "advancedRanges": ranges}
    if task.pool is not None or "poolUuid".lower() in changes or "jobuuid" in changes:
        source["profile"] = None
    if task.job is not None:
        source["poolUuid"] = None
    creation = requests.read_task(changes, backend.readings, source)
    if not creation.own_retries:
        creation.per_instance_retries, creation.total_retries = task.per_instance_retries, task.total_retries
    return creation
