"""Run one attempt of one instance: its directory, its resources, its process, its results.

Only this module waits for real processes and files. It changes nothing but the directory of the instance; tasks.py
decides how a result changes the task.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.backend.models import (
    Instance,
    InstancePhase,
    Node,
    Pool,
    Task,
)
from airflow_qarnot_pool.local.processes import command
from airflow_qarnot_pool.local.processes.output import read_all
from airflow_qarnot_pool.local.processes.runner import RunResult
from airflow_qarnot_pool.local.processes.storage import (
    Destination,
    MountedBucket,
    Seen,
    StorageError,
    scan,
)
from airflow_qarnot_pool.local.schemas.fields import fold, has_network

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context
    from airflow_qarnot_pool.local.backend.models import Output

# The API documents no error codes, so the local Qarnot defines these (docs/local.md).
EXIT_CODE = "LOCAL_EXIT_CODE"
NODE_LOST = "LOCAL_NODE_LOST"
COMMAND = "LOCAL_COMMAND"
OUTPUT = "LOCAL_OUTPUT"
RESOURCES = "LOCAL_RESOURCES"
RESULTS = "LOCAL_RESULTS"
INTERNAL = "LOCAL_INTERNAL"
DISK_FULL = "LOCAL_DISK_FULL"
CANNOT_RUN, NOT_FOUND = 126, 127
"""Exit codes of the supervisor and of shells."""
MAX_CAUSE = 200
NOTHING_RAN = (
    "Nothing ran: DOCKER_CMD is empty, and the local Qarnot has no program of the profile {profile}.\n"
)
FULL_BYTES = 1 << 16
"""Free bytes below which the disk counts as full."""


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """Result of an attempt.

    :param code: error code, or None if the attempt succeeded.
    :param killed: whether it was ended from outside.
    """

    code: str | None = None
    message: str = ""
    killed: bool = False
    uploaded: bool = False

    @property
    def ok(self) -> bool:
        return self.code is None


def node_lost(node: Node) -> AttemptResult:
    """Return the result of an attempt whose node was lost."""
    return AttemptResult(NODE_LOST, f"Node {node.id} was {node.loss} while the instance ran")


def node_directory(context: Context, node: Node) -> str:
    """Return the directory that `/job` stands for on this node."""
    return os.path.join(context.scratch, "nodes", node.id, "job")


def resources(owner: Pool | Task) -> list[MountedBucket]:
    """Return the buckets with the resources of a pool or task."""
    buckets = [MountedBucket(bucket) for bucket in owner.spec["resourceBuckets"]]
    for item in owner.spec["advancedResourceBuckets"]:
        prefix = (item["filtering"] or {}).get("prefixFiltering", {}).get("prefix", "")
        strip = (item["resourcesTransformation"] or {}).get("stripPrefix", {}).get("prefix", "")
        buckets.append(MountedBucket(item["bucketName"], prefix, strip))
    return buckets


def destination(task: Task, kind: str = "results") -> Destination | None:
    """Return the destination of the results, or with kind "snapshot" of the snapshots of a task."""
    bucket = task.spec["resultBucket" if kind == "results" else "snapshotBucket"]
    if not bucket:
        return None

    def pattern(name: str) -> str | None:
        text = task.spec[name]
        return command.substitute(text, task.constants) if text else None

    prefix = task.spec[f"{kind}BucketPrefix"] or ""
    return Destination(bucket, prefix, pattern(f"{kind}Whitelist"), pattern(f"{kind}Blacklist"))


def credentials(context: Context, owner: Pool | Task) -> dict[str, str]:
    """Return the credentials for the environment, if the privilege exports them, by the names of the Python SDK."""
    if not owner.spec["privileges"]["exportApiAndStorageCredentialsInEnvironment"]:
        return {}
    return {
        "QARNOT_CLUSTER_URL": context.url,
        "QARNOT_CLIENT_TOKEN": context.settings.token,
        "QARNOT_STORAGE_URL": context.storage.url,
    }


def readable_secrets(context: Context, owner: Pool | Task) -> dict[str, str]:
    """Return the secrets that the instances of *owner* have access to, by their keys."""
    rights = owner.spec["secretsAccessRights"]
    keys = {fold(item).get("key") for item in rights["bySecret"]}
    prefixes = tuple(str(prefix) for item in rights["byPrefix"] if (prefix := fold(item).get("prefix")))
    readable = (key for key in context.secrets if key in keys or key.startswith(prefixes))
    # No variable can have these names.
    return {key: context.secrets[key] for key in readable if "=" not in key and "\0" not in key}


def environment(
    context: Context, owner: Pool | Task, own: dict[str, str], place: command.Directories
) -> dict[str, str]:
    """Return the environment of a command. A task on a pool has access to the secrets of the pool."""
    rights = (isinstance(owner, Task) and owner.pool) or owner
    constants = owner.constants
    if context.readings.secret_variables == "without the prefix":
        constants = {key.removeprefix("QARNOT_SECRET__"): value for key, value in constants.items()}
    return {
        **readable_secrets(context, rights),
        **command.environment(constants, own, place, context.search_path),
        **credentials(context, owner),
    }


@dataclass(slots=True)
class _Workspace:
    """Directory of an attempt, and the files in it that are not results."""

    job: str
    directories: command.Directories
    target: Destination | None
    resources: Seen


def _workspace(context: Context, task: Task, node: Node) -> _Workspace:
    """Create the directories of an attempt."""
    job = node_directory(context, node)
    # In a pool `/job` belongs to the pool, and each attempt has a directory below it.
    attempt = str(uuid.uuid4())
    directory = os.path.join(job, attempt) if task.pool else job
    place = command.Directories(
        job, directory, os.path.join(context.scratch, "nodes", node.id, "tmp", attempt)
    )
    os.makedirs(directory, exist_ok=True)
    os.makedirs(place.scratch, exist_ok=True)
    target = destination(task)
    if target is not None and context.readings.result_patterns == "ignored":
        target = replace(target, whitelist=None)
    elif target is not None and target.whitelist and context.readings.result_patterns.startswith("whole"):
        target = replace(target, whitelist=f"^(?:{target.whitelist})$")
    return _Workspace(job, place, target, {})


async def _copy_resources(context: Context, task: Task, space: _Workspace) -> None:
    directory = space.directories.task
    buckets = resources(task)
    if buckets:
        copied = await asyncio.to_thread(context.storage.download, buckets, directory)
        has_prefix = any(bucket.prefix for bucket in buckets)
        if has_prefix and not copied and context.readings.empty_prefix == "the task fails":
            raise StorageError("No file has the prefix of the resources")
    if space.target and (buckets or not task.pool):
        space.resources = await asyncio.to_thread(scan, directory)


async def _execute(
    context: Context, instance: Instance, space: _Workspace, words: list[str]
) -> AttemptResult:
    """Run the command to its end."""
    task, place = instance.task, space.directories
    own = command.variables(instance.id, len(task.instances), place)
    output = context.output_of(task, instance.id)
    env = environment(context, task, own, place)
    cwd = command.working_directory(task.constants, own, place)
    if cwd.startswith(space.job):
        os.makedirs(cwd, exist_ok=True)
    result = await run_command(context, instance, words, cwd, env, output, task.profile)
    problem = problem_of("The command", result, output)
    return AttemptResult(EXIT_CODE if result.code else OUTPUT, problem) if problem else AttemptResult()


def _explain_nothing(context: Context, instance: Instance) -> AttemptResult:
    """Say in the output why an instance of an application's profile runs nothing."""
    if not instance.task.profile.startswith("docker-"):
        with open(context.output_of(instance.task, instance.id).stderr, "a") as stderr:
            stderr.write(NOTHING_RAN.format(profile=instance.task.profile))
    return AttemptResult()


async def run_command(
    context: Context,
    runs: Instance | Node,
    words: list[str],
    cwd: str,
    env: dict[str, str],
    output: Output,
    profile: str,
) -> RunResult:
    """Run a command to its end. Meanwhile *runs* has its id, by which it can be killed."""
    runs.run, done = context.runner.run(
        words,
        cwd=cwd,
        env=env,
        stdout=output.stdout,
        stderr=output.stderr,
        kept=output.max_bytes,
        network=has_network(profile),
    )
    result = await done
    runs.run = None
    return result


def problem_of(subject: str, result: RunResult, output: Output) -> str | None:
    """Describe the failure of a command, or return None if it succeeded and its output was stored."""
    lost = f"Output was not stored ({result.output_error})" if result.output_error else None
    if not result.code:
        return lost
    parts = [f"{subject} exited with code {result.code}{_cause(result.code, output)}", lost]
    return ". ".join(part for part in parts if part)


def _cause(code: int, output: Output) -> str:
    """Return the last line of the errors of a program that is not here. The system or a shell wrote it."""
    if code not in (CANNOT_RUN, NOT_FOUND):
        return ""
    last = read_all(output, "stderr").rstrip().rpartition("\n")[2][-MAX_CAUSE:]
    remedy = ". Install the program on this machine, because images are not used" if code == NOT_FOUND else ""
    return f" ({last}){remedy}" if last else remedy


def name_full_disk(
    context: Context, result: AttemptResult, error: BaseException | None = None
) -> AttemptResult:
    """Return the result with the full disk as its code, if the disk is full or caused the error."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    is_full = any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes)
    if result.ok or not (is_full or shutil.disk_usage(context.scratch).free < FULL_BYTES):
        return result
    return replace(
        result, code=DISK_FULL, message=f"The disk with {context.scratch} is full. {result.message}"
    )


async def _upload(
    context: Context,
    instance: Instance,
    space: _Workspace,
    result: AttemptResult,
    enter: Callable[[InstancePhase], bool],
) -> AttemptResult:
    """Copy the results to the bucket, unless the attempt was killed and the task does not want them then."""
    if result.killed and (space.target is None or not instance.task.spec["uploadResultsOnCancellation"]):
        return AttemptResult(killed=True)
    if space.target is None or not (result.ok or context.readings.results_of_failed == "yes"):
        return result
    enter(InstancePhase.UPLOADING)
    await asyncio.to_thread(context.storage.upload, space.directories.task, space.target, space.resources)
    return replace(result, uploaded=True)


async def _steps(
    context: Context,
    instance: Instance,
    node: Node,
    space: _Workspace,
    enter: Callable[[InstancePhase], bool],
) -> AttemptResult:
    """Copy the resources, run the command and copy the results. Raises CommandError and StorageError."""
    task = instance.task
    await _copy_resources(context, task, space)
    own = command.variables(instance.id, len(task.instances), space.directories)
    line = command.of_instance(task.profile, instance.id, task.constants)
    words = command.words(line, task.constants, own, space.directories)
    if not enter(InstancePhase.RUNNING):
        return AttemptResult(killed=True)
    if words:
        result = await _execute(context, instance, space, words)
    else:
        result = _explain_nothing(context, instance)
    context.clock.catch_up()
    if instance.lost:
        return node_lost(node)
    if task.ending and not result.ok:
        result = replace(result, killed=True)
    return await _upload(context, instance, space, result, enter)


async def carry_out(
    context: Context, instance: Instance, node: Node, enter: Callable[[InstancePhase], bool]
) -> AttemptResult:
    """Run one attempt on a node that is up.

    :param enter: called with each new phase; returns False if the attempt is cancelled.
    """
    space: _Workspace | None = None
    try:
        space = _workspace(context, instance.task, node)
        instance.directory = space.directories.task
        return name_full_disk(context, await _steps(context, instance, node, space, enter))
    except command.CommandError as error:
        return AttemptResult(COMMAND, str(error))
    except StorageError as error:
        code = RESULTS if instance.phase is InstancePhase.UPLOADING else RESOURCES
        failed = AttemptResult(code, str(error), uploaded=error.is_partial)
        return name_full_disk(context, failed, error)
    except OSError as error:
        return name_full_disk(context, AttemptResult(INTERNAL, f"{type(error).__name__}: {error}"), error)
    finally:
        instance.run = None
        instance.directory = None
        if space is not None:
            for directory in (space.directories.task, space.directories.scratch):
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def synchronize(context: Context, task: Task) -> None:
    """Copy the resources of the task to its running instances again. Files deleted from the bucket stay."""
    for directory in [i.directory for i in task.instances.values() if i.directory]:
        try:
            await asyncio.to_thread(context.storage.download, resources(task), directory)
        except StorageError as error:
            task.errors.append({"code": RESOURCES, "message": str(error), "debug": str(error)})
