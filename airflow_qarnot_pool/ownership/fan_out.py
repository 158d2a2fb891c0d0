"""Many Qarnot tasks of one Airflow task: where each of them stands, and what to do next. Pure decisions.

The items of a fan-out share owner and lineage, so that one search finds all of them; each has its own
generations, decided as for a single Qarnot task (:func:`airflow_qarnot_pool.ownership.decisions.decide`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_qarnot_pool.api.limits import parsing_stored_state
from airflow_qarnot_pool.api.ranges import format_ranges, parse_ranges
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, decide
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

#: An item and the generation that its Qarnot task is.
IndexAndGeneration = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An item to be submitted, and the generation it will be."""

    item: int
    generation: int


@dataclass(kw_only=True)
class FanOutProgress:
    """What this try has seen: objects may be deleted at any time.

    Carried from slice to slice of the Airflow task. A next try knows only what it finds and what is recorded.
    """

    #: Submitted, and not seen ended: they must be there.
    pending: set[IndexAndGeneration] = field(default_factory=set)
    #: Items that were seen to succeed, and to fail.
    succeeded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.pending or self.succeeded or self.failed)

    def ended(self, numbers: IndexAndGeneration, *, success: bool) -> None:
        """Note the end of one that was pending; what is not is of another spec, or known."""
        if numbers in self.pending:
            self.pending.discard(numbers)
            (self.succeeded if success else self.failed).add(numbers[0])

    def note(self, now: FanOutState) -> None:
        """Note everything that *now* shows."""
        self.pending = set(now.generations.items())
        self.succeeded |= now.succeeded.keys()
        self.failed |= now.failed.keys()

    def to_resume_state(self) -> dict[str, Any]:
        """JSON-ready, for trigger kwargs and events."""
        by_generation: dict[int, set[int]] = {}
        for item, generation in self.pending:
            by_generation.setdefault(generation, set()).add(item)
        return {
            "pending": {str(number): format_ranges(items) for number, items in sorted(by_generation.items())},
            "remembered": format_ranges(self.succeeded),
            "failed": format_ranges(self.failed),
        }

    @classmethod
    def from_resume_state(cls, resume_state: Mapping[str, Any]) -> FanOutProgress:
        """Read back what :meth:`to_resume_state` of this or an earlier release wrote."""
        with parsing_stored_state("What is known of a fan-out"):
            pending = resume_state.get("pending") or {}
            return cls(
                pending={
                    (item, int(number)) for number, items in pending.items() for item in parse_ranges(items)
                },
                succeeded=set(parse_ranges(resume_state.get("remembered"))),
                failed=set(parse_ranges(resume_state.get("failed"))),
            )


@dataclass(frozen=True, kw_only=True)
class FanOutState:
    """Where every item of a fan-out stands. All lists are in the order of the items."""

    total: int
    #: Item to uuid; None where the Qarnot task is not there any more.
    succeeded: Mapping[int, str | None] = field(default_factory=dict)
    failed: Mapping[int, str | None] = field(default_factory=dict)
    running: Mapping[int, str] = field(default_factory=dict)
    #: Generations of what runs, by item.
    generations: Mapping[int, int] = field(default_factory=dict)
    waiting: Sequence[Submission] = ()
    #: Qarnot tasks nobody wants: of earlier lives, of other specs, doubles.
    end: Sequence[str] = ()

    @property
    def done(self) -> int:
        return len(self.succeeded) + len(self.failed)

    @property
    def is_finished(self) -> bool:
        return self.done == self.total

    def next(self, limit: int) -> Sequence[Submission]:
        """What to submit now, so that no more than *limit* are in flight."""
        return self.waiting[: max(0, limit - len(self.running))]

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.total} done ({len(self.failed)} failed), {len(self.running)} in flight, "
            f"{len(self.waiting)} not submitted"
        )


def fan_out_state(
    identity: TaskInstanceIdentity,
    fingerprints: Sequence[str],
    snapshots: Iterable[RemoteSnapshot],
    memory: FanOutProgress | None = None,
    closed_pools: Collection[str] = (),
) -> FanOutState:
    """Sort what was found by the items it belongs to.

    An item that failed in this try of the Airflow task is failed; one that failed in an earlier try runs again. So
    does one that this try has adopted and another process cancels, but once.

    :param closed_pools: shared pools that others have closed: what was cancelled with them has not failed.
    """
    memory = memory or FanOutProgress()
    by_item: dict[int, list[RemoteSnapshot]] = {}
    stray: list[str] = []
    for snapshot in snapshots:
        if snapshot.item is not None and snapshot.item < len(fingerprints):
            by_item.setdefault(snapshot.item, []).append(snapshot)
        elif snapshot.usability is Usability.LIVE:
            stray.append(snapshot.uuid)
    succeeded: dict[int, str | None] = {}
    failed: dict[int, str | None] = {}
    running: dict[int, str] = {}
    generations: dict[int, int] = {}
    waiting: list[Submission] = []
    end = stray
    for item, fingerprint in enumerate(fingerprints):
        mine = by_item.get(item, [])
        plan = decide(identity, mine, fingerprint)
        end += plan.end
        if plan.use is not None and plan.use.usability is Usability.SUCCEEDED:
            succeeded[item] = plan.use.uuid or None  # a recorded one is deleted
        elif plan.use is not None:
            running[item], generations[item] = plan.use.uuid, plan.use.generation
        elif lost := _failed_now(identity, mine, fingerprint, closed_pools):
            failed[item] = lost.uuid or None
        elif item in memory.succeeded:
            succeeded[item] = None
        elif item in memory.failed and not _adopted_and_cancelled(identity, mine, fingerprint):
            failed[item] = None
        else:
            waiting.append(Submission(item=item, generation=plan.generation))
    return FanOutState(
        total=len(fingerprints),
        succeeded=succeeded,
        failed=failed,
        running=running,
        generations=generations,
        waiting=tuple(waiting),
        end=tuple(end),
    )


def _adopted_and_cancelled(
    identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot], fingerprint: str
) -> bool:
    """Return whether the newest Qarnot task of an item was made by an earlier try, and cancelled since.

    It may have been on its way out when this try took it over. One that this try made itself has failed.
    """
    own = [
        snapshot
        for snapshot in snapshots
        if snapshot.lineage == identity.lineage and snapshot.fingerprint == fingerprint
    ]
    newest = max(own, key=lambda snapshot: snapshot.generation, default=None)
    return newest is not None and newest.cancelled and newest.try_number < identity.try_number


def _failed_now(
    identity: TaskInstanceIdentity,
    snapshots: Iterable[RemoteSnapshot],
    fingerprint: str,
    closed_pools: Collection[str],
) -> RemoteSnapshot | None:
    own = [
        snapshot
        for snapshot in snapshots
        if snapshot.lineage == identity.lineage
        and snapshot.fingerprint == fingerprint
        and snapshot.try_number == identity.try_number
        and snapshot.usability in (Usability.DEAD, Usability.ENDING)
        and not (snapshot.cancelled and snapshot.pool in closed_pools)
    ]
    return max(own, key=lambda snapshot: snapshot.generation, default=None)
