"""JSON of pools, tasks and jobs (Qarnot API: qarnot-api.md section 4; 8.4 lists the fields that must not be null).

There is one function per field, because a selection or a filter then computes only its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_qarnot_pool.local.backend.billing import CORES_PER_NODE
from airflow_qarnot_pool.local.backend.models import (
    Job,
    Pool,
    Remote,
    Task,
)
from airflow_qarnot_pool.local.backend.tasks import CPU_MODEL, SPECIFICATION
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.fields import SECRET_PREFIX, SECRET_TEXT, fold

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

R = TypeVar("R", bound=Remote)
Getter = Callable[["Backend", R], Any]


class ResponseBody(Generic[R]):
    """The fields of one kind of object, in Qarnot's order."""

    def __init__(self, fields: Mapping[str, Getter[R]], summary: Iterable[str]) -> None:
        self._fields = dict(fields)
        self._folded = {name.lower(): name for name in fields}
        self._summary = list(summary)

    def full(self, backend: Backend, item: R) -> dict[str, Any]:
        return {name: get(backend, item) for name, get in self._fields.items()}

    def brief(self, backend: Backend, item: R) -> dict[str, Any]:
        return {name: self._fields[name](backend, item) for name in self._summary}

    def chosen(self, backend: Backend, item: R, names: list[str]) -> dict[str, Any]:
        """Return some fields, by the names that `resolve` returns."""
        return {name: self._fields[name](backend, item) for name in names}

    def resolve(self, name: str) -> str | None:
        """Return the field of a name in any case, perhaps with a dotted rest, or None."""
        return self._folded.get(name.split(".")[0].lower())

    def value(self, backend: Backend, item: R, path: str) -> Any:
        """Return the value at a dotted path such as `ElasticProperty.MinTotalSlots`."""
        first, *rest = path.split(".")
        name = self._folded.get(first.lower())
        value = self._fields[name](backend, item) if name else None
        for part in rest:
            value = fold(value).get(part.lower())
        return value


# ---- shared parts --------------------------------------------------------------------------------


def constants(item: Pool | Task) -> list[dict[str, str]]:
    """Return the constants with the values of secrets hidden, because secrets are write-only."""
    return [
        {"key": k, "value": SECRET_TEXT if k.startswith(SECRET_PREFIX) else v}
        for k, v in item.constants.items()
    ]


def scaling(pool: Pool) -> dict[str, Any] | None:
    if pool.scaling is None:
        return None
    return {"policies": [policy.source for policy in pool.scaling], "activePolicyName": pool.policy}


def _spelled(backend: Backend, scheduling: str) -> str:
    if backend.readings.scheduling_spelling == "Flex":
        return scheduling[:1].upper() + scheduling[1:]
    return scheduling


def _shown_state(backend: Backend, item: Remote) -> str:
    """Return the state. Another service may have one of its own for an open pool that needs no node."""
    needs_no_node = isinstance(item, Pool) and item.is_open and not (item.nodes or item.target)
    other = backend.readings.other_states
    return other if needs_no_node and other != "none seen" else item.state


def _wall(backend: Backend, item: Remote) -> float:
    return (item.ended if item.ended is not None else backend.now) - item.created


def _execution(backend: Backend, item: Pool | Task) -> float:
    if isinstance(item, Pool):
        slots = item.slots_per_node if backend.readings.execution_time == "of slots" else 1
        return item.meter.node_seconds(backend.now) * slots
    return sum(
        i.executed + (backend.now - i.started if i.started is not None else 0.0)
        for i in item.instances.values()
    )


def _running(item: Pool | Task) -> int:
    """Return the number of running instances: slots of nodes that are up, or processes."""
    if isinstance(item, Pool):
        return sum(node.slots for node in item.nodes.values() if node.up is not None)
    return item.running


def _cores(item: Pool | Task) -> int:
    return CORES_PER_NODE * (item.meter.up if isinstance(item, Pool) else item.running)


def _spec(name: str) -> Callable[[Any, Any], Any]:
    return lambda backend, item: item.spec[name]


def _attribute(name: str) -> Callable[[Any, Any], Any]:
    return lambda backend, item: getattr(item, name)


def _time(name: str) -> Callable[[Any, Any], str]:
    def get(backend: Backend, item: Remote) -> str:
        when = getattr(item, name)
        return formats.stamp(None if when is None else backend.shown_time.show(when) + item.skew)

    return get


# ---- status --------------------------------------------------------------------------------------


def _live_instance(phase: str, number: int, seconds: float, attempts: int) -> dict[str, Any]:
    return {
        "phase": phase,
        "instanceId": number,
        "maxFrequencyGHz": 1.0,
        "currentFrequencyGHz": 1.0,
        "cpuUsage": 0.0,
        "maxMemoryMB": 32768,
        "currentMemoryMB": 0,
        "memoryUsage": 0.0,
        "networkInKbps": 0.0,
        "networkOutKbps": 0.0,
        "progress": 0.0,
        "executionTimeSec": round(seconds, 3),
        "executionTimeGHz": round(seconds, 3),
        "specificationKey": SPECIFICATION,
        "cpuModel": CPU_MODEL,
        "coreCount": CORES_PER_NODE,
        "executionAttemptCount": attempts,
        "clockRatio": 1.0,
        "activeForwards": [],
        "vpnConnections": [],
    }


def _live(backend: Backend, item: Pool | Task) -> list[dict[str, Any]]:
    if isinstance(item, Pool):
        return [
            _live_instance("execution", node.number, backend.now - node.up, 1)
            for node in item.nodes.values()
            if node.up is not None
        ]
    return [
        _live_instance(i.phase.value, i.id, backend.now - i.started if i.started else 0.0, i.attempts)
        for i in item.instances.values()
        if i.on_node
    ]


@dataclass(frozen=True, slots=True)
class _Progress:
    """Ids of instances by result. A pool has none but those that have started."""

    started: list[int]
    succeeded: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    per_instance: list[dict[str, Any]] = field(default_factory=list)
    percent: float = 0.0


def _progress(task: Task) -> _Progress:
    started = [instance for instance in task.instances.values() if instance.attempts]
    per_instance = [
        {
            "instanceId": instance.id,
            "specificationKey": SPECIFICATION,
            "siteUuid": "",
            "time": round(instance.executed, 3),
            "timeGhz": round(instance.executed, 3),
            "clockRatio": 1.0,
        }
        for instance in started
    ]
    return _Progress(
        started=[instance.id for instance in started],
        succeeded=task.succeeded,
        failed=task.failed,
        cancelled=task.cancelled,
        per_instance=per_instance,
        percent=100.0 * (len(task.succeeded) + len(task.failed)) / len(task.instances),
    )


def status(backend: Backend, item: Pool | Task) -> dict[str, Any] | None:
    """Return the status, or None before the first dispatch."""
    live = _live(backend, item)
    seconds = _execution(backend, item)
    if not live and not seconds and item.ended is None:
        return None
    now, wall = formats.stamp(backend.shown_time.show(backend.now) + item.skew), _wall(backend, item)
    boot = backend.settings.boot_seconds
    cores = CORES_PER_NODE
    if isinstance(item, Pool):
        progress = _Progress(started=sorted({int(node["instanceId"]) for node in live}))
    else:
        progress = _progress(item)
    succeeded, failed, cancelled = progress.succeeded, progress.failed, progress.cancelled
    return {
        "timestamp": now,
        "lastUpdateTimestamp": now,
        "downloadProgress": 100.0 if progress.started else 0.0,
        "executionProgress": progress.percent,
        "uploadProgress": progress.percent,
        "instanceCount": _running(item),
        "downloadTime": "00:00:00",
        "downloadTimeSec": 0.0,
        "environmentTime": formats.span(boot),
        "environmentTimeSec": boot,
        "executionTime": formats.span(seconds),
        "executionTimeSec": round(seconds, 3),
        "executionTimeByCpuModel": [{"model": CPU_MODEL, "time": round(seconds, 3), "core": cores}],
        "executionTimeGhzByCpuModel": [
            {"model": CPU_MODEL, "timeGhz": round(seconds, 3), "clockRatio": 1.0, "core": cores}
        ],
        "executionTimeByMachineSpecification": [
            {"specificationKey": SPECIFICATION, "time": round(seconds, 3)}
        ],
        "executionTimeBySiteAndMachine": [],
        "executionTimeByInstanceId": progress.per_instance,
        "uploadTime": "00:00:00",
        "uploadTimeSec": 0.0,
        "wallTime": formats.span(wall),
        "wallTimeSec": round(wall, 3),
        "succeededRange": formats.ranges(succeeded),
        "executedRange": formats.ranges([*succeeded, *failed]),
        "failedRange": formats.ranges([*failed, *cancelled]),
        "failedOnlyRange": formats.ranges(failed),
        "cancelledRange": formats.ranges(cancelled),
        "startedOnceRange": formats.ranges(progress.started),
        "runningInstancesInfo": {
            "perRunningInstanceInfo": live,
            "timestamp": now,
            "averageFrequencyGHz": 1.0,
            "maxFrequencyGHz": 1.0,
            "minFrequencyGHz": 1.0,
            "averageMaxFrequencyGHz": 1.0,
            "averageCpuUsage": 0.0,
            "clusterPowerIndicator": 1.0,
            "averageMemoryUsage": 0.0,
            "averageNetworkInKbps": 0.0,
            "averageNetworkOutKbps": 0.0,
            "totalNetworkInKbps": 0.0,
            "totalNetworkOutKbps": 0.0,
            "runningCoreCountByCpuModel": [
                {"model": CPU_MODEL, "core": cores, "runningCoreCount": cores * len(live)}
            ],
            "snapshotResults": [],
        },
    }


# ---- the three kinds -----------------------------------------------------------------------------

_COMMON_HEAD: dict[str, Getter[Any]] = {
    "constants": lambda backend, item: constants(item),
    "tags": _attribute("tags"),
    "labels": _spec("labels"),
    "resourceBuckets": _spec("resourceBuckets"),
    "advancedResourceBuckets": _spec("advancedResourceBuckets"),
    "status": status,
}
_COMMON_SETTINGS: dict[str, Getter[Any]] = {
    "hardwareConstraints": _spec("hardwareConstraints"),
    "schedulingType": lambda backend, item: _spelled(backend, item.spec["schedulingType"]),
    "targetedReservedMachineKey": _spec("targetedReservedMachineKey"),
    "targetedReservationName": _spec("targetedReservationName"),
    "autoDeleteOnCompletion": _attribute("auto_delete"),
    "completionTimeToLive": lambda backend, item: formats.span(item.time_to_live),
    "privileges": _spec("privileges"),
    "secretsAccessRights": _spec("secretsAccessRights"),
    "forcedNetworkRules": _spec("forcedNetworkRules"),
    "forcedConstants": _spec("forcedConstants"),
    "constraints": _spec("constraints"),
    "defaultResourcesCacheTTLSec": _spec("defaultResourcesCacheTTLSec"),
    "maxTimeQueueSeconds": _spec("maxTimeQueueSeconds"),
    "projectUuid": _spec("projectUuid"),
}
_IDENTITY: dict[str, Getter[Any]] = {
    "uuid": _attribute("uuid"),
    "name": _attribute("name"),
    "shortname": _attribute("shortname"),
}
_STATE: dict[str, Getter[Any]] = {
    "state": _shown_state,
    "previousState": _attribute("previous_state"),
    "stateTransitionTime": _time("moved"),
    "previousStateTransitionTime": _time("previously_moved"),
    "creationDate": _time("created"),
    "lastModified": _time("modified"),
}
_USE: dict[str, Getter[Any]] = {
    "endDate": _time("ended"),
    "runningInstanceCount": lambda backend, item: _running(item),
    "runningCoreCount": lambda backend, item: _cores(item),
    "executionTime": lambda backend, item: formats.span(_execution(backend, item)),
    "wallTime": lambda backend, item: formats.span(_wall(backend, item)),
}

POOL: ResponseBody[Pool] = ResponseBody(
    {
        "errors": _attribute("errors"),
        "elasticProperty": _attribute("elastic"),
        "scaling": lambda backend, pool: scaling(pool),
        "preparationTask": _spec("preparationTask"),
        **_COMMON_HEAD,
        "totalSlotCapacity": lambda backend, pool: (
            pool.slots if backend.readings.capacity_unit == "slots" else len(pool.nodes)
        ),
        "poolUsage": lambda backend, pool: (pool.waiting + pool.running) / pool.slots if pool.slots else 0.0,
        "queuedOrRunningTaskInstancesCount": lambda backend, pool: pool.waiting + pool.running,
        **_COMMON_SETTINGS,
        "defaultRetrySettings": _spec("defaultRetrySettings"),
        "multiSlotsSettings": lambda backend, pool: {"slotsPerNode": pool.slots_per_node},
        **_IDENTITY,
        "profile": _attribute("profile"),
        **_STATE,
        "instanceCount": _attribute("instance_count"),
        "targetRunningInstanceCount": _attribute("target"),
        **_USE,
        "taskDefaultWaitForPoolResourcesSynchronization": _spec(
            "taskDefaultWaitForPoolResourcesSynchronization"
        ),
    },
    summary=[
        "uuid",
        "name",
        "shortname",
        "profile",
        "state",
        "previousState",
        "instanceCount",
        "targetRunningInstanceCount",
        "stateTransitionTime",
        "previousStateTransitionTime",
        "creationDate",
        "lastModified",
        "endDate",
        "runningInstanceCount",
        "runningCoreCount",
        "queuedOrRunningTaskInstancesCount",
        "executionTime",
        "wallTime",
        "taskDefaultWaitForPoolResourcesSynchronization",
    ],
)

TASK: ResponseBody[Task] = ResponseBody(
    {
        "errors": _attribute("errors"),
        **_COMMON_HEAD,
        "resultBucket": _spec("resultBucket"),
        "resultsBucket": _spec("resultBucket"),
        "resultsBucketPrefix": _spec("resultsBucketPrefix"),
        "resultsWhitelist": _spec("resultsWhitelist"),
        "resultsBlacklist": _spec("resultsBlacklist"),
        "resultsCacheTTLSec": _spec("resultsCacheTTLSec"),
        "ResultsCacheTTLSec": _spec("resultsCacheTTLSec"),
        "resultsCount": _attribute("results_count"),
        "snapshotInterval": lambda backend, task: task.spec.get("snapshotInterval", 0),
        "snapshotBucket": _spec("snapshotBucket"),
        "snapshotBucketPrefix": _spec("snapshotBucketPrefix"),
        "snapshotWhitelist": _spec("snapshotWhitelist"),
        "snapshotBlacklist": _spec("snapshotBlacklist"),
        "completedInstances": _attribute("completed"),
        "dependencies": lambda backend, task: backend.jobs.dependencies(task),
        **_COMMON_SETTINGS,
        "retrySettings": _spec("retrySettings"),
        **_IDENTITY,
        "profile": _attribute("profile"),
        "poolUuid": lambda backend, task: task.pool.uuid if task.pool else None,
        "jobUuid": lambda backend, task: task.job.uuid if task.job else None,
        "progress": lambda backend, task: (
            (100.0 if backend.readings.progress_scale == "0 to 100" else 1.0)
            * (len(task.succeeded) + len(task.failed) + len(task.cancelled))
            / len(task.instances)
        ),
        **_STATE,
        **_USE,
        "totalInstanceCount": lambda backend, task: len(task.instances),
        "instanceCount": _attribute("instance_count"),
        "maxRetriesPerInstance": lambda backend, task: task.per_instance_retries or 0,
        "advancedRanges": _attribute("ranges"),
        "waitForPoolResourcesSynchronization": _spec("waitForPoolResourcesSynchronization"),
        "uploadResultsOnCancellation": _spec("uploadResultsOnCancellation"),
        "clusterInfo": lambda backend, task: {"clusterCoresCount": task.running * CORES_PER_NODE},
    },
    summary=[
        "uuid",
        "name",
        "shortname",
        "profile",
        "poolUuid",
        "jobUuid",
        "progress",
        "runningInstanceCount",
        "runningCoreCount",
        "clusterInfo",
        "executionTime",
        "wallTime",
        "state",
        "previousState",
        "totalInstanceCount",
        "instanceCount",
        "maxRetriesPerInstance",
        "advancedRanges",
        "stateTransitionTime",
        "previousStateTransitionTime",
        "lastModified",
        "creationDate",
        "endDate",
        "waitForPoolResourcesSynchronization",
    ],
)

JOB: ResponseBody[Job] = ResponseBody(
    {
        **_IDENTITY,
        "poolUuid": lambda backend, job: job.pool.uuid if job.pool else None,
        "tags": _attribute("tags"),
        "useDependencies": _attribute("use_dependencies"),
        "maxWallTime": _spec("maxWallTime"),
        "autoDeleteOnCompletion": _attribute("auto_delete"),
        "completionTimeToLive": lambda backend, item: formats.span(item.time_to_live),
        **_STATE,
    },
    summary=[
        "uuid",
        "name",
        "shortname",
        "poolUuid",
        "state",
        "previousState",
        "creationDate",
        "lastModified",
    ],
)

# Filters compare the values of these fields as times.
MOMENTS = {
    "statetransitiontime": "moved",
    "previousstatetransitiontime": "previously_moved",
    "creationdate": "created",
    "lastmodified": "modified",
    "enddate": "ended",
}
