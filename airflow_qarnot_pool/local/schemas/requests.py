"""Read requests that create pools and tasks (Qarnot API: qarnot-api.md 3.2, 3.3, 3.7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_qarnot_pool.local.backend import scaling
from airflow_qarnot_pool.local.backend.models import FINAL_STATES, Dependency
from airflow_qarnot_pool.local.backend.readings import DEFAULT_READINGS, Readings
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.errors import ApiError, missing
from airflow_qarnot_pool.local.schemas.fields import (
    MAX_COMMAND,
    MAX_INSTANCES,
    MAX_POOL_CONSTANTS,
    MAX_TASK_CONSTANTS,
    Profiles,
    RequestFields,
    fold,
    is_uuid,
)
from airflow_qarnot_pool.local.schemas.scaling import ELASTIC_OFF, read_elastic, read_scaling

NO_SSH = "The local Qarnot has no ssh. Leave out the constant DOCKER_SSH, or use the real service"
NO_DESKTOP = "The local Qarnot has no remote desktop. Leave out VNC and VNC_PASSWORD, or use the real service"
NO_FORWARD = (
    "The local Qarnot forwards no ports to instances. Leave out forcedNetworkRules, or use the real service"
)


@dataclass(kw_only=True)
class Creation:
    """Fields common to the creation of pools and tasks."""

    name: str
    shortname: str | None
    profile: str | None
    tags: list[str]
    constants: dict[str, str] = field(repr=False)
    time_to_live: float
    auto_delete: bool
    spec: dict[str, Any] = field(default_factory=dict)
    buckets: list[str] = field(default_factory=list)
    """Resource buckets that must exist."""


@dataclass(kw_only=True)
class PoolCreation(Creation):
    instance_count: int
    slots_per_node: int
    elastic: dict[str, Any]
    scaling: list[scaling.Policy] | None


@dataclass(kw_only=True)
class TaskCreation(Creation):
    pool_uuid: str | None
    job_uuid: str | None
    instance_count: int
    ranges: str | None
    ids: list[int]
    per_instance_retries: int | None
    total_retries: int | None
    own_retries: bool
    depends_on: list[Dependency]


_SHORTNAME_LENGTHS = {"63": 63, "64 to 255": 255, "256 or more": 512}
_INSTANCES = {"fewer than 2048": 1000, "2048": MAX_INSTANCES, "more than 2048": 10_000}


def _shared(fields: RequestFields, constants: int, readings: Readings) -> dict[str, Any]:
    plain, advanced = fields.buckets()
    spec: dict[str, Any] = {
        "resourceBuckets": plain,
        "advancedResourceBuckets": advanced,
        "labels": fields.labels(),
        "hardwareConstraints": fields.stored("hardwareConstraints"),
        "schedulingType": fields.scheduling() or "flex",
        "privileges": {
            "exportApiAndStorageCredentialsInEnvironment": bool(
                fields.inner("privileges").boolean("exportApiAndStorageCredentialsInEnvironment")
            )
        },
        "defaultResourcesCacheTTLSec": fields.integer("defaultResourcesCacheTTLSec", 7776000),
        "forcedConstants": fields.stored("forcedConstants"),
        "constraints": fields.stored("constraints"),
        "forcedNetworkRules": fields.stored("forcedNetworkRules"),
        "maxTimeQueueSeconds": fields.integer("maxTimeQueueSeconds"),
        "projectUuid": fields.text("projectUuid"),
        "targetedReservedMachineKey": fields.text("targetedReservedMachineKey"),
        "targetedReservationName": fields.text("targetedReservationName"),
    }
    access = fields.inner("secretsAccessRights")
    spec["secretsAccessRights"] = {name: access.stored(name) for name in ("bySecret", "byPrefix")}
    given_constants = fields.constants(constants)
    _refuse_connections(given_constants)
    return {
        "name": fields.text("name", required=True) or "",
        "shortname": fields.shortname(_SHORTNAME_LENGTHS[readings.shortname_length]),
        "profile": fields.text("profile"),
        "tags": fields.tags(readings.unit_of_limits),
        "constants": given_constants,
        "time_to_live": fields.duration("completionTimeToLive"),
        "auto_delete": bool(fields.boolean("autoDeleteOnCompletion")),
        "buckets": [*plain, *(item["bucketName"] for item in advanced)],
        "spec": spec,
    }


def _refuse_connections(constants: Mapping[str, str]) -> None:
    """Refuse constants that ask for a connection to an instance. Raises ApiError 400."""
    if constants.get("DOCKER_SSH"):
        raise ApiError(400, NO_SSH)
    if "VNC_PASSWORD" in constants or constants.get("VNC", "").lower() == "true":
        raise ApiError(400, NO_DESKTOP)


def read_pool(
    value: Any,
    profiles: Profiles,
    readings: Readings = DEFAULT_READINGS,
    defaults: Mapping[str, Any] | None = None,
) -> PoolCreation:
    """Read a POST /pools body (3.2). Raises ApiError 400, and perhaps 404 for an unknown profile.

    :param defaults: the creation that it overrides, for a clone.
    """
    fields = RequestFields(value, "pool", defaults)
    shared = _shared(fields, MAX_POOL_CONSTANTS, readings)
    if shared["profile"] not in profiles:
        if readings.unknown_references == "404":
            raise missing("profile", str(shared["profile"]))
        fields.wrong("profile", profiles.missing(shared["profile"]))
    if fields.has("resultBucket"):
        fields.wrong("resultBucket")
    elastic, policies = _read_sizing(fields, readings)
    preparation = _read_preparation(fields)
    slots = _read_slots_per_node(fields)
    shared["spec"] |= {
        "preparationTask": preparation,
        "defaultRetrySettings": fields.retries("defaultRetrySettings"),
        "taskDefaultWaitForPoolResourcesSynchronization": fields.boolean(
            "taskDefaultWaitForPoolResourcesSynchronization"
        ),
    }
    if fields.has("multiSlotsSettings"):
        shared["spec"]["multiSlotsSettings"] = {"slotsPerNode": slots}
    count = fields.integer("instanceCount", 1)
    if count == 0 and not elastic["isElastic"] and policies is None:
        fields.wrong("instanceCount")
    fields.check()
    return PoolCreation(
        **shared, instance_count=count or 0, slots_per_node=slots, elastic=elastic, scaling=policies
    )


def _read_sizing(
    fields: RequestFields, readings: Readings
) -> tuple[dict[str, Any], list[scaling.Policy] | None]:
    """Read elasticProperty and scaling, of which only one may be used."""
    elastic = _read_elastic(fields, readings)
    if not fields.has("scaling"):
        return elastic, None
    policies, problems = read_scaling(fields.raw("scaling"))
    if problems:
        fields.wrong("scaling")
    if policies and elastic["isElastic"]:
        if readings.elastic_and_scaling == "no":
            elastic = ELASTIC_OFF
        else:
            fields.wrong("elasticProperty-scaling-exclusive")
    return elastic, policies or None  # an empty list is no scaling


def _read_elastic(fields: RequestFields, readings: Readings) -> dict[str, Any]:
    elastic = read_elastic(fields.raw("elasticProperty") if fields.has("elasticProperty") else {})
    if elastic is None:
        fields.wrong("elasticProperty")
        return ELASTIC_OFF
    if elastic["isElastic"]:
        if readings.resize_bounds == "not resizePeriod 1" and elastic["resizePeriod"] == 1:
            fields.wrong("elasticProperty")
        if readings.count_with_elastic == "refused" and fields.has("instanceCount"):
            fields.wrong("instanceCount")
    return elastic


def _read_preparation(fields: RequestFields) -> dict[str, Any] | None:
    command = fields.inner("preparationTask").text("commandLine", max_length=MAX_COMMAND)
    return {"commandLine": command} if command else None


def _read_slots_per_node(fields: RequestFields) -> int:
    return fields.inner("multiSlotsSettings").integer("slotsPerNode", 1, minimum=1) or 1


def read_task(
    value: Any, readings: Readings = DEFAULT_READINGS, defaults: Mapping[str, Any] | None = None
) -> TaskCreation:
    """Read one item of a POST /tasks body (3.3). Raises ApiError 400."""
    fields = RequestFields(value, "task", defaults)
    shared = _shared(fields, MAX_TASK_CONSTANTS, readings)
    pool, job = _read_references(fields, shared["spec"])
    ranges, ids = _read_instances(fields, readings)
    retry = fields.retries("retrySettings")
    legacy = fields.integer("maxRetriesPerInstance")
    if legacy and retry["maxPerInstanceRetries"]:
        fields.wrong("maxRetriesPerInstance-retrySettings-exclusive")
    # OpenAPI has both names. The longer one counts only if the request does not set the other.
    own, bucket, other_name = fold(value), fields.bucket("resultBucket"), fields.bucket("resultsBucket")
    if own.get("resultsbucket") and not own.get("resultbucket"):
        bucket = other_name
    shared["spec"] |= {
        "resultBucket": bucket,
        "resultsBucketPrefix": fields.text("resultsBucketPrefix"),
        "resultsWhitelist": fields.regex("resultsWhitelist"),
        "resultsBlacklist": fields.regex("resultsBlacklist"),
        "resultsCacheTTLSec": fields.integer("resultsCacheTTLSec"),
        "snapshotBucket": fields.bucket("snapshotBucket"),
        "snapshotBucketPrefix": fields.text("snapshotBucketPrefix"),
        "snapshotWhitelist": fields.regex("snapshotWhitelist"),
        "snapshotBlacklist": fields.regex("snapshotBlacklist"),
        "retrySettings": retry,
        "uploadResultsOnCancellation": fields.boolean("uploadResultsOnCancellation", None),
        "waitForPoolResourcesSynchronization": fields.boolean("waitForPoolResourcesSynchronization", None),
    }
    depends = _dependencies(fields)
    fields.check()
    per_instance = retry["maxPerInstanceRetries"] if retry["maxPerInstanceRetries"] is not None else legacy
    return TaskCreation(
        **shared,
        pool_uuid=pool,
        job_uuid=job,
        instance_count=0 if ranges is not None else len(ids),
        ranges=ranges,
        ids=ids,
        per_instance_retries=per_instance,
        total_retries=retry["maxTotalRetries"],
        own_retries=per_instance is not None or retry["maxTotalRetries"] is not None,
        depends_on=depends,
    )


def _read_references(fields: RequestFields, spec: dict[str, Any]) -> tuple[str | None, str | None]:
    """Read the uuids of the pool and of the job."""
    pool, job = fields.text("poolUuid"), fields.text("jobUuid")
    for name, reference in (("poolUuid", pool), ("jobUuid", job)):
        if reference is not None and not is_uuid(reference):
            fields.wrong(name)
    if pool and job:
        fields.wrong("poolUuid-jobUuid-exclusive")
    if pool and fields.items("hardwareConstraints"):
        fields.wrong("hardwareConstraints")
    if pool and any(spec["secretsAccessRights"].values()):
        fields.wrong("secretsAccessRights")
    return pool, job


def _read_instances(fields: RequestFields, readings: Readings) -> tuple[str | None, list[int]]:
    """Read the ranges, if there are any, and the ids of the instances."""
    ranges = fields.text("advancedRanges")
    # The C# SDK always sends a count, which is 0 with ranges.
    count = fields.integer("instanceCount", None, minimum=1 if ranges is None else 0)
    ids: list[int] = []
    maximum = _INSTANCES[readings.max_instances]
    if ranges is None:
        ids = list(range(min(count or 1, maximum + 1)))
    else:
        try:
            ids = formats.parse_ranges(ranges, includes_end=readings.range_end == "included")
        except ValueError:
            fields.wrong("advancedRanges")
        if count:
            fields.wrong("instanceCount-advancedRanges-exclusive")
    if len(ids) > maximum:
        fields.wrong("range-length")
    return ranges, ids


def _dependencies(fields: RequestFields) -> list[Dependency]:
    """Read the dependencies from one of the two forms, of which only one may be used."""
    block = fields.inner("dependencies")
    simple = [Dependency(str(uuid)) for uuid in block.items("dependsOn")]
    advanced = [_advanced(item) for item in block.inner_list("advancedDependsOn")]
    if any(not is_uuid(dependency.uuid) for dependency in (*simple, *advanced)) or (simple and advanced):
        fields.wrong("dependencies")
    return simple or advanced


def _advanced(fields: RequestFields) -> Dependency:
    requested = fields.raw("taskFinalStateCondition")
    condition = [requested] if isinstance(requested, str) else fields.items("taskFinalStateCondition")
    allowed = frozenset(str(state).lower() for state in condition) or FINAL_STATES
    if not allowed <= FINAL_STATES:
        fields.wrong("taskFinalStateCondition")
    return Dependency(fields.text("taskUuid") or "", allowed, advanced=True, condition=condition or None)
