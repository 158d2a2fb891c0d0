"""What Qarnot answers, as frozen dataclasses.

Reading is forgiving: fields that are unknown, missing, null or of an odd type never make it fail, so that
answers to a narrow ``select`` and answers of a newer API can be read too. ``raw`` keeps what was sent. Times are
aware datetimes, None where the API says year 1 ("not yet"); durations are ``timedelta``. A state stays text:
compare it with ``PoolState``/``TaskState``, and ask ``phase`` what it means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Generic, Self, TypeVar, cast

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
#: Maximum characters of a text such as a name or an error: these stand in logs and messages. Constants are
#: kept whole.
MAX_TEXT = 10_000


def _from(name: str, read: Read, *others: str) -> dict[str, Any]:
    """Field metadata: the field's name in the JSON (first spelling that is there) and how to read it."""
    return {_META: ((name, *others), read)}


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        words: str = shortened(value, MAX_TEXT)
        # JSON can hold half a character (cut in two by some UTF-16), which nobody could send on or store.
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
    # NaN is less than no limit and spoils every sum.
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
    """A tuple of what can be read; the rest is left out."""

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


@cache
def _readers(cls: Any) -> tuple[tuple[str, tuple[str, ...], Read], ...]:
    """Name, JSON keys and reader of each field of a model class."""
    return tuple(
        (one.name, one.metadata[_META][0], one.metadata[_META][1])
        for one in dataclasses.fields(cls)
        if _META in one.metadata
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """Base: reads itself from the API's JSON; equal to another that says the same, raw JSON aside."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read one object. Raises QarnotProtocolError where it is no JSON object or lacks its uuid."""
        if not isinstance(data, Mapping):
            raise QarnotProtocolError(f"Qarnot sent {type(data).__name__} where {cls.__name__} was expected")
        lowered: dict[str, Any] | None = (
            None  # made only when a key is missing: some versions spell PascalCase
        )
        values: dict[str, Any] = {}
        for name, keys, read in _readers(cast(Any, cls)):
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

    # By hand, because generated ones make the import three times as slow.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            getattr(self, name) == getattr(other, name) for name, _, _ in _readers(cast(Any, type(self)))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = [(name, getattr(self, name)) for name, _, _ in _readers(cast(Any, type(self)))]
        shown = ", ".join(f"{name}={value!r}" for name, value in given if value not in (None, "", (), {}))
        return f"{type(self).__name__}({shown})"


ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RemoteError(Model):
    """What Qarnot says went wrong with a pool, a task or an instance."""

    code: str = field(default="", metadata=_from("code", _text))
    message: str = field(default="", metadata=_from("message", _text))
    debug: str | None = field(default=None, metadata=_from("debug", _text))

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code and self.message else self.code or self.message


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ActiveForward(Model):
    """A port of a node that can be reached from outside."""

    application_port: int | None = field(default=None, metadata=_from("applicationPort", _int))
    forwarder_port: int | None = field(default=None, metadata=_from("forwarderPort", _int))
    forwarder_host: str | None = field(default=None, metadata=_from("forwarderHost", _text))
    bind_address: str | None = field(default=None, metadata=_from("bindAddress", _text))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VpnConnection(Model):
    """A node's place in a VPN."""

    vpn_name: str | None = field(default=None, metadata=_from("vpnName", _text))
    node_ip_address_cidr: str | None = field(default=None, metadata=_from("nodeIPAddressCidr", _text))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunningInstance(Model):
    """One node or instance at work now. ``phase``: download, dispatch, environment, execution, shutdown, upload."""

    instance_id: int | None = field(default=None, metadata=_from("instanceId", _int))
    phase: str | None = field(default=None, metadata=_from("phase", _text))
    progress: float | None = field(default=None, metadata=_from("progress", _float))
    execution_time: timedelta | None = field(default=None, metadata=_from("executionTimeSec", _seconds))
    execution_time_ghz: float | None = field(default=None, metadata=_from("executionTimeGHz", _float))
    cpu_usage: float | None = field(default=None, metadata=_from("cpuUsage", _float))
    memory_usage: float | None = field(default=None, metadata=_from("memoryUsage", _float))
    current_memory_mb: float | None = field(default=None, metadata=_from("currentMemoryMB", _float))
    max_memory_mb: float | None = field(default=None, metadata=_from("maxMemoryMB", _float))
    current_frequency_ghz: float | None = field(default=None, metadata=_from("currentFrequencyGHz", _float))
    max_frequency_ghz: float | None = field(default=None, metadata=_from("maxFrequencyGHz", _float))
    network_in_kbps: float | None = field(default=None, metadata=_from("networkInKbps", _float))
    network_out_kbps: float | None = field(default=None, metadata=_from("networkOutKbps", _float))
    specification_key: str | None = field(default=None, metadata=_from("specificationKey", _text))
    cpu_model: str | None = field(default=None, metadata=_from("cpuModel", _text))
    core_count: int | None = field(default=None, metadata=_from("coreCount", _int))
    execution_attempt_count: int | None = field(default=None, metadata=_from("executionAttemptCount", _int))
    clock_ratio: float | None = field(default=None, metadata=_from("clockRatio", _float))
    active_forwards: tuple[ActiveForward, ...] = field(
        default=(), metadata=_from("activeForwards", _list(ActiveForward.from_json))
    )
    vpn_connections: tuple[VpnConnection, ...] = field(
        default=(), metadata=_from("vpnConnections", _list(VpnConnection.from_json))
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CoreCount(Model):
    """How many cores of a processor model run."""

    model: str | None = field(default=None, metadata=_from("model", _text))
    core: int | None = field(default=None, metadata=_from("core", _int))
    running_core_count: int | None = field(default=None, metadata=_from("runningCoreCount", _int))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunningInstances(Model):
    """All nodes or instances at work now."""

    instances: tuple[RunningInstance, ...] = field(
        default=(), metadata=_from("perRunningInstanceInfo", _list(RunningInstance.from_json))
    )
    timestamp: datetime | None = field(default=None, metadata=_from("timestamp", _time))
    average_frequency_ghz: float | None = field(default=None, metadata=_from("averageFrequencyGHz", _float))
    max_frequency_ghz: float | None = field(default=None, metadata=_from("maxFrequencyGHz", _float))
    min_frequency_ghz: float | None = field(default=None, metadata=_from("minFrequencyGHz", _float))
    average_max_frequency_ghz: float | None = field(
        default=None, metadata=_from("averageMaxFrequencyGHz", _float)
    )
    average_cpu_usage: float | None = field(default=None, metadata=_from("averageCpuUsage", _float))
    cluster_power_indicator: float | None = field(
        default=None, metadata=_from("clusterPowerIndicator", _float)
    )
    average_memory_usage: float | None = field(default=None, metadata=_from("averageMemoryUsage", _float))
    average_network_in_kbps: float | None = field(
        default=None, metadata=_from("averageNetworkInKbps", _float)
    )
    average_network_out_kbps: float | None = field(
        default=None, metadata=_from("averageNetworkOutKbps", _float)
    )
    total_network_in_kbps: float | None = field(default=None, metadata=_from("totalNetworkInKbps", _float))
    total_network_out_kbps: float | None = field(default=None, metadata=_from("totalNetworkOutKbps", _float))
    running_core_count_by_cpu_model: tuple[CoreCount, ...] = field(
        default=(), metadata=_from("runningCoreCountByCpuModel", _list(CoreCount.from_json))
    )
    snapshot_results: tuple[Any, ...] = field(default=(), metadata=_from("snapshotResults", _list(_anything)))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Status(Model):
    """How far a pool or task has come. Progress runs from 0 to 100; range texts include both ends."""

    timestamp: datetime | None = field(default=None, metadata=_from("timestamp", _time))
    last_update_timestamp: datetime | None = field(default=None, metadata=_from("lastUpdateTimestamp", _time))
    download_progress: float | None = field(default=None, metadata=_from("downloadProgress", _float))
    execution_progress: float | None = field(default=None, metadata=_from("executionProgress", _float))
    upload_progress: float | None = field(default=None, metadata=_from("uploadProgress", _float))
    instance_count: int | None = field(default=None, metadata=_from("instanceCount", _int))
    download_time: timedelta | None = field(default=None, metadata=_from("downloadTime", _span))
    download_time_sec: float | None = field(default=None, metadata=_from("downloadTimeSec", _float))
    environment_time: timedelta | None = field(default=None, metadata=_from("environmentTime", _span))
    environment_time_sec: float | None = field(default=None, metadata=_from("environmentTimeSec", _float))
    execution_time: timedelta | None = field(default=None, metadata=_from("executionTime", _span))
    execution_time_sec: float | None = field(default=None, metadata=_from("executionTimeSec", _float))
    upload_time: timedelta | None = field(default=None, metadata=_from("uploadTime", _span))
    upload_time_sec: float | None = field(default=None, metadata=_from("uploadTimeSec", _float))
    wall_time: timedelta | None = field(default=None, metadata=_from("wallTime", _span))
    wall_time_sec: float | None = field(default=None, metadata=_from("wallTimeSec", _float))
    execution_time_by_cpu_model: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata=_from("executionTimeByCpuModel", _list(_map))
    )
    execution_time_ghz_by_cpu_model: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata=_from("executionTimeGhzByCpuModel", _list(_map))
    )
    execution_time_by_machine_specification: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata=_from("executionTimeByMachineSpecification", _list(_map))
    )
    execution_time_by_site_and_machine: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata=_from("executionTimeBySiteAndMachine", _list(_map))
    )
    execution_time_by_instance_id: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata=_from("executionTimeByInstanceId", _list(_map))
    )
    succeeded_range: str = field(default="", metadata=_from("succeededRange", _text))
    failed_range: str = field(default="", metadata=_from("failedRange", _text))
    executed_range: str = field(default="", metadata=_from("executedRange", _text))
    cancelled_range: str = field(default="", metadata=_from("cancelledRange", _text))
    failed_only_range: str = field(default="", metadata=_from("failedOnlyRange", _text))
    started_once_range: str = field(default="", metadata=_from("startedOnceRange", _text))
    running: RunningInstances | None = field(
        default=None, metadata=_from("runningInstancesInfo", RunningInstances.from_json)
    )

    @property
    def running_instances(self) -> tuple[RunningInstance, ...]:
        """The nodes or instances at work now."""
        return self.running.instances if self.running else ()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CompletedInstance(Model):
    """One instance of a task that has ended. ``state`` is Success or Failure."""

    instance_id: int | None = field(default=None, metadata=_from("instanceId", _int))
    state: str | None = field(default=None, metadata=_from("state", _text))
    error: RemoteError | None = field(default=None, metadata=_from("error", RemoteError.from_json))
    results: tuple[str, ...] = field(default=(), metadata=_from("results", _texts))
    wall_time: timedelta | None = field(default=None, metadata=_from("wallTimeSec", _seconds))
    execution_time: timedelta | None = field(default=None, metadata=_from("execTimeSec", _seconds))
    execution_time_ghz: float | None = field(default=None, metadata=_from("execTimeSecGHz", _float))
    peak_memory_mb: float | None = field(default=None, metadata=_from("peakMemoryMB", _float))
    specification_key: str | None = field(default=None, metadata=_from("specificationKey", _text))
    cpu_model: str | None = field(default=None, metadata=_from("cpuModel", _text))
    core_count: int | None = field(default=None, metadata=_from("coreCount", _int))
    clock_ratio: float | None = field(default=None, metadata=_from("clockRatio", _float))
    average_ghz: float | None = field(default=None, metadata=_from("averageGHz", _float))
    execution_attempt_count: int | None = field(default=None, metadata=_from("executionAttemptCount", _int))

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return (self.state or "").lower() == "success"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ElasticProperty(Model):
    """The elastic block as the server keeps it, active or not (the request's counterpart is ``Elastic``)."""

    is_elastic: bool = field(default=False, metadata=_from("isElastic", _bool))
    min_total_slots: int | None = field(default=None, metadata=_from("minTotalSlots", _int))
    max_total_slots: int | None = field(default=None, metadata=_from("maxTotalSlots", _int))
    min_idle_slots: int | None = field(default=None, metadata=_from("minIdleSlots", _int))
    resize_period: timedelta | None = field(default=None, metadata=_from("resizePeriod", _seconds))
    ramp_resize_factor: float | None = field(default=None, metadata=_from("rampResizeFactor", _float))
    min_idle_time: timedelta | None = field(default=None, metadata=_from("minIdleTimeSeconds", _seconds))


def _nested_text(key: str) -> Read:
    return lambda value: _text(value.get(key))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RemoteObject(Model):
    """What pools and tasks have in common."""

    uuid: str = field(metadata=_from("uuid", _text))
    name: str | None = field(default=None, metadata=_from("name", _text))
    shortname: str | None = field(default=None, metadata=_from("shortname", _text))
    profile: str | None = field(default=None, metadata=_from("profile", _text))
    state: str = field(default="", metadata=_from("state", _text))
    previous_state: str | None = field(default=None, metadata=_from("previousState", _text))
    state_transition_time: datetime | None = field(default=None, metadata=_from("stateTransitionTime", _time))
    previous_state_transition_time: datetime | None = field(
        default=None, metadata=_from("previousStateTransitionTime", _time)
    )
    creation_date: datetime | None = field(default=None, metadata=_from("creationDate", _time))
    last_modified: datetime | None = field(default=None, metadata=_from("lastModified", _time))
    end_date: datetime | None = field(default=None, metadata=_from("endDate", _time))
    errors: tuple[RemoteError, ...] = field(
        default=(), metadata=_from("errors", _list(RemoteError.from_json))
    )
    constants: Mapping[str, str] = field(default_factory=dict, metadata=_from("constants", _pairs))
    forced_constants: tuple[ForcedConstant, ...] = field(
        default=(), metadata=_from("forcedConstants", _list(ForcedConstant.from_mapping))
    )
    constraints: Mapping[str, str] = field(default_factory=dict, metadata=_from("constraints", _pairs))
    hardware_constraints: tuple[HardwareConstraint, ...] = field(
        default=(), metadata=_from("hardwareConstraints", _list(HardwareConstraint.from_json))
    )
    tags: tuple[str, ...] = field(default=(), metadata=_from("tags", _texts))
    labels: Mapping[str, str] = field(default_factory=dict, metadata=_from("labels", _labels))
    bucket_names: tuple[str, ...] = field(default=(), metadata=_from("resourceBuckets", _texts))
    resource_buckets: tuple[ResourceBucket, ...] = field(
        default=(), metadata=_from("advancedResourceBuckets", _list(ResourceBucket.from_json))
    )
    status: Status | None = field(default=None, metadata=_from("status", Status.from_json))
    instance_count: int | None = field(default=None, metadata=_from("instanceCount", _int))
    running_instance_count: int | None = field(default=None, metadata=_from("runningInstanceCount", _int))
    running_core_count: int | None = field(default=None, metadata=_from("runningCoreCount", _int))
    execution_time: timedelta | None = field(default=None, metadata=_from("executionTime", _span))
    wall_time: timedelta | None = field(default=None, metadata=_from("wallTime", _span))
    scheduling_type: str | None = field(default=None, metadata=_from("schedulingType", _text))
    targeted_reserved_machine_key: str | None = field(
        default=None, metadata=_from("targetedReservedMachineKey", _text)
    )
    targeted_reservation_name: str | None = field(
        default=None, metadata=_from("targetedReservationName", _text)
    )
    auto_delete_on_completion: bool | None = field(
        default=None, metadata=_from("autoDeleteOnCompletion", _bool)
    )
    completion_ttl: timedelta | None = field(default=None, metadata=_from("completionTimeToLive", _span))
    privileges: Mapping[str, Any] = field(default_factory=dict, metadata=_from("privileges", _map))
    secrets_access: Mapping[str, Any] = field(
        default_factory=dict, metadata=_from("secretsAccessRights", _map)
    )
    forced_network_rules: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata=_from("forcedNetworkRules", _list(_map))
    )
    default_resources_cache_ttl: timedelta | None = field(
        default=None, metadata=_from("defaultResourcesCacheTTLSec", _seconds)
    )
    max_time_queue: timedelta | None = field(default=None, metadata=_from("maxTimeQueueSeconds", _seconds))
    project: str | None = field(default=None, metadata=_from("projectUuid", _text))

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

        The status has fractions of a second, the object need not.
        """
        if self.status is not None and self.status.execution_time_sec is not None:
            return self.status.execution_time_sec
        return None if self.execution_time is None else self.execution_time.total_seconds()

    @property
    def error_text(self) -> str:
        """All remote errors in one line, shortened; empty when there are none."""
        return shortened("; ".join(str(error) for error in self.errors), MAX_PART)


def _scaling(value: Any) -> Scaling | None:
    return Scaling.from_json(value) if value.get("policies") else None


def _state(parse: Callable[[str], str]) -> Read:
    """The state in its canonical spelling where it is known, else as it came."""

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

    state: str = field(default="", metadata=_from("state", _state(parse_pool_state)))
    previous_state: str | None = field(
        default=None, metadata=_from("previousState", _state(parse_pool_state))
    )
    elastic: ElasticProperty | None = field(
        default=None, metadata=_from("elasticProperty", ElasticProperty.from_json)
    )
    scaling: Scaling | None = field(default=None, metadata=_from("scaling", _scaling))
    slots_per_node: int | None = field(
        default=None,
        metadata=_from("multiSlotsSettings", lambda value: _int(value.get("slotsPerNode"))),
    )
    preparation_command: str | None = field(
        default=None, metadata=_from("preparationTask", _nested_text("commandLine"))
    )
    default_retry: RetrySettings | None = field(
        default=None, metadata=_from("defaultRetrySettings", RetrySettings.from_mapping)
    )
    target_running_instance_count: int | None = field(
        default=None, metadata=_from("targetRunningInstanceCount", _int)
    )
    total_slot_capacity: int | None = field(default=None, metadata=_from("totalSlotCapacity", _int))
    pool_usage: float | None = field(default=None, metadata=_from("poolUsage", _float))
    queued_or_running_task_instances_count: int | None = field(
        default=None, metadata=_from("queuedOrRunningTaskInstancesCount", _int)
    )
    task_default_wait_for_pool_resources_synchronization: bool | None = field(
        default=None, metadata=_from("taskDefaultWaitForPoolResourcesSynchronization", _bool)
    )
    credits: float | None = field(default=None, metadata=_from("credits", _float))

    @property
    def phase(self) -> Phase:
        """Where in its life it is. Raises QarnotUnknownStateError."""
        return _asked(pool_phase, self)

    @property
    def ready_slots(self) -> int:
        """Slots that run now."""
        if self.running_instance_count is not None:
            return self.running_instance_count
        return (self.status.instance_count if self.status else None) or 0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task(RemoteObject):
    """A task. Qarnot API: ``GET /tasks/{u}``. ``progress`` is 0 to 1 or 0 to 100: the sources disagree."""

    state: str = field(default="", metadata=_from("state", _state(parse_task_state)))
    previous_state: str | None = field(
        default=None, metadata=_from("previousState", _state(parse_task_state))
    )
    pool: str | None = field(default=None, metadata=_from("poolUuid", _text))
    job: str | None = field(default=None, metadata=_from("jobUuid", _text))
    total_instance_count: int | None = field(default=None, metadata=_from("totalInstanceCount", _int))
    ranges: str | None = field(default=None, metadata=_from("advancedRanges", _text))
    max_retries_per_instance: int | None = field(default=None, metadata=_from("maxRetriesPerInstance", _int))
    retry: RetrySettings | None = field(
        default=None, metadata=_from("retrySettings", RetrySettings.from_mapping)
    )
    progress: float | None = field(default=None, metadata=_from("progress", _float))
    completed_instances: tuple[CompletedInstance, ...] = field(
        default=(), metadata=_from("completedInstances", _list(CompletedInstance.from_json))
    )
    result_bucket: str | None = field(default=None, metadata=_from("resultBucket", _text))
    results_prefix: str | None = field(default=None, metadata=_from("resultsBucketPrefix", _text))
    results_whitelist: str | None = field(default=None, metadata=_from("resultsWhitelist", _text))
    results_blacklist: str | None = field(default=None, metadata=_from("resultsBlacklist", _text))
    results_cache_ttl: timedelta | None = field(default=None, metadata=_from("resultsCacheTTLSec", _seconds))
    results_count: int | None = field(default=None, metadata=_from("resultsCount", _int))
    snapshot_interval: timedelta | None = field(default=None, metadata=_from("snapshotInterval", _seconds))
    snapshot_bucket: str | None = field(default=None, metadata=_from("snapshotBucket", _text))
    snapshot_prefix: str | None = field(default=None, metadata=_from("snapshotBucketPrefix", _text))
    snapshot_whitelist: str | None = field(default=None, metadata=_from("snapshotWhitelist", _text))
    snapshot_blacklist: str | None = field(default=None, metadata=_from("snapshotBlacklist", _text))
    upload_results_on_cancellation: bool | None = field(
        default=None, metadata=_from("uploadResultsOnCancellation", _bool)
    )
    wait_for_pool_resources_synchronization: bool | None = field(
        default=None, metadata=_from("waitForPoolResourcesSynchronization", _bool)
    )
    dependencies: Mapping[str, Any] = field(default_factory=dict, metadata=_from("dependencies", _map))
    cluster_info: Mapping[str, Any] = field(default_factory=dict, metadata=_from("clusterInfo", _map))

    @property
    def phase(self) -> Phase:
        """Where in its life it is. Raises QarnotUnknownStateError."""
        return _asked(task_phase, self)

    @property
    def instances(self) -> int | None:
        """How many instances it has; None where the answer does not say."""
        if self.total_instance_count is not None:
            return self.total_instance_count
        return len(_ids(self.ranges)) if self.ranges else self.instance_count

    @property
    def succeeded_instances(self) -> frozenset[int]:
        """The ids of the instances known to have succeeded.

        From ``completedInstances``, which names ids one by one, and only without it from the range text:
        ranges can be read in two ways, and an instance must not be called done that is not.
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
        """The ids of the instances known to have failed and not to have succeeded since."""
        failed = {
            one.instance_id
            for one in self.completed_instances
            if not one.succeeded and one.instance_id is not None
        }
        if self.status and not self.completed_instances:
            failed |= _ids(self.status.failed_only_range or self.status.failed_range)
        return frozenset(failed) - self.succeeded_instances


def _ids(text: str | None) -> frozenset[int]:
    try:
        return parse_ranges(text)
    except ValueError:
        return frozenset()


def _asked(phase: Callable[[str], Phase], thing: RemoteObject) -> Phase:
    """The phase; an unknown state is an error that names the object too."""
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
    name: str | None = field(default=None, metadata=_from("name", _text))
    shortname: str | None = field(default=None, metadata=_from("shortname", _text))
    pool: str | None = field(default=None, metadata=_from("poolUuid", _text))
    state: str = field(default="", metadata=_from("state", _text))
    previous_state: str | None = field(default=None, metadata=_from("previousState", _text))
    use_dependencies: bool | None = field(default=None, metadata=_from("useDependencies", _bool))
    tags: tuple[str, ...] = field(default=(), metadata=_from("tags", _texts))
    max_wall_time: timedelta | None = field(default=None, metadata=_from("maxWallTime", _span))
    auto_delete_on_completion: bool | None = field(
        default=None, metadata=_from("autoDeleteOnCompletion", _bool)
    )
    completion_ttl: timedelta | None = field(default=None, metadata=_from("completionTimeToLive", _span))
    creation_date: datetime | None = field(default=None, metadata=_from("creationDate", _time))
    last_modified: datetime | None = field(default=None, metadata=_from("lastModified", _time))
    state_transition_time: datetime | None = field(default=None, metadata=_from("stateTransitionTime", _time))
    previous_state_transition_time: datetime | None = field(
        default=None, metadata=_from("previousStateTransitionTime", _time)
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuotaUse(Model):
    """Computing allowed and used under one scheduling type; a reservation also has its key and name."""

    max_instances: int | None = field(default=None, metadata=_from("maxInstances", _int))
    max_cores: int | None = field(default=None, metadata=_from("maxCores", _int))
    running_instances: int | None = field(default=None, metadata=_from("runningInstancesCount", _int))
    running_cores: int | None = field(
        default=None, metadata=_from("runningCoresCount", _int, "runningCoreCount")
    )
    machine_key: str | None = field(default=None, metadata=_from("machineKey", _text))
    reservation_name: str | None = field(default=None, metadata=_from("reservationName", _text))
    running_counts_per_user: Mapping[str, Any] = field(
        default_factory=dict, metadata=_from("runningCountsPerUser", _map)
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AccountQuotas(Model):
    """Computing quotas of a user or an organization."""

    name: str | None = field(default=None, metadata=_from("name", _text))
    flex: QuotaUse | None = field(default=None, metadata=_from("flex", QuotaUse.from_json))
    on_demand: QuotaUse | None = field(default=None, metadata=_from("onDemand", QuotaUse.from_json))
    reserved: tuple[QuotaUse, ...] = field(default=(), metadata=_from("reserved", _list(QuotaUse.from_json)))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Project(Model):
    """A project of the account."""

    uuid: str = field(metadata=_from("uuid", _text))
    slug: str | None = field(default=None, metadata=_from("slug", _text))
    name: str | None = field(default=None, metadata=_from("name", _text))
    organization: str | None = field(default=None, metadata=_from("organizationUuid", _text))
    description: str | None = field(default=None, metadata=_from("description", _text))
    is_default: bool | None = field(default=None, metadata=_from("isDefault", _bool))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Account(Model):
    """The account behind the token. Qarnot API: ``GET /info``. Finished objects count in the counts."""

    email: str | None = field(default=None, metadata=_from("email", _text))
    max_bucket: int | None = field(default=None, metadata=_from("maxBucket", _int))
    bucket_count: int | None = field(default=None, metadata=_from("bucketCount", _int))
    quota_bytes: int | None = field(default=None, metadata=_from("quotaBytes", _int))
    used_quota_bytes: int | None = field(default=None, metadata=_from("usedQuotaBytes", _int))
    quota_bytes_bucket: int | None = field(default=None, metadata=_from("quotaBytesBucket", _int))
    used_quota_bytes_bucket: int | None = field(default=None, metadata=_from("usedQuotaBytesBucket", _int))
    max_task: int | None = field(default=None, metadata=_from("maxTask", _int))
    task_count: int | None = field(default=None, metadata=_from("taskCount", _int))
    max_running_task: int | None = field(default=None, metadata=_from("maxRunningTask", _int))
    running_task_count: int | None = field(default=None, metadata=_from("runningTaskCount", _int))
    max_job: int | None = field(default=None, metadata=_from("maxJob", _int))
    job_count: int | None = field(default=None, metadata=_from("jobCount", _int))
    max_pool: int | None = field(default=None, metadata=_from("maxPool", _int))
    pool_count: int | None = field(default=None, metadata=_from("poolCount", _int))
    max_running_pool: int | None = field(default=None, metadata=_from("maxRunningPool", _int))
    running_pool_count: int | None = field(default=None, metadata=_from("runningPoolCount", _int))
    running_instance_count: int | None = field(default=None, metadata=_from("runningInstanceCount", _int))
    running_core_count: int | None = field(default=None, metadata=_from("runningCoreCount", _int))
    max_instances: int | None = field(default=None, metadata=_from("maxInstances", _int))
    max_cores: int | None = field(default=None, metadata=_from("maxCores", _int))
    max_flex_instances: int | None = field(default=None, metadata=_from("maxFlexInstances", _int))
    max_flex_cores: int | None = field(default=None, metadata=_from("maxFlexCores", _int))
    max_on_demand_instances: int | None = field(default=None, metadata=_from("maxOnDemandInstances", _int))
    max_on_demand_cores: int | None = field(default=None, metadata=_from("maxOnDemandCores", _int))
    default_scheduling: str | None = field(default=None, metadata=_from("defaultScheduling", _text))
    default_reserved_specification_key: str | None = field(
        default=None, metadata=_from("defaultReservedSpecificationKey", _text)
    )
    computing_quotas: Mapping[str, Any] = field(default_factory=dict, metadata=_from("computingQuotas", _map))
    projects: tuple[Project, ...] = field(default=(), metadata=_from("projects", _list(Project.from_json)))

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
    """A constant a profile knows."""

    name: str | None = field(default=None, metadata=_from("name", _text))
    value: str | None = field(default=None, metadata=_from("value", _text))
    description: str | None = field(default=None, metadata=_from("description", _text))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Profile(Model):
    """A kind of environment that pools and tasks run in. Qarnot API: ``GET /profiles/{name}``."""

    name: str | None = field(default=None, metadata=_from("name", _text))
    constants: tuple[ProfileConstant, ...] = field(
        default=(), metadata=_from("constants", _list(ProfileConstant.from_json))
    )
    licenses: tuple[Mapping[str, Any], ...] = field(default=(), metadata=_from("licenses", _list(_map)))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CarbonFacts(Model):
    """Energy (Wh) and carbon (g CO2 equivalent) of a pool or task; the API's two spellings are both read."""

    total_consumed_energy_wh: float | None = field(
        default=None, metadata=_from("total_consumed_energy_Wh", _float, "totalConsumedEnergyWh")
    )
    total_energy_it_wh: float | None = field(
        default=None, metadata=_from("total_energy_it_Wh", _float, "totalEnergyITWh")
    )
    total_reused_energy_wh: float | None = field(
        default=None, metadata=_from("total_reused_energy_Wh", _float, "totalReuseEnergyWh")
    )
    carbon_footprint: float | None = field(
        default=None, metadata=_from("qarnot_carbon_footprint", _float, "carbonFootprintC02Eq")
    )
    equivalent_datacenter_name: str | None = field(
        default=None, metadata=_from("equivalent_datacenter_name", _text, "comparisonDataCenterName")
    )
    equivalent_datacenter_carbon_footprint: float | None = field(
        default=None,
        metadata=_from("equivalent_DC_carbon_footprint", _float, "equivalentDCCarbonFootprintC02Eq"),
    )
    saved_carbon_footprint_compute: float | None = field(
        default=None,
        metadata=_from("saved_carbon_footprint_compute", _float, "savedCarbonFootprintComputeC02Eq"),
    )
    saved_carbon_footprint_heat: float | None = field(
        default=None, metadata=_from("saved_carbon_footprint_heat", _float, "savedCarbonFootprintHeatC02Eq")
    )
    saved_carbon_footprint_compute_heat: float | None = field(
        default=None,
        metadata=_from("saved_carbon_footprint_compute_heat", _float, "savedCarbonFootprintComputeHeatC02Eq"),
    )
    saved_carbon_footprint_percent: float | None = field(
        default=None,
        metadata=_from("saved_carbon_footprint_percent", _float, "savedCarbonFootprintPercentage"),
    )
    pue: float | None = field(default=None, metadata=_from("PUE", _float))
    ere: float | None = field(default=None, metadata=_from("ERE", _float))
    erf: float | None = field(default=None, metadata=_from("ERF", _float))
    wue: float | None = field(default=None, metadata=_from("WUE", _float))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Budget(Model):
    """A budget of a project; amounts in euro cents."""

    uuid: str | None = field(default=None, metadata=_from("uuid", _text))
    alias: str | None = field(default=None, metadata=_from("alias", _text))
    consumed_cents: float | None = field(default=None, metadata=_from("consumedAmountInCents", _float))
    total_cents: float | None = field(default=None, metadata=_from("totalAmountInCents", _float))
    remaining_cents: float | None = field(default=None, metadata=_from("remainingAmountInCents", _float))
    start_date: datetime | None = field(default=None, metadata=_from("startDateUtc", _time))
    expiration_date: datetime | None = field(default=None, metadata=_from("expirationDateUtc", _time))
    overrun_policy: str | None = field(default=None, metadata=_from("budgetOverrunPolicy", _text))
    is_archived: bool | None = field(default=None, metadata=_from("isArchived", _bool))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Snapshot(Model):
    """A snapshot of a running task. ``status``: triggered, inProgress, success, failure."""

    id: str | None = field(default=None, metadata=_from("id", _text))
    task: str | None = field(default=None, metadata=_from("taskUuid", _text))
    trigger_date: datetime | None = field(default=None, metadata=_from("triggerDate", _time))
    last_update_date: datetime | None = field(default=None, metadata=_from("lastUpdateDate", _time))
    config: Mapping[str, Any] = field(default_factory=dict, metadata=_from("snapshotConfig", _map))
    status: str | None = field(default=None, metadata=_from("status", _text))
    size_to_upload: int | None = field(default=None, metadata=_from("sizeToUpload", _int))
    transferred_size: int | None = field(default=None, metadata=_from("transferredSize", _int))


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
    """What became of one specification of a bulk creation: a uuid, or an error."""

    index: int
    status: int
    uuid: str | None = None
    error: QarnotError | None = None

    @property
    def ok(self) -> bool:
        """Whether it was created."""
        return self.uuid is not None
