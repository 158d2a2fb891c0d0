"""Qarnot's responses as frozen dataclasses.

Parsing is tolerant. Unknown and missing fields, nulls and unexpected types never make it fail, because a search may
select few fields and a newer API may send others. ``raw`` keeps the JSON. Durations are ``timedelta``. Times are aware
datetimes, or None for year 1, which the API sends for "not yet". A state stays text: compare it with ``PoolState`` or
``TaskState``, or use ``phase``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Generic, Self, TypeVar

from airflow_qarnot_pool.api.durations import parse_span, parse_timestamp
from airflow_qarnot_pool.api.errors import (
    MAX_PART,
    QarnotError,
    QarnotProtocolError,
    QarnotUnknownStateError,
    shortened,
)
from airflow_qarnot_pool.api.fields import mask_constants
from airflow_qarnot_pool.api.parts import (
    ForcedConstant,
    HardwareConstraint,
    ResourceBucket,
    RetrySettings,
    Scaling,
)
from airflow_qarnot_pool.api.ranges import parse_ranges
from airflow_qarnot_pool.api.states import (
    Phase,
    parse_pool_state,
    parse_task_state,
    pool_phase,
    task_phase,
)

Read = Callable[[Any], Any]
_META = "read"
#: Maximum characters of a text such as a name or an error, because these are logged. Constants are kept whole.
MAX_TEXT = 10_000


def _from(name: str, read: Read, *others: str) -> dict[str, Any]:
    """Return field metadata: the field's name in the JSON, other spellings of it, and how to read it."""
    return {_META: ((name, *others), read)}


def _field(name: str, read: Read, *others: str, default: Any = None, factory: Any = None) -> Any:
    """Declare an optional field."""
    metadata = _from(name, read, *others)
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        words = value if len(value) <= MAX_TEXT else shortened(value, MAX_TEXT)
        # JSON can hold half of a UTF-16 surrogate pair, which cannot be encoded later.
        return words if words.isascii() else words.encode(errors="replace").decode()
    return str(value) if isinstance(value, (int, float)) else None


def _int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # NaN compares false with every limit, and makes every sum NaN.
    return number if math.isfinite(number) else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _time(value: Any) -> datetime | None:
    try:
        return parse_timestamp(value)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


def _span(value: Any) -> timedelta | None:
    try:
        return parse_span(value) if isinstance(value, str) else timedelta(seconds=value)
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds(value: Any) -> timedelta | None:
    return _span(_float(value))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(shortened(str(one), MAX_TEXT) for one in value) if isinstance(value, (list, tuple)) else ()


def _map(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _labels(value: Any) -> dict[str, str]:
    texts = {str(key): _text(one) for key, one in _map(value).items()}
    return {key: text for key, text in texts.items() if text is not None}


def _pairs(value: Any) -> dict[str, str]:
    if not isinstance(value, list):
        return {}
    return {
        str(one["key"]): str(one.get("value")) for one in value if isinstance(one, Mapping) and "key" in one
    }


def _anything(value: Any) -> Any:
    return value


def _list(read: Read) -> Read:
    """Return a reader of a list that skips the items that *read* cannot parse."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            return ()
        return tuple(item for item in (_quietly(read, one) for one in value) if item is not None)

    return convert


def _quietly(read: Read, value: Any) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, QarnotError):
        return None


def _readers_of(cls: type) -> tuple[tuple[str, tuple[str, ...], Read], ...]:
    """Return the name, JSON keys and reader of each field of a model class."""
    return tuple(
        (one.name, one.metadata[_META][0], one.metadata[_META][1])
        for one in dataclasses.fields(cls)
        if _META in one.metadata
    )


#: The type is that of a plain class, because mypy takes a class whose instances have no hash for unhashable.
_readers: Callable[[type], tuple[tuple[str, tuple[str, ...], Read], ...]] = cache(_readers_of)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """Base of the models. Two are equal if their fields are, whatever their ``raw``."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Parse one object.

        :raises QarnotProtocolError: *data* is not a JSON object, or its uuid is missing.
        """
        if not isinstance(data, Mapping):
            raise QarnotProtocolError(f"Qarnot sent {type(data).__name__} where {cls.__name__} was expected")
        # Some versions of the API use PascalCase. Built only if a key is missing.
        lowered: dict[str, Any] | None = None
        values: dict[str, Any] = {}
        for name, keys, read in _readers(cls):
            value = None
            for key in keys:
                value = data.get(key)
                if value is None and key not in data:
                    if lowered is None:
                        lowered = {str(one).lower(): entry for one, entry in data.items()}
                    value = lowered.get(key.lower())
                if value is not None:
                    break
            if value is not None:
                result = _quietly(read, value)
                if result is not None:
                    values[name] = result
        try:
            return cls(raw=dict(data), **values)
        except TypeError:
            raise QarnotProtocolError(f"Qarnot sent {cls.__name__.lower()} data without a uuid") from None

    # Not generated by dataclass, which would make the import three times as slow.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name, _, _ in _readers(type(self)))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = [(name, getattr(self, name)) for name, _, _ in _readers(type(self))]
        shown = ", ".join(f"{name}={value!r}" for name, value in given if value not in (None, "", (), {}))
        return f"{type(self).__name__}({shown})"


ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RemoteError(Model):
    """An error of a pool, a Qarnot task or an instance, as Qarnot reports it."""

    code: str = _field("code", _text, default="")
    message: str = _field("message", _text, default="")
    debug: str | None = _field("debug", _text)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code and self.message else self.code or self.message


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ActiveForward(Model):
    """A port of a node that is reachable from outside."""

    application_port: int | None = _field("applicationPort", _int)
    forwarder_port: int | None = _field("forwarderPort", _int)
    forwarder_host: str | None = _field("forwarderHost", _text)
    bind_address: str | None = _field("bindAddress", _text)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VpnConnection(Model):
    """The connection of a node to a VPN."""

    vpn_name: str | None = _field("vpnName", _text)
    node_ip_address_cidr: str | None = _field("nodeIPAddressCidr", _text)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunningInstance(Model):
    """A running node or instance.

    ``phase`` is download, dispatch, environment, execution, shutdown or upload.
    """

    instance_id: int | None = _field("instanceId", _int)
    phase: str | None = _field("phase", _text)
    progress: float | None = _field("progress", _float)
    execution_time: timedelta | None = _field("executionTimeSec", _seconds)
    execution_time_ghz: float | None = _field("executionTimeGHz", _float)
    cpu_usage: float | None = _field("cpuUsage", _float)
    memory_usage: float | None = _field("memoryUsage", _float)
    current_memory_mb: float | None = _field("currentMemoryMB", _float)
    max_memory_mb: float | None = _field("maxMemoryMB", _float)
    current_frequency_ghz: float | None = _field("currentFrequencyGHz", _float)
    max_frequency_ghz: float | None = _field("maxFrequencyGHz", _float)
    network_in_kbps: float | None = _field("networkInKbps", _float)
    network_out_kbps: float | None = _field("networkOutKbps", _float)
    specification_key: str | None = _field("specificationKey", _text)
    cpu_model: str | None = _field("cpuModel", _text)
    core_count: int | None = _field("coreCount", _int)
    execution_attempt_count: int | None = _field("executionAttemptCount", _int)
    clock_ratio: float | None = _field("clockRatio", _float)
    active_forwards: tuple[ActiveForward, ...] = _field(
        "activeForwards", _list(ActiveForward.from_json), default=()
    )
    vpn_connections: tuple[VpnConnection, ...] = _field(
        "vpnConnections", _list(VpnConnection.from_json), default=()
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CoreCount(Model):
    """The number of running cores of a processor model."""

    model: str | None = _field("model", _text)
    core: int | None = _field("core", _int)
    running_core_count: int | None = _field("runningCoreCount", _int)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunningInstances(Model):
    """All running nodes or instances."""

    instances: tuple[RunningInstance, ...] = _field(
        "perRunningInstanceInfo", _list(RunningInstance.from_json), default=()
    )
    timestamp: datetime | None = _field("timestamp", _time)
    average_frequency_ghz: float | None = _field("averageFrequencyGHz", _float)
    max_frequency_ghz: float | None = _field("maxFrequencyGHz", _float)
    min_frequency_ghz: float | None = _field("minFrequencyGHz", _float)
    average_max_frequency_ghz: float | None = _field("averageMaxFrequencyGHz", _float)
    average_cpu_usage: float | None = _field("averageCpuUsage", _float)
    cluster_power_indicator: float | None = _field("clusterPowerIndicator", _float)
    average_memory_usage: float | None = _field("averageMemoryUsage", _float)
    average_network_in_kbps: float | None = _field("averageNetworkInKbps", _float)
    average_network_out_kbps: float | None = _field("averageNetworkOutKbps", _float)
    total_network_in_kbps: float | None = _field("totalNetworkInKbps", _float)
    total_network_out_kbps: float | None = _field("totalNetworkOutKbps", _float)
    running_core_count_by_cpu_model: tuple[CoreCount, ...] = _field(
        "runningCoreCountByCpuModel", _list(CoreCount.from_json), default=()
    )
    snapshot_results: tuple[Any, ...] = _field("snapshotResults", _list(_anything), default=())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Status(Model):
    """The progress of a pool or Qarnot task, from 0 to 100. Ranges include both ends."""

    timestamp: datetime | None = _field("timestamp", _time)
    last_update_timestamp: datetime | None = _field("lastUpdateTimestamp", _time)
    download_progress: float | None = _field("downloadProgress", _float)
    execution_progress: float | None = _field("executionProgress", _float)
    upload_progress: float | None = _field("uploadProgress", _float)
    instance_count: int | None = _field("instanceCount", _int)
    download_time: timedelta | None = _field("downloadTime", _span)
    download_time_sec: float | None = _field("downloadTimeSec", _float)
    environment_time: timedelta | None = _field("environmentTime", _span)
    environment_time_sec: float | None = _field("environmentTimeSec", _float)
    execution_time: timedelta | None = _field("executionTime", _span)
    execution_time_sec: float | None = _field("executionTimeSec", _float)
    upload_time: timedelta | None = _field("uploadTime", _span)
    upload_time_sec: float | None = _field("uploadTimeSec", _float)
    wall_time: timedelta | None = _field("wallTime", _span)
    wall_time_sec: float | None = _field("wallTimeSec", _float)
    execution_time_by_cpu_model: tuple[Mapping[str, Any], ...] = _field(
        "executionTimeByCpuModel", _list(_map), default=()
    )
    execution_time_ghz_by_cpu_model: tuple[Mapping[str, Any], ...] = _field(
        "executionTimeGhzByCpuModel", _list(_map), default=()
    )
    execution_time_by_machine_specification: tuple[Mapping[str, Any], ...] = _field(
        "executionTimeByMachineSpecification", _list(_map), default=()
    )
    execution_time_by_site_and_machine: tuple[Mapping[str, Any], ...] = _field(
        "executionTimeBySiteAndMachine", _list(_map), default=()
    )
    execution_time_by_instance_id: tuple[Mapping[str, Any], ...] = _field(
        "executionTimeByInstanceId", _list(_map), default=()
    )
    succeeded_range: str = _field("succeededRange", _text, default="")
    failed_range: str = _field("failedRange", _text, default="")
    executed_range: str = _field("executedRange", _text, default="")
    cancelled_range: str = _field("cancelledRange", _text, default="")
    failed_only_range: str = _field("failedOnlyRange", _text, default="")
    started_once_range: str = _field("startedOnceRange", _text, default="")
    running: RunningInstances | None = _field("runningInstancesInfo", RunningInstances.from_json)

    @property
    def running_instances(self) -> tuple[RunningInstance, ...]:
        """The running nodes or instances."""
        return self.running.instances if self.running else ()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CompletedInstance(Model):
    """A finished instance of a Qarnot task. ``state`` is Success or Failure."""

    instance_id: int | None = _field("instanceId", _int)
    state: str | None = _field("state", _text)
    error: RemoteError | None = _field("error", RemoteError.from_json)
    results: tuple[str, ...] = _field("results", _texts, default=())
    wall_time: timedelta | None = _field("wallTimeSec", _seconds)
    execution_time: timedelta | None = _field("execTimeSec", _seconds)
    execution_time_ghz: float | None = _field("execTimeSecGHz", _float)
    peak_memory_mb: float | None = _field("peakMemoryMB", _float)
    specification_key: str | None = _field("specificationKey", _text)
    cpu_model: str | None = _field("cpuModel", _text)
    core_count: int | None = _field("coreCount", _int)
    clock_ratio: float | None = _field("clockRatio", _float)
    average_ghz: float | None = _field("averageGHz", _float)
    execution_attempt_count: int | None = _field("executionAttemptCount", _int)

    @property
    def succeeded(self) -> bool:
        """Whether it succeeded."""
        return (self.state or "").lower() == "success"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ElasticProperty(Model):
    """The elastic settings of a pool in a response, active or not. In a request they are ``Elastic``."""

    is_elastic: bool = _field("isElastic", _bool, default=False)
    min_total_slots: int | None = _field("minTotalSlots", _int)
    max_total_slots: int | None = _field("maxTotalSlots", _int)
    min_idle_slots: int | None = _field("minIdleSlots", _int)
    resize_period: timedelta | None = _field("resizePeriod", _seconds)
    ramp_resize_factor: float | None = _field("rampResizeFactor", _float)
    min_idle_time: timedelta | None = _field("minIdleTimeSeconds", _seconds)


def _nested_text(key: str) -> Read:
    return lambda value: _text(value.get(key))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RemoteObject(Model):
    """The fields that pools and Qarnot tasks share."""

    uuid: str = field(metadata=_from("uuid", _text))
    name: str | None = _field("name", _text)
    shortname: str | None = _field("shortname", _text)
    profile: str | None = _field("profile", _text)
    state: str = _field("state", _text, default="")
    previous_state: str | None = _field("previousState", _text)
    state_transition_time: datetime | None = _field("stateTransitionTime", _time)
    previous_state_transition_time: datetime | None = _field("previousStateTransitionTime", _time)
    creation_date: datetime | None = _field("creationDate", _time)
    last_modified: datetime | None = _field("lastModified", _time)
    end_date: datetime | None = _field("endDate", _time)
    errors: tuple[RemoteError, ...] = _field("errors", _list(RemoteError.from_json), default=())
    constants: Mapping[str, str] = _field("constants", _pairs, factory=dict)
    forced_constants: tuple[ForcedConstant, ...] = _field(
        "forcedConstants", _list(ForcedConstant.from_mapping), default=()
    )
    constraints: Mapping[str, str] = _field("constraints", _pairs, factory=dict)
    hardware_constraints: tuple[HardwareConstraint, ...] = _field(
        "hardwareConstraints", _list(HardwareConstraint.from_json), default=()
    )
    tags: tuple[str, ...] = _field("tags", _texts, default=())
    labels: Mapping[str, str] = _field("labels", _labels, factory=dict)
    bucket_names: tuple[str, ...] = _field("resourceBuckets", _texts, default=())
    resource_buckets: tuple[ResourceBucket, ...] = _field(
        "advancedResourceBuckets", _list(ResourceBucket.from_json), default=()
    )
    status: Status | None = _field("status", Status.from_json)
    instance_count: int | None = _field("instanceCount", _int)
    running_instance_count: int | None = _field("runningInstanceCount", _int)
    running_core_count: int | None = _field("runningCoreCount", _int)
    execution_time: timedelta | None = _field("executionTime", _span)
    wall_time: timedelta | None = _field("wallTime", _span)
    scheduling_type: str | None = _field("schedulingType", _text)
    targeted_reserved_machine_key: str | None = _field("targetedReservedMachineKey", _text)
    targeted_reservation_name: str | None = _field("targetedReservationName", _text)
    auto_delete_on_completion: bool | None = _field("autoDeleteOnCompletion", _bool)
    completion_ttl: timedelta | None = _field("completionTimeToLive", _span)
    privileges: Mapping[str, Any] = _field("privileges", _map, factory=dict)
    secrets_access: Mapping[str, Any] = _field("secretsAccessRights", _map, factory=dict)
    forced_network_rules: tuple[Mapping[str, Any], ...] = _field(
        "forcedNetworkRules", _list(_map), default=()
    )
    default_resources_cache_ttl: timedelta | None = _field("defaultResourcesCacheTTLSec", _seconds)
    max_time_queue: timedelta | None = _field("maxTimeQueueSeconds", _seconds)
    project: str | None = _field("projectUuid", _text)

    def __repr__(self) -> str:
        parts = [f"uuid={self.uuid!r}"]
        for one in ("name", "shortname", "state", "instance_count", "running_instance_count"):
            value = getattr(self, one)
            if value not in (None, ""):
                parts.append(f"{one}={str(value)!r}" if isinstance(value, str) else f"{one}={value}")
        if self.constants:
            parts.append(f"constants={mask_constants(self.constants)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def executed_seconds(self) -> float | None:
        """Seconds that all nodes of a pool were up, or that all instances of a Qarnot task executed.

        Taken from the status if possible, because only it always has fractions of a second.
        """
        if self.status is not None and self.status.execution_time_sec is not None:
            return self.status.execution_time_sec
        return None if self.execution_time is None else self.execution_time.total_seconds()

    @property
    def error_text(self) -> str:
        """All remote errors in one line, shortened. Empty if there are none."""
        return shortened("; ".join(str(error) for error in self.errors), MAX_PART)


def _scaling(value: Any) -> Scaling | None:
    return Scaling.from_json(value) if value.get("policies") else None


def _state(parse: Callable[[str], str]) -> Read:
    """Return a reader of a state: its canonical spelling if the state is known, else the text itself."""

    def read(value: Any) -> str | None:
        text = _text(value)
        try:
            return None if text is None else parse(text)
        except QarnotUnknownStateError:
            return text

    return read


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pool(RemoteObject):
    """A pool. Qarnot API: ``GET /pools/{u}``."""

    state: str = _field("state", _state(parse_pool_state), default="")
    previous_state: str | None = _field("previousState", _state(parse_pool_state))
    elastic: ElasticProperty | None = _field("elasticProperty", ElasticProperty.from_json)
    scaling: Scaling | None = _field("scaling", _scaling)
    slots_per_node: int | None = _field("multiSlotsSettings", lambda value: _int(value.get("slotsPerNode")))
    preparation_command: str | None = _field("preparationTask", _nested_text("commandLine"))
    default_retry: RetrySettings | None = _field("defaultRetrySettings", RetrySettings.from_mapping)
    target_running_instance_count: int | None = _field("targetRunningInstanceCount", _int)
    total_slot_capacity: int | None = _field("totalSlotCapacity", _int)
    pool_usage: float | None = _field("poolUsage", _float)
    queued_or_running_task_instances_count: int | None = _field("queuedOrRunningTaskInstancesCount", _int)
    task_default_wait_for_pool_resources_synchronization: bool | None = _field(
        "taskDefaultWaitForPoolResourcesSynchronization", _bool
    )
    credits: float | None = _field("credits", _float)

    @property
    def phase(self) -> Phase:
        """The phase of its life. Raises QarnotUnknownStateError."""
        return _asked(pool_phase, self)

    @property
    def ready_slots(self) -> int:
        """Number of running slots."""
        if self.running_instance_count is not None:
            return self.running_instance_count
        return (self.status.instance_count if self.status else None) or 0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task(RemoteObject):
    """A Qarnot task. Qarnot API: ``GET /tasks/{u}``.

    ``progress`` runs to 1 or to 100. The documents of the API disagree.
    """

    state: str = _field("state", _state(parse_task_state), default="")
    previous_state: str | None = _field("previousState", _state(parse_task_state))
    pool: str | None = _field("poolUuid", _text)
    job: str | None = _field("jobUuid", _text)
    total_instance_count: int | None = _field("totalInstanceCount", _int)
    ranges: str | None = _field("advancedRanges", _text)
    max_retries_per_instance: int | None = _field("maxRetriesPerInstance", _int)
    retry: RetrySettings | None = _field("retrySettings", RetrySettings.from_mapping)
    progress: float | None = _field("progress", _float)
    completed_instances: tuple[CompletedInstance, ...] = _field(
        "completedInstances", _list(CompletedInstance.from_json), default=()
    )
    result_bucket: str | None = _field("resultBucket", _text)
    results_prefix: str | None = _field("resultsBucketPrefix", _text)
    results_whitelist: str | None = _field("resultsWhitelist", _text)
    results_blacklist: str | None = _field("resultsBlacklist", _text)
    results_cache_ttl: timedelta | None = _field("resultsCacheTTLSec", _seconds)
    results_count: int | None = _field("resultsCount", _int)
    snapshot_interval: timedelta | None = _field("snapshotInterval", _seconds)
    snapshot_bucket: str | None = _field("snapshotBucket", _text)
    snapshot_prefix: str | None = _field("snapshotBucketPrefix", _text)
    snapshot_whitelist: str | None = _field("snapshotWhitelist", _text)
    snapshot_blacklist: str | None = _field("snapshotBlacklist", _text)
    upload_results_on_cancellation: bool | None = _field("uploadResultsOnCancellation", _bool)
    wait_for_pool_resources_synchronization: bool | None = _field(
        "waitForPoolResourcesSynchronization", _bool
    )
    dependencies: Mapping[str, Any] = _field("dependencies", _map, factory=dict)
    cluster_info: Mapping[str, Any] = _field("clusterInfo", _map, factory=dict)

    @property
    def phase(self) -> Phase:
        """The phase of its life. Raises QarnotUnknownStateError."""
        return _asked(task_phase, self)

    @property
    def instances(self) -> int | None:
        """Number of instances. None if the response does not have it."""
        if self.total_instance_count is not None:
            return self.total_instance_count
        return len(_ids(self.ranges)) if self.ranges else self.instance_count

    @property
    def succeeded_instances(self) -> frozenset[int]:
        """The ids of the instances known to have succeeded.

        Taken from ``completedInstances``, which lists every id, and from the range text only without it. A range can
        be read in two ways, and an instance that failed must not count as succeeded.
        """
        if self.completed_instances:
            return frozenset(
                one.instance_id
                for one in self.completed_instances
                if one.succeeded and one.instance_id is not None
            )
        return _ids(self.status.succeeded_range) if self.status else frozenset()

    @property
    def failed_instances(self) -> frozenset[int]:
        """The ids of the instances known to have failed, without those that succeeded later."""
        failed = {
            one.instance_id
            for one in self.completed_instances
            if not one.succeeded and one.instance_id is not None
        }
        if self.status and not self.completed_instances:
            failed |= _ids(self.status.failed_only_range or self.status.failed_range)
        return frozenset(failed) - self.succeeded_instances

    @property
    def has_run(self) -> bool:
        """Whether an instance has executed, which can take less than the resolution of the seconds.

        ``failedRange`` does not tell: it has instances that were cancelled in the queue, too.
        """
        status = self.status
        ranges = (status.started_once_range or status.executed_range) if status else ""
        return bool(self.executed_seconds or self.succeeded_instances or ranges)


def _ids(text: str | None) -> frozenset[int]:
    try:
        return parse_ranges(text)
    except ValueError:
        return frozenset()


def _asked(phase: Callable[[str], Phase], thing: RemoteObject) -> Phase:
    """Return the phase of *thing*. The error for an unknown state names the object."""
    try:
        return phase(thing.state)
    except QarnotUnknownStateError as error:
        raise QarnotUnknownStateError(
            state=error.state, kind=error.kind, ref=thing.shortname or thing.uuid
        ) from None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Job(Model):
    """A job. Qarnot API: ``GET /jobs/{u}``."""

    uuid: str = field(metadata=_from("uuid", _text))
    name: str | None = _field("name", _text)
    shortname: str | None = _field("shortname", _text)
    pool: str | None = _field("poolUuid", _text)
    state: str = _field("state", _text, default="")
    previous_state: str | None = _field("previousState", _text)
    use_dependencies: bool | None = _field("useDependencies", _bool)
    tags: tuple[str, ...] = _field("tags", _texts, default=())
    max_wall_time: timedelta | None = _field("maxWallTime", _span)
    auto_delete_on_completion: bool | None = _field("autoDeleteOnCompletion", _bool)
    completion_ttl: timedelta | None = _field("completionTimeToLive", _span)
    creation_date: datetime | None = _field("creationDate", _time)
    last_modified: datetime | None = _field("lastModified", _time)
    state_transition_time: datetime | None = _field("stateTransitionTime", _time)
    previous_state_transition_time: datetime | None = _field("previousStateTransitionTime", _time)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuotaUse(Model):
    """Computing quota and its use for one scheduling type. A reservation also has its key and name."""

    max_instances: int | None = _field("maxInstances", _int)
    max_cores: int | None = _field("maxCores", _int)
    running_instances: int | None = _field("runningInstancesCount", _int)
    running_cores: int | None = _field("runningCoresCount", _int, "runningCoreCount")
    machine_key: str | None = _field("machineKey", _text)
    reservation_name: str | None = _field("reservationName", _text)
    running_counts_per_user: Mapping[str, Any] = _field("runningCountsPerUser", _map, factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AccountQuotas(Model):
    """Computing quotas of a user or an organization."""

    name: str | None = _field("name", _text)
    flex: QuotaUse | None = _field("flex", QuotaUse.from_json)
    on_demand: QuotaUse | None = _field("onDemand", QuotaUse.from_json)
    reserved: tuple[QuotaUse, ...] = _field("reserved", _list(QuotaUse.from_json), default=())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Project(Model):
    """A project of the account."""

    uuid: str = field(metadata=_from("uuid", _text))
    slug: str | None = _field("slug", _text)
    name: str | None = _field("name", _text)
    organization: str | None = _field("organizationUuid", _text)
    description: str | None = _field("description", _text)
    is_default: bool | None = _field("isDefault", _bool)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Account(Model):
    """The account of the token. Qarnot API: ``GET /info``. The counts include finished objects."""

    email: str | None = _field("email", _text)
    max_bucket: int | None = _field("maxBucket", _int)
    bucket_count: int | None = _field("bucketCount", _int)
    quota_bytes: int | None = _field("quotaBytes", _int)
    used_quota_bytes: int | None = _field("usedQuotaBytes", _int)
    quota_bytes_bucket: int | None = _field("quotaBytesBucket", _int)
    used_quota_bytes_bucket: int | None = _field("usedQuotaBytesBucket", _int)
    max_task: int | None = _field("maxTask", _int)
    task_count: int | None = _field("taskCount", _int)
    max_running_task: int | None = _field("maxRunningTask", _int)
    running_task_count: int | None = _field("runningTaskCount", _int)
    max_job: int | None = _field("maxJob", _int)
    job_count: int | None = _field("jobCount", _int)
    max_pool: int | None = _field("maxPool", _int)
    pool_count: int | None = _field("poolCount", _int)
    max_running_pool: int | None = _field("maxRunningPool", _int)
    running_pool_count: int | None = _field("runningPoolCount", _int)
    running_instance_count: int | None = _field("runningInstanceCount", _int)
    running_core_count: int | None = _field("runningCoreCount", _int)
    max_instances: int | None = _field("maxInstances", _int)
    max_cores: int | None = _field("maxCores", _int)
    max_flex_instances: int | None = _field("maxFlexInstances", _int)
    max_flex_cores: int | None = _field("maxFlexCores", _int)
    max_on_demand_instances: int | None = _field("maxOnDemandInstances", _int)
    max_on_demand_cores: int | None = _field("maxOnDemandCores", _int)
    default_scheduling: str | None = _field("defaultScheduling", _text)
    default_reserved_specification_key: str | None = _field("defaultReservedSpecificationKey", _text)
    computing_quotas: Mapping[str, Any] = _field("computingQuotas", _map, factory=dict)
    projects: tuple[Project, ...] = _field("projects", _list(Project.from_json), default=())

    @property
    def user_quotas(self) -> AccountQuotas:
        """The user's own computing quotas."""
        return AccountQuotas.from_json(self.computing_quotas.get("user") or {})

    @property
    def organization_quotas(self) -> AccountQuotas:
        """The organization's computing quotas."""
        return AccountQuotas.from_json(self.computing_quotas.get("organization") or {})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ProfileConstant(Model):
    """A constant of a profile."""

    name: str | None = _field("name", _text)
    value: str | None = _field("value", _text)
    description: str | None = _field("description", _text)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Profile(Model):
    """A kind of environment that pools and tasks run in. Qarnot API: ``GET /profiles/{name}``."""

    name: str | None = _field("name", _text)
    constants: tuple[ProfileConstant, ...] = _field("constants", _list(ProfileConstant.from_json), default=())
    licenses: tuple[Mapping[str, Any], ...] = _field("licenses", _list(_map), default=())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CarbonFacts(Model):
    """Energy (Wh) and carbon (g CO2 equivalent) of a pool or Qarnot task, in either spelling of the API."""

    total_consumed_energy_wh: float | None = _field(
        "total_consumed_energy_Wh", _float, "totalConsumedEnergyWh"
    )
    total_energy_it_wh: float | None = _field("total_energy_it_Wh", _float, "totalEnergyITWh")
    total_reused_energy_wh: float | None = _field("total_reused_energy_Wh", _float, "totalReuseEnergyWh")
    carbon_footprint: float | None = _field("qarnot_carbon_footprint", _float, "carbonFootprintC02Eq")
    equivalent_datacenter_name: str | None = _field(
        "equivalent_datacenter_name", _text, "comparisonDataCenterName"
    )
    equivalent_datacenter_carbon_footprint: float | None = _field(
        "equivalent_DC_carbon_footprint", _float, "equivalentDCCarbonFootprintC02Eq"
    )
    saved_carbon_footprint_compute: float | None = _field(
        "saved_carbon_footprint_compute", _float, "savedCarbonFootprintComputeC02Eq"
    )
    saved_carbon_footprint_heat: float | None = _field(
        "saved_carbon_footprint_heat", _float, "savedCarbonFootprintHeatC02Eq"
    )
    saved_carbon_footprint_compute_heat: float | None = _field(
        "saved_carbon_footprint_compute_heat", _float, "savedCarbonFootprintComputeHeatC02Eq"
    )
    saved_carbon_footprint_percent: float | None = _field(
        "saved_carbon_footprint_percent", _float, "savedCarbonFootprintPercentage"
    )
    pue: float | None = _field("PUE", _float)
    ere: float | None = _field("ERE", _float)
    erf: float | None = _field("ERF", _float)
    wue: float | None = _field("WUE", _float)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Budget(Model):
    """A budget of a project; amounts in euro cents."""

    uuid: str | None = _field("uuid", _text)
    alias: str | None = _field("alias", _text)
    consumed_cents: float | None = _field("consumedAmountInCents", _float)
    total_cents: float | None = _field("totalAmountInCents", _float)
    remaining_cents: float | None = _field("remainingAmountInCents", _float)
    start_date: datetime | None = _field("startDateUtc", _time)
    expiration_date: datetime | None = _field("expirationDateUtc", _time)
    overrun_policy: str | None = _field("budgetOverrunPolicy", _text)
    is_archived: bool | None = _field("isArchived", _bool)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Snapshot(Model):
    """A snapshot of a running task. ``status``: triggered, inProgress, success, failure."""

    id: str | None = _field("id", _text)
    task: str | None = _field("taskUuid", _text)
    trigger_date: datetime | None = _field("triggerDate", _time)
    last_update_date: datetime | None = _field("lastUpdateDate", _time)
    config: Mapping[str, Any] = _field("snapshotConfig", _map, factory=dict)
    status: str | None = _field("status", _text)
    size_to_upload: int | None = _field("sizeToUpload", _int)
    transferred_size: int | None = _field("transferredSize", _int)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[ModelT]):
    """One page of a listing. ``next_token`` is None on the last one."""

    items: Sequence[ModelT] = ()
    next_token: str | None = None
    total: int | None = None
    count: int | None = None
    is_truncated: bool = False

    def __iter__(self) -> Iterator[ModelT]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, kw_only=True)
class BulkItem:
    """The result of one specification of a bulk creation: a uuid, or an error."""

    index: int
    status: int
    uuid: str | None = None
    error: QarnotError | None = None

    @property
    def ok(self) -> bool:
        """Whether it was created."""
        return self.uuid is not None
