"""Which remote object belongs to which Airflow task instance.

A remote object's name is decided before the request that creates it, so a lost answer loses nothing:

* *owner*: the Airflow task instance, in one iteration of a loop, over all its lives (every retry, every clear);
* *lineage*: one life of the owner. An automatic retry stays in it. Clearing the task raises ``max_tries`` and
  clearing a finished DAG run resets ``dag_run.start_date``: either starts a new lineage;
* *generation*: counts up within a lineage each time what was there can no longer be used.

Everything here is a pure function; :mod:`airflow_qarnot_pool.claim` talks to the server.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.limits import parse_number, reading
from airflow_qarnot_pool.iterations import iteration_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Pool, Task

#: Version of labels and trigger kwargs. A release that changes either raises it and still reads the older ones.
FORMAT = 1

NAMESPACE_TAG = "airflow-namespace:"
OWNER_TAG = "airflow-owner:"
LINEAGE_TAG = "airflow-lineage:"
#: Tag of an object that a later try has taken over, with the number of that try. Labels cannot be changed.
TRY_TAG = "airflow-try:"

_LABEL = "airflow."
#: Label of a Qarnot task that is to outlive its Airflow task.
DETACHED = _LABEL + "detached"
#: Label of a Qarnot task that its Airflow task does not wait for; a sensor may read its end.
UNAWAITED = _LABEL + "unawaited"
#: Label of a Qarnot task whose Airflow task needs no more of its end than a record keeps, and not its output.
RECORDABLE = _LABEL + "recordable"
#: Label of the items of a fan-out with a digest of all their specs.
SPECS = _LABEL + "specs"


#: Maximum size of a name that Qarnot takes, in UTF-8 bytes: it does not say what it counts, and no count is larger.
MAX_NAME = 2047


def size(text: str) -> int:
    """Return the size of *text* in UTF-8 bytes."""
    return len(text.encode(errors="replace"))


def fits(name: str) -> bool:
    """Return whether Qarnot takes *name*, whatever it counts."""
    return size(name) <= MAX_NAME


def with_suffix(name: str, suffix: str) -> str:
    """Return *name* and *suffix* as one name that Qarnot takes; *name* is cut if the two are too long."""
    kept = name.encode(errors="replace")[: MAX_NAME - len(suffix.encode())]
    return name + suffix if fits(name + suffix) else kept.decode(errors="ignore") + suffix


def namespace_tag(namespace: str) -> str:
    """The tag carried by everything that was made under *namespace*."""
    return f"{NAMESPACE_TAG}{namespace}"


def digest(*parts: Any) -> str:
    """Return a short digest of *parts*, which are JSON."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """One life of an Airflow task instance.

    ``part`` tells different objects of one task instance apart (each has its own owner); ``item`` tells the
    many like ones of a fan-out apart (all have the same owner and lineage, so that one search finds them).
    ``iteration`` tells the iterations of a loop apart (:mod:`airflow_qarnot_pool.iterations`).
    ``shared`` names what belongs to no task instance but to everybody in the namespace who says that name: it has
    one owner and one lineage for ever (see :mod:`airflow_qarnot_pool.shared`).
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
    part: str = ""
    item: int | None = None
    shared: str = ""
    iteration: str = ""

    @classmethod
    def of(cls, context: Context, namespace: str, part: str = "") -> Life:
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
            part=part,
            iteration=iteration_of(context),
        )

    @property
    def owner(self) -> str:
        if self.shared:
            return digest(self.namespace, "shared", self.shared, self.part)
        parts = (self.namespace, self.dag_id, self.run_id, self.task_id, self.map_index, self.part)
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

    def precedes(self, relic: Relic) -> bool:
        """Return whether a later try of this task instance has *relic*: this one may be a process that stood still."""
        return not self.shared and relic.order > self.order

    @property
    def has_history(self) -> bool:
        """Whether an earlier try, or another sharer, may have left something behind."""
        return self.try_number > 1 or bool(self.shared)

    def for_part(self, part: str) -> Life:
        return replace(self, part=part)

    def for_item(self, item: int) -> Life:
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
            _LABEL + "format": str(FORMAT),
            _LABEL + "namespace": self.namespace,
            _LABEL + "dag_id": self.dag_id,
            _LABEL + "run_id": self.run_id,
            _LABEL + "task_id": self.task_id,
            _LABEL + "map_index": str(self.map_index),
            _LABEL + "part": self.part,
            _LABEL + "run_started": self.run_started,
            _LABEL + "try_number": str(self.try_number),
            _LABEL + "retries": str(self.retries),
            _LABEL + "lineage": self.lineage,
            _LABEL + "generation": str(generation),
            _LABEL + "spec": fingerprint,
            **({} if self.item is None else {_LABEL + "item": str(self.item)}),
            **({_LABEL + "shared": self.shared} if self.shared else {}),
            **({_LABEL + "iteration": self.iteration} if self.iteration else {}),
        }

    def to_kwargs(self) -> dict[str, Any]:
        """JSON-ready, for trigger kwargs and events."""
        return asdict(self)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Life:
        """Read back what :meth:`to_kwargs` of this or an earlier release wrote."""
        with reading("The task instance of a trigger"):
            return cls(**{name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs})


def label(labels: Mapping[str, str] | None, name: str) -> str | None:
    """One of our labels of a remote object, or None where it has none."""
    return (labels or {}).get(_LABEL + name)


def numbers_of(shortname: str | None) -> tuple[int, int] | None:
    """Item and generation in the shortname of one of a fan-out's Qarnot tasks; see :meth:`Life.shortname`."""
    found = re.search(r"-(\d{1,9})-(\d{1,9})$", shortname or "")
    return (int(found[1]), int(found[2])) if found else None


class Fate(StrEnum):
    """What a remote object can still be used for."""

    LIVE = "live"
    SUCCEEDED = "succeeded"
    ENDING = "ending"
    DEAD = "dead"


def fate_of(found: Pool | Task) -> Fate:
    """What *found* can still be used for.

    A pool that is Closing or Closed never takes a task again. A Qarnot task in PendingCancel still counts as
    running: it is adopted, and run again when it turns out Cancelled.
    """
    from airflow_qarnot_pool.api import states
    from airflow_qarnot_pool.api.models import Pool

    if isinstance(found, Pool):
        if states.accepts_tasks(found.state):
            return Fate.LIVE
        phase = states.pool_phase(found.state)
    else:
        phase = states.task_phase(found.state)
        state = states.parse_task_state(found.state)
        if state is states.TaskState.SUCCESS:
            return Fate.SUCCEEDED
        if state is states.TaskState.PENDING_CANCEL or phase in (states.Phase.TRANSIENT, states.Phase.LIVE):
            return Fate.LIVE
    return Fate.DEAD if phase is states.Phase.TERMINAL else Fate.ENDING


def is_ending(found: Pool | Task) -> bool:
    """Return whether *found* has ended, or was told to end and needs no second request."""
    from airflow_qarnot_pool.api.states import Phase

    return found.phase in (Phase.ENDING, Phase.TERMINAL)


@dataclass(frozen=True, kw_only=True)
class Relic:
    """What one search result tells about an earlier life."""

    uuid: str
    fate: Fate
    lineage: str
    generation: int
    fingerprint: str
    retries: int
    created: str
    run_started: str = ""
    #: The try that made it, and the last one that took it over (0: none).
    try_number: int = 0
    taken_by: int = 0
    tags: tuple[str, ...] = ()
    item: int | None = None
    pool: str | None = None
    cancelled: bool = False

    @property
    def age(self) -> tuple[int, str, str]:
        """Sorts the oldest first, for every reader alike: the server's clock shows seconds, then the uuid decides."""
        return self.generation, self.created, self.uuid

    @property
    def order(self) -> tuple[str, int]:
        """See :attr:`Life.order`. Empty for an object without our labels, which precedes every try."""
        return self.run_started, max(self.try_number, self.taken_by)

    @classmethod
    def of(cls, found: Pool | Task) -> Relic:
        tags = tuple(found.tags or ())
        lineage = next((tag[len(LINEAGE_TAG) :] for tag in tags if tag.startswith(LINEAGE_TAG)), "")
        # Labels may be missing on a server that drops them: the shortname carries the number, too.
        names = label(found.labels, "generation"), (found.shortname or "").rsplit("-", 1)[-1]
        generation = next((number for name in names if (number := parse_number(name)) is not None), 1)
        return cls(
            uuid=found.uuid,
            fate=fate_of(found),
            lineage=lineage,
            generation=generation,
            fingerprint=label(found.labels, "spec") or "",
            retries=parse_number(label(found.labels, "retries")) or 0,
            created=found.creation_date.isoformat() if found.creation_date else "",
            run_started=label(found.labels, "run_started") or "",
            try_number=parse_number(label(found.labels, "try_number")) or 0,
            taken_by=tried(tags),
            tags=tags,
            item=parse_number(label(found.labels, "item")),
            pool=getattr(found, "pool", None),
            cancelled=found.state == "Cancelled",
        )


def tried(tags: Iterable[str]) -> int:
    """Return the try that *tags* name; 0 if they name none."""
    tries = (parse_number(tag.removeprefix(TRY_TAG)) for tag in tags if tag.startswith(TRY_TAG))
    return max((number or 0 for number in tries), default=0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do about what was found: end these, then use ``use``, or create ``generation`` where it is None."""

    end: tuple[str, ...] = ()
    use: Relic | None = None
    generation: int = 1
    changed_spec: bool = False


def decide(life: Life, relics: Iterable[Relic], fingerprint: str) -> Plan:
    """Decide over the remote objects of an owner for its current life.

    * Live objects of earlier lineages end: a cleared task's new life stops its old one and never adopts it.
    * In the own lineage a success is used, else the oldest that runs; the others end. A success counts for a
      task with the same number of retries (editing ``retries`` and clearing can give the same ``max_tries``,
      so the same lineage), and never for an auxiliary object (one with a ``part``): its effect may be gone.
    * An object made from another spec is not usable, and ends.
    * What a later try has never ends: this process may have stood still while Airflow went on without it.
    * Nothing usable: the next generation.
    """
    relics = sorted(relics, key=lambda relic: relic.age)
    own = [relic for relic in relics if relic.lineage == life.lineage]
    alike = [relic for relic in own if not relic.fingerprint or relic.fingerprint == fingerprint]
    usable = [
        relic
        for relic in alike
        if relic.fate is Fate.LIVE
        or (relic.fate is Fate.SUCCEEDED and relic.retries == life.retries and not life.part)
    ]
    # min() takes the first of several. What runs beside a success is a double, whichever was made first.
    use = min(usable, key=lambda relic: relic.fate is Fate.LIVE, default=None)
    return Plan(
        end=tuple(
            relic.uuid
            for relic in relics
            if relic.fate is Fate.LIVE and relic is not use and not life.precedes(relic)
        ),
        use=use,
        generation=1 + max((relic.generation for relic in own), default=0),
        changed_spec=any(relic.fate is Fate.LIVE for relic in own if relic not in alike),
    )


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
    return [name for name in user_labels or {} if name.startswith(_LABEL)]
