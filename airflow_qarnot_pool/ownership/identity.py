"""Map an Airflow task instance to the names of its remote objects.

The name of a remote object is fixed before the request that creates it, so a lost response loses nothing. It has three
parts:

* *owner*: the Airflow task instance, in one iteration of a loop, over all its retries and clears.
* *lineage*: the tries of the owner between two clears. An automatic retry stays in it. Clearing the task
  raises ``max_tries``, and clearing a finished DAG run resets ``dag_run.start_date``. Either starts a new lineage.
* *generation*: a number within the lineage, incremented each time the existing object is no longer usable.

All functions here are pure. :mod:`airflow_qarnot_pool.ownership.claim` sends the requests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.limits import parse_number, parsing_stored_state
from airflow_qarnot_pool.api.states import Phase
from airflow_qarnot_pool.ownership.iterations import iteration_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Pool, Task

#: Version of labels and trigger kwargs. A release that changes either raises it.
FORMAT_VERSION = 1

NAMESPACE_TAG = "airflow-namespace:"
OWNER_TAG = "airflow-owner:"
LINEAGE_TAG = "airflow-lineage:"
#: Tag of an adopted object, with the number of the adopting try. Labels cannot be changed after creation.
TRY_TAG = "airflow-try:"
#: Tag of a Qarnot task of the executor, with the id of the Airflow task instance that it runs. A cleared or reset task
#: instance has a new id.
INSTANCE_TAG = "airflow-executor:"

LABEL_PREFIX = "airflow."
#: Label of a Qarnot task that outlives its Airflow task.
DETACHED_LABEL = LABEL_PREFIX + "detached"
#: Label of a Qarnot task that its Airflow task does not wait for. A sensor may read its end.
UNAWAITED_LABEL = LABEL_PREFIX + "unawaited"
#: Label of a Qarnot task whose record holds everything that its Airflow task needs. Its output is not needed.
RECORDABLE_LABEL = LABEL_PREFIX + "recordable"
#: Label of a Qarnot task whose output has results that later tries need, whatever its state.
KEPT_LABEL = LABEL_PREFIX + "kept"
#: Labels of a pool: the cost limit of the pool, and of all pools of its DAG run, in euros.
MAX_COST_LABEL = LABEL_PREFIX + "max_cost"
MAX_RUN_COST_LABEL = LABEL_PREFIX + "max_run_cost"
#: Label of a pool of the executor, with the name by which ``executor_config`` refers to it.
EXECUTOR_LABEL = LABEL_PREFIX + "executor"
#: Label of the items of a fan-out: a digest of all their specs.
SPECS_LABEL = LABEL_PREFIX + "specs"
#: Role of the warm-up task of a pool.
WARM_UP_ROLE = "warm-up"
#: How long a node of a shared pool may be idle before it shuts down, unless ``keep_warm`` is set.
DEFAULT_KEEP_WARM = timedelta(minutes=10)
#: Maximum number of times in a row that a pool may be found closing before that is an error.
MAX_GENERATIONS = 6
_SHARED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
#: Maximum size of a name in UTF-8 bytes. Qarnot does not document the unit, and no unit gives a larger count.
MAX_NAME_BYTES = 2047


def byte_size(text: str) -> int:
    """Return the size of *text* in UTF-8 bytes."""
    return len(text.encode(errors="replace"))


def is_valid_size(name: str) -> bool:
    """Return whether *name* is short enough for Qarnot in every unit."""
    return byte_size(name) <= MAX_NAME_BYTES


def check_shared_name(name: Any) -> None:
    """Refuse a value that cannot name a shared pool."""
    if not isinstance(name, str) or not _SHARED_NAME.fullmatch(name):
        raise QarnotInvalidSpecError(
            f"shared is no name, got {name!r}",
            field="shared",
            remedy="Write shared='name' with letters, digits, '-', '_' and '.', 63 at most.",
        )


def with_suffix(name: str, suffix: str) -> str:
    """Return *name* and *suffix* as one valid name. *name* is truncated if the two are too long."""
    kept = name.encode(errors="replace")[: MAX_NAME_BYTES - len(suffix.encode())]
    return name + suffix if is_valid_size(name + suffix) else kept.decode(errors="ignore") + suffix


def namespace_tag(namespace: str) -> str:
    """Return the tag of every object that was created under *namespace*."""
    return f"{NAMESPACE_TAG}{namespace}"


def digest(*parts: Any) -> str:
    """Return a short digest of *parts*, which are JSON."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInstanceIdentity:
    """One lineage of an Airflow task instance.

    ``role`` distinguishes different objects of one task instance. Each has a separate owner. ``index`` distinguishes
    the items of a fan-out. All of them have the same owner and lineage, and one search finds them. ``iteration``
    distinguishes the iterations of a loop (:mod:`airflow_qarnot_pool.ownership.iterations`). ``shared`` is the name of
    a pool that belongs to no task instance, but to all tasks of the namespace that use the name. It has one owner and
    one lineage forever (see :mod:`airflow_qarnot_pool.ownership.shared_pool`).

    The identity is computed on the worker, because a trigger cannot read ``max_tries``, and passed to the trigger as
    kwargs.
    """

    namespace: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    run_started: str
    max_tries: int
    try_number: int
    retries: int
    role: str = ""
    index: int | None = None
    shared: str = ""
    iteration: str = ""
    #: When the try started, if Airflow says so.
    begun: datetime | None = field(default=None, compare=False)

    @classmethod
    def of(cls, context: Context, namespace: str, role: str = "") -> TaskInstanceIdentity:
        """Return the lineage that *context* belongs to."""
        ti = context["ti"]
        started = context["dag_run"].start_date
        begun = getattr(ti, "start_date", None)
        return cls(
            namespace=namespace,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            run_started=started.isoformat() if isinstance(started, datetime) else str(started or ""),
            max_tries=ti.max_tries or 0,
            try_number=ti.try_number,
            retries=int(getattr(context.get("task"), "retries", None) or 0),
            role=role,
            iteration=iteration_of(context),
            begun=begun if isinstance(begun, datetime) else None,
        )

    @property
    def owner(self) -> str:
        """Digest of the task instance, the same after each clear."""
        if self.shared:
            return digest(self.namespace, "shared", self.shared, self.role)
        parts = (self.namespace, self.dag_id, self.run_id, self.task_id, self.map_index, self.role)
        return digest(*parts, self.iteration) if self.iteration else digest(*parts)

    @property
    def lineage(self) -> str:
        """Digest of this lineage, the same in all its tries."""
        if self.shared:
            return digest(self.owner)
        return digest(self.owner, self.run_started, self.max_tries)

    @property
    def order(self) -> tuple[str, int]:
        """Sort key of the tries of a task instance by start time, across clears and deleted runs, too."""
        return self.run_started, self.try_number

    @property
    def has_history(self) -> bool:
        """Whether an earlier try, or another user of a shared pool, may have created an object."""
        return self.try_number > 1 or bool(self.shared)

    def for_role(self, role: str) -> TaskInstanceIdentity:
        """Return the identity of an auxiliary object of the same task instance."""
        return replace(self, role=role)

    def for_item(self, index: int) -> TaskInstanceIdentity:
        """Return the identity of an item of the fan-out."""
        return replace(self, index=index)

    def tags(self) -> tuple[str, str, str]:
        """Return the three searchable tags. The other seven of Qarnot's ten remain for the user."""
        return (namespace_tag(self.namespace), OWNER_TAG + self.owner, LINEAGE_TAG + self.lineage)

    def shortname(self, generation: int) -> str:
        """Return the remote name of one generation: a readable start, then a unique part."""
        title = self.shared or self.task_id.rsplit(".", 1)[-1]
        readable = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:20].strip("-")
        suffix = "" if self.index is None else f"-{self.index}"
        return f"{readable or 'airflow'}-{self.lineage}{suffix}-{generation}"

    def labels(self, generation: int, fingerprint: str) -> dict[str, str]:
        """Return the labels that the reaper, the UI and later tries read."""
        return {
            LABEL_PREFIX + "format": str(FORMAT_VERSION),
            LABEL_PREFIX + "namespace": self.namespace,
            LABEL_PREFIX + "dag_id": self.dag_id,
            LABEL_PREFIX + "run_id": self.run_id,
            LABEL_PREFIX + "task_id": self.task_id,
            LABEL_PREFIX + "map_index": str(self.map_index),
            LABEL_PREFIX + "role": self.role,
            LABEL_PREFIX + "run_started": self.run_started,
            LABEL_PREFIX + "try_number": str(self.try_number),
            LABEL_PREFIX + "retries": str(self.retries),
            LABEL_PREFIX + "lineage": self.lineage,
            LABEL_PREFIX + "generation": str(generation),
            LABEL_PREFIX + "spec": fingerprint,
            **({} if self.index is None else {LABEL_PREFIX + "item": str(self.index)}),
            **({LABEL_PREFIX + "shared": self.shared} if self.shared else {}),
            **({LABEL_PREFIX + "iteration": self.iteration} if self.iteration else {}),
        }

    def to_kwargs(self) -> dict[str, Any]:
        """Return a JSON form for trigger kwargs and events."""
        kwargs = asdict(self)
        del kwargs["begun"]
        return kwargs

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> TaskInstanceIdentity:
        """Read the result of :meth:`to_kwargs`."""
        with parsing_stored_state("The task instance of a trigger"):
            return cls(**{name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs})


def label(labels: Mapping[str, str] | None, name: str) -> str | None:
    """Return the value of one of our labels; None if the object does not have it."""
    return (labels or {}).get(LABEL_PREFIX + name)


def index_and_generation(shortname: str | None) -> tuple[int, int] | None:
    """Return index and generation from a shortname of a fan-out (see :meth:`TaskInstanceIdentity.shortname`)."""
    match = re.search(r"-(\d{1,9})-(\d{1,9})$", shortname or "")
    return (int(match[1]), int(match[2])) if match else None


def is_ending(remote: Pool | Task) -> bool:
    """Return whether *remote* has ended, or is ending and needs no second request."""
    return remote.phase in (Phase.ENDING, Phase.TERMINAL)


def last_try(tags: Iterable[str]) -> int:
    """Return the number of the last try that adopted an object with these tags; 0 if none did."""
    tries = (parse_number(tag.removeprefix(TRY_TAG)) for tag in tags if tag.startswith(TRY_TAG))
    return max((number or 0 for number in tries), default=0)


def instance_of(remote: Pool | Task) -> UUID | None:
    """Return the id of the Airflow task instance that a Qarnot task of the executor runs; None for another object."""
    for tag in remote.tags:
        if tag.startswith(INSTANCE_TAG):
            with suppress(ValueError):  # any program can write tags
                return UUID(tag.removeprefix(INSTANCE_TAG))
    return None


def owner_of(remote: Pool | Task) -> str:
    """Return the owner of a remote object, from its tags; "" if it has none."""
    return next((tag.removeprefix(OWNER_TAG) for tag in remote.tags if tag.startswith(OWNER_TAG)), "")


def is_ours(remote: Pool | Task, namespace: str) -> bool:
    """Return whether this provider created *remote* in *namespace*. The tag alone could be set by any program."""
    tags = [tag for tag in remote.tags if tag.startswith(NAMESPACE_TAG)]
    return (
        tags == [namespace_tag(namespace)]
        and label(remote.labels, "format") is not None
        and label(remote.labels, "namespace") == namespace
    )


class RunKey(NamedTuple):
    """A DAG run. Both fields are empty for an object without our labels."""

    dag_id: str
    run_id: str


def run_of(remote: Pool | Task) -> RunKey:
    """Return the DAG run that created a remote object, from its labels."""
    return RunKey(label(remote.labels, "dag_id") or "", label(remote.labels, "run_id") or "")
