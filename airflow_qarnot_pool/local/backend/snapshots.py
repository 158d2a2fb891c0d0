"""Copy the files of running instances to a bucket, as snapshots (Qarnot API: qarnot-api.md 3.3)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend import attempt
from airflow_qarnot_pool.local.backend.models import Task
from airflow_qarnot_pool.local.processes import command
from airflow_qarnot_pool.local.processes.storage import Destination, StorageError
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.errors import ApiError, missing
from airflow_qarnot_pool.local.schemas.fields import RequestFields

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context


def _destination(task: Task, fields: RequestFields) -> Destination:
    """Return the bucket and filters of the request, or those of the task. Raises ApiError 400 without a bucket."""
    own = attempt.destination(task, "snapshot") or attempt.destination(task) or Destination("")
    bucket = fields.bucket("bucket") or own.bucket
    if not bucket:
        fields.wrong("bucket")
    filters = [fields.regex(name) for name in ("whitelist", "blacklist")]
    fields.check()
    white, black = (command.substitute(text, task.constants) if text else None for text in filters)
    prefix = fields.text("bucketPrefix") or own.prefix
    return Destination(bucket, prefix, white or own.whitelist, black or own.blacklist)


def _require_running(task: Task) -> None:
    if task.is_finished or task.ending:
        raise ApiError(400, f"Invalid operation: the task is {task.state}")


def take(context: Context, task: Task, body: Any) -> str:
    """Take one snapshot now. Return its id."""
    _require_running(task)
    destination = _destination(task, RequestFields(body or {}, "snapshot"))
    return _trigger(context, task, destination)


def repeat(context: Context, task: Task, body: Any) -> None:
    """Take a snapshot every `interval` virtual seconds while the task runs. 0 stops them. Raises ApiError 400."""
    fields = RequestFields(body or {}, "snapshot")
    interval = fields.integer("interval", -1)
    if interval is None or interval < 0:
        raise ApiError(400, "The interval must be a number of seconds, 0 or more")
    _require_running(task)
    if task.snapshot_timer is not None:
        task.snapshot_timer.cancel()
    if interval:
        task.snapshot_destination = list(astuple(_destination(task, fields)))
    task.spec["snapshotInterval"] = interval
    context.note(task)
    await_next(context, task)


def await_next(context: Context, task: Task) -> None:
    """Take the next periodic snapshot after the interval, if the task has one."""

    def take_next() -> None:
        if not (task.is_finished or task.ending):
            _trigger(context, task, Destination(*task.snapshot_destination))
            await_next(context, task)

    if interval := task.spec.get("snapshotInterval"):
        task.snapshot_timer = context.clock.after(interval, take_next)


def find(task: Task, id: str) -> dict[str, Any]:
    if id not in task.snapshots:
        raise missing("snapshot", id)
    return task.snapshots[id]


def _trigger(context: Context, task: Task, destination: Destination) -> str:
    uuid, _ = context.identity()
    now = formats.stamp(context.now)
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
    context.note(task)
    context.spawn(_copy(context, task, entry, destination, directories))
    return str(entry["id"])


async def _copy(
    context: Context, task: Task, entry: dict[str, Any], destination: Destination, directories: list[str]
) -> None:
    entry["status"] = "inProgress"
    copied = 0
    try:
        for directory in directories:
            copied += await asyncio.to_thread(context.storage.upload, directory, destination, {})
        entry["status"] = "success"
        task.results_count += 1
    except StorageError as error:
        entry["status"] = "failure"
        # An instance that ended meanwhile took its files away.
        if all(map(os.path.isdir, directories)):
            task.errors.append({"code": attempt.RESULTS, "message": str(error), "debug": str(error)})
    entry["sizeToUpload"] = entry["transferredSize"] = copied
    entry["lastUpdateDate"] = formats.stamp(context.now)
    context.note(task)
