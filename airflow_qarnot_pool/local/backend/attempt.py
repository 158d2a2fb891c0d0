"""One attempt of one instance: its directory, its resources, its process, its results.

The only place where the state waits for real things. It changes nothing but the instance's own directory:
what an outcome means for the task is decided in tasks.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.backend.models import (
    Instance,
    InstancePhase,
    Node,
    Pool,
    Task,
)
from airflow_qarnot_pool.local.processes import command
from airflow_qarnot_pool.local.processes.storage import (
    Destination,
    MountedBucket,
    Seen,
    StorageError,
    scan,
)

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context

# The API has no catalogue of error codes; these are the local Qarnot's own (docs/local.md).
EXIT_CODE = "LOCAL_EXIT_CODE"
NODE_LOST = "LOCAL_NODE_LOST"
COMMAND = "LOCAL_COMMAND"
RESOURCES = "LOCAL_RESOURCES"
RESULTS = "LOCAL_RESULTS"
INTERNAL = "LOCAL_INTERNAL"


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """:param code: error code, None when the attempt succeeded. :param killed: it was ended from outside."""

    code: str | None = None
    message: str = ""
    killed: bool = False
    uploaded: bool = False

    @property
    def ok(self) -> bool:
        return self.code is None


def node_directory(context: Context, node: Node) -> str:
    """What `/job` is on this node."""
    return os.path.join(context.scratch, "nodes", node.id, "job")


def resources(owner: Pool | Task) -> list[MountedBucket]:
    """Where the resources of a pool or task come from."""
    found = [MountedBucket(bucket) for bucket in owner.spec["resourceBuckets"]]
    for item in owner.spec["advancedResourceBuckets"]:
        prefix = (item["filtering"] or {}).get("prefixFiltering", {}).get("prefix", "")
        strip = (item["resourcesTransformation"] or {}).get("stripPrefix", {}).get("prefix", "")
        found.append(MountedBucket(item["bucketName"], prefix, strip))
    return found


def destination(task: Task, kind: str = "results") -> Destination | None:
    """Where the results (or snapshots) of a task go."""
    bucket = task.spec["resultBucket" if kind == "results" else "snapshotBucket"]
    if not bucket:
        return None

    def pattern(name: str) -> str | None:
        text = task.spec[name]
        return command.substitute(text, task.constants) if text else None

    prefix = task.spec["resultsBucketPrefix" if kind == "results" else "snapshotBucketPrefix"] or ""
    return Destination(bucket, prefix, pattern(f"{kind}Whitelist"), pattern(f"{kind}Blacklist"))


def credentials(context: Context, owner: Pool | Task) -> dict[str, str]:
    """Exported only with the privilege; named as the Python SDK reads them."""
    if not owner.spec["privileges"]["exportApiAndStorageCredentialsInEnvironment"]:
        return {}
    return {
        "QARNOT_CLUSTER_URL": context.url,
        "QARNOT_CLIENT_TOKEN": context.settings.token,
        "QARNOT_STORAGE_URL": context.storage.url,
    }


async def carry_out(
    context: Context, instance: Instance, node: Node, enter: Callable[[InstancePhase], bool]
) -> AttemptResult:
    """Run one attempt on a node that is up.

    :param enter: told each new phase; False = the attempt is not wanted any more.
    """
    task = instance.task
    job = node_directory(context, node)
    # In a pool `/job` belongs to the pool and the task has a directory of its own below it.
    directory = os.path.join(job, str(uuid.uuid4())) if task.pool else job
    place = command.Directories(job, directory, os.path.join(context.scratch, "nodes", node.id, "tmp"))
    instance.directory = directory
    try:
        os.makedirs(directory, exist_ok=True)
        os.makedirs(place.scratch, exist_ok=True)
        seen: Seen = {}
        wanted = resources(task)
        target = destination(task)
        if wanted:
            await asyncio.to_thread(context.storage.download, wanted, directory)
        if target and (wanted or not task.pool):
            seen = await asyncio.to_thread(scan, directory)
        own = command.variables(instance.id, len(task.instances), place)
        output = context.output_of(task, instance.id)
        words = command.words(task.constants.get("DOCKER_CMD", ""), task.constants, own, place)
        if not enter(InstancePhase.RUNNING):
            return AttemptResult(killed=True)
        outcome = AttemptResult()
        if words:
            env = command.environment(task.constants, own, place, context.search_path)
            env |= credentials(context, task)
            cwd = command.working_directory(task.constants, own, place)
            if cwd.startswith(job):
                os.makedirs(cwd, exist_ok=True)
            instance.run, done = context.runner.run(
                words, cwd=cwd, env=env, stdout=output.stdout, stderr=output.stderr
            )
            code = await done
            instance.run = None
            if code:
                outcome = AttemptResult(EXIT_CODE, f"The command exited with code {code}")
        context.timeline.catch_up()
        if instance.lost:
            return AttemptResult(NODE_LOST, f"Node {node.id} was lost while the instance ran")
        stopped = task.ending and not outcome.ok
        if target is None or (stopped and not task.spec["uploadResultsOnCancellation"]):
            return AttemptResult(killed=True) if stopped else outcome
        enter(InstancePhase.UPLOADING)
        await asyncio.to_thread(context.storage.upload, directory, target, seen)
        return AttemptResult(killed=stopped, code=outcome.code, message=outcome.message, uploaded=True)
    except command.CommandError as error:
        return AttemptResult(COMMAND, str(error))
    except StorageError as error:
        return AttemptResult(RESULTS if instance.phase is InstancePhase.UPLOADING else RESOURCES, str(error))
    finally:
        instance.run = None
        instance.directory = None
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def synchronize(context: Context, task: Task) -> None:
    """Copy the task's resources to its running instances again; what was deleted from the bucket stays."""
    for directory in [i.directory for i in task.instances.values() if i.directory]:
        try:
            await asyncio.to_thread(context.storage.download, resources(task), directory)
        except StorageError as error:
            task.errors.append({"code": RESOURCES, "message": str(error), "debug": str(error)})
