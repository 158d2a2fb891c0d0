"""Pure decisions over the remote objects of an Airflow task instance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG, TaskInstanceIdentity, label, last_try

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task


class Usability(StrEnum):
    """What a remote object can still be used for."""

    LIVE = "live"
    SUCCEEDED = "succeeded"
    ENDING = "ending"
    DEAD = "dead"


def usability_of(found: Pool | Task) -> Usability:
    """What *found* can still be used for.

    A pool that is Closing or Closed never takes a task again. A Qarnot task in PendingCancel still counts as
    running: it is adopted, and run again when it turns out Cancelled.
    """
    from airflow_qarnot_pool.api import states
    from airflow_qarnot_pool.api.models import Pool

    if isinstance(found, Pool):
        if states.accepts_tasks(found.state):
            return Usability.LIVE
        phase = states.pool_phase(found.state)
    else:
        phase = states.task_phase(found.state)
        state = states.parse_task_state(found.state)
        if state is states.TaskState.SUCCESS:
            return Usability.SUCCEEDED
        if state is states.TaskState.PENDING_CANCEL or phase in (states.Phase.TRANSIENT, states.Phase.LIVE):
            return Usability.LIVE
    return Usability.DEAD if phase is states.Phase.TERMINAL else Usability.ENDING


@dataclass(frozen=True, kw_only=True)
class RemoteSnapshot:
    """What one search result tells about an earlier life."""

    uuid: str
    usability: Usability
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
        """See :attr:`TaskInstanceIdentity.order`. Empty for an object without our labels, which precedes every try."""
        return self.run_started, max(self.try_number, self.taken_by)

    def is_later_than(self, identity: TaskInstanceIdentity) -> bool:
        """Return whether a later try of the task instance made it: the process of *identity* was suspended."""
        return not identity.shared and self.order > identity.order

    @classmethod
    def of(cls, found: Pool | Task) -> RemoteSnapshot:
        tags = tuple(found.tags or ())
        lineage = next((tag[len(LINEAGE_TAG) :] for tag in tags if tag.startswith(LINEAGE_TAG)), "")
        # Labels may be missing on a server that drops them: the shortname carries the number, too.
        names = label(found.labels, "generation"), (found.shortname or "").rsplit("-", 1)[-1]
        generation = next((number for name in names if (number := parse_number(name)) is not None), 1)
        return cls(
            uuid=found.uuid,
            usability=usability_of(found),
            lineage=lineage,
            generation=generation,
            fingerprint=label(found.labels, "spec") or "",
            retries=parse_number(label(found.labels, "retries")) or 0,
            created=found.creation_date.isoformat() if found.creation_date else "",
            run_started=label(found.labels, "run_started") or "",
            try_number=parse_number(label(found.labels, "try_number")) or 0,
            taken_by=last_try(tags),
            tags=tags,
            item=parse_number(label(found.labels, "item")),
            pool=getattr(found, "pool", None),
            cancelled=found.state == "Cancelled",
        )


@dataclass(frozen=True, kw_only=True)
class ClaimPlan:
    """What to do about what was found: end these, then use ``use``, or create ``generation`` where it is None."""

    end: tuple[str, ...] = ()
    use: RemoteSnapshot | None = None
    generation: int = 1
    changed_spec: bool = False


def decide(
    identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot], fingerprint: str
) -> ClaimPlan:
    """Decide over the remote objects of an owner for its current life.

    * Live objects of earlier lineages end: a cleared task's new life stops its old one and never adopts it.
    * In the own lineage a success is used, else the oldest that runs; the others end. A success counts for a
      task with the same number of retries (editing ``retries`` and clearing can give the same ``max_tries``,
      so the same lineage), and never for an auxiliary object (one with a ``role``): its effect may be gone.
    * An object made from another spec is not usable, and ends.
    * What a later try has never ends: this process may have stood still while Airflow went on without it.
    * Nothing usable: the next generation.
    """
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot.age)
    own = [snapshot for snapshot in snapshots if snapshot.lineage == identity.lineage]
    alike = [snapshot for snapshot in own if not snapshot.fingerprint or snapshot.fingerprint == fingerprint]
    usable = [
        snapshot
        for snapshot in alike
        if snapshot.usability is Usability.LIVE
        or (
            snapshot.usability is Usability.SUCCEEDED
            and snapshot.retries == identity.retries
            and not identity.role
        )
    ]
    # min() takes the first of several. What runs beside a success is a double, whichever was made first.
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
        generation=1 + max((snapshot.generation for snapshot in own), default=0),
        changed_spec=any(snapshot.usability is Usability.LIVE for snapshot in own if snapshot not in alike),
    )


def choose_oldest(snapshots: Iterable[RemoteSnapshot]) -> ClaimPlan:
    """Which of the pools of one name to use: the oldest that lives. The others end, whatever they were made from."""
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot.age)
    live = [snapshot for snapshot in snapshots if snapshot.usability is Usability.LIVE]
    return ClaimPlan(
        end=tuple(snapshot.uuid for snapshot in live[1:]),
        use=live[0] if live else None,
        generation=1 + max((snapshot.generation for snapshot in snapshots), default=0),
    )
