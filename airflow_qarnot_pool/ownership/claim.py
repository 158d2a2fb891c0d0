"""Get the one remote object of an Airflow task instance: create it, or adopt the existing one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.fields import is_secret_constant
from airflow_qarnot_pool.api.transport import DEFAULT_DEADLINE, MAX_WAIT, backoff
from airflow_qarnot_pool.ownership.decisions import (
    ClaimState,
    Create,
    Fail,
    FindByName,
    RemoteSnapshot,
    Usability,
    Use,
    is_adopted,
    next_step,
    overtaken_error,
    plan_claim,
)
from airflow_qarnot_pool.ownership.identity import (
    LABEL_PREFIX,
    OWNER_TAG,
    TRY_TAG,
    TaskInstanceIdentity,
    is_ending,
)
from airflow_qarnot_pool.ownership.termination import MAX_WORKERS, PAUSE, end
from airflow_qarnot_pool.waiting.conditions import (
    CAPITALIZED_NOUNS,
    NOUNS,
    Condition,
    WaitResult,
    result_if_met,
)
from airflow_qarnot_pool.waiting.polling import find_confirmed

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
    from airflow_qarnot_pool.api.tasks import TaskResource

log = logging.getLogger(__name__)

#: Returns the recorded objects that were deleted, by uuid.
ReadRecords = Callable[[], Mapping[str, Any]]

#: How long finished objects are kept: longer than any retry delay, but not forever, because they count against the
#: account's quota. Automatic deletion is off, because the server would delete objects whose end no one has read yet.
#: The process that needs room deletes them instead (see :mod:`airflow_qarnot_pool.ownership.quota`).
TIME_TO_LIVE = timedelta(days=7)
#: The pool is not part of the fingerprint: a task that runs or has finished stays valid if the setup task creates
#: another pool.
FINGERPRINT_EXCLUDES = ("pool",)
#: Maximum number of create requests of one claim. Each of them may end in a new lookup, but the last one returns or
#: raises. Adoptions count, too, but each object is adopted at most once.
MAX_ATTEMPTS = 6
#: Maximum number of attempts after room was made, because another process may use the room first.
MAX_CREATE_ATTEMPTS = 3
#: Time from the start of a try, or from its last lookup, after which a submission looks for a later try's objects
#: first. Airflow declares a worker lost after five minutes, and a submission usually comes within seconds.
OVERTAKEN_AFTER = timedelta(seconds=30)
#: Seconds from the last look of a process at an object, without the mark of a later try, to its request that ends it.
ENDED_WITHIN = 2.0
#: The value of a secret constant in a response.
HIDDEN = "[SECRET]"
#: Maximum number of tags that Qarnot accepts on one object.
MAX_TAGS = 10


class Decision(StrEnum):
    """How a remote object was obtained: created by this try, or adopted from an earlier one."""

    FRESH_SUBMIT = "fresh_submit"
    ADOPTED = "adopted"
    ALREADY_SUCCEEDED = "already_succeeded"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The remote object that belongs to an identity.

    :param existing: the response that showed the object, if it existed.
    :param sent: the spec from which it was created, if it did not.
    """

    uuid: str
    decision: Decision
    generation: int
    existing: Pool | Task | None = None
    sent: PoolSpec | TaskSpec | None = None

    @property
    def pool(self) -> str | None:
        """The pool of a Qarnot task; None if it has none."""
        pool: str | None = getattr(self.existing or self.sent, "pool", None)
        return pool

    def outcome_if_done(self, condition: Condition) -> WaitResult | None:
        """Return the outcome if the object had ended when it was claimed; None if the caller has to wait."""
        if self.existing is None:
            return None
        if condition.ready_slots is not None:
            # An earlier try may have left its warm-up asleep in these slots. Only the end of a wait ends a warm-up.
            return None
        return result_if_met(condition, self.existing)


@dataclass(kw_only=True)
class ClaimRequest:
    """The arguments of a claim.

    :param refine: makes the spec of a later generation, from the spec and the earlier objects of this lineage.
    :param refines_first: whether *refine* makes the spec of the first generation, too.
    :param pause: waits for a number of seconds between two attempts. It may return early.
    :param lookup_first: look for existing objects on a first try, too, because this try has already created one.
    :param labels: labels of the object besides those of the spec and of the identity.
    :param create: creates an object from the labelled spec, and returns its uuid. Default: one request.
    :param make_room: makes room under a full quota, and returns how many more objects fit.
    :param fingerprint: fingerprint to use if it covers more than *spec*.
    :param unseen: gets the shortnames of objects that the claim may have created, for a caller to whom it raises.
    :param recorded: returns the deleted objects of the owner (see :mod:`airflow_qarnot_pool.ownership.records`).
    :param ended: objects that were seen to end or, with None, to be deleted. A search may still show them as live.
    """

    resource: PoolResource | TaskResource
    spec: PoolSpec | TaskSpec
    identity: TaskInstanceIdentity
    refine: Callable[[Any, Iterable[Any]], Any] | None = None
    refines_first: bool = False
    pause: Callable[[float], Any] = time.sleep
    lookup_first: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    create: Callable[[Any], str] | None = None
    make_room: Callable[[QarnotQuotaError], int] | None = None
    fingerprint: str = ""
    recorded: ReadRecords | None = None
    unseen: set[str] = field(default_factory=set)
    ended: dict[str, Pool | Task | None] = field(default_factory=dict)


def claim(request: ClaimRequest) -> Claim:
    """Return the one object of the request's identity and spec, regardless of earlier crashes.

    The first try costs one request. Later tries, a taken name and a lost response are resolved by a search (see
    :func:`airflow_qarnot_pool.ownership.decisions.next_step`). This is correct both on a server that enforces unique
    shortnames and on one that does not: after a lost response, the oldest object of the lineage is kept and the
    others end.

    :raises QarnotKilledError: Airflow has started a later try. Nothing was created or ended.
    :raises QarnotUnavailableError: with ``ambiguous`` set, the object may exist, and the next try finds it. Also
        raised if the server accepts no requests for minutes.
    :raises QarnotError: the server has refused the spec.
    """
    if clash := [name for name in request.spec.labels or () if name.startswith(LABEL_PREFIX)]:
        raise QarnotInvalidSpecError(
            f"labels may not start with 'airflow.', which this provider uses: {', '.join(clash)}",
            field="labels",
        )
    attempts = _Attempts(request)
    attempt = 1
    while True:
        step = next_step(
            request.identity,
            map(RemoteSnapshot.of, attempts.existing.values()),
            attempts.fingerprint,
            attempts.state,
            DEFAULT_DEADLINE,
        )
        attempts.end_unwanted(step.end)
        match step:
            case Fail(error=error):
                raise error
            case FindByName(name=name):
                attempts.find_by_name(name)
                continue
            case Create():
                claimed = attempts.create(step, attempt)
            case Use(snapshot=snapshot):
                claimed = attempts.use(snapshot)
        if claimed is not None:
            return claimed
        attempt += 1


class _Attempts:
    """The I/O of one claim, and the state that its attempts share."""

    def __init__(self, request: ClaimRequest) -> None:
        self._request = request
        self._resource, self._identity = request.resource, request.identity
        self.fingerprint = request.fingerprint or request.spec.fingerprint(exclude=FINGERPRINT_EXCLUDES)
        #: Number of times that a full quota has refused the object.
        self._refusals = 0
        #: Whether the server has rejected the name.
        self._is_taken = False
        self.existing: dict[str, Pool | Task] = {}
        self.state = ClaimState(may_have_double=bool(request.identity.shared))
        #: When the objects were looked up; before that, when the try started.
        self._looked_at = request.identity.begun or datetime.now(UTC)
        if request.lookup_first or request.identity.has_history:
            self._lookup()
            self.state.may_be_named = not request.identity.shared
        if request.lookup_first:
            self.state.known = frozenset(self.existing)

    def _lookup(self) -> None:
        self._looked_at = datetime.now(UTC)
        self.existing = _lookup(self._resource, self._identity, self._request.recorded, self._request.ended)

    def end_unwanted(self, uuids: Iterable[str]) -> None:
        """End the doubles, and the objects of earlier lineages."""
        reason = "a double" if self._identity.shared else "which is from before the Airflow task was cleared"
        for uuid in uuids:
            log.info("Ending %s %s, %s", NOUNS[self._resource.kind], uuid, reason)
            end(self._resource, uuid)

    def use(self, snapshot: RemoteSnapshot) -> Claim | None:
        """Use an existing object; None if it has ended meanwhile."""
        ended = self._request.ended
        if is_adopted(self._identity, snapshot) and snapshot.uuid not in ended:
            spec = self._request.spec
            mark_adopted(self._resource, self._identity, [snapshot], lambda _: spec, self.existing)
            if self._resource.kind == "pool":
                # A Qarnot task runs again if it is aborted, but nothing replaces a pool that the caller has returned.
                self._request.pause(ENDED_WITHIN)
            current = find_confirmed(self._resource, snapshot.uuid, self._request.pause)
            if current is None or is_ending(current):
                # A process of an earlier try has ended it, which had not seen the mark.
                ended[snapshot.uuid] = current
                self._lookup()
                return None
            self.existing[snapshot.uuid] = current
        return self._claim_existing(snapshot)

    def create(self, step: Create, attempt: int) -> Claim | None:
        """Create an object; None if the result has to be looked up."""
        if step.delay:
            self._request.pause(step.delay)
            self.state.retry_after = 0.0
        if _is_long_ago(self._looked_at) and not self._identity.shared and attempt < MAX_ATTEMPTS:
            # This process may have been suspended meanwhile.
            self.state.may_be_named, self.state.checked_name = True, None
            self._lookup()
            return None
        create, labels = self._request.create or self._resource.create_once, self._request.labels
        self._refusals = 0
        spec = with_identity(self._refined_spec(), self._identity, step.generation, self.fingerprint, labels)
        name: str = spec.shortname
        try:
            uuid = None
            while uuid is None:
                try:
                    uuid = create(spec)
                except QarnotQuotaError as error:
                    if not self._has_made_room(error):
                        raise
        except QarnotNameTakenError:
            if attempt >= MAX_ATTEMPTS:
                raise
            if self.state.checked_name == name:
                # A search may be late, and a server may take no shortnames in paths.
                self._request.pause(backoff(attempt))
            self._is_taken = self.state.may_be_named = True
            self.state.checked_name = None
            log.info("%s %s exists already; looking it up", CAPITALIZED_NOUNS[self._resource.kind], name)
            self._lookup()
            return None
        except (QarnotUnavailableError, QarnotProtocolError) as error:
            # A response that cannot be parsed says no more than a lost one.
            self._note_lost_response(error, name, attempt)
            return None
        self._request.unseen.add(name)
        log.info("Created %s %s (%s)", NOUNS[self._resource.kind], uuid, name)
        if self.state.may_have_double:
            return self._keep_oldest(uuid, spec)
        return Claim(uuid=uuid, decision=Decision.FRESH_SUBMIT, generation=step.generation, sent=spec)

    def _has_made_room(self, error: QarnotQuotaError) -> bool:
        """Make room under the full quota, and return whether to try again."""
        self._refusals += 1
        make_room = self._request.make_room
        return make_room is not None and self._refusals <= MAX_CREATE_ATTEMPTS and make_room(error) > 0

    def _refined_spec(self) -> Any:
        request = self._request
        if request.refine is None or not (self.existing or request.refines_first):
            return request.spec
        earlier = [
            remote
            for remote in self.existing.values()
            if RemoteSnapshot.of(remote).is_of(self._identity, self.fingerprint)
        ]
        return request.refine(request.spec, earlier)

    def find_by_name(self, name: str) -> None:
        """Find the object of ours that has *name*, if there is one that no search lists yet.

        :raises QarnotNameTakenError: the object is not ours.
        """
        self.state.checked_name = name
        holder = self._resource.find(name)
        if holder is None and self._is_taken:
            # A server may take no shortnames in paths.
            named: Sequence[Pool | Task] = self._resource.find_all(name)
            holder = named[0] if named else None
        if holder is None:
            return
        if OWNER_TAG + self._identity.owner not in (holder.tags or ()):
            raise QarnotNameTakenError(
                f"The shortname {name} belongs to {NOUNS[self._resource.kind]} {holder.uuid}, which this Airflow task "
                "did not create. Delete that object or clear the task.",
                kind=self._resource.kind,
                ref=holder.uuid,
            )
        self.existing[holder.uuid] = holder

    def _note_lost_response(
        self, error: QarnotUnavailableError | QarnotProtocolError, name: str, attempt: int
    ) -> None:
        """Look for an object that may exist. Raise *error* if it cannot exist, or after the last attempt."""
        if not getattr(error, "ambiguous", True):
            raise error
        self._request.unseen.add(name)
        if attempt >= MAX_ATTEMPTS:
            raise error
        kind = NOUNS[self._resource.kind]
        log.warning("No response to the creation of %s %s; checking whether it exists", kind, name)
        delay = getattr(error, "retry_after", None) or backoff(attempt)
        # The next create request may have to wait for hours. The search may not, because an object may run and cost.
        self._request.pause(min(delay, MAX_WAIT))
        self.state.may_have_double = True
        self.state.lost_response, self.state.retry_after = error, max(0.0, delay - MAX_WAIT)
        self._lookup()

    def _claim_existing(self, snapshot: RemoteSnapshot) -> Claim:
        remote = self.existing[snapshot.uuid]
        kind = self._resource.kind
        if snapshot.try_number == self._identity.try_number and not self._identity.shared:
            # This try created the object itself, and learns the uuid only now.
            decision = Decision.FRESH_SUBMIT
            log.info(
                "%s %s was created, but the response was lost (%s)",
                CAPITALIZED_NOUNS[kind],
                snapshot.uuid,
                remote.state,
            )
        else:
            is_success = snapshot.usability is Usability.SUCCEEDED
            decision = Decision.ALREADY_SUCCEEDED if is_success else Decision.ADOPTED
            origin = "shared with other DAG runs" if self._identity.shared else "made by an earlier try"
            log.info("Using %s %s, %s (%s, %s)", NOUNS[kind], snapshot.uuid, origin, remote.state, decision)
        return Claim(uuid=snapshot.uuid, decision=decision, generation=snapshot.generation, existing=remote)

    def _keep_oldest(self, created: str, sent: Any) -> Claim:
        """Keep the oldest object, as an unanswered request or another run may have created a second one."""
        self._lookup()
        plan = plan_claim(self._identity, map(RemoteSnapshot.of, self.existing.values()), self.fingerprint)
        kept = plan.use.uuid if plan.use else created
        for uuid in plan.end:
            log.warning("Ending %s %s, a double of %s", NOUNS[self._resource.kind], uuid, kept)
            end(self._resource, uuid)
            metrics.incr("duplicates_ended", kind=self._resource.kind)
        if plan.use is None or plan.use.uuid == created:
            generation = plan.use.generation if plan.use else plan.generation
            return Claim(uuid=created, decision=Decision.FRESH_SUBMIT, generation=generation, sent=sent)
        return self._claim_existing(plan.use)


def may_be_overtaken(identity: TaskInstanceIdentity) -> bool:
    """Return whether this process may have been suspended since its try started, so that a later try may run."""
    return identity.begun is not None and _is_long_ago(identity.begun)


def _is_long_ago(moment: datetime) -> bool:
    return datetime.now(UTC) - moment > OVERTAKEN_AFTER


def with_identity(
    spec: Any,
    identity: TaskInstanceIdentity,
    generation: int,
    fingerprint: str,
    labels: Mapping[str, str],
) -> Any:
    """Return *spec* with the shortname, tags, labels and time to live that make the object ours.

    :param labels: other labels of ours.
    """
    return spec.with_values(
        shortname=identity.shortname(generation),
        tags=(*identity.tags(), *(spec.tags or ())),
        labels={**(spec.labels or {}), **identity.labels(generation, fingerprint), **labels},
        completion_ttl=TIME_TO_LIVE if spec.completion_ttl is None else spec.completion_ttl,
    )


def mark_adopted(
    resource: PoolResource | TaskResource,
    identity: TaskInstanceIdentity,
    snapshots: Iterable[RemoteSnapshot],
    spec_of: Callable[[RemoteSnapshot], PoolSpec | TaskSpec],
    known: Mapping[str, Pool | Task] | None = None,
) -> None:
    """Tag the objects that *identity* adopts from an earlier try with the number of its try.

    The process of the earlier try may only be suspended. When it resumes, it reads the tag and ends nothing. An object
    is adopted even if it has no room for the tag, or the server refuses the tag.

    A server may drop constants that are not in the request. So the object gets its own again, which its instances may
    have read already.

    :param spec_of: returns the spec of an object, for the secret constants, which no response has.
    :param known: objects with all fields, by uuid. Others are requested, for their constants.
    """
    mark = f"{TRY_TAG}{identity.try_number}"
    kind = CAPITALIZED_NOUNS[resource.kind]

    def mark_object(snapshot: RemoteSnapshot) -> None:
        tags = [*(tag for tag in snapshot.tags if not tag.startswith(TRY_TAG)), mark]
        if len(tags) > MAX_TAGS:
            log.info("%s %s has no room for the tag %s", kind, snapshot.uuid, mark)
            return
        try:
            remote = (known or {}).get(snapshot.uuid) or resource.get(snapshot.uuid)
            constants = _with_secrets(remote.constants, spec_of(snapshot).all_constants())
            resource.update(snapshot.uuid, tags=tags, constants=constants or None)
        except (
            QarnotNotFoundError,
            QarnotRefusedError,
            QarnotUnavailableError,
            QarnotProtocolError,
        ) as error:
            log.warning(
                "Could not add the tag %s to %s %s: %s", mark, NOUNS[resource.kind], snapshot.uuid, error
            )

    adopted = [snapshot for snapshot in snapshots if is_adopted(identity, snapshot)]
    if len(adopted) < 2:
        for snapshot in adopted:
            mark_object(snapshot)
        return
    with ThreadPoolExecutor(max_workers=min(len(adopted), MAX_WORKERS)) as threads:
        list(threads.map(mark_object, adopted))


def _with_secrets(own: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the constants of an object with the *given* values of secret ones, and without secrets of no value."""
    values = {
        name: given.get(name, value) if is_secret_constant(name) else value for name, value in own.items()
    }
    return {
        name: value
        for name, value in values.items()
        if not is_secret_constant(name) or value not in ("", HIDDEN)
    }


def raise_if_overtaken(identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot]) -> None:
    """Raise QarnotKilledError if a later try has any of *snapshots*."""
    if (error := overtaken_error(identity, snapshots)) is not None:
        raise error


def is_taken_over(
    resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, uuid: str, within: float = 1.5
) -> bool:
    """Return whether a later try of the Airflow task of *identity* has the object *uuid*.

    A stray response says nothing, so the object is polled again for some seconds *within*.

    :raises QarnotError: all responses were errors.
    """
    ends = time.monotonic() + within
    while True:
        try:
            return RemoteSnapshot.of(resource.get(uuid)).is_later_than(identity)
        except QarnotError as error:
            if isinstance(error, QarnotNotFoundError) and not error.foreign:
                return False
            if time.monotonic() + PAUSE >= ends:
                raise
        time.sleep(PAUSE)


def _lookup(
    resource: PoolResource | TaskResource,
    identity: TaskInstanceIdentity,
    recorded: ReadRecords | None,
    ended: Mapping[str, Pool | Task | None],
) -> dict[str, Pool | Task]:
    """Return every object that any lineage of this task instance created, recorded ones included.

    A search may lag. So an object that has *ended* is returned as it was seen.

    :raises QarnotUnavailableError: ``ambiguous``, because the caller has reason to think that an object exists.
    """
    try:
        existing = {
            remote.uuid: remote
            for remote in resource.iterate(filters.equal("Tags", OWNER_TAG + identity.owner))
            if remote.uuid not in ended
        }
        existing |= {uuid: remote for uuid, remote in ended.items() if remote is not None}
        # The order matters: an object is recorded before it is deleted.
        return existing if recorded is None else {**recorded(), **existing}
    except QarnotUnavailableError as error:
        error.ambiguous = True
        raise


def count_decision(logger: Any, kind: str, claim: Claim) -> None:
    """Emit the metrics, log line and trace event that say how a remote object was obtained."""
    decision = str(claim.decision)
    metrics.incr(f"claims.{decision}", kind=kind)
    if claim.decision is not Decision.FRESH_SUBMIT:
        metrics.incr("duplicates_avoided", kind=kind)
    logger.info("qarnot.%s: %s %s, generation %d", decision, kind, claim.uuid, claim.generation)
    attributes = {"qarnot.kind": kind, "qarnot.uuid": claim.uuid, "qarnot.generation": claim.generation}
    metrics.event(f"qarnot.{decision}", attributes)


def count_decisions(logger: Any, decision: Decision, count: int) -> None:
    """Do the same as :func:`count_decision` for *count* Qarnot tasks of a fan-out."""
    if not count:
        return
    metrics.incr(f"claims.{decision}", count, kind="task")
    if decision is not Decision.FRESH_SUBMIT:
        metrics.incr("duplicates_avoided", count, kind="task")
    logger.info("qarnot.%s: %d task%s", decision, count, "" if count == 1 else "s")
    metrics.event(f"qarnot.{decision}", {"qarnot.kind": "task", "qarnot.count": count})
