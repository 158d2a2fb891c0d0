"""``PoolSpec`` and ``TaskSpec``: validated specifications of pools and Qarnot tasks.

Field names are the API's in snake_case, with a few simpler ones (``pool`` for poolUuid, ``ranges`` for
advancedRanges, ``slots_per_node`` for multiSlotsSettings, ``completion_ttl`` for completionTimeToLive, ...).
``from_mapping`` takes either. Durations are ``timedelta``. An invalid value raises QarnotInvalidSpecError.

Qarnot API: ``POST /pools``, ``POST /tasks``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, ClassVar

from airflow_qarnot_pool.api.buckets import bucket, key_prefix, pattern
from airflow_qarnot_pool.api.commands import SCRIPT, wrapped
from airflow_qarnot_pool.api.fields import (
    MAX_CONSTANT_LENGTH,
    Record,
    Refusal,
    as_text,
    at,
    boolean,
    choice,
    command_line,
    constants,
    duration,
    integer,
    listing,
    mapping,
    mask_constants,
    nested,
    normalise,
    parse_literal,
    record,
    seconds,
    short_hash,
    short_repr,
    span,
    text,
    to_pairs,
    uuid_text,
)
from airflow_qarnot_pool.api.parts import (
    AlwaysPeriod,
    Elastic,
    FixedPolicy,
    ForcedConstant,
    HardwareConstraint,
    ManagedTasksQueuePolicy,
    NetworkRule,
    OtherPart,
    Period,
    Policy,
    Privileges,
    ResourceBucket,
    RetrySettings,
    Scaling,
    SecretsAccess,
    TaskDependency,
    WeeklyPeriod,
    contradiction,
)
from airflow_qarnot_pool.api.ranges import format_ranges, parse_ranges

DEFAULT_PROFILE = "docker-batch"
#: Maximum number of tags of an object, how many of them the provider uses, and how many remain for users.
MAX_TAGS = 10
OUR_TAGS = 3
MAX_USER_TAGS = MAX_TAGS - OUR_TAGS
MAX_POOL_CONSTANTS = 50
MAX_TASK_CONSTANTS = 150
MAX_BUCKETS = 100
#: Constants with the ids of OpenLineage runs, of which each try of an Airflow task has its own.
PER_TRY_CONSTANTS = ("OPENLINEAGE_PARENT_ID", "OPENLINEAGE_ROOT_PARENT_ID")
MAX_INSTANCES = 2048
#: Maximum number of rungs of a ladder, because each may be a generation that is billed.
MAX_RUNGS = 10

_SHORTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_SERVER = re.compile(
    r"(?:https?://)?[^\s/:@]+(?::\d+)?(?:/\S*)?|https?://\[[0-9a-fA-F:]+\](?::\d+)?(?:/\S*)?", re.I
)
_DOCKER_HUB = "registry-1.docker.io"
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")
_DOCKER_TAG = re.compile(r"\w[\w.-]{0,127}")


_shortname = text(
    form=_SHORTNAME,
    what="a shortname",
    remedy="Use letters, digits and hyphens; start and end with a letter or digit.",
)


def _exit_codes(value: Any) -> tuple[int, ...]:
    value = parse_literal(value)
    codes = listing(integer(1, 255))([value] if isinstance(value, (int, str)) else value)
    return tuple(sorted(set(codes)))


def _interval(value: Any) -> timedelta:
    interval = duration(value)
    if interval < timedelta(seconds=1):
        raise Refusal(f"is shorter than a second, got {interval}", "Give seconds or a timedelta.")
    return interval


_scheduling_type = choice("Flex", "OnDemand", "Reserved")


def _ladder(value: Any) -> tuple[str, ...]:
    rungs: tuple[str, ...] = listing(_scheduling_type, max_items=MAX_RUNGS)(value)
    if len(rungs) == 1:
        raise Refusal(f"has a single rung, got {rungs[0]!r}", "Give it as scheduling_type.")
    return rungs


_tags = listing(
    text(minimum=1, below=512),
    max_items=MAX_TAGS,
    noun="tags",
    remedy=f"Give at most {MAX_USER_TAGS}: Qarnot takes {MAX_TAGS}, of which this provider needs {OUR_TAGS}.",
)


def _ranges(value: Any) -> str:
    words = as_text(value)
    if words is None:
        raise Refusal(f"is not text, got {short_repr(value)}", "Write instance ids like '0-2,4,7-9'.")
    try:
        ids = parse_ranges(words)
    except ValueError as error:
        raise Refusal(
            f"is not a list of ranges ({error}), got {short_repr(value)}",
            "Write instance ids like '0-2,4,7-9'.",
        ) from None
    if not ids:
        raise Refusal("names no instance", "Write instance ids like '0-2,4,7-9', or leave it out.")
    if len(ids) > MAX_INSTANCES:
        raise Refusal(f"names {len(ids)} instances", f"A task has {MAX_INSTANCES} at most; use several.")
    return words.strip()


def _with(prefix: str) -> Any:
    """Return the remedy for a bucket with a path, if *prefix* is the field for the path."""
    return lambda name, path: f"Write {name!r} and the field {prefix}={path.rstrip('/') + '/'!r}."


def _wrapped(key: str, convert: Any) -> Any:
    """Return a converter that accepts ``value`` and the API's ``{key: value}``."""

    def unwrap(value: Any) -> Any:
        value = parse_literal(value)
        if isinstance(value, Mapping):
            by_name = {normalise(str(name)): entry for name, entry in value.items()}
            value = by_name.get(normalise(key))
        return None if value is None else convert(value)

    return unwrap


def _dependencies(value: Any) -> tuple[TaskDependency, ...]:
    value = parse_literal(value)
    if isinstance(value, Mapping):
        by_name = {normalise(str(name)): entry for name, entry in value.items()}
        value = by_name.get("advanceddependson") or by_name.get("dependson") or ()

    def item(entry: Any) -> Any:
        return TaskDependency(task=entry) if isinstance(entry, str) else record(TaskDependency)(entry)

    result: tuple[TaskDependency, ...] = listing(item)(value)
    return result


def _dependencies_json(value: Sequence[TaskDependency]) -> dict[str, Any]:
    if not any(dependency.conditions for dependency in value):
        return {"dependsOn": [dependency.task for dependency in value]}
    return {
        "advancedDependsOn": [
            {"taskUuid": dependency.task, "taskFinalStateCondition": list(dependency.conditions) or None}
            for dependency in value
        ]
    }


def image_constants(image: str) -> dict[str, str]:
    """Return the constants for ``[registry/]repository[:tag]``, without those of missing parts.

    ``ubuntu`` is ``library/ubuntu``, as in Docker. Raises ValueError.
    """
    if "@" in image:
        raise ValueError("names a digest; Qarnot takes a tag")
    host, rest = _split_registry(image)
    repository, colon, tag = rest.partition(":")
    if not _REPOSITORY.fullmatch(repository) or (colon and not _DOCKER_TAG.fullmatch(tag)):
        raise ValueError("is not an image name")
    hub = host in ("", "docker.io", "index.docker.io", _DOCKER_HUB)
    if hub and "/" not in repository:
        repository = f"library/{repository}"
    constants = {"DOCKER_REPO": repository}
    if colon:
        constants["DOCKER_TAG"] = tag
    if host:
        constants["DOCKER_SRV"] = f"https://{_DOCKER_HUB if hub else host}"
    return constants


def _split_registry(image: str) -> tuple[str, str]:
    """Split off the host of the registry. Without one the first part belongs to the repository."""
    host, slash, rest = image.partition("/")
    is_host = slash and ("." in host or ":" in host or host == "localhost")
    return (host, rest) if is_host else ("", image)


def _image(value: Any) -> str:
    image = str(text(minimum=1)(value)).strip()
    try:
        image_constants(image)
    except ValueError as error:
        raise Refusal(f"{error}, got {short_repr(image)}", "Write [registry/]repository[:tag].") from None
    return image


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Spec(Record):
    """The fields that pools and Qarnot tasks share.

    :param name: display name. The operators give one by default.
    :param shortname: unique name that can stand for the uuid: letters, digits and hyphens.
    :param profile: kind of container and its network, such as ``docker-batch``. A task of a pool has the pool's.
    :param image: ``[registry/]repository[:tag]``, sent as the constants DOCKER_REPO, DOCKER_TAG and DOCKER_SRV.
    :param constants: constants, text to text, which instances see as environment variables: at most 50 of a pool, and
        150 of a task. Values have at most 2,048 characters. Those of ``QARNOT_SECRET__...`` cannot be read back.
    :param forced_constants: constants of the profile to override. Needs the developer permission.
    :param constraints: older scheduling hints of an account, text to text. Prefer ``hardware_constraints``.
    :param hardware_constraints: requirements for the nodes, all of which must be met.
    :param resource_buckets: buckets whose files the nodes download before they start, at most 100.
    :param tags: tags of the object, less than 512 characters each. Of Qarnot's 10 the provider uses 3.
    :param labels: labels of the object, text to text. They have no effect on the work.
    :param auto_delete_on_completion: let Qarnot delete the finished object if the account is at its quota.
    :param completion_ttl: time after its end until Qarnot deletes the object; 0: never.
    :param scheduling_type: ``Flex`` (cheapest, nodes can be preempted), ``OnDemand`` or ``Reserved``. Default: the
        account's.
    :param ladder: scheduling types in place of one, such as ``("Flex", "Flex", "OnDemand")``: 2 to 10, the cheapest
        first. Operators, except ``QarnotRunTasksOperator``, use the next one after lost nodes or near the deadline.
        The client sends the first one.
    :param targeted_reserved_machine_key: kind of machine of the account's reservation. Qarnot replaced it by
        ``targeted_reservation_name``.
    :param targeted_reservation_name: name of the account's reservation, with ``scheduling_type="Reserved"``.
    :param default_resources_cache_ttl: how long nodes may keep the files of buckets that have no ``cache_ttl``.
        Qarnot's default is 90 days.
    :param privileges: rights of the instances.
    :param max_time_queue: maximum time in the queue. Qarnot fails the object after that.
    :param secrets_access: secrets of the account's vault that the instances can read. A task of a pool has the pool's.
    :param forced_network_rules: ports to open. Needs the developer permission, and a profile with a network.
    :param project: uuid of the account's project that pays. Default: the account's default project.
    """

    kind: ClassVar[str]
    max_constants: ClassVar[int]

    name: str = field(metadata=at("name", text(minimum=1, below=2048)))
    shortname: str | None = field(default=None, metadata=at("shortname", _shortname))
    profile: str | None = field(default=None, metadata=at("profile", text(minimum=1)))
    instance_count: int | None = field(default=None, metadata=at("instanceCount", integer(1)))
    image: str | None = field(default=None, metadata=at(None, _image))
    constants: Mapping[str, str] = field(default_factory=dict, metadata=at("constants", constants, to_pairs))
    forced_constants: Sequence[ForcedConstant] = field(
        default=(), metadata=at("forcedConstants", listing(record(ForcedConstant)), nested)
    )
    constraints: Mapping[str, str] = field(
        default_factory=dict, metadata=at("constraints", mapping, to_pairs)
    )
    hardware_constraints: Sequence[HardwareConstraint] = field(
        default=(), metadata=at("hardwareConstraints", listing(record(HardwareConstraint)), nested)
    )
    resource_buckets: Sequence[ResourceBucket | str] = field(
        default=(),
        metadata=at(
            "advancedResourceBuckets",
            listing(ResourceBucket.of, max_items=MAX_BUCKETS),
            nested,
            aliases=["resource_buckets"],
        ),
    )
    tags: Sequence[str] = field(default=(), metadata=at("tags", _tags, list))
    labels: Mapping[str, str] = field(default_factory=dict, metadata=at("labels", mapping, dict))
    auto_delete_on_completion: bool | None = field(
        default=None, metadata=at("autoDeleteOnCompletion", boolean)
    )
    completion_ttl: timedelta | None = field(
        default=None, metadata=at("completionTimeToLive", duration, span)
    )
    scheduling_type: str | None = field(default=None, metadata=at("schedulingType", _scheduling_type))
    ladder: Sequence[str] = field(default=(), metadata=at(None, _ladder))
    targeted_reserved_machine_key: str | None = field(
        default=None, metadata=at("targetedReservedMachineKey", text(minimum=1))
    )
    targeted_reservation_name: str | None = field(
        default=None, metadata=at("targetedReservationName", text(minimum=1))
    )
    default_resources_cache_ttl: timedelta | None = field(
        default=None, metadata=at("defaultResourcesCacheTTLSec", duration, seconds)
    )
    privileges: Privileges | None = field(default=None, metadata=at("privileges", record(Privileges), nested))
    max_time_queue: timedelta | None = field(
        default=None, metadata=at("maxTimeQueueSeconds", duration, seconds)
    )
    secrets_access: SecretsAccess | None = field(
        default=None, metadata=at("secretsAccessRights", record(SecretsAccess), nested)
    )
    forced_network_rules: Sequence[NetworkRule] = field(
        default=(), metadata=at("forcedNetworkRules", listing(record(NetworkRule)), nested)
    )
    project: str | None = field(default=None, metadata=at("projectUuid", uuid_text))

    def _given_constants(self) -> dict[str, str]:
        """Return the constants that replace some of our fields."""
        return image_constants(self.image) if self.image else {}

    def all_constants(self) -> dict[str, str]:
        """Return all constants that are sent: the user's and those of ``image`` and ``command``."""
        constants = {**self.constants, **self._given_constants()}
        if self.image:
            constants.setdefault("DOCKER_TAG", "latest")
        return constants

    def to_json(self) -> dict[str, Any]:
        """Return the body of the creation request, without fields that are not set."""
        constants = to_pairs(self.all_constants())
        body = super().to_json()
        if self.ladder and not self.scheduling_type:
            body["schedulingType"] = self.ladder[0]
        return {**body, "constants": constants} if constants else body

    def _check(self) -> None:
        self._check_constants()
        if self.hardware_constraints and (pair := contradiction(self.hardware_constraints)):
            self._refuse(
                "hardware_constraints", f"has {pair}, which no machine can meet", "Keep one of them."
            )
        if self.ladder and self.scheduling_type:
            self._refuse("ladder", "is given together with scheduling_type", "Keep one of them.")
        self._check_reservation()

    def _check_constants(self) -> None:
        for key in self._given_constants():
            if key in self.constants:
                source = "command" if key in ("DOCKER_CMD", SCRIPT) else "image"
                self._refuse("constants", f"has {key}, which {source}= sets too", "Give it one way only.")
        count = len(self.all_constants())
        if count > self.max_constants:
            self._refuse(
                "constants",
                f"has {count} entries",
                f"A {self.kind} takes {self.max_constants}; put the rest in a file of a resource bucket.",
            )
        server = self.constants.get("DOCKER_SRV")
        if server and not _SERVER.fullmatch(server):
            self._refuse(
                "constants",
                f"has DOCKER_SRV {short_repr(server)}, which is not the URL of a registry",
                "Write one such as https://registry.example:5000.",
            )

    def _check_reservation(self) -> None:
        if self.targeted_reserved_machine_key and self.targeted_reservation_name:
            self._refuse(
                "targeted_reserved_machine_key",
                "is given together with targeted_reservation_name",
                "Keep targeted_reservation_name; the other is deprecated.",
            )
        for name in ("targeted_reserved_machine_key", "targeted_reservation_name"):
            if getattr(self, name) and self.scheduling_type != "Reserved":
                self._refuse(name, "needs reserved scheduling", "Set scheduling_type='Reserved'.")

    def fingerprint_fields(self) -> dict[str, str]:
        """Return a short hash of each field that is set.

        Two specs with the same hashes request the same, perhaps under different names: name, shortname, tags and labels
        are not included. Only the name of a secret constant is included, because a password may be rotated. Constants
        that differ from try to try are not included, because a retry adopts the object of an earlier try.
        """
        sent = self.all_constants().items()
        constants = {name: value for name, value in sent if name not in PER_TRY_CONSTANTS}
        body = super().to_json()
        body.pop("constants", None)
        if constants:
            body["constants"] = mask_constants(constants)
        by_wire = {field.metadata["wire"].name: field.name for field in fields(self)}
        hashes = {
            by_wire[key]: short_hash(value)
            for key, value in body.items()
            if key not in ("name", "shortname", "tags", "labels")
        }
        # Not the rung: all generations of a ladder are one request.
        return {**hashes, "ladder": short_hash(list(self.ladder))} if self.ladder else hashes

    def fingerprint(self, *, exclude: Sequence[str] = ()) -> str:
        """Return 16 hex digits that are the same for specs that request the same; see fingerprint_fields."""
        kept = {key: value for key, value in self.fingerprint_fields().items() if key not in exclude}
        return short_hash(kept, length=16)


_RESULTS_HINT = "A pool has no result bucket: results belong to tasks, so give result_bucket to the task."


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PoolSpec(_Spec):
    """A pool to create. Qarnot API: ``POST /pools``.

    :param instance_count: size of the pool in slots; default: 1. A pool with ``elastic`` or ``scaling`` gets its size
        from there.
    :param slots_per_node: number of slots that share a node; default: 1.
    :param elastic: limits of a pool that follows its load. Prefer ``scaling``, which replaces it.
    :param scaling: policies for the size of the pool: one policy, several, or a ``Scaling``.
    :param preparation_command: runs on every node before its first task.
    :param default_retry: retries by Qarnot of the instances of tasks that have no ``retry``.
    :param task_default_wait_for_pool_resources_synchronization: whether tasks wait for the files of the pool that are
        being fetched again, unless they say so themselves.
    """

    kind: ClassVar[str] = "pool"
    max_constants: ClassVar[int] = MAX_POOL_CONSTANTS
    misplaced: ClassVar[Mapping[str, str]] = {
        "resultbucket": _RESULTS_HINT,
        "resultsbucket": _RESULTS_HINT,
        "resultsbucketprefix": _RESULTS_HINT,
        "resultsprefix": _RESULTS_HINT,
        "command": "A pool runs no command: give it to a task, or use preparation_command for each node.",
        "ranges": "Instance ranges belong to tasks; a pool has instance_count.",
        "advancedranges": "Instance ranges belong to tasks; a pool has instance_count.",
        "retry": "Use default_retry, the default of the pool's tasks.",
        "retrysettings": "Use default_retry, the default of the pool's tasks.",
    }

    elastic: Elastic | None = field(
        default=None, metadata=at("elasticProperty", Elastic.of, nested, aliases=["elastic"])
    )
    scaling: Scaling | None = field(default=None, metadata=at("scaling", Scaling.of, nested))
    slots_per_node: int | None = field(
        default=None,
        metadata=at(
            "multiSlotsSettings",
            _wrapped("slotsPerNode", integer(1)),
            lambda slots: {"slotsPerNode": slots},
        ),
    )
    preparation_command: str | None = field(
        default=None,
        metadata=at(
            "preparationTask",
            _wrapped("commandLine", text(minimum=1)),
            lambda command: {"commandLine": command},
        ),
    )
    default_retry: RetrySettings | None = field(
        default=None, metadata=at("defaultRetrySettings", RetrySettings.of, nested)
    )
    task_default_wait_for_pool_resources_synchronization: bool | None = field(
        default=None, metadata=at("taskDefaultWaitForPoolResourcesSynchronization", boolean)
    )

    def _check(self) -> None:
        super()._check()
        if self.elastic and self.scaling:
            self._refuse(
                "elastic", "is given together with scaling", "Keep scaling; it replaces the elastic block."
            )
        sized_by = "scaling" if self.scaling else "elastic" if self.elastic else None
        if sized_by and self.instance_count is not None:
            self._refuse(
                "instance_count",
                f"is {self.instance_count}, but Qarnot ignores it on a pool with {sized_by}",
                f"Leave it out and set the slots in {sized_by}.",
            )
        if self.profile is None:
            object.__setattr__(self, "profile", DEFAULT_PROFILE)
        if sized_by is None and self.instance_count is None:
            object.__setattr__(self, "instance_count", 1)


#: Fields that have no effect without a bucket, and the buckets that they need.
_FILES_OF = {
    (
        "results_prefix",
        "results_whitelist",
        "results_blacklist",
        "results_cache_ttl",
        "upload_results_on_cancellation",
    ): ("result_bucket",),
    ("snapshot_every", "snapshot_prefix", "snapshot_whitelist", "snapshot_blacklist"): (
        "snapshot_bucket",
        "result_bucket",
    ),
}
#: Fields of a task that exclude each other, with the remedy.
_EXCLUSIVE = (
    ("ranges", "instance_count", "Keep one: ranges already define how many."),
    ("pool", "job", "Keep job; its pool is used."),
    ("max_retries_per_instance", "retry", "Keep retry; it replaces it."),
)
#: Fields that a task of a pool cannot set, with the remedy.
_SET_BY_POOL = {
    "profile": "Leave it out; the pool's profile is used.",
    "hardware_constraints": "Give them to the pool; its nodes are already chosen.",
    "secrets_access": "Give it to the pool.",
    "project": "Leave it out; the pool's project is used.",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TaskSpec(_Spec):
    """A Qarnot task to create, on a pool or without one. Qarnot API: ``POST /tasks``.

    :param command: text or a list of words, sent as the constant DOCKER_CMD.
    :param instance_count: number of instances, with the ids 0 to n-1; default: 1.
    :param ranges: the instance ids, such as "0-2,5", in place of ``instance_count``; at most 2,048.
    :param return_file: whether the value of the task is the JSON that its command writes to the file
        ``$QARNOT_RETURN_FILE``.
    :param skip_on_exit_code: exit codes (a number or a list) with which the command skips the Airflow task. The Qarnot
        task succeeds.
    :param snapshot_every: interval at which Qarnot copies the files of the task to ``snapshot_bucket`` (default:
        ``result_bucket``). A retry starts with the last copy. Only ``QarnotRunTaskOperator`` and ``@task.qarnot`` send
        it. Elsewhere call ``TaskResource.snapshot_every``.
    :param pool: uuid of the pool. Operators have ``qarnot_pool`` for it.
    :param job: uuid of an active job, whose pool is used.
    :param retry: retries by Qarnot of failed instances: a number for each instance, or a ``RetrySettings``.
    :param max_retries_per_instance: older form of ``retry``.
    :param result_bucket: bucket that gets the files the instances write. A missing bucket is created.
    :param results_prefix: start of the keys of the results.
    :param results_whitelist: regular expression. Only files whose path it matches somewhere are results.
    :param results_blacklist: regular expression. Files whose path it matches somewhere are no results.
    :param results_cache_ttl: how long nodes may keep the results, for tasks that read them.
    :param snapshot_bucket: bucket of the snapshots; default: ``result_bucket``.
    :param snapshot_prefix: start of the keys of the snapshots; default of the operators: ``airflow-snapshots``.
    :param snapshot_whitelist: regular expression of the files that are copied.
    :param snapshot_blacklist: regular expression of the files that are not copied.
    :param upload_results_on_cancellation: whether the results of an aborted task are stored.
    :param wait_for_pool_resources_synchronization: whether the task waits for files of the pool that are being fetched
        again. Default: the pool's ``task_default_wait_for_pool_resources_synchronization``.
    :param dependencies: tasks of the same job that must finish first. The job needs ``use_dependencies``.
    """

    kind: ClassVar[str] = "task"
    max_constants: ClassVar[int] = MAX_TASK_CONSTANTS
    misplaced: ClassVar[Mapping[str, str]] = {
        "scaling": "Scaling belongs to the pool; a task has instance_count.",
        "elastic": "The elastic block belongs to the pool; a task has instance_count.",
        "elasticproperty": "The elastic block belongs to the pool; a task has instance_count.",
        "slotspernode": "Slots belong to the pool.",
        "preparationcommand": "The preparation command belongs to the pool.",
        "qarnotpool": "It is called 'pool' here.",
    }

    command: str | None = field(default=None, metadata=at(None, command_line))
    return_file: bool | None = field(default=None, metadata=at(None, boolean))
    skip_on_exit_code: Sequence[int] = field(default=(), metadata=at(None, _exit_codes))
    snapshot_every: timedelta | None = field(default=None, metadata=at(None, _interval))
    pool: str | None = field(default=None, metadata=at("poolUuid", text(minimum=1)))
    job: str | None = field(default=None, metadata=at("jobUuid", uuid_text))
    ranges: str | None = field(default=None, metadata=at("advancedRanges", _ranges))
    retry: RetrySettings | None = field(default=None, metadata=at("retrySettings", RetrySettings.of, nested))
    max_retries_per_instance: int | None = field(
        default=None, metadata=at("maxRetriesPerInstance", integer(0))
    )
    result_bucket: str | None = field(
        default=None, metadata=at("resultBucket", bucket(_with("results_prefix")))
    )
    results_prefix: str | None = field(default=None, metadata=at("resultsBucketPrefix", key_prefix))
    results_whitelist: str | None = field(default=None, metadata=at("resultsWhitelist", pattern))
    results_blacklist: str | None = field(default=None, metadata=at("resultsBlacklist", pattern))
    results_cache_ttl: timedelta | None = field(
        default=None, metadata=at("resultsCacheTTLSec", duration, seconds)
    )
    snapshot_bucket: str | None = field(
        default=None, metadata=at("snapshotBucket", bucket(_with("snapshot_prefix")))
    )
    snapshot_prefix: str | None = field(default=None, metadata=at("snapshotBucketPrefix", key_prefix))
    snapshot_whitelist: str | None = field(default=None, metadata=at("snapshotWhitelist", pattern))
    snapshot_blacklist: str | None = field(default=None, metadata=at("snapshotBlacklist", pattern))
    upload_results_on_cancellation: bool | None = field(
        default=None, metadata=at("uploadResultsOnCancellation", boolean)
    )
    wait_for_pool_resources_synchronization: bool | None = field(
        default=None, metadata=at("waitForPoolResourcesSynchronization", boolean)
    )
    dependencies: Sequence[TaskDependency | str] = field(
        default=(), metadata=at("dependencies", _dependencies, _dependencies_json)
    )

    def _given_constants(self) -> dict[str, str]:
        command: dict[str, str] = {"DOCKER_CMD": self.command} if self.command else {}
        if self.command and (self.reports or self.snapshot_every):
            command = wrapped(
                self.command,
                skip_on_exit_code=self.skip_on_exit_code,
                return_file=bool(self.return_file),
                resumes=self.snapshot_every is not None,
            )
        return {**super()._given_constants(), **command}

    @property
    def reports(self) -> bool:
        """Whether the command reports its exit code and value in its output."""
        return bool(self.return_file or self.skip_on_exit_code)

    def instance_ids(self) -> frozenset[int]:
        """Return the values of INSTANCE_ID."""
        return parse_ranges(self.ranges) if self.ranges else frozenset(range(self.instance_count or 1))

    def _check(self) -> None:
        super()._check()
        self._check_report()
        if self.command and (length := len(self._given_constants()["DOCKER_CMD"])) > MAX_CONSTANT_LENGTH:
            self._refuse(
                "command",
                f"has {length} characters",
                f"Qarnot takes {MAX_CONSTANT_LENGTH}; put a script in a resource bucket and run that.",
            )
        self._check_exclusive()
        if self.dependencies and not self.job:
            self._refuse(
                "dependencies", "is given without a job", "Put the task in a job that uses dependencies."
            )
        self._check_buckets()
        if self.instance_count is None and not self.ranges:
            object.__setattr__(self, "instance_count", 1)
        if self.profile is None and not self.pool and not self.job:
            object.__setattr__(self, "profile", DEFAULT_PROFILE)

    def _check_report(self) -> None:
        name = (
            "return_file" if self.return_file else "skip_on_exit_code" if self.reports else "snapshot_every"
        )
        if not getattr(self, name):
            return
        if not self.command:
            self._refuse(name, "is given without a command", "Give command, and not the constant DOCKER_CMD.")
        if self.reports and self.instance_ids() != {0}:
            self._refuse(
                name,
                "is given for several instances, or for another one than 0",
                "One value comes from one instance. Use QarnotRunArrayOperator for many commands.",
            )
        if len(self.instance_ids()) > 1:
            self._refuse(
                name,
                "is given for several instances, whose snapshots overwrite each other",
                "Give one instance to each of several tasks, such as a mapped one.",
            )

    def _check_exclusive(self) -> None:
        for name, other, remedy in _EXCLUSIVE:
            if getattr(self, name) is not None and getattr(self, other) is not None:
                self._refuse(name, f"is given together with {other}", remedy)
        for name, remedy in _SET_BY_POOL.items() if self.pool else ():
            if getattr(self, name):
                self._refuse(name, "is given for a task of a pool", remedy)

    def _check_buckets(self) -> None:
        for names, buckets in _FILES_OF.items():
            if any(getattr(self, bucket) for bucket in buckets):
                continue
            for name in names:
                if getattr(self, name):
                    self._refuse(name, f"is given without {buckets[0]}", f"Give {' or '.join(buckets)}.")


__all__ = [
    "DEFAULT_PROFILE",
    "MAX_TAGS",
    "MAX_USER_TAGS",
    "OUR_TAGS",
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
    "PoolSpec",
    "Privileges",
    "ResourceBucket",
    "RetrySettings",
    "Scaling",
    "SecretsAccess",
    "TaskDependency",
    "TaskSpec",
    "WeeklyPeriod",
    "format_ranges",
    "image_constants",
    "parse_ranges",
]
