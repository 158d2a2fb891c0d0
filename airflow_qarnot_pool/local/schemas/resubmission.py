"""New tasks made from old ones: retry, resume, recover, clone (Qarnot API: qarnot-api.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend.models import Task
from airflow_qarnot_pool.local.schemas import formats, requests, responses
from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.fields import fold

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

KINDS = ("retry", "resume", "recover", "clone")


def instances(task: Task, kind: str) -> list[int]:
    """Which instances of the old task the new one has: the failed, the cancelled, both, or all."""
    if kind == "clone":
        return sorted(task.instances)
    failed = task.failed if kind in ("retry", "recover") else []
    cancelled = task.cancelled if kind in ("resume", "recover") else []
    return sorted([*failed, *cancelled])


def creation(backend: Backend, task: Task, kind: str, overrides: Any) -> requests.TaskCreation:
    """The creation of the new task. Raises ApiError 400 when it would have no instances."""
    source = responses.TASK.full(backend, task)
    # Unlike in an answer, secrets are not hidden, and nothing is said twice.
    source["constants"] = [{"key": key, "value": value} for key, value in task.constants.items()]
    source |= {"shortname": None, "maxRetriesPerInstance": None, "dependencies": None}
    changes = fold(overrides or {})
    if not {"instancecount", "advancedranges"} & set(changes):
        ids = instances(task, kind)
        if not ids:
            raise ApiError(400, f"Invalid operation: the task has no instance to {kind}")
        plain = kind == "clone" and task.ranges is None
        source |= {
            "instanceCount": len(ids) if plain else None,
            "advancedRanges": None if plain else formats.ranges(ids),
        }
    else:
        source |= {"instanceCount": None, "advancedRanges": None}
    if task.pool is not None or "poolUuid".lower() in changes or "jobuuid" in changes:
        source["profile"] = None
    if task.job is not None:
        source["poolUuid"] = None
    wanted = requests.read_task(changes, source)
    if not wanted.own_retries:
        wanted.per_instance_retries, wanted.total_retries = task.per_instance_retries, task.total_retries
    return wanted
