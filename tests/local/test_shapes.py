"""Types, nulls and enumerations of every GET, as OpenAPI and the typed SDKs have them, in four moments of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.http import routes_account, routes_jobs, routes_pools, routes_tasks
from airflow_qarnot_pool.local.processes.output import STREAMS

from .conftest import Http, until

#: A name stands for a type, with ? for a value that may be null. A list has the shape of its items, a set the values.
Shape = Any
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
SPAN = re.compile(r"(\d+\.)?\d\d:\d\d:\d\d(\.\d{1,7})?")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RANGE = re.compile(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?")

ERRORS = [{"code": "text", "message": "text", "debug": "text?"}]
POOL_STATES = {
    *("Submitted", "PartiallyDispatched", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"),
    *("Closing", "Closed", "Failure", "PendingDelete"),
}
TASK_STATES = (POOL_STATES - {"Closing", "Closed"}) | {
    "UploadingResults",
    "Cancelled",
    "Success",
    "PendingCancel",
}
MOMENTS = dict.fromkeys(
    ("stateTransitionTime", "previousStateTransitionTime", "creationDate", "lastModified"), "time"
)
IDENTITY = {"uuid": "uuid", "name": "text", "shortname": "text"}
BUCKET = {
    "bucketName": "text",
    "filtering": ({"prefixFiltering": {"prefix": "text"}}, None),
    "resourcesTransformation": ({"stripPrefix": {"prefix": "text"}}, None),
    "cacheTTLSec": "integer?",
}
INSTANCE = {
    "phase": {"download", "dispatch", "environment", "execution", "shutdown", "upload"},
    **dict.fromkeys(("instanceId", "maxMemoryMB", "currentMemoryMB", "coreCount"), "integer"),
    "executionAttemptCount": "integer",
    **dict.fromkeys(
        ("maxFrequencyGHz", "currentFrequencyGHz", "cpuUsage", "memoryUsage", "progress"), "number"
    ),
    **dict.fromkeys(("networkInKbps", "networkOutKbps", "executionTimeSec", "executionTimeGHz"), "number"),
    "clockRatio": "number",
    "specificationKey": "text",
    "cpuModel": "text",
    "activeForwards": [{}],
    "vpnConnections": [{}],
}
STATUS = {
    "timestamp": "time",
    "lastUpdateTimestamp": "time",
    **dict.fromkeys(("downloadProgress", "executionProgress", "uploadProgress"), "number"),
    "instanceCount": "integer",
    **dict.fromkeys(("downloadTime", "environmentTime", "executionTime", "uploadTime", "wallTime"), "span"),
    **dict.fromkeys(("downloadTimeSec", "environmentTimeSec", "executionTimeSec"), "number"),
    **dict.fromkeys(("uploadTimeSec", "wallTimeSec"), "number"),
    "executionTimeByCpuModel": [{"model": "text", "time": "number", "core": "integer"}],
    "executionTimeGhzByCpuModel": [
        {"model": "text", "timeGhz": "number", "clockRatio": "number", "core": "integer"}
    ],
    "executionTimeByMachineSpecification": [{"specificationKey": "text", "time": "number"}],
    "executionTimeBySiteAndMachine": [{"siteUuid": "text", "specificationKey": "text", "time": "number"}],
    "executionTimeByInstanceId": [{"instanceId": "integer", "time": "number", "timeGhz": "number"}],
    **dict.fromkeys(("succeededRange", "executedRange", "failedRange", "cancelledRange"), "range"),
    **dict.fromkeys(("failedOnlyRange", "startedOnceRange"), "range"),
    "runningInstancesInfo": {
        "perRunningInstanceInfo": [INSTANCE],
        "timestamp": "time",
        **dict.fromkeys(("averageFrequencyGHz", "maxFrequencyGHz", "minFrequencyGHz"), "number"),
        **dict.fromkeys(("averageMaxFrequencyGHz", "averageCpuUsage", "clusterPowerIndicator"), "number"),
        **dict.fromkeys(("averageMemoryUsage", "averageNetworkInKbps", "averageNetworkOutKbps"), "number"),
        **dict.fromkeys(("totalNetworkInKbps", "totalNetworkOutKbps"), "number"),
        "runningCoreCountByCpuModel": [{"model": "text", "core": "integer", "runningCoreCount": "integer"}],
        "snapshotResults": ["text"],
    },
}
COMMON = {
    **IDENTITY,
    **MOMENTS,
    "endDate": "time",
    "errors": ERRORS,
    "constants": [{"key": "text", "value": "text"}],
    "tags": ["text"],
    "labels": {},
    "resourceBuckets": ["text"],
    "advancedResourceBuckets": [BUCKET],
    "status": (STATUS, None),
    "hardwareConstraints": [{}],
    "schedulingType": {"flex", "onDemand", "reserved"},
    "targetedReservedMachineKey": "text?",
    "autoDeleteOnCompletion": "flag",
    "completionTimeToLive": "span",
    "privileges": {"exportApiAndStorageCredentialsInEnvironment": "flag"},
    "secretsAccessRights": {"bySecret": [{}], "byPrefix": [{}]},
    "forcedNetworkRules": [{}],
    "forcedConstants": [{}],
    "defaultResourcesCacheTTLSec": "integer",
    "maxTimeQueueSeconds": "integer?",
    "projectUuid": "uuid?",
    "profile": "text",
    "instanceCount": "integer",
    "runningInstanceCount": "integer",
    "runningCoreCount": "integer",
    "executionTime": "span",
    "wallTime": "span",
}
RETRIES = {"maxTotalRetries": "integer?", "maxPerInstanceRetries": "integer?"}
SCALING = {"policies": [{"type": {"Fixed", "ManagedTasksQueue"}, "enabledPeriods": [{}]}]}
POOL = {
    **COMMON,
    "state": POOL_STATES,
    "previousState": POOL_STATES,
    "elasticProperty": {
        "isElastic": "flag",
        **dict.fromkeys(("minTotalSlots", "maxTotalSlots", "minIdleSlots", "resizePeriod"), "integer"),
        "rampResizeFactor": "number",
        "minIdleTimeSeconds": "integer",
    },
    "scaling": ({**SCALING, "activePolicyName": "text?"}, None),
    "preparationTask": ({"commandLine": "text"}, None),
    "totalSlotCapacity": "integer",
    "poolUsage": "number",
    "queuedOrRunningTaskInstancesCount": "integer",
    "targetRunningInstanceCount": "integer",
    "defaultRetrySettings": RETRIES,
    "multiSlotsSettings": {"slotsPerNode": "integer"},
    "taskDefaultWaitForPoolResourcesSynchronization": "flag",
}
FINAL_STATE = {"success", "failure", "cancelled"}
DEPENDENCY_STATE = {"waiting", "dependencyConditionsFulfilled", "dependencyConditionsNotFulfilled"}
TASK = {
    **COMMON,
    "state": TASK_STATES,
    "previousState": TASK_STATES,
    "poolUuid": "uuid?",
    "jobUuid": "uuid?",
    "progress": "number",
    "totalInstanceCount": "integer",
    "maxRetriesPerInstance": "integer",
    "advancedRanges": "range?",
    "resultBucket": "text?",
    "resultsBucket": "text?",
    "resultsCount": "integer",
    "resultsCacheTTLSec": "integer?",
    "snapshotInterval": "integer",
    "retrySettings": RETRIES,
    "uploadResultsOnCancellation": "flag?",
    "waitForPoolResourcesSynchronization": "flag?",
    "clusterInfo": {"clusterCoresCount": "integer"},
    "dependencies": (
        {
            "advancedDependsOn": [
                {
                    "taskUuid": "uuid",
                    "taskFinalStateCondition": ([FINAL_STATE], None),
                    "actualFinalState": (FINAL_STATE, None),
                    "state": DEPENDENCY_STATE,
                }
            ],
            "state": DEPENDENCY_STATE,
        },
        None,
    ),
    "completedInstances": [
        {
            "results": ["text"],
            **dict.fromkeys(("instanceId", "peakMemoryMB", "coreCount", "executionAttemptCount"), "integer"),
            **dict.fromkeys(("wallTimeSec", "execTimeSec", "execTimeSecGHz"), "number"),
            **dict.fromkeys(("clockRatio", "averageGHz"), "number"),
            "state": {"Success", "Failure"},
            "error": (ERRORS[0], None),
            "specificationKey": "text",
            "cpuModel": "text",
        }
    ],
}
JOB = {
    **IDENTITY,
    **MOMENTS,
    "state": "text",
    "previousState": "text",
    "poolUuid": "uuid?",
    "tags": ["text"],
    "useDependencies": "flag",
    "maxWallTime": "span?",
    "autoDeleteOnCompletion": "flag",
    "completionTimeToLive": "span",
}
QUOTAS = dict.fromkeys(("maxInstances", "maxCores", "runningInstancesCount", "runningCoresCount"), "integer")
COMPUTING = {"flex": QUOTAS, "onDemand": QUOTAS, "reserved": [QUOTAS]}
COUNTS = (
    *("maxBucket", "bucketCount", "quotaBytes", "usedQuotaBytes", "quotaBytesBucket", "usedQuotaBytesBucket"),
    *(
        "maxTask",
        "taskCount",
        "maxRunningTask",
        "runningTaskCount",
        "maxJob",
        "jobCount",
        "maxPool",
        "poolCount",
    ),
    *(
        "maxRunningPool",
        "runningPoolCount",
        "runningInstanceCount",
        "runningCoreCount",
        "maxInstances",
        "maxCores",
    ),
    *("maxFlexInstances", "maxFlexCores", "maxOnDemandInstances", "maxOnDemandCores"),
)
INFO = {
    "email": "text",
    **dict.fromkeys(COUNTS, "integer"),
    "defaultScheduling": "text",
    "defaultReservedSpecificationKey": "text?",
    "computingQuotas": {"user": COMPUTING},
    "projects": [
        {
            "uuid": "uuid",
            "slug": "text",
            "name": "text",
            "organizationUuid": "uuid",
            "description": "text",
            "isDefault": "flag",
        }
    ],
}
BUDGET = {
    "uuid": "uuid",
    "alias": "text",
    **dict.fromkeys(("consumedAmountInCents", "totalAmountInCents", "remainingAmountInCents"), "integer"),
    "startDateUtc": "time",
    "expirationDateUtc": "time?",
    "budgetOverrunPolicy": {"AlertOnly", "BlockNew", "StopAndBlockAll"},
    "isArchived": "flag",
}
SNAPSHOT = {
    "id": "text",
    "taskUuid": "uuid",
    "triggerDate": "time",
    "lastUpdateDate": "time?",
    "snapshotConfig": dict.fromkeys(("whitelist", "blacklist", "bucket", "bucketPrefix"), "text?"),
    "status": {"triggered", "inProgress", "success", "failure"},
    "sizeToUpload": "integer?",
    "transferredSize": "integer?",
}
CARBON = {
    **dict.fromkeys(("total_consumed_energy_Wh", "total_energy_it_Wh", "total_reused_energy_Wh"), "number"),
    **dict.fromkeys(("qarnot_carbon_footprint", "equivalent_DC_carbon_footprint"), "number"),
    **dict.fromkeys(("saved_carbon_footprint_compute", "saved_carbon_footprint_heat"), "number"),
    **dict.fromkeys(("saved_carbon_footprint_compute_heat", "saved_carbon_footprint_percent"), "number"),
    **dict.fromkeys(("PUE", "ERE", "ERF", "WUE"), "number"),
    "equivalent_datacenter_name": "text",
}
POOL_SUMMARY = {
    name: shape
    for name, shape in POOL.items()
    if name in {*IDENTITY, *MOMENTS, "profile", "state", "instanceCount", "executionTime", "wallTime"}
}
TASK_SUMMARY = {
    name: shape for name, shape in TASK.items() if name in {*POOL_SUMMARY, "poolUuid", "jobUuid", "progress"}
}


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def matches(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


TYPES = {
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "integer": is_integer,
    "number": lambda value: isinstance(value, float) or is_integer(value),
    "time": lambda value: matches(value, TIME),
    "span": lambda value: matches(value, SPAN),
    "uuid": lambda value: matches(value, UUID),
    "range": lambda value: matches(value, RANGE),
}


def differences(value: Any, shape: Shape, path: str) -> list[str]:
    """Where a value is not of a shape. A pair is a shape or null."""
    if isinstance(shape, tuple):
        return [] if value is None else differences(value, shape[0], path)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [each for n, item in enumerate(value) for each in differences(item, shape[0], f"{path}[{n}]")]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no object"]
        missing = [f"{path}.{name} is missing" for name in shape if name not in value]
        found = [(name, inner) for name, inner in shape.items() if name in value]
        return missing + [
            e for name, inner in found for e in differences(value[name], inner, f"{path}.{name}")
        ]
    if isinstance(shape, set):
        return [] if value in shape else [f"{path}: {value!r} is not one of {sorted(shape)}"]
    if value is None and shape.endswith("?"):
        return []
    return [] if TYPES[shape.rstrip("?")](value) else [f"{path}: {value!r} is no {shape}"]


def shapes(http: Http, snapshot: str) -> dict[str, Shape]:
    """Every GET with JSON, and its shape.

    :param snapshot: path of a snapshot, if there is one.
    """
    pools, tasks, jobs = (
        [one["uuid"] for one in http("GET", path).json()] for path in ("/pools", "/tasks", "/jobs")
    )
    found: dict[str, Shape] = {
        "/settings": {"storage": "text"},
        "/versions": [{"version": "text", "endOfLife": "text?"}],
        "/info": INFO,
        "/quotas/computing-quotas/user": COMPUTING,
        "/profiles": ["text"],
        "/profiles/docker-batch": {
            "name": "text",
            "constants": [{"name": "text", "value": "text", "description": "text"}],
            "licenses": [{}],
        },
        "/hardware-constraints": {
            "data": [{"discriminator": "text"}],
            "offset": "integer",
            "limit": "integer",
        },
        "/hardware-constraints/cpu-model-constraints/search?cpuModel=a": [{"cpuModel": "text"}],
        "/credits/v1/accounts/credits": {"credits": "number"},
        "/secrets-manager/search": {"keys": ["text"]},
        "/secrets-manager/search/folder": {"keys": ["text"]},
        "/secrets-manager/data/folder/key": {"value": "text"},
        "/pools": [POOL],
        "/pools/summaries": [POOL_SUMMARY],
        "/tasks": [TASK],
        "/tasks/summaries": [TASK_SUMMARY],
        "/jobs": [JOB],
    }
    project = http("GET", "/info").json()["projects"][0]["uuid"]
    found[f"/credits/v1/projects/{project}/budgets"] = {"budgets": [BUDGET]}
    found |= {snapshot: SNAPSHOT} if snapshot else {}
    for uuid in pools:
        found |= {f"/pools/{uuid}": POOL, f"/pools/{uuid}/tasks": [TASK], f"/pools/{uuid}/jobs": [JOB]}
        found |= {
            f"/pools/{uuid}/scaling": SCALING,
            f"/credits/v1/pools/{uuid}/credits": {"credits": "number"},
        }
        found |= {f"/carbon/v1/pools/{uuid}/carbon-facts": CARBON}
    for uuid in tasks:
        found |= {f"/tasks/{uuid}": TASK, f"/credits/v1/tasks/{uuid}/credits": {"credits": "number"}}
        found |= {f"/carbon/v1/tasks/{uuid}/carbon-facts": CARBON, f"/network/tasks/{uuid}/port-forward": {}}
    for uuid in jobs:
        found |= {f"/jobs/{uuid}": JOB, f"/jobs/{uuid}/tasks": [TASK]}
    return found


def all_differences(http: Http, snapshot: str = "") -> list[str]:
    found = []
    for path, shape in shapes(http, snapshot).items():
        answer = http("GET", path)
        assert answer.status_code == 200, (path, answer.text)
        found += differences(answer.json(), shape, path)
    return found


#: Texts, a 404, the place of the page, and a second spelling.
WITHOUT_SHAPE = {
    *(
        f"/{kind}/{{u}}/{stream}{of}"
        for kind in ("pools", "tasks")
        for stream in STREAMS
        for of in ("", "/{i}")
    ),
    "/",
    "/quotas/computing-quotas/organization",
    "/carbon/v1/Pools/{u}/carbon-facts",
    "/carbon/v1/Tasks/{u}/carbon-facts",
}


def gets(path: str | None = None) -> set[str]:
    """The paths of all routes of the API for GET, or of the first that serves *path*."""
    backend = MagicMock()
    modules = (routes_account, routes_pools, routes_tasks, routes_jobs)
    routes = [route for module in modules for route in module.routes(backend) if "GET" in route.methods]
    found = [route.path for route in routes if path is None or route.path_regex.match(path.partition("?")[0])]
    return set(found if path is None else found[:1])


@pytest.fixture
def server_of_run() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=100, close_seconds=100, speed=0) as server:
        yield server


def test_every_response_has_its_types_in_four_moments_of_a_run(
    server_of_run: LocalQarnot, tmp_path: Any
) -> None:
    server, http = server_of_run, Http(server_of_run)
    always = [{"type": "Always", "name": "always"}]
    fixed = {"type": "Fixed", "slotsCount": 1, "name": "one", "enabledPeriods": always}
    queue = {"type": "ManagedTasksQueue", "maxTotalSlots": 1, "name": "queue", "enabledPeriods": []}
    body: dict[str, Any] = {"name": "p", "profile": "docker-batch", "instanceCount": 1}
    pool = http("POST", "/pools", {**body, "preparationTask": {"commandLine": "true"}}).json()["uuid"]
    http("POST", "/pools", {**body, "scaling": {"policies": [fixed, queue]}, "labels": {"a": "b"}})
    job = http("POST", "/jobs", {"name": "j", "poolUuid": pool, "useDependencies": True}).json()["uuid"]
    gate = f"sh -c 'echo x; while ! test -e {tmp_path}/go; do sleep 0.02; done; exit $INSTANCE_ID'"
    task: dict[str, Any] = {
        "name": "t",
        "instanceCount": 2,
        "constants": [{"key": "DOCKER_CMD", "value": gate}],
    }
    first = http("POST", "/tasks", {**task, "jobUuid": job, "instanceCount": 1}).json()["uuid"]
    condition = {"taskUuid": first, "taskFinalStateCondition": "success"}
    http("POST", "/tasks", {**task, "jobUuid": job, "dependencies": {"advancedDependsOn": [condition]}})
    http("PUT", "/secrets-manager/data/folder/key", {"value": "x"})
    server.set_account(budgets=[{"alias": "of 5 EUR", "totalAmountInCents": 500.4}])
    alone = http("POST", "/tasks", {**task, "profile": "docker-batch", "resultBucket": "results"}).json()[
        "uuid"
    ]
    http("POST", "/tasks", {"name": "t", "profile": "docker-batch", "advancedRanges": "1-2,7"})
    ends = ("Success", "Failure", "Cancelled")

    assert all_differences(http) == []  # nothing is placed
    server.advance_clock(60)
    assert all_differences(http) == []  # nodes boot
    server.advance_clock(60)
    until(lambda: http("GET", f"/tasks/{alone}").json()["state"] == "FullyExecuting")
    taken = http("POST", f"/tasks/{alone}/snapshot", {}).json()["id"]
    snapshot = f"/tasks/{alone}/snapshot/{taken}"
    assert all_differences(http, snapshot) == []  # commands run
    without_shape = gets() - {route for path in shapes(http, snapshot) for route in gets(path)}
    assert without_shape == WITHOUT_SHAPE
    (tmp_path / "go").touch()
    until(lambda: http("GET", f"/tasks/{alone}").json()["state"] in ends)
    until(lambda: http("GET", f"/tasks/{first}").json()["state"] in ends)
    assert http("GET", f"/tasks/{alone}").json()["completedInstances"]
    assert all_differences(http, snapshot) == []  # one has failed
    http("POST", f"/pools/{pool}/close")
    assert all_differences(http) == []  # the pool closes
    server.advance_clock(200)
    assert http("GET", f"/pools/{pool}").json()["state"] == "Closed"
    assert all_differences(http) == []


def test_differences_are_found() -> None:
    shape = {"a": "integer", "b": ["text"], "c": ({"d": "flag"}, None), "e": {"x", "y"}}
    assert differences({"a": 1, "b": [], "c": None, "e": "x"}, shape, "") == []
    wrong = differences({"a": 1.0, "b": [None], "c": {}, "e": None}, shape, "")
    assert [text.partition(":")[0] for text in wrong] == [".a", ".b[0]", ".c.d is missing", ".e"]
