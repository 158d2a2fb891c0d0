"""Pure decisions about the many Qarnot tasks of one Airflow task: the state of each, and the next step.

The items of a fan-out share owner and lineage, and one search finds all of them. Each has separate
generations, decided as for a single Qarnot task (:func:`airflow_qarnot_pool.ownership.decisions.decide`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from airflow_qarnot_pool.api.limits import parsing_stored_state
from airflow_qarnot_pool.api.ranges import format_ranges, parse_ranges
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, decide
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

#: An item, and the generation of its Qarnot task.
IndexAndGeneration = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ItemSubmission:
    """An item to submit, and the generation of its Qarnot task."""

    index: int
    generation: int


@dataclass(kw_only=True)
class FanOutProgress:
    """The observations of this try, kept because objects may be deleted at any time.

    They are passed from slice to slice of the Airflow task. The next try knows only the existing and the recorded
    objects.
    """

    #: Submitted, and not yet seen to end. These objects must exist.
    pending: set[IndexAndGeneration] = field(default_factory=set)
    #: Items that this try has seen to succeed, and to fail.
    succeeded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.pending or self.succeeded or self.failed)

    def ended(self, numbers: IndexAndGeneration, *, success: bool) -> None:
        """Record the end of a pending Qarnot task. Another one belongs to another spec, or is known already."""
        if numbers in self.pending:
            self.pending.discard(numbers)
            (self.succeeded if success else self.failed).add(numbers[0])

    def note(self, state: FanOutState) -> None:
        """Record everything that *state* shows. A lookup shows all live objects, so only these stay pending."""
        self.pending = set(state.generations.items())
        self.succeeded |= state.succeeded.keys()
        self.failed |= state.failed.keys()

    def to_resume_state(self) -> dict[str, Any]:
        """Return a JSON form for trigger kwargs and events."""
        by_generation: dict[int, set[int]] = {}
        for index, generation in self.pending:
            by_generation.setdefault(generation, set()).add(index)
        return {
            "pending": {str(number): format_ranges(items) for number, items in sorted(by_generation.items())},
            "succeeded": format_ranges(self.succeeded),
            "failed": format_ranges(self.failed),
        }

    @classmethod
    def from_resume_state(cls, resume_state: Mapping[str, Any]) -> FanOutProgress:
        """Read the result of :meth:`to_resume_state`."""
        with parsing_stored_state("The progress of a fan-out"):
            pending = resume_state.get("pending") or {}
            return cls(
                pending={
                    (index, int(number)) for number, items in pending.items() for index in parse_ranges(items)
                },
                succeeded=set(parse_ranges(resume_state.get("succeeded"))),
                failed=set(parse_ranges(resume_state.get("failed"))),
            )


@dataclass(frozen=True, kw_only=True)
class FanOutState:
    """The state of every item of a fan-out. All lists are in the order of the items."""

    total: int
    #: Uuid by item; None if the Qarnot task is deleted.
    succeeded: Mapping[int, str | None] = field(default_factory=dict)
    failed: Mapping[int, str | None] = field(default_factory=dict)
    running: Mapping[int, str] = field(default_factory=dict)
    #: Generation by item, of the running Qarnot tasks.
    generations: Mapping[int, int] = field(default_factory=dict)
    waiting: Sequence[ItemSubmission] = ()
    #: Unwanted Qarnot tasks: doubles, and those of earlier lineages and other specs.
    end: Sequence[str] = ()

    @property
    def done(self) -> int:
        """Number of items that have ended."""
        return len(self.succeeded) + len(self.failed)

    @property
    def is_finished(self) -> bool:
        """Whether all items have ended."""
        return self.done == self.total

    def next(self, limit: int) -> Sequence[ItemSubmission]:
        """Return the items to submit now, with at most *limit* in flight."""
        return self.waiting[: max(0, limit - len(self.running))]

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.total} done ({len(self.failed)} failed), {len(self.running)} in flight, "
            f"{len(self.waiting)} not submitted"
        )


#: Maximum rounds in a row whose responses leave unclear which Qarnot tasks exist.
MAX_UNCLEAR_ROUNDS = 6


class NextStep(Enum):
    """The next step of a fan-out after a round of submissions."""

    #: Look up what exists before anything else.
    LOOK_UP = auto()
    #: Wait for room under the account's quota: no pending Qarnot task can make any by its end.
    WAIT_FOR_ROOM = auto()
    #: Fail, because Qarnot never confirms what it has accepted.
    GIVE_UP = auto()
    #: Return without a wait, because everything is submitted.
    RETURN = auto()
    #: Wait for Qarnot tasks to end.
    WAIT = auto()


@dataclass(frozen=True, kw_only=True)
class Round:
    """The result of a round of submissions."""

    accepted: int
    #: Items that are still to be submitted.
    remaining: int
    #: Qarnot tasks that have been submitted and were not seen to end.
    pending: int
    #: Rounds in a row, this one included, after which only a lookup can tell which Qarnot tasks exist.
    unclear: int = 0
    #: Whether a quota of the account is full.
    is_quota_full: bool = False
    #: Whether finished objects were deleted on the way, among them perhaps pending ones of this fan-out.
    has_made_room: bool = False


def next_step(done: Round, *, waits: bool) -> NextStep:
    """Decide what follows a round.

    :param waits: whether the Airflow task waits for its Qarnot tasks.
    """
    if done.has_made_room and done.accepted:
        return NextStep.LOOK_UP
    if done.is_quota_full and not done.pending and not done.unclear:
        return NextStep.WAIT_FOR_ROOM
    if done.unclear:
        return NextStep.LOOK_UP if done.unclear <= MAX_UNCLEAR_ROUNDS else NextStep.GIVE_UP
    if not waits and not done.remaining:
        return NextStep.RETURN
    return NextStep.WAIT


def low_water_mark(done: Round, limit: int) -> int:
    """Return the number of pending Qarnot tasks at which the wait ends, so that the operator submits more.

    Half of them keep the nodes busy meanwhile, and a slice is worth a worker's time.
    """
    return min(limit, done.pending) // 2 if done.remaining else 0


def fan_out_state(
    identity: TaskInstanceIdentity,
    fingerprints: Sequence[str],
    snapshots: Iterable[RemoteSnapshot],
    progress: FanOutProgress | None = None,
    closed_pools: Collection[str] = (),
) -> FanOutState:
    """Return the state of each item, given the snapshots of all items.

    An item that failed in this try of the Airflow task is failed. An item that failed in an earlier try runs again. So
    does, but only once, an item that this try has adopted and another process cancels.

    :param closed_pools: shared pools that others have closed. A task that was cancelled with its pool has not failed.
    """
    progress = progress or FanOutProgress()
    by_item, end = _group_by_item(snapshots, len(fingerprints))
    succeeded: dict[int, str | None] = {}
    failed: dict[int, str | None] = {}
    running: dict[int, str] = {}
    generations: dict[int, int] = {}
    waiting: list[ItemSubmission] = []
    for index, fingerprint in enumerate(fingerprints):
        of_item = by_item.get(index, [])
        plan = decide(identity, of_item, fingerprint)
        end += plan.end
        if plan.use is not None and plan.use.usability is Usability.LIVE:
            running[index], generations[index] = plan.use.uuid, plan.use.generation
            continue
        own = [
            snapshot
            for snapshot in of_item
            if snapshot.lineage == identity.lineage and snapshot.fingerprint == fingerprint
        ]
        outcome = _outcome_of(index, plan.use, identity, own, progress, closed_pools)
        if outcome is None:
            waiting.append(ItemSubmission(index=index, generation=plan.generation))
        else:
            (succeeded if outcome.is_success else failed)[index] = outcome.uuid
    return FanOutState(
        total=len(fingerprints),
        succeeded=succeeded,
        failed=failed,
        running=running,
        generations=generations,
        waiting=tuple(waiting),
        end=tuple(end),
    )


def _group_by_item(
    snapshots: Iterable[RemoteSnapshot], total: int
) -> tuple[dict[int, list[RemoteSnapshot]], list[str]]:
    """Return the snapshots by item, and the uuids of live objects that belong to none of *total* items."""
    by_item: dict[int, list[RemoteSnapshot]] = {}
    unwanted: list[str] = []
    for snapshot in snapshots:
        if snapshot.index is not None and snapshot.index < total:
            by_item.setdefault(snapshot.index, []).append(snapshot)
        elif snapshot.usability is Usability.LIVE:
            unwanted.append(snapshot.uuid)
    return by_item, unwanted


class _ItemOutcome(NamedTuple):
    """The outcome of an item. ``uuid`` is None if its Qarnot task is deleted."""

    is_success: bool
    uuid: str | None = None


def _outcome_of(
    index: int,
    success: RemoteSnapshot | None,
    identity: TaskInstanceIdentity,
    own: Sequence[RemoteSnapshot],
    progress: FanOutProgress,
    closed_pools: Collection[str],
) -> _ItemOutcome | None:
    """Return the outcome of an item that has no live Qarnot task; None if it has to be submitted.

    :param success: a successful Qarnot task of the item. A recorded one has no uuid.
    :param own: the Qarnot tasks of this lineage and spec.
    """
    if success is not None:
        return _ItemOutcome(is_success=True, uuid=success.uuid or None)
    if failure := _failed_in_this_try(identity, own, closed_pools):
        return _ItemOutcome(is_success=False, uuid=failure.uuid or None)
    if index in progress.succeeded:
        return _ItemOutcome(is_success=True)
    if index in progress.failed and not _is_adopted_and_cancelled(identity, own):
        return _ItemOutcome(is_success=False)
    return None


def _is_adopted_and_cancelled(identity: TaskInstanceIdentity, own: Iterable[RemoteSnapshot]) -> bool:
    """Return whether the newest Qarnot task of an item was created by an earlier try, and cancelled since.

    It may have been about to end when this try adopted it. A task that this try created itself has failed.
    """
    newest = max(own, key=lambda snapshot: snapshot.generation, default=None)
    return newest is not None and newest.cancelled and newest.try_number < identity.try_number


def _failed_in_this_try(
    identity: TaskInstanceIdentity, own: Iterable[RemoteSnapshot], closed_pools: Collection[str]
) -> RemoteSnapshot | None:
    failures = [
        snapshot
        for snapshot in own
        if snapshot.try_number == identity.try_number
        and snapshot.usability in (Usability.DEAD, Usability.ENDING)
        and not (snapshot.cancelled and snapshot.pool in closed_pools)
    ]
    return max(failures, key=lambda snapshot: snapshot.generation, default=None)
