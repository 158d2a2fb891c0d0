"""Get the one remote object of an Airflow task instance: create it, or find the one that is already there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.transport import DEFAULT_DEADLINE, MAX_WAIT, backoff
from airflow_qarnot_pool.exceptions import QarnotKilledError
from airflow_qarnot_pool.ownership.decisions import (
    ClaimPlan,
    RemoteSnapshot,
    Usability,
    choose_oldest,
    decide,
)
from airflow_qarnot_pool.ownership.identity import (
    OWNER_TAG,
    TRY_TAG,
    TaskInstanceIdentity,
    foreign_labels,
    is_ending,
)
from airflow_qarnot_pool.ownership.termination import MAX_WORKERS, end
from airflow_qarnot_pool.waiting.conditions import Condition, WaitResult, result_if_met

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
    from airflow_qarnot_pool.api.tasks import TaskResource

log = logging.getLogger(__name__)

#: Returns what is recorded of deleted objects, by uuid.
ReadRecords = Callable[[], Mapping[str, Any]]

#: How long finished objects are kept: longer than any retry delay, but not forever, because they count against the
#: account's quota. Automatic deletion is left off: the server would delete objects whose end no one has read yet. The
#: process that needs room deletes them instead (see :mod:`airflow_qarnot_pool.ownership.quota`).
TIME_TO_LIVE = timedelta(days=7)
#: Work that is done is done, and what runs may go on, though the setup task has made another pool since.
FINGERPRINT_EXCLUDES = ("pool",)
MAX_ATTEMPTS = 6
#: Tags that Qarnot takes on one object.
MAX_TAGS = 10


class Decision(StrEnum):
    """How a remote object was come by: this try made it, or an earlier one did."""

    FRESH_SUBMIT = "fresh_submit"
    ADOPTED = "adopted"
    ALREADY_SUCCEEDED = "already_succeeded"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The remote object that belongs to a life. ``existing`` is what was seen of one that was already there."""

    uuid: str
    decision: Decision
    generation: int
    existing: Pool | Task | None = None

    def outcome_if_done(self, condition: Condition) -> WaitResult | None:
        """Return the outcome if the object had ended when it was claimed; None if there is something to wait for."""
        if self.existing is None:
            return None
        if condition.ready_slots is not None:
            # An earlier try may have left its warm-up asleep in these slots, which only the end of a wait ends.
            return None
        return result_if_met(condition, self.existing)


def claim(
    resource: PoolResource | TaskResource,
    spec: PoolSpec | TaskSpec,
    identity: TaskInstanceIdentity,
    refine: Callable[[Any, Iterable[Any]], Any] | None = None,
    pause: Callable[[float], Any] = time.sleep,
    *,
    look: bool = False,
    create: Callable[[Any], str] | None = None,
    fingerprint: str | None = None,
    recorded: ReadRecords | None = None,
) -> Claim:
    """Return the one object that *identity* has for *spec*, whatever crashed before.

    The first try costs one request. Later tries, a taken name and an answer that never came are resolved by
    looking up what is there (see :func:`airflow_qarnot_pool.ownership.decisions.decide`). Right with a server that
    enforces unique shortnames and with one that does not: after an answer that never came, the oldest
    object of the lineage is kept and the others end.

    :param refine: makes the spec of a later generation, from the spec and what the earlier ones of this lineage
        left behind.
    :param pause: waits so many seconds between two attempts; a shorter wait ends nothing.
    :param look: look first on a first try, too: this try has made something already.
    :param create: makes what is stamped, and returns its uuid; default: a request of its own.
    :param fingerprint: of the spec, where *spec* is only a part of it.
    :param recorded: returns what is recorded of deleted objects of the owner (see
        :mod:`airflow_qarnot_pool.ownership.records`).
    :raises QarnotKilledError: Airflow has started a later try, so that nothing is to be made or ended here.
    :raises QarnotUnavailableError: with ``ambiguous`` set, the object may exist; the next try finds it. Also where
        the server wants to be left alone for minutes.
    :raises QarnotError: as the server refused it.
    """
    if clash := foreign_labels(spec.labels):
        raise QarnotInvalidSpecError(
            f"labels may not start with 'airflow.', which this provider uses: {', '.join(clash)}",
            field="labels",
        )
    fingerprint = fingerprint or spec.fingerprint(exclude=FINGERPRINT_EXCLUDES)
    found = _lookup(resource, identity, recorded) if look or identity.has_history else {}
    # What this try has seen end already is no news.
    known = frozenset(found) if look else frozenset()
    taken = False
    unanswered: QarnotUnavailableError | QarnotProtocolError | None = None
    #: Seconds that the server still wants to be asked for nothing new.
    left = 0.0
    # Of what is shared another may have been made meanwhile, as after an answer that never came.
    unsure = bool(identity.shared)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        raise_if_overtaken(identity, map(RemoteSnapshot.of, found.values()))
        plan = _plan(identity, found, fingerprint)
        for uuid in plan.end:
            log.info(
                "Ending %s %s, %s",
                resource.kind,
                uuid,
                "a double" if identity.shared else "of an earlier life of this Airflow task",
            )
            end(resource, uuid)
        if plan.use is not None:
            if _is_adopted(identity, plan.use) and attempt < MAX_ATTEMPTS:
                mark_adopted(resource, identity, [plan.use])
                now = resource.find(plan.use.uuid)
                if now is None or is_ending(now):
                    # It ended meanwhile, perhaps by a process of an earlier try that did not see the mark yet.
                    found = _lookup(resource, identity, recorded)
                    continue
            return _use(resource, identity, plan.use, found[plan.use.uuid])
        fresh = {uuid: one for uuid, one in found.items() if uuid not in known}
        if (spent := _ended_in_this_try(identity, fresh, fingerprint)) is not None:
            return _use(resource, identity, spent, found[spent.uuid])
        if unanswered is not None and left > DEFAULT_DEADLINE:
            raise unanswered  # a wait for Airflow, not for a worker
        if left:
            pause(left)
            left = 0.0
        generation = plan.generation
        name = identity.shortname(generation)
        if taken and name not in {one.shortname for one in found.values()}:
            # The name is taken, and not by anything that carries our tags.
            stranger = resource.find(name)
            if stranger is not None and OWNER_TAG + identity.owner not in (stranger.tags or ()):
                raise QarnotNameTakenError(
                    f"The shortname {name} belongs to {resource.kind} {stranger.uuid}, which this Airflow task "
                    "did not make; delete that object or clear the task",
                    kind=resource.kind,
                    ref=stranger.uuid,
                )
            if stranger is not None:
                found[stranger.uuid] = stranger
                continue
        wanted = refine(spec, _alike(found, identity, fingerprint)) if refine and found else spec
        try:
            uuid = (create or resource.create_once)(with_identity(wanted, identity, generation, fingerprint))
        except QarnotNameTakenError:
            if attempt == MAX_ATTEMPTS:
                raise
            taken = True
            log.info("%s %s exists already; looking it up", resource.kind.capitalize(), name)
            found = _lookup(resource, identity, recorded)
        except (QarnotUnavailableError, QarnotProtocolError) as error:
            # An answer that cannot be understood says no more than none.
            if not getattr(error, "ambiguous", True) or attempt == MAX_ATTEMPTS:
                raise
            unsure = True
            log.warning("No answer to the creation of %s %s; looking whether it exists", resource.kind, name)
            asked = getattr(error, "retry_after", None) or backoff(attempt)
            # To ask again may have to wait for hours; to know what is there, and costs, may not.
            pause(min(asked, MAX_WAIT))
            unanswered, left = error, max(0.0, asked - MAX_WAIT)
            found = _lookup(resource, identity, recorded)
        else:
            log.info("Created %s %s (%s)", resource.kind, uuid, name)
            if unsure:
                return _oldest(resource, identity, fingerprint, uuid, recorded)
            return Claim(uuid=uuid, decision=Decision.FRESH_SUBMIT, generation=generation)
    raise AssertionError("the last attempt returns or raises")


def with_identity(spec: Any, identity: TaskInstanceIdentity, generation: int, fingerprint: str) -> Any:
    """*spec* with the name, tags, labels and time to live that make the object ours."""
    return replace(
        spec,
        name=spec.name,
        shortname=identity.shortname(generation),
        tags=(*identity.tags(), *(spec.tags or ())),
        labels={**(spec.labels or {}), **identity.labels(generation, fingerprint)},
        completion_ttl=TIME_TO_LIVE if spec.completion_ttl is None else spec.completion_ttl,
    )


def mark_adopted(
    resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot]
) -> None:
    """Leave a mark on what *identity* takes over from an earlier try.

    The process of that try may only have stood still. When it resumes, it reads the mark and ends nothing. An object
    that has no room for one more tag, or does not take it, is taken over all the same.
    """
    mark = f"{TRY_TAG}{identity.try_number}"

    def mark_one(snapshot: RemoteSnapshot) -> None:
        tags = [*(tag for tag in snapshot.tags if not tag.startswith(TRY_TAG)), mark]
        if len(tags) > MAX_TAGS:
            log.info("%s %s has no room for the tag %s", resource.kind.capitalize(), snapshot.uuid, mark)
            return
        try:
            resource.update(snapshot.uuid, tags=tags)
        except (
            QarnotNotFoundError,
            QarnotRefusedError,
            QarnotUnavailableError,
            QarnotProtocolError,
        ) as error:
            log.warning(
                "%s %s does not take the tag %s: %s", resource.kind.capitalize(), snapshot.uuid, mark, error
            )

    wanted = [snapshot for snapshot in snapshots if _is_adopted(identity, snapshot)]
    if len(wanted) < 2:
        for snapshot in wanted:
            mark_one(snapshot)
        return
    with ThreadPoolExecutor(max_workers=min(len(wanted), MAX_WORKERS)) as threads:
        list(threads.map(mark_one, wanted))


def _is_adopted(identity: TaskInstanceIdentity, snapshot: RemoteSnapshot) -> bool:
    """Return whether *snapshot* runs and belongs to an earlier try."""
    return not identity.shared and snapshot.usability is Usability.LIVE and snapshot.order < identity.order


def raise_if_overtaken(identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot]) -> None:
    """Raise QarnotKilledError if a later try has any of *snapshots*: this process has stood still."""
    if any(snapshot.is_later_than(identity) for snapshot in snapshots):
        raise QarnotKilledError(
            "Airflow has started a later try of this task while this process stood still, and that try has what "
            "exists on Qarnot; nothing was created or ended here"
        )


def is_taken_over(resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, uuid: str) -> bool:
    """Return whether a later try of the Airflow task of *identity* has the object *uuid*."""
    found = resource.find(uuid)
    return found is not None and RemoteSnapshot.of(found).is_later_than(identity)


def _lookup(
    resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, recorded: ReadRecords | None
) -> dict[str, Pool | Task]:
    """Everything that any life of this task instance made, deleted objects included if they are recorded.

    :raises QarnotUnavailableError: ``ambiguous``, as whoever looks has reason to think that something exists.
    """
    try:
        found = {one.uuid: one for one in resource.iterate(filters.equal("Tags", OWNER_TAG + identity.owner))}
        # In this order: an object is recorded before it is deleted.
        return found if recorded is None else {**recorded(), **found}
    except QarnotUnavailableError as error:
        error.ambiguous = True
        raise


def _alike(found: dict[str, Any], identity: TaskInstanceIdentity, fingerprint: str) -> list[Any]:
    """What earlier generations of this life made from the same spec; ``retries`` as in :func:`decide`."""
    snapshots = {uuid: RemoteSnapshot.of(one) for uuid, one in found.items()}
    mine = (identity.lineage, fingerprint, identity.retries)
    return [
        one
        for uuid, one in found.items()
        if (snapshots[uuid].lineage, snapshots[uuid].fingerprint, snapshots[uuid].retries) == mine
    ]


def _plan(identity: TaskInstanceIdentity, found: dict[str, Pool | Task], fingerprint: str) -> ClaimPlan:
    snapshots = [RemoteSnapshot.of(one) for one in found.values()]
    return choose_oldest(snapshots) if identity.shared else decide(identity, snapshots, fingerprint)


def _ended_in_this_try(
    identity: TaskInstanceIdentity, found: dict[str, Any], fingerprint: str
) -> RemoteSnapshot | None:
    """What this very try made, its answer lost, and what ended before it was looked up: that is its end."""
    if identity.shared:
        return None  # anybody's, and whoever wants it wants one that lives
    mine = [RemoteSnapshot.of(one) for one in _alike(found, identity, fingerprint)]
    ended = [
        one for one in mine if one.try_number == identity.try_number and one.usability is not Usability.LIVE
    ]
    return max(ended, key=lambda snapshot: snapshot.generation, default=None)


def _use(
    resource: PoolResource | TaskResource,
    identity: TaskInstanceIdentity,
    snapshot: RemoteSnapshot,
    found: Pool | Task,
) -> Claim:
    if snapshot.try_number == identity.try_number and not identity.shared:
        # Nobody left it behind: this try made it, and only now learns its uuid.
        decision = Decision.FRESH_SUBMIT
        log.info(
            "%s %s was created, its answer lost (%s)", resource.kind.capitalize(), snapshot.uuid, found.state
        )
    else:
        decision = (
            Decision.ALREADY_SUCCEEDED if snapshot.usability is Usability.SUCCEEDED else Decision.ADOPTED
        )
        made_by = "shared with other DAG runs" if identity.shared else "made by an earlier try"
        log.info("Using %s %s, %s (%s, %s)", resource.kind, snapshot.uuid, made_by, found.state, decision)
    return Claim(uuid=snapshot.uuid, decision=decision, generation=snapshot.generation, existing=found)


def _oldest(
    resource: PoolResource | TaskResource,
    identity: TaskInstanceIdentity,
    fingerprint: str,
    created: str,
    recorded: ReadRecords | None,
) -> Claim:
    """There may be a second one, made by the request that was not answered or by a sharer: keep the oldest."""
    found = _lookup(resource, identity, recorded)
    plan = _plan(identity, found, fingerprint)
    for uuid in plan.end:
        log.warning(
            "Ending %s %s, a double of %s", resource.kind, uuid, plan.use.uuid if plan.use else created
        )
        end(resource, uuid)
        metrics.incr("duplicates_ended", kind=resource.kind)
    if plan.use is None or plan.use.uuid == created:
        generation = plan.use.generation if plan.use else plan.generation
        return Claim(uuid=created, decision=Decision.FRESH_SUBMIT, generation=generation)
    return _use(resource, identity, plan.use, found[plan.use.uuid])


def count_decision(logger: Any, kind: str, claim: Claim) -> None:
    """How a remote object was come by: a fresh submit, or an earlier try's that spared one."""
    decision = str(claim.decision)
    metrics.incr(f"claims.{decision}", kind=kind)
    if decision != "fresh_submit":
        metrics.incr("duplicates_avoided", kind=kind)
    logger.info("qarnot.%s: %s %s, generation %d", decision, kind, claim.uuid, claim.generation)
    attributes = {"qarnot.kind": kind, "qarnot.uuid": claim.uuid, "qarnot.generation": claim.generation}
    metrics.event(f"qarnot.{decision}", attributes)


def count_decisions(logger: Any, decision: Decision, count: int) -> None:
    """The same for so many Qarnot tasks of a fan-out at once."""
    if not count:
        return
    metrics.incr(f"claims.{decision}", count, kind="task")
    if decision != "fresh_submit":
        metrics.incr("duplicates_avoided", count, kind="task")
    logger.info("qarnot.%s: %d task%s", decision, count, "" if count == 1 else "s")
    metrics.event(f"qarnot.{decision}", {"qarnot.kind": "task", "qarnot.count": count})
