"""Parts of pool and task specifications: buckets, retries, elastic settings, scaling policies, constraints, rights.

Every class validates itself when created (QarnotInvalidSpecError) and serializes itself for the API (``to_json``).
Qarnot API: the nested objects of ``POST /pools`` and ``POST /tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import time, timedelta
from typing import Any, Self

from airflow_qarnot_pool.api.buckets import bucket, key_prefix
from airflow_qarnot_pool.api.fields import (
    Record,
    Refusal,
    as_text,
    at,
    boolean,
    choice,
    duration,
    integer,
    invalid,
    listing,
    nested,
    normalise,
    number,
    parse_literal,
    seconds,
    short_repr,
    text,
    uuid_text,
)

WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")


def _prefix(outer: str, inner: str) -> Any:
    """Return a converter that accepts a text, or the API's ``{outer: {inner: {prefix: text}}}``."""

    def convert(value: Any) -> str:
        value = parse_literal(value)
        for key in (outer, inner):
            if isinstance(value, Mapping):
                value = {normalise(str(name)): entry for name, entry in value.items()}.get(
                    normalise(key), value
                )
        if isinstance(value, Mapping):
            value = value.get("prefix")
        return key_prefix(value)

    return convert


def _with_prefix(name: str, path: str) -> str:
    return f"Write {{'bucket': {name!r}, 'prefix': {path!r}}}, or ResourceBucket(bucket=..., prefix=...)."


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResourceBucket(Record):
    """A bucket whose files the nodes download before they start. Qarnot API: ``advancedResourceBuckets``.

    :param bucket: name of the bucket.
    :param prefix: start of the keys of the files. Others are not downloaded.
    :param strip_prefix: start of their paths that is removed on the node: ``prefix``, or the start of it.
    :param cache_ttl: how long nodes may keep the files; default: ``default_resources_cache_ttl``.
    """

    bucket: str = field(metadata=at("bucketName", bucket(_with_prefix), aliases=["name"]))
    prefix: str | None = field(
        default=None,
        metadata=at(
            "filtering",
            _prefix("prefixFiltering", "prefix"),
            lambda value: {"prefixFiltering": {"prefix": value}},
        ),
    )
    strip_prefix: str | None = field(
        default=None,
        metadata=at(
            "resourcesTransformation",
            _prefix("stripPrefix", "prefix"),
            lambda value: {"stripPrefix": {"prefix": value}},
        ),
    )
    cache_ttl: timedelta | None = field(
        default=None, metadata=at("cacheTTLSec", duration, seconds, aliases=["cache_ttl_seconds"])
    )

    def _check(self) -> None:
        prefix, strip = self.prefix or "", self.strip_prefix or ""
        if prefix and not (prefix.startswith(strip) or strip.startswith(prefix)):
            self._refuse(
                "strip_prefix",
                f"is {strip!r}, but no file under prefix {prefix!r} starts with it",
                "Give the prefix, or the start of it.",
            )

    @classmethod
    def of(cls, value: Any) -> ResourceBucket:
        """Build one from the name of a bucket, a mapping, or a ResourceBucket."""
        value = parse_literal(value)
        if isinstance(value, ResourceBucket):
            return value
        name = as_text(value)
        return cls.from_mapping(value) if name is None else cls(bucket=name)

    @classmethod
    def from_json(cls, data: Any) -> ResourceBucket:
        """Parse a response without validating it."""
        try:
            return cls.of(data)
        except ValueError:
            name = data.get("bucketName") if isinstance(data, Mapping) else data
            other = object.__new__(cls)
            for key, value in {
                "bucket": str(name),
                "prefix": None,
                "strip_prefix": None,
                "cache_ttl": None,
            }.items():
                object.__setattr__(other, key, value)
            return other


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RetrySettings(Record):
    """How often Qarnot restarts failed instances. Qarnot API: ``retrySettings``.

    With both limits, both must allow a retry. Without any, Qarnot retries nothing.

    :param max_total_retries: maximum number of retries of all instances together.
    :param max_per_instance_retries: maximum number of retries of each instance.
    """

    sends_empty = True

    max_total_retries: int | None = field(default=None, metadata=at("maxTotalRetries", integer(0)))
    max_per_instance_retries: int | None = field(
        default=None, metadata=at("maxPerInstanceRetries", integer(0))
    )

    @classmethod
    def of(cls, value: Any) -> RetrySettings:
        """Build them from the number of retries of each instance, a mapping, or RetrySettings."""
        value = parse_literal(value)
        if isinstance(value, RetrySettings):
            return value
        if isinstance(value, Mapping):
            return cls.from_mapping(value)
        try:
            return cls(max_per_instance_retries=integer(0)(value))
        except Refusal:
            raise Refusal(
                f"is neither a number of retries nor a mapping, got {short_repr(value)}",
                "Give how often each instance may retry as a number of 0 or more, or a mapping such as "
                "{'max_total_retries': 5}.",
            ) from None


def _check_slots(scales: Elastic | ManagedTasksQueuePolicy) -> None:
    for name, remedy in (
        ("min_total_slots", "Lower the minimum or raise the maximum."),
        ("min_idle_slots", "Lower it or raise the maximum."),
    ):
        slots, most = getattr(scales, name), scales.max_total_slots
        if slots > most:
            raise invalid(type(scales), name, f"is {slots}, more than max_total_slots ({most})", remedy)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Elastic(Record):
    """The older way to resize a pool on demand, replaced by ``Scaling``. Qarnot API: ``elasticProperty``.

    :param max_total_slots: maximum number of slots.
    :param min_total_slots: minimum number of slots.
    :param min_idle_slots: number of slots that are kept free.
    :param resize_period: interval at which the pool moves towards its demand. Qarnot documents 90 s.
    :param ramp_resize_factor: share of the difference by which it moves, from 0 to 1.
    :param min_idle_time: how long a slot is idle before it is released.
    """

    max_total_slots: int = field(metadata=at("maxTotalSlots", integer(1)))
    min_total_slots: int = field(default=0, metadata=at("minTotalSlots", integer(0)))
    min_idle_slots: int = field(default=0, metadata=at("minIdleSlots", integer(0)))
    resize_period: timedelta = field(
        default=timedelta(seconds=90), metadata=at("resizePeriod", duration, seconds)
    )
    # The specification requires less than 1, and the Python client sends 1. This value is valid for both.
    ramp_resize_factor: float = field(default=0.4, metadata=at("rampResizeFactor", number(0, 1)))
    min_idle_time: timedelta = field(
        default=timedelta(seconds=90), metadata=at("minIdleTimeSeconds", duration, seconds)
    )

    def _check(self) -> None:
        _check_slots(self)
        if self.resize_period <= timedelta(0):
            self._refuse("resize_period", "is zero", "Give at least a second; Qarnot documents 90 seconds.")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON body for the API."""
        return {"isElastic": True, **super().to_json()}

    @classmethod
    def of(cls, value: Any) -> Elastic | None:
        """Build it from a mapping or an Elastic. None for inactive settings (``isElastic`` false)."""
        value = parse_literal(value)
        if isinstance(value, Elastic) or not isinstance(value, Mapping):
            return value if isinstance(value, Elastic) else cls.from_mapping(value)
        rest = dict(value)
        for key in value:
            if normalise(str(key)) == "iselastic" and not boolean(rest.pop(key)):
                return None
        return cls.from_mapping(rest)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AlwaysPeriod(Record):
    """A period that covers any time.

    :param name: name of the period, unique in its policy.
    """

    type_name = "Always"

    name: str = field(default="always", metadata=at("name", text(minimum=1)))


def _weekday(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 6:
        return WEEKDAYS[value]  # the C# client's numbers: 0 is Sunday
    day = str(value).strip().lower()
    if day not in WEEKDAYS:
        raise Refusal(f"is not a day, got {short_repr(value)}", f"Give English names: {', '.join(WEEKDAYS)}.")
    return day


def _clock(value: Any) -> time:
    try:
        moment = value if isinstance(value, time) else time.fromisoformat(str(value).strip()[:15])
    except ValueError:
        raise Refusal(f"is not a time of day, got {short_repr(value)}", "Give HH:MM or HH:MM:SS.") from None
    if moment.tzinfo is not None:
        raise Refusal(f"has a time zone, got {short_repr(value)}", "Give the time in UTC, without a zone.")
    return moment


def _clock_text(value: time) -> str:
    return value.isoformat(timespec="microseconds" if value.microsecond else "seconds")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WeeklyPeriod(Record):
    """Hours of some days of every week.

    :param days: English names of the days.
    :param start_time_utc: start of the period on each day, as ``datetime.time`` or ``HH:MM[:SS]``, in UTC.
    :param end_time_utc: end of the period on each day, in the same form.
    :param name: name of the period, unique in its policy.
    """

    type_name = "Weekly"

    # In the order of the API's own responses, because one of its clients compares them in order.
    days: Sequence[str] = field(metadata=at("days", listing(_weekday, max_items=7), list))
    start_time_utc: time | str = field(metadata=at("startTimeUtc", _clock, _clock_text))
    end_time_utc: time | str = field(metadata=at("endTimeUtc", _clock, _clock_text))
    name: str = field(metadata=at("name", text(minimum=1)))

    def _check(self) -> None:
        if not self.days:
            self._refuse("days", "is empty", "Give at least one day.")
        if self.start_time_utc == self.end_time_utc:
            self._refuse("end_time_utc", "equals start_time_utc", "Give two different times.")


@dataclass(frozen=True)
class OtherPart:
    """A policy or period of a type that this release does not know, as Qarnot sent it."""

    type: str
    name: str | None
    raw: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that Qarnot sent."""
        return dict(self.raw)


Period = AlwaysPeriod | WeeklyPeriod | OtherPart


def _typed(kinds: Mapping[str, type[Record]], what: str, *, tolerant: bool) -> Any:
    """Return a converter that chooses the class by the ``type`` of the mapping."""

    def convert(value: Any) -> Any:
        value = parse_literal(value)
        if isinstance(value, (*kinds.values(), OtherPart)):
            return value
        if not isinstance(value, Mapping):
            raise Refusal(f"is not a {what}, got {short_repr(value)}", f"Give a {' or '.join(kinds)}.")
        rest = {normalise(str(key)): entry for key, entry in value.items()}
        kind = str(rest.pop("type", ""))
        cls = next((cls for name, cls in kinds.items() if name.lower() == kind.lower()), None)
        if cls is not None:
            return cls.from_mapping(rest)
        if tolerant and kind:
            return OtherPart(kind, rest.get("name"), dict(value))
        raise Refusal(
            f"has an unknown type, got {kind!r}", f"A {what} has one of the types {', '.join(kinds)}."
        )

    return convert


_period = _typed({"Always": AlwaysPeriod, "Weekly": WeeklyPeriod}, "period", tolerant=False)


def _unique(owner: Record, name: str, items: Sequence[Any]) -> None:
    names = [item.name for item in items]
    for one in names:
        if names.count(one) > 1:
            raise invalid(type(owner), name, f"has the name {one!r} twice", "Give each its own name.")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ManagedTasksQueuePolicy(Record):
    """Grow with the queue of Qarnot tasks, and shrink when slots are idle. Qarnot API: policy ``ManagedTasksQueue``.

    :param min_total_slots: minimum number of slots.
    :param max_total_slots: maximum number of slots.
    :param min_idle_slots: number of slots that are kept free.
    :param min_idle_time: how long a slot is idle before it is released.
    :param scaling_factor: share of ``max_total_slots`` that is added in a step of about 90 s, above 0 up to 1.
    :param name: name of the policy, unique in its pool.
    :param enabled_periods: when the policy applies.
    """

    type_name = "ManagedTasksQueue"
    sends_empty = True

    # In the order of the API's own responses, because one of its clients compares them in order.
    min_total_slots: int = field(default=0, metadata=at("minTotalSlots", integer(0)))
    max_total_slots: int = field(metadata=at("maxTotalSlots", integer(1)))
    min_idle_slots: int = field(default=0, metadata=at("minIdleSlots", integer(0)))
    min_idle_time: timedelta = field(
        default=timedelta(seconds=90), metadata=at("minIdleTimeSeconds", duration, seconds)
    )
    scaling_factor: float = field(default=0.2, metadata=at("scalingFactor", number(0, 1, above=True)))
    name: str = field(default="managed", metadata=at("name", text(minimum=1)))
    enabled_periods: Sequence[Period] = field(
        default=(AlwaysPeriod(),), metadata=at("enabledPeriods", listing(_period), nested)
    )

    def _check(self) -> None:
        _check_slots(self)
        _unique(self, "enabled_periods", self.enabled_periods)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FixedPolicy(Record):
    """A constant number of slots. Qarnot API: policy ``Fixed``.

    :param slots_count: number of slots.
    :param name: name of the policy, unique in its pool.
    :param enabled_periods: when the policy applies.
    """

    type_name = "Fixed"
    sends_empty = True

    slots_count: int = field(metadata=at("slotsCount", integer(0)))
    name: str = field(default="fixed", metadata=at("name", text(minimum=1)))
    enabled_periods: Sequence[Period] = field(
        default=(AlwaysPeriod(),), metadata=at("enabledPeriods", listing(_period), nested)
    )

    def _check(self) -> None:
        _unique(self, "enabled_periods", self.enabled_periods)


Policy = ManagedTasksQueuePolicy | FixedPolicy | OtherPart
_POLICIES: dict[str, type[Record]] = {"ManagedTasksQueue": ManagedTasksQueuePolicy, "Fixed": FixedPolicy}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scaling(Record):
    """Policies for the size of a pool. The first one with a matching period applies.

    Qarnot API: ``scaling``, ``PUT /pools/{u}/scaling``.

    :param policies: ``ManagedTasksQueuePolicy``, ``FixedPolicy``, or mappings of their fields and ``type``.
    :param active_policy_name: the policy that applies. It is set in responses only.
    """

    sends_empty = True

    policies: Sequence[Policy] = field(
        metadata=at("policies", listing(_typed(_POLICIES, "policy", tolerant=False)), nested)
    )
    active_policy_name: str | None = field(
        default=None, metadata=at(None, text(), aliases=["activePolicyName"])
    )

    def _check(self) -> None:
        if not self.policies:
            self._refuse("policies", "is empty", "Give at least one policy.")
        _unique(self, "policies", self.policies)

    @classmethod
    def of(cls, value: Any) -> Self:
        """Build it from a Scaling, a policy, a list of policies, or a mapping with ``policies``."""
        value = parse_literal(value)
        if isinstance(value, cls):
            return value
        if isinstance(value, (ManagedTasksQueuePolicy, FixedPolicy)):
            return cls(policies=(value,))
        if isinstance(value, Mapping):
            return cls.from_mapping(value)
        return cls(policies=value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Parse a response without validating it. Policies of unknown types become OtherPart."""
        scaling = object.__new__(cls)
        policies = []
        for item in data.get("policies") or ():
            try:
                policies.append(_typed(_POLICIES, "policy", tolerant=True)(item))
            except ValueError:
                policies.append(OtherPart(str(item.get("type")), item.get("name"), dict(item)))
        object.__setattr__(scaling, "policies", tuple(policies))
        object.__setattr__(scaling, "active_policy_name", data.get("activePolicyName"))
        return scaling


_CONSTRAINTS: dict[str, tuple[str, Any] | None] = {
    "MinimumCoreHardwareConstraint": ("coreCount", integer(1)),
    "MaximumCoreHardwareConstraint": ("coreCount", integer(1)),
    "MinimumRamCoreRatioHardwareConstraint": ("minimumMemoryGBCoreRatio", number(0, 1e6, above=True)),
    "MaximumRamCoreRatioHardwareConstraint": ("maximumMemoryGBCoreRatio", number(0, 1e6, above=True)),
    "MinimumRamHardwareConstraint": ("minimumMemoryMB", integer(1)),
    "MaximumRamHardwareConstraint": ("maximumMemoryMB", integer(1)),
    "SpecificHardwareConstraint": ("specificationKey", text(minimum=1)),
    "CpuModelHardwareConstraint": ("cpuModel", text(minimum=1)),
    "GpuHardwareConstraint": None,
    "NoGpuHardwareConstraint": None,
    "SSDHardwareConstraint": None,
    "NoSSDHardwareConstraint": None,
}


@dataclass(frozen=True, eq=False, repr=False)
class HardwareConstraint(Record):
    """A requirement for the nodes. Use the class methods to create one. Qarnot API: ``hardwareConstraints``.

    :param discriminator: Qarnot's name of the kind of constraint.
    :param value: value of the kinds that have one: cores, MB, GB per core, or a name.
    """

    discriminator: str = field(metadata=at("discriminator", text(minimum=1)))
    value: Any = field(default=None, metadata=at("value", lambda value: value))

    def _check(self) -> None:
        if self.discriminator not in _CONSTRAINTS:
            self._refuse(
                "discriminator", f"is {self.discriminator!r}", f"Known are {', '.join(sorted(_CONSTRAINTS))}."
            )
        takes = _CONSTRAINTS[self.discriminator]
        if takes is None:
            if self.value is not None:
                self._refuse("value", f"is {short_repr(self.value)}", f"{self.discriminator} takes no value.")
            return
        key, convert = takes
        if self.value is None:
            self._refuse("value", "is missing", f"{self.discriminator} needs {key}.")
        try:
            object.__setattr__(self, "value", convert(self.value))
        except Refusal as refusal:
            raise invalid(type(self), key, refusal.problem, refusal.remedy) from None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON body for the API."""
        takes = _CONSTRAINTS.get(self.discriminator)
        extra = {takes[0]: self.value} if takes else self.value or {}
        return {"discriminator": self.discriminator, **extra}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping with a ``discriminator``."""
        if not isinstance(values, Mapping):
            return super().from_mapping(values)
        rest = {normalise(str(key)): value for key, value in values.items()}
        kind = str(rest.pop("discriminator", ""))
        known = next((name for name in _CONSTRAINTS if name.lower() == kind.lower()), kind)
        takes = _CONSTRAINTS.get(known)
        value = rest.pop(normalise(takes[0]), None) if takes else None
        value = rest.pop("value", None) if value is None else value
        if rest and known in _CONSTRAINTS:
            raise invalid(
                cls, next(iter(rest)), "is not known", f"{known} takes {takes[0] if takes else 'no value'}."
            )
        return cls(known, value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Parse a response without validating it. ``value`` of an unknown constraint holds all its other fields."""
        try:
            return cls.from_mapping(data)
        except ValueError:
            other = object.__new__(cls)
            rest = {key: value for key, value in data.items() if key != "discriminator"}
            object.__setattr__(other, "discriminator", str(data.get("discriminator")))
            object.__setattr__(other, "value", rest)
            return other

    @classmethod
    def minimum_cores(cls, count: int) -> Self:
        """Require at least this many cores."""
        return cls("MinimumCoreHardwareConstraint", count)

    @classmethod
    def maximum_cores(cls, count: int) -> Self:
        """Require at most this many cores."""
        return cls("MaximumCoreHardwareConstraint", count)

    @classmethod
    def minimum_ram(cls, megabytes: int) -> Self:
        """Require at least this much memory, in MB."""
        return cls("MinimumRamHardwareConstraint", megabytes)

    @classmethod
    def maximum_ram(cls, megabytes: int) -> Self:
        """Require at most this much memory, in MB."""
        return cls("MaximumRamHardwareConstraint", megabytes)

    @classmethod
    def minimum_ram_per_core(cls, gigabytes: float) -> Self:
        """Require at least this much memory for each core, in GB."""
        return cls("MinimumRamCoreRatioHardwareConstraint", gigabytes)

    @classmethod
    def maximum_ram_per_core(cls, gigabytes: float) -> Self:
        """Require at most this much memory for each core, in GB."""
        return cls("MaximumRamCoreRatioHardwareConstraint", gigabytes)

    @classmethod
    def specification(cls, key: str) -> Self:
        """Require a kind of machine, such as ``8c-32g-amd-rz3700x``."""
        return cls("SpecificHardwareConstraint", key)

    @classmethod
    def cpu_model(cls, model: str) -> Self:
        """Require a processor model."""
        return cls("CpuModelHardwareConstraint", model)

    @classmethod
    def gpu(cls) -> Self:
        """Require a GPU."""
        return cls("GpuHardwareConstraint")

    @classmethod
    def no_gpu(cls) -> Self:
        """Require a node without a GPU."""
        return cls("NoGpuHardwareConstraint")

    @classmethod
    def ssd(cls) -> Self:
        """Require an SSD."""
        return cls("SSDHardwareConstraint")

    @classmethod
    def no_ssd(cls) -> Self:
        """Require a node without an SSD."""
        return cls("NoSSDHardwareConstraint")


def contradiction(constraints: Sequence[HardwareConstraint]) -> str | None:
    """Return the two constraints that exclude each other, if there are any."""
    found = {one.discriminator.removesuffix("HardwareConstraint"): one.value for one in constraints}
    for name in ("Gpu", "SSD"):
        if {name, f"No{name}"} <= found.keys():
            return f"{name} and No{name}"
    for name in ("Core", "RamCoreRatio", "Ram"):
        least, most = found.get(f"Minimum{name}"), found.get(f"Maximum{name}")
        if least is not None and most is not None and least > most:
            return f"Minimum{name} {least} and Maximum{name} {most}"
    return None


def _keyed(key: str) -> Any:
    """Return a converter of a list of texts, which the API writes as ``[{key: text}]``."""

    def item(value: Any) -> str:
        return str(text(minimum=1)(value.get(key) if isinstance(value, Mapping) else value))

    return listing(item)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SecretsAccess(Record):
    """The secrets of the account's vault that the instances can read. Qarnot API: ``secretsAccessRights``.

    :param keys: keys of single secrets.
    :param prefixes: starts of keys. All secrets below them can be read.
    """

    keys: Sequence[str] = field(
        default=(), metadata=at("bySecret", _keyed("key"), lambda keys: [{"key": key} for key in keys])
    )
    prefixes: Sequence[str] = field(
        default=(), metadata=at("byPrefix", _keyed("prefix"), lambda all_: [{"prefix": one} for one in all_])
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Privileges(Record):
    """Rights of the instances. Qarnot API: ``privileges``.

    :param export_api_and_storage_credentials_in_environment: whether the instances have the account's credentials in
        their environment, to call the API and to use the storage.
    """

    export_api_and_storage_credentials_in_environment: bool = field(
        default=False, metadata=at("exportApiAndStorageCredentialsInEnvironment", boolean)
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ForcedConstant(Record):
    """A constant of the profile that gets another value (developer permission). Qarnot API: ``forcedConstants``.

    :param constant_name: name of the constant.
    :param forced_value: its value. It is never shown.
    :param force_export_in_environment: whether instances see it as an environment variable.
    :param access: ``ReadOnly`` or ``ReadWrite``: whether a task can set it.
    """

    constant_name: str = field(metadata=at("constantName", text(minimum=1), aliases=["name"]))
    forced_value: str | None = field(default=None, metadata=at("forcedValue", text(), aliases=["value"]))
    force_export_in_environment: bool | None = field(
        default=None, metadata=at("forceExportInEnvironment", boolean)
    )
    access: str | None = field(default=None, metadata=at("access", choice("ReadOnly", "ReadWrite")))

    def __repr__(self) -> str:
        # A forced value may be a password, whatever its name.
        return f"ForcedConstant(constant_name={self.constant_name!r}, forced_value='***')"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkRule(Record):
    """A port opened between a node and the outside (developer permission). Qarnot API: ``forcedNetworkRules``.

    :param inbound: whether the rule is for inbound or for outbound traffic.
    :param proto: ``tcp`` or ``udp``.
    :param to: inbound: source address that is allowed.
    :param port: inbound: port of the instance.
    :param public_host: outbound: destination address that is allowed.
    :param public_port: outbound: port of the destination that is allowed.
    :param forwarder: type of the forwarder.
    :param priority: priority of the rule.
    :param description: text for readers.
    :param to_q_box: whether the endpoint is on Qarnot's box beside the node.
    :param to_payload: whether the endpoint is in the payload.
    :param name: name of the rule, by which ``client.tasks.port_forward`` lists it.
    :param application_type: protocol of the application, such as ``ssh`` or ``https``.
    """

    inbound: bool = field(metadata=at("inbound", boolean))
    proto: str = field(metadata=at("proto", choice("tcp", "udp")))
    to: str | None = field(default=None, metadata=at("to", text()))
    port: str | None = field(default=None, metadata=at("port", lambda value: str(value)))
    public_host: str | None = field(default=None, metadata=at("publicHost", text()))
    public_port: str | None = field(default=None, metadata=at("publicPort", lambda value: str(value)))
    forwarder: str | None = field(default=None, metadata=at("forwarder", text()))
    priority: str | None = field(default=None, metadata=at("priority", lambda value: str(value)))
    description: str | None = field(default=None, metadata=at("description", text()))
    to_q_box: bool | None = field(default=None, metadata=at("toQBox", boolean))
    to_payload: bool | None = field(default=None, metadata=at("toPayload", boolean))
    name: str | None = field(default=None, metadata=at("name", text()))
    application_type: str | None = field(default=None, metadata=at("applicationType", text()))


CONDITIONS = ("success", "failure", "cancelled")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TaskDependency(Record):
    """A Qarnot task that must finish first. Qarnot API: ``dependencies``.

    :param task: uuid of the task.
    :param conditions: final states that are accepted: ``success``, ``failure``, ``cancelled``; default: any. Another
        one cancels the task that depends on it.
    """

    task: str = field(metadata=at("taskUuid", uuid_text))
    conditions: Sequence[str] = field(
        default=(),
        metadata=at("taskFinalStateCondition", listing(choice(*CONDITIONS)), list),
    )


__all__ = [
    "AlwaysPeriod",
    "Elastic",
    "FixedPolicy",
    "ForcedConstant",
    "HardwareConstraint",
    "ManagedTasksQueuePolicy",
    "NetworkRule",
    "OtherPart",
    "Period",
    "Policy",
    "Privileges",
    "ResourceBucket",
    "RetrySettings",
    "Scaling",
    "SecretsAccess",
    "TaskDependency",
    "WeeklyPeriod",
]
