"""Pure decisions over the remote objects of an Airflow task instance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.exceptions import QarnotKilledError
from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG, TaskInstanceIdentity, label, last_try

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task


class Usability(StrEnum):
    """The remaining use of a remote object."""

    LIVE = "live"
    SUCCEEDED = "succeeded"
    ENDING = "ending"
    DEAD = "dead"


def usability_of(remote: Pool | Task) -> Usability:
    """Return the remaining use of *remote*.

    A pool that is Closing or Closed never accepts a task again. A Qarnot task in PendingCancel still counts as
    running. It is adopted, and runs again if it ends as Cancelled.
    """
    from airflow_qarnot_pool.api.models import Pool

    if isinstance(remote, Pool):
        if states.accepts_tasks(remote.state):
            return Usability.LIVE
        phase = states.pool_phase(remote.state)
    else:
        phase = states.task_phase(remote.state)
        state = states.parse_task_state(remote.state)
        if state is states.TaskState.SUCCESS:
            return Usability.SUCCEEDED
        if state is states.TaskState.PENDING_CANCEL or phase in (states.Phase.TRANSIENT, states.Phase.LIVE):
            return Usability.LIVE
    return Usability.DEAD if phase is states.Phase.TERMINAL else Usability.ENDING


@dataclass(frozen=True, kw_only=True)
class RemoteSnapshot:
    """The fields of one search result that decisions read."""

    uuid: str
    usability: Usability
    lineage: str
    generation: int
    fingerprint: str
    retries: int
    created: str
    run_started: str = ""
    #: The try that created the object, and the last try that adopted it (0: none).
    try_number: int = 0
    taken_by: int = 0
    shortname: str = ""
    tags: tuple[str, ...] = ()
    index: int | None = None
    pool: str | None = None
    cancelled: bool = False

    @property
    def age(self) -> tuple[int, str, str]:
        """Sort key with the oldest first, equal for every reader.

        The server's clock has a resolution of one second. The uuid breaks ties.
        """
        return self.generation, self.created, self.uuid

    @property
    def order(self) -> tuple[str, int]:
        """See :attr:`TaskInstanceIdentity.order`. An object without our labels precedes every try."""
        return self.run_started, max(self.try_number, self.taken_by)

    def is_later_than(self, identity: TaskInstanceIdentity) -> bool:
        """Return whether a later try of the task instance has the object: this process was suspended."""
        return not identity.shared and self.order > identity.order

    def is_of(self, identity: TaskInstanceIdentity, fingerprint: str) -> bool:
        """Return whether the lineage of *identity* created the object from the same spec.

        ``retries`` must match, because editing it and clearing the task can give the same lineage (see :func:`decide`).
        """
        return (self.lineage, self.fingerprint, self.retries) == (
            identity.lineage,
            fingerprint,
            identity.retries,
        )

    @classmethod
    def of(cls, remote: Pool | Task) -> RemoteSnapshot:
        """Read the tags and labels of *remote*."""
        tags = tuple(remote.tags or ())
        labels = remote.labels
        shortname = remote.shortname or ""
        return cls(
            uuid=remote.uuid,
            usability=usability_of(remote),
            lineage=next((tag[len(LINEAGE_TAG) :] for tag in tags if tag.startswith(LINEAGE_TAG)), ""),
            generation=_generation_of(label(labels, "generation"), shortname),
            fingerprint=label(labels, "spec") or "",
            retries=parse_number(label(labels, "retries")) or 0,
            created=remote.creation_date.isoformat() if remote.creation_date else "",
            run_started=label(labels, "run_started") or "",
            try_number=parse_number(label(labels, "try_number")) or 0,
            taken_by=last_try(tags),
            shortname=shortname,
            tags=tags,
            index=parse_number(label(labels, "item")),
            pool=getattr(remote, "pool", None),
            cancelled=remote.state == "Cancelled",
        )


def _generation_of(generation: str | None, shortname: str) -> int:
    """Return the generation from the label or the shortname.

    A server may drop the labels. A copy may have those of its source, which is of an earlier generation.
    """
    numbers = map(parse_number, (generation, shortname.rsplit("-", 1)[-1]))
    return max((number for number in numbers if number is not None), default=1)


@dataclass(frozen=True, kw_only=True)
class ClaimPlan:
    """End the objects ``end``, then use ``use``, or create ``generation`` if ``use`` is None."""

    end: tuple[str, ...] = ()
    use: RemoteSnapshot | None = None
    generation: int = 1


def decide(
    identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot], fingerprint: str
) -> ClaimPlan:
    """Decide which remote objects of an owner its current lineage uses, ends or replaces.

    * Live objects of earlier lineages end. The lineage of a cleared task stops the old one and never adopts it.
    * In the own lineage a success is used, else the oldest live object. The others end. A success counts only for a
      task with the same number of retries, because editing ``retries`` and clearing can give the same ``max_tries``
      and so the same lineage. It never counts for an auxiliary object (one with a ``role``), as its effect may have
      worn off.
    * An object created from another spec is not usable, and ends.
    * An object of a later try never ends here, because this process may have been suspended meanwhile.
    * If nothing is usable, the next generation is created.
    """
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot.age)
    own = [snapshot for snapshot in snapshots if snapshot.lineage == identity.lineage]
    usable = [snapshot for snapshot in own if _is_usable(snapshot, identity, fingerprint)]
    # min() returns the first of several. A live object beside a success is a double, regardless of their age.
    use = min(usable, key=lambda snapshot: snapshot.usability is Usability.LIVE, default=None)
    return ClaimPlan(
        end=tuple(
            snapshot.uuid
            for snapshot in snapshots
            if snapshot.usability is Usability.LIVE
            and snapshot is not use
            and not snapshot.is_later_than(identity)
        ),
        use=use,
        generation=_next_generation(own),
    )


def _is_usable(snapshot: RemoteSnapshot, identity: TaskInstanceIdentity, fingerprint: str) -> bool:
    if snapshot.fingerprint and snapshot.fingerprint != fingerprint:
        return False
    if snapshot.usability is Usability.SUCCEEDED:
        return snapshot.retries == identity.retries and not identity.role
    return snapshot.usability is Usability.LIVE


def choose_oldest(snapshots: Iterable[RemoteSnapshot]) -> ClaimPlan:
    """Choose the oldest live pool of one shared name. The others end, regardless of their spec."""
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot.age)
    live = [snapshot for snapshot in snapshots if snapshot.usability is Usability.LIVE]
    return ClaimPlan(
        end=tuple(snapshot.uuid for snapshot in live[1:]),
        use=live[0] if live else None,
        generation=_next_generation(snapshots),
    )


def _next_generation(snapshots: Iterable[RemoteSnapshot]) -> int:
    return 1 + max((snapshot.generation for snapshot in snapshots), default=0)


def plan_claim(
    identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot], fingerprint: str
) -> ClaimPlan:
    """Return the plan for a shared pool, or for an object of one task instance."""
    return choose_oldest(snapshots) if identity.shared else decide(identity, snapshots, fingerprint)


# --- the steps of a claim


@dataclass(kw_only=True)
class ClaimState:
    """Everything that the attempts of one claim have learned, apart from the objects that exist."""

    #: Objects that this try already knew when the claim started. Their end is no result of this claim.
    known: frozenset[str] = frozenset()
    #: An object with the next shortname may exist: the server has rejected the name, or an earlier try may have created
    #: an object that no search lists yet.
    may_be_named: bool = False
    #: The shortname that was looked up since.
    checked_name: str | None = None
    #: The error of the last create request whose response was lost.
    lost_response: Exception | None = None
    #: Seconds for which the server still accepts no create request.
    retry_after: float = 0.0
    #: A second object may exist: a response was lost, or another run may have created the same shared pool.
    may_have_double: bool = False


@dataclass(frozen=True, kw_only=True)
class Use:
    """Use an existing object."""

    snapshot: RemoteSnapshot
    end: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Create:
    """Create the next generation after ``delay`` seconds."""

    generation: int
    end: tuple[str, ...] = ()
    delay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FindByName:
    """Look for the object with this shortname, which was taken although no listed object has it."""

    name: str
    end: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fail:
    """Raise ``error``."""

    error: Exception
    end: tuple[str, ...] = ()


def next_step(
    identity: TaskInstanceIdentity,
    snapshots: Iterable[RemoteSnapshot],
    fingerprint: str,
    state: ClaimState,
    max_delay: float,
) -> Use | Create | FindByName | Fail:
    """Decide the next step of a claim. The objects in its ``end`` are ended first.

    :param max_delay: maximum seconds that a worker may wait before a create request. Airflow waits longer, between
        two tries.
    """
    snapshots = list(snapshots)
    if (overtaken := overtaken_error(identity, snapshots)) is not None:
        return Fail(error=overtaken)
    plan = plan_claim(identity, snapshots, fingerprint)
    unknown = [snapshot for snapshot in snapshots if snapshot.uuid not in state.known]
    if (use := plan.use or _ended_in_this_try(identity, unknown, fingerprint)) is not None:
        return Use(snapshot=use, end=plan.end)
    if state.lost_response is not None and state.retry_after > max_delay:
        return Fail(error=state.lost_response, end=plan.end)
    if state.may_be_named:
        name = identity.shortname(plan.generation)
        if name not in {state.checked_name, *(snapshot.shortname for snapshot in snapshots)}:
            return FindByName(name=name, end=plan.end)
    return Create(generation=plan.generation, end=plan.end, delay=state.retry_after)


def _ended_in_this_try(
    identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot], fingerprint: str
) -> RemoteSnapshot | None:
    """Return the object that this try created without receiving a response, if it has ended since.

    Its end is the result of this try. A shared pool belongs to no try, and a caller needs a live one.
    """
    if identity.shared:
        return None
    ended = [
        snapshot
        for snapshot in snapshots
        if snapshot.is_of(identity, fingerprint)
        and snapshot.try_number == identity.try_number
        and snapshot.usability is not Usability.LIVE
    ]
    return max(ended, key=lambda snapshot: snapshot.generation, default=None)


def overtaken_error(
    identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot]
) -> QarnotKilledError | None:
    """Return an error if a later try has any of *snapshots*, because this process was suspended."""
    if not any(snapshot.is_later_than(identity) for snapshot in snapshots):
        return None
    return QarnotKilledError(
        "Airflow has started a later try of this task while this process was suspended, and that try has the objects "
        "on Qarnot. This process created and ended nothing."
    )


def is_adopted(identity: TaskInstanceIdentity, snapshot: RemoteSnapshot) -> bool:
    """Return whether *snapshot* is live and belongs to an earlier try."""
    return not identity.shared and snapshot.usability is Usability.LIVE and snapshot.order < identity.order
