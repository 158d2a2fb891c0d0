"""Which remote object belongs to which Airflow task instance.

A remote object's name is decided before the request that creates it, so a lost answer loses nothing:

* *owner*: the Airflow task instance, in one iteration of a loop, over all its lives (every retry, every clear);
* *lineage*: one life of the owner. An automatic retry stays in it. Clearing the task raises ``max_tries`` and
  clearing a finished DAG run resets ``dag_run.start_date``: either starts a new lineage;
* *generation*: counts up within a lineage each time what was there can no longer be used.

Everything here is a pure function; :mod:`airflow_qarnot_pool.ownership.claim` talks to the server.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_qarnot_pool.api.limits import parse_number, parsing_stored_state
from airflow_qarnot_pool.ownership.iterations import iteration_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Pool, Task

#: Version of labels and trigger kwargs. A release that changes either raises it and still reads the older ones.
FORMAT_VERSION = 1

NAMESPACE_TAG = "airflow-namespace:"
OWNER_TAG = "airflow-owner:"
LINEAGE_TAG = "airflow-lineage:"
#: Tag of an object that a later try has taken over, with the number of that try. Labels cannot be changed.
TRY_TAG = "airflow-try:"

LABEL_PREFIX = "airflow."
#: Label of a Qarnot task that is to outlive its Airflow task.
DETACHED_LABEL = LABEL_PREFIX + "detached"
#: Label of a Qarnot task that its Airflow task does not wait for; a sensor may read its end.
UNAWAITED_LABEL = LABEL_PREFIX + "unawaited"
#: Label of a Qarnot task whose Airflow task needs no more of its end than a record keeps, and not its output.
RECORDABLE_LABEL = LABEL_PREFIX + "recordable"
#: Label of a pool: the cost limit of the pool, and of all pools of its DAG run, in euros.
MAX_COST_LABEL = LABEL_PREFIX + "max_cost"
MAX_RUN_COST_LABEL = LABEL_PREFIX + "max_run_cost"
#: Label of the items of a fan-out with a digest of all their specs.
SPECS_LABEL = LABEL_PREFIX + "specs"


#: Maximum size of a name that Qarnot takes, in UTF-8 bytes: it does not say what it counts, and no count is larger.
MAX_NAME_BYTES = 2047


def byte_size(text: str) -> int:
    """Return the size of *text* in UTF-8 bytes."""
    return len(text.encode(errors="replace"))


def is_valid_size(name: str) -> bool:
    """Return whether Qarnot takes *name*, whatever it counts."""
    return byte_size(name) <= MAX_NAME_BYTES


def with_suffix(name: str, suffix: str) -> str:
    """Return *name* and *suffix* as one name that Qarnot takes; *name* is cut if the two are too long."""
    kept = name.encode(errors="replace")[: MAX_NAME_BYTES - len(suffix.encode())]
    return name + suffix if is_valid_size(name + suffix) else kept.decode(errors="ignore") + suffix


def namespace_tag(namespace: str) -> str:
    """The tag carried by everything that was made under *namespace*."""
    return f"{NAMESPACE_TAG}{namespace}"


def digest(*parts: Any) -> str:
    """Return a short digest of *parts*, which are JSON."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInstanceIdentity:
    """One life of an Airflow task instance.

    ``role`` tells different objects of one task instance apart (each has its own owner); ``item`` tells the
    many like ones of a fan-out apart (all have the same owner and lineage, so that one search finds them).
    ``iteration`` tells the iterations of a loop apart (:mod:`airflow_qarnot_pool.ownership.iterations`).
    ``shared`` names what belongs to no task instance but to everybody in the namespace who says that name: it has
    one owner and one lineage for ever (see :mod:`airflow_qarnot_pool.ownership.shared_pool`).
    Computed on the worker, because a trigger cannot see ``max_tries``, and handed to the trigger as kwargs.
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
    item: int | None = None
    shared: str = ""
    iteration: str = ""

    @classmethod
    def of(cls, context: Context, namespace: str, role: str = "") -> TaskInstanceIdentity:
        """The life that *context* belongs to."""
        ti = context["ti"]
        started = context["dag_run"].start_date
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
        )

    @property
    def owner(self) -> str:
        if self.shared:
            return digest(self.namespace, "shared", self.shared, self.role)
        parts = (self.namespace, self.dag_id, self.run_id, self.task_id, self.map_index, self.role)
        return digest(*parts, self.iteration) if self.iteration else digest(*parts)

    @property
    def lineage(self) -> str:
        if self.shared:
            return digest(self.owner)
        return digest(self.owner, self.run_started, self.max_tries)

    @property
    def order(self) -> tuple[str, int]:
        """Sorts the tries of a task instance by when Airflow started them, also across clears and deleted runs."""
        return self.run_started, self.try_number

    @property
    def has_history(self) -> bool:
        """Whether an earlier try, or another sharer, may have left something behind."""
        return self.try_number > 1 or bool(self.shared)

    def for_role(self, role: str) -> TaskInstanceIdentity:
        return replace(self, role=role)

    def for_item(self, item: int) -> TaskInstanceIdentity:
        return replace(self, item=item)

    def tags(self) -> tuple[str, str, str]:
        """The three searchable tags; the other seven of Qarnot's ten stay the user's."""
        return (namespace_tag(self.namespace), OWNER_TAG + self.owner, LINEAGE_TAG + self.lineage)

    def shortname(self, generation: int) -> str:
        """The remote name of one generation: readable start, then what makes it unique."""
        said = self.shared or self.task_id.rsplit(".", 1)[-1]
        readable = re.sub(r"[^a-z0-9]+", "-", said.lower()).strip("-")[:20].strip("-")
        item = "" if self.item is None else f"-{self.item}"
        return f"{readable or 'airflow'}-{self.lineage}{item}-{generation}"

    def labels(self, generation: int, fingerprint: str) -> dict[str, str]:
        """What the reaper, the UI and later tries read back."""
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
            **({} if self.item is None else {LABEL_PREFIX + "item": str(self.item)}),
            **({LABEL_PREFIX + "shared": self.shared} if self.shared else {}),
            **({LABEL_PREFIX + "iteration": self.iteration} if self.iteration else {}),
        }

    def to_kwargs(self) -> dict[str, Any]:
        """JSON-ready, for trigger kwargs and events."""
        return asdict(self)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> TaskInstanceIdentity:
        """Read back what :meth:`to_kwargs` of this or an earlier release wrote."""
        with parsing_stored_state("The task instance of a trigger"):
            return cls(**{name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs})


def label(labels: Mapping[str, str] | None, name: str) -> str | None:
    """One of our labels of a remote object, or None where it has none."""
    return (labels or {}).get(LABEL_PREFIX + name)


def index_and_generation(shortname: str | None) -> tuple[int, int] | None:
    """Return index and generation from a shortname of a fan-out, as :meth:`TaskInstanceIdentity.shortname` makes it."""
    found = re.search(r"-(\d{1,9})-(\d{1,9})$", shortname or "")
    return (int(found[1]), int(found[2])) if found else None


def is_ending(found: Pool | Task) -> bool:
    """Return whether *found* has ended, or was told to end and needs no second request."""
    from airflow_qarnot_pool.api.states import Phase

    return found.phase in (Phase.ENDING, Phase.TERMINAL)


def last_try(tags: Iterable[str]) -> int:
    """Return the try that *tags* name; 0 if they name none."""
    tries = (parse_number(tag.removeprefix(TRY_TAG)) for tag in tags if tag.startswith(TRY_TAG))
    return max((number or 0 for number in tries), default=0)


def is_ours(found: Pool | Task, namespace: str) -> bool:
    """Whether this provider made *found*, in *namespace*: a tag alone could be anybody's."""
    tags = [tag for tag in found.tags if tag.startswith(NAMESPACE_TAG)]
    return (
        tags == [namespace_tag(namespace)]
        and label(found.labels, "format") is not None
        and label(found.labels, "namespace") == namespace
    )


def foreign_labels(user_labels: Mapping[str, str] | None) -> Sequence[str]:
    """Labels of the user that would collide with ours."""
    return [name for name in user_labels or {} if name.startswith(LABEL_PREFIX)]


class RunKey(NamedTuple):
    """A DAG run. Both are empty for work that carries no labels of ours."""

    dag_id: str
    run_id: str


def run_of(found: Pool | Task) -> RunKey:
    """The DAG run that made a remote object, from its labels."""
    return RunKey(label(found.labels, "dag_id") or "", label(found.labels, "run_id") or "")


#: The part of the Airflow task instance's identity that the warm-up task carries.
WARM_UP_ROLE = "warm-up"
