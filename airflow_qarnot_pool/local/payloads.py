"""Reading request bodies: keys in any case, unknown keys ignored, null as good as absent, every bad field named.

Qarnot API: creation fields of pools and tasks, qarnot-api.md 3.2 to 3.8; error wording 2.3.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_qarnot_pool.local import scaling, wire
from airflow_qarnot_pool.local.errors import ApiError, invalid

PROFILES = (
    "docker-batch",
    "docker-network",
    "docker-network-ssh",
    "docker-cluster",
    "docker-batch-smt",
    "ubuntu",
)
SECRET_PREFIX = "QARNOT_SECRET__"
SECRET_TEXT = "[SECRET]"
MAX_TAGS, MAX_TAG = 10, 511
MAX_TEXT = 2047
MAX_CONSTANT = 2048
MAX_POOL_CONSTANTS, MAX_TASK_CONSTANTS = 50, 150
MAX_BUCKETS = 100
MAX_INSTANCES = 2048
SCHEDULING = ("flex", "onDemand", "reserved")
_KEY = re.compile(r"^[A-Za-z0-9_.-]{1,2048}$")
_SHORTNAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$")
_UUID = re.compile(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")


def parse(body: bytes) -> Any:
    """JSON of a request. Raises ApiError 400."""
    try:
        return json.loads(body or b"null")
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON") from None


def fold(value: Any) -> dict[str, Any]:
    """An object with its keys in lower case and without nulls."""
    if not isinstance(value, Mapping):
        return {}
    return {str(k).lower(): v for k, v in value.items() if v is not None}


def is_uuid(text: object) -> bool:
    return isinstance(text, str) and bool(_UUID.match(text))


def keep_secrets(new: dict[str, str], old: Mapping[str, str]) -> dict[str, str]:
    """A secret that comes back as the text clients are shown for it is left as it was."""
    return {k: old.get(k, v) if v == SECRET_TEXT else v for k, v in new.items()}


class Fields:
    """The fields of one JSON object; names of invalid ones gather in `bad`."""

    def __init__(self, value: Any, kind: str, defaults: Mapping[str, Any] | None = None) -> None:
        if not isinstance(value, Mapping):
            raise ApiError(400, f"Invalid {kind} file. A JSON object is expected")
        self.kind = kind
        self._values = {**fold(defaults), **fold(value)}
        self.bad: list[str] = []

    def check(self) -> None:
        """Raises ApiError 400 that names every invalid field."""
        if self.bad:
            raise invalid(self.kind, dict.fromkeys(self.bad))

    def wrong(self, name: str) -> None:
        self.bad.append(name)

    def has(self, name: str) -> bool:
        return name.lower() in self._values

    def raw(self, name: str) -> Any:
        return self._values.get(name.lower())

    def text(self, name: str, *, required: bool = False, longest: int = MAX_TEXT) -> str | None:
        value = self.raw(name)
        if value is None or value == "":
            if required:
                self.wrong(name)
            return None
        if not isinstance(value, str) or len(value) > longest or "\0" in value:
            self.wrong(name)
            return None
        return value

    def regex(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and "${" not in value:
            try:
                re.compile(value)
            except re.error:
                self.wrong(name)
        return value

    def integer(
        self, name: str, default: int | None = None, *, least: int = 0, most: int = 2**31
    ) -> int | None:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.wrong(name)
            return default
        return value

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            self.wrong(name)
            return default
        return value if math.isfinite(value) else default

    def boolean(self, name: str, default: bool | None = False) -> bool | None:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(name)
            return default
        return value

    def duration(self, name: str) -> float:
        value = self.raw(name)
        if value is None:
            return 0.0
        try:
            seconds = wire.parse_span(value)
        except (ValueError, AttributeError):
            seconds = -1.0
        if seconds < 0:
            self.wrong(name)
            return 0.0
        return seconds

    def items(self, name: str, most: int = 10_000) -> list[Any]:
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            self.wrong(name)
            return []
        return value

    def strings(self, name: str, most: int, longest: int) -> list[str]:
        values = self.items(name, most)
        if any(not isinstance(v, str) or not v or len(v) > longest for v in values):
            self.wrong(name)
            return []
        return list(dict.fromkeys(values))

    def tags(self) -> list[str]:
        return self.strings("tags", MAX_TAGS, MAX_TAG)

    def labels(self) -> dict[str, str]:
        value = self.raw("labels")
        if value is None:
            return {}
        if not isinstance(value, Mapping) or any(not isinstance(v, str) for v in value.values()):
            self.wrong("labels")
            return {}
        return dict(value)

    def constants(self, most: int) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in self.items("constants", most):
            pair = fold(item)
            key, value = pair.get("key"), pair.get("value")
            if (
                not isinstance(key, str)
                or not _KEY.match(key)
                or not isinstance(value, str)
                or len(value) > MAX_CONSTANT
                or "\0" in value
            ):
                self.wrong("constants")
                return {}
            found[key] = value
        return found

    def shortname(self) -> str | None:
        value = self.text("shortname", longest=512)
        if value is not None and not _SHORTNAME.match(value):
            self.wrong("shortname")
        return value

    def buckets(self) -> tuple[list[str], list[dict[str, Any]]]:
        """(resourceBuckets, advancedResourceBuckets), of which only one may be filled."""
        plain = self.strings("resourceBuckets", MAX_BUCKETS, 255)
        advanced: list[dict[str, Any]] = []
        for item in self.items("advancedResourceBuckets", MAX_BUCKETS):
            one = fold(item)
            name = one.get("bucketname")
            prefix = fold(fold(one.get("filtering")).get("prefixfiltering")).get("prefix")
            strip = fold(fold(one.get("resourcestransformation")).get("stripprefix")).get("prefix")
            ttl = one.get("cachettlsec")
            if (
                not isinstance(name, str)
                or not name
                or any(v and not isinstance(v, str) for v in (prefix, strip))
            ):
                self.wrong("advancedResourceBuckets")
                return [], []
            advanced.append(
                {
                    "bucketName": name,
                    "filtering": {"prefixFiltering": {"prefix": prefix}} if prefix else None,
                    "resourcesTransformation": {"stripPrefix": {"prefix": strip}} if strip else None,
                    "cacheTTLSec": ttl,
                }
            )
        if plain and advanced:
            self.wrong("resourceBuckets-advancedResourceBuckets-exclusive")
        return plain, advanced

    def retries(self, name: str) -> dict[str, int | None]:
        inner = (
            Fields(self.raw(name) or {}, self.kind)
            if isinstance(self.raw(name), (dict, type(None)))
            else None
        )
        if inner is None:
            self.wrong(name)
            return {"maxTotalRetries": None, "maxPerInstanceRetries": None}
        found = {
            "maxTotalRetries": inner.integer("maxTotalRetries"),
            "maxPerInstanceRetries": inner.integer("maxPerInstanceRetries"),
        }
        if inner.bad:
            self.wrong(name)
        return found

    def scheduling(self) -> str | None:
        value = self.text("schedulingType")
        if value is None:
            return None
        known = {s.lower(): s for s in SCHEDULING}.get(value.lower())
        if known is None:
            self.wrong("schedulingType")
        return known


# ---- elastic and scaling -------------------------------------------------------------------------

ELASTIC_OFF: dict[str, Any] = {
    "isElastic": False,
    "minTotalSlots": 0,
    "maxTotalSlots": 1,
    "minIdleSlots": 0,
    "resizePeriod": 90,
    "rampResizeFactor": 1,
    "minIdleTimeSeconds": 0,
}


def read_elastic(value: Any, defaults: Mapping[str, Any] = ELASTIC_OFF) -> dict[str, Any] | None:
    """An elasticProperty block in full; None if it is invalid."""
    try:
        fields = Fields(value, "pool", defaults)
    except ApiError:
        return None
    elastic = {
        "isElastic": fields.boolean("isElastic"),
        "minTotalSlots": fields.integer("minTotalSlots"),
        "maxTotalSlots": fields.integer("maxTotalSlots"),
        "minIdleSlots": fields.integer("minIdleSlots"),
        "resizePeriod": fields.integer("resizePeriod"),
        "rampResizeFactor": fields.number("rampResizeFactor", 1, least=0, most=1),
        "minIdleTimeSeconds": fields.integer("minIdleTimeSeconds"),
    }
    top = elastic["maxTotalSlots"]
    if fields.bad or (
        elastic["isElastic"] and (elastic["minTotalSlots"] > top or elastic["minIdleSlots"] > top)
    ):
        return None
    return elastic


def read_scaling(value: Any) -> tuple[list[scaling.Policy], dict[str, list[str]]]:
    """A scaling object: (policies, problems). Problems are in the form of Qarnot's validation details:
    `{"policies[0]": ["The input was not valid."]}`."""
    problems: dict[str, list[str]] = {}
    policies: list[scaling.Policy] = []
    items = fold(value).get("policies")
    if not isinstance(items, list):
        return [], {"policies": ["The input was not valid."]}
    for position, item in enumerate(items):
        policy = _policy(item)
        if policy is None:
            problems[f"policies[{position}]"] = ["The input was not valid."]
        elif any(policy.name == other.name for other in policies):
            problems["policies"] = [f"Policy names must be unique: {policy.name}"]
        else:
            policies.append(policy)
    return policies, problems


def _policy(item: Any) -> scaling.Policy | None:
    if not isinstance(item, Mapping):
        return None
    fields = Fields(item, "pool")
    kind, name = fields.text("type", required=True), fields.text("name", required=True)
    periods = [_period(period) for period in fields.items("enabledPeriods")]
    if name is None or not periods or any(period is None for period in periods):
        return None
    good = [period for period in periods if period is not None]
    if kind == "Fixed":
        slots = fields.integer("slotsCount", -1, least=0)
        rule = scaling.Rule(fixed=slots)
        source: dict[str, Any] = {"type": kind, "slotsCount": slots}
        fine = slots != -1
    elif kind == "ManagedTasksQueue":
        least, most = fields.integer("minTotalSlots", 0) or 0, fields.integer("maxTotalSlots", -1)
        idle, seconds = fields.integer("minIdleSlots", 0) or 0, fields.integer("minIdleTimeSeconds", 90)
        factor = fields.number("scalingFactor", 0.2, least=0, most=1)
        most = -1 if most is None else most
        fine = factor > 0 and most >= max(least, idle)
        rule = scaling.Rule(
            min_total=max(least, idle),
            max_total=most,
            min_idle=idle,
            idle_seconds=float(seconds or 0),
            step=scaling.share(max(most, 0), factor),
        )
        source = {
            "type": kind,
            "minTotalSlots": least,
            "maxTotalSlots": most,
            "minIdleSlots": idle,
            "minIdleTimeSeconds": seconds,
            "scalingFactor": factor,
        }
    else:
        return None
    if fields.bad or not fine:
        return None
    source |= {"name": name, "enabledPeriods": [source_ for _, source_ in good]}
    return scaling.Policy(name, rule, tuple(period for period, _ in good), source)


def _period(item: Any) -> tuple[scaling.Period, dict[str, Any]] | None:
    if not isinstance(item, Mapping):
        return None
    fields = Fields(item, "pool")
    kind, name = fields.text("type", required=True), fields.text("name", required=True)
    if name is None:
        return None
    if kind == "Always":
        return scaling.Period(name), {"type": kind, "name": name}
    if kind != "Weekly":
        return None
    days = [_day(day) for day in fields.items("days", 7)]
    try:
        start, end = (_time_of_day(fields.raw(key)) for key in ("startTimeUtc", "endTimeUtc"))
    except (ValueError, TypeError):
        return None
    known = sorted({day for day in days if day is not None})
    if not known or None in days:
        return None
    source = {
        "type": kind,
        "days": [scaling.DAY_NAMES[day] for day in days if day is not None],
        "startTimeUtc": fields.raw("startTimeUtc"),
        "endTimeUtc": fields.raw("endTimeUtc"),
        "name": name,
    }
    return scaling.Period(name, tuple(known), start, end), source


def _day(value: Any) -> int | None:
    """A day name in any case, or .NET's DayOfWeek (0 = Sunday) -> 0 = Monday."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 6:
        return (value - 1) % 7
    if isinstance(value, str) and value.lower() in scaling.DAY_NAMES:
        return scaling.DAY_NAMES.index(value.lower())
    return None


def _time_of_day(value: Any) -> float:
    seconds = wire.parse_span(value)
    if not 0 <= seconds < scaling.DAY:
        raise ValueError(value)
    return seconds


# ---- creation ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Creation:
    """What pool and task creation share."""

    name: str
    shortname: str | None
    profile: str | None
    tags: list[str]
    constants: dict[str, str]
    time_to_live: float
    auto_delete: bool
    spec: dict[str, Any] = field(default_factory=dict)
    buckets: list[str] = field(default_factory=list)
    """Resource buckets that have to exist."""


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
    depends_on: list[tuple[str, frozenset[str]]]


def _shared(fields: Fields, constants: int) -> dict[str, Any]:
    plain, advanced = fields.buckets()
    spec: dict[str, Any] = {
        "resourceBuckets": plain,
        "advancedResourceBuckets": advanced,
        "labels": fields.labels(),
        "hardwareConstraints": fields.items("hardwareConstraints"),
        "schedulingType": fields.scheduling() or "flex",
        "privileges": {
            "exportApiAndStorageCredentialsInEnvironment": bool(
                fold(fields.raw("privileges")).get("exportapiandstoragecredentialsinenvironment")
            )
        },
        "defaultResourcesCacheTTLSec": fields.integer("defaultResourcesCacheTTLSec", 7776000),
        "forcedConstants": fields.items("forcedConstants"),
        "constraints": fields.items("constraints"),
        "forcedNetworkRules": fields.items("forcedNetworkRules"),
        "maxTimeQueueSeconds": fields.integer("maxTimeQueueSeconds"),
        "projectUuid": fields.text("projectUuid"),
        "targetedReservedMachineKey": fields.text("targetedReservedMachineKey"),
        "targetedReservationName": fields.text("targetedReservationName"),
    }
    access = fold(fields.raw("secretsAccessRights"))
    spec["secretsAccessRights"] = {
        "bySecret": access.get("bysecret", []),
        "byPrefix": access.get("byprefix", []),
    }
    return {
        "name": fields.text("name", required=True) or "",
        "shortname": fields.shortname(),
        "profile": fields.text("profile"),
        "tags": fields.tags(),
        "constants": fields.constants(constants),
        "time_to_live": fields.duration("completionTimeToLive"),
        "auto_delete": bool(fields.boolean("autoDeleteOnCompletion")),
        "buckets": [*plain, *(item["bucketName"] for item in advanced)],
        "spec": spec,
    }


def read_pool(value: Any, defaults: Mapping[str, Any] | None = None) -> PoolCreation:
    """A POST /pools body (3.2). :param defaults: the creation it overrides, for a clone. Raises ApiError 400."""
    fields = Fields(value, "pool", defaults)
    shared = _shared(fields, MAX_POOL_CONSTANTS)
    if shared["profile"] not in PROFILES:
        fields.wrong("profile")
    if fields.has("resultBucket"):
        fields.wrong("resultBucket")
    elastic = read_elastic(fields.raw("elasticProperty") or {})
    if elastic is None:
        fields.wrong("elasticProperty")
        elastic = ELASTIC_OFF
    policies: list[scaling.Policy] | None = None
    if fields.has("scaling"):
        policies, problems = read_scaling(fields.raw("scaling"))
        if problems:
            fields.wrong("scaling")
        if elastic["isElastic"]:
            fields.wrong("elasticProperty-scaling-exclusive")
    preparation = fields.raw("preparationTask")
    command = fold(preparation).get("commandline")
    if preparation is not None and command is not None and not isinstance(command, str):
        fields.wrong("preparationTask")
    slots = fold(fields.raw("multiSlotsSettings")).get("slotspernode", 1)
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        fields.wrong("multiSlotsSettings")
        slots = 1
    shared["spec"] |= {
        "preparationTask": {"commandLine": command} if command else None,
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


def read_task(value: Any, defaults: Mapping[str, Any] | None = None) -> TaskCreation:
    """One item of a POST /tasks body (3.3). Raises ApiError 400."""
    fields = Fields(value, "task", defaults)
    shared = _shared(fields, MAX_TASK_CONSTANTS)
    pool, job = fields.text("poolUuid"), fields.text("jobUuid")
    for name, reference in (("poolUuid", pool), ("jobUuid", job)):
        if reference is not None and not is_uuid(reference):
            fields.wrong(name)
    if pool and job:
        fields.wrong("poolUuid-jobUuid-exclusive")
    if pool and (fields.items("hardwareConstraints") or fields.has("secretsAccessRights")):
        fields.wrong("hardwareConstraints" if fields.items("hardwareConstraints") else "secretsAccessRights")
    ranges = fields.text("advancedRanges")
    # C# always sends a count, 0 when it chooses ranges.
    count = fields.integer("instanceCount", None, least=1 if ranges is None else 0)
    ids: list[int] = []
    if ranges is not None:
        try:
            ids = wire.parse_ranges(ranges)
        except ValueError:
            fields.wrong("advancedRanges")
        if count:
            fields.wrong("instanceCount-advancedRanges-exclusive")
    else:
        ids = list(range(min(count or 1, MAX_INSTANCES + 1)))
    if len(ids) > MAX_INSTANCES:
        fields.wrong("range-length")
    retry = fields.retries("retrySettings")
    legacy = fields.integer("maxRetriesPerInstance")
    if legacy and retry["maxPerInstanceRetries"]:
        fields.wrong("maxRetriesPerInstance-retrySettings-exclusive")
    shared["spec"] |= {
        "resultBucket": fields.text("resultBucket"),
        "resultsBucketPrefix": fields.text("resultsBucketPrefix"),
        "resultsWhitelist": fields.regex("resultsWhitelist"),
        "resultsBlacklist": fields.regex("resultsBlacklist"),
        "resultsCacheTTLSec": fields.integer("resultsCacheTTLSec"),
        "snapshotBucket": fields.text("snapshotBucket"),
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


_CONDITIONS = frozenset({"success", "failure", "cancelled"})


def _dependencies(fields: Fields) -> list[tuple[str, frozenset[str]]]:
    """(task uuid, final states that let the dependent run), from either form."""
    found: list[tuple[str, frozenset[str]]] = []
    block = fold(fields.raw("dependencies"))
    for uuid in block.get("dependson", []) or []:
        found.append((str(uuid), _CONDITIONS))
    for item in block.get("advanceddependson", []) or []:
        one = fold(item)
        asked = one.get("taskfinalstatecondition")
        condition = [asked] if isinstance(asked, str) else asked
        allowed = frozenset(str(c).lower() for c in condition) if condition else _CONDITIONS
        if not allowed <= _CONDITIONS:
            fields.wrong("dependencies")
        found.append((str(one.get("taskuuid")), allowed))
    if any(not is_uuid(uuid) for uuid, _ in found):
        fields.wrong("dependencies")
    return found
