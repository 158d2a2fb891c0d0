"""Snapshots: what running instances have written so far, copied to a bucket (Qarnot API: qarnot-api.md 3.3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local import attempt, command, wire
from airflow_qarnot_pool.local.errors import ApiError, missing
from airflow_qarnot_pool.local.fields import Fields
from airflow_qarnot_pool.local.model import Task
from airflow_qarnot_pool.local.storage import Destination, StorageError

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World


def _destination(task: Task, fields: Fields) -> Destination:
    """The request's bucket and filters, or those of the task. Raises ApiError 400 when no bucket is known."""
    own = attempt.destination(task, "snapshots") or attempt.destination(task)
    bucket = fields.text("bucket") or (own.bucket if own else None)
    if bucket is None:
        fields.wrong("bucket")
    filters = [fields.regex(name) for name in ("whitelist", "blacklist")]
    fields.check()
    white, black = (command.substitute(text, task.constants) if text else None for text in filters)
    prefix = fields.text("bucketPrefix") or (own.prefix if own else "")
    return Destination(
        bucket or "",
        prefix,
        white or (own.whitelist if own else None),
        black or (own.blacklist if own else None),
    )


def _require_running(task: Task) -> None:
    if task.is_over or task.ending:
        raise ApiError(400, f"Invalid operation: the task is {task.state}")


def take(world: World, task: Task, body: Any) -> str:
    """One snapshot, now. Returns its id."""
    _require_running(task)
    destination = _destination(task, Fields(body or {}, "snapshot"))
    return _trigger(world, task, destination)


def repeat(world: World, task: Task, body: Any) -> None:
    """A snapshot every `interval` virtual seconds while the task runs; 0 ends them. Raises ApiError 400."""
    fields = Fields(body or {}, "snapshot")
    interval = fields.integer("interval", -1)
    if interval is None or interval < 0:
        raise ApiError(400, "The interval must be a number of seconds, 0 or more")
    _require_running(task)
    if task.snapshot_timer is not None:
        task.snapshot_timer.cancel()
    task.spec["snapshotInterval"] = interval
    if interval:
        destination = _destination(task, fields)

        def again() -> None:
            if not (task.is_over or task.ending):
                _trigger(world, task, destination)
                task.snapshot_timer = world.timeline.after(interval, again)

        task.snapshot_timer = world.timeline.after(interval, again)


def find(task: Task, id: str) -> dict[str, Any]:
    if id not in task.snapshots:
        raise missing("snapshot", id)
    return task.snapshots[id]


def _trigger(world: World, task: Task, destination: Destination) -> str:
    uuid, _ = world.identity()
    now = wire.stamp(world.now)
    entry = task.snapshots[f"snap_{uuid}_{now}"] = {
        "id": f"snap_{uuid}_{now}",
        "taskUuid": task.uuid,
        "triggerDate": now,
        "lastUpdateDate": now,
        "snapshotConfig": {
            "whitelist": destination.whitelist,
            "blacklist": destination.blacklist,
            "bucket": destination.bucket,
            "bucketPrefix": destination.prefix,
        },
        "status": "triggered",
        "sizeToUpload": 0,
        "transferredSize": 0,
    }
    directories = [i.directory for i in task.instances.values() if i.directory]
    world.spawn(_copy(world, task, entry, destination, directories))
    return str(entry["id"])


async def _copy(
    world: World, task: Task, entry: dict[str, Any], destination: Destination, directories: list[str]
) -> None:
    entry["status"] = "inProgress"
    copied = 0
    try:
        for directory in directories:
            copied += await asyncio.to_thread(world.storage.upload, directory, destination, {})
        entry["status"] = "success"
        task.results_count += 1
    except StorageError as error:
        entry["status"] = "failure"
        task.errors.append({"code": attempt.RESULTS, "message": str(error), "debug": str(error)})
    entry["sizeToUpload"] = entry["transferredSize"] = copied
    entry["lastUpdateDate"] = wire.stamp(world.now)
