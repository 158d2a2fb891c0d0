"""Get the one remote object of an Airflow task instance: create it, or find the one that is already there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from airflow_qarnot_pool.identity import (
    LINEAGE_TAG,
    OWNER_TAG,
    TRY_TAG,
    Fate,
    Life,
    Plan,
    Relic,
    decide,
    foreign_labels,
    is_ending,
)
from airflow_qarnot_pool.shared import settle

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
    from airflow_qarnot_pool.api.tasks import TaskResource

log = logging.getLogger(__name__)

#: Returns what is recorded of deleted objects, by uuid.
Recorded = Callable[[], Mapping[str, Any]]

#: How long finished objects are kept: longer than any retry delay, but not forever, because they count against the
#: account's quota. Automatic deletion is left off: the server would delete objects whose end no one has read yet. The
#: process that needs room deletes them instead (see :mod:`airflow_qarnot_pool.room`).
TIME_TO_LIVE = timedelta(days=7)
#: Work that is done is done, and what runs may go on, though the setup task has made another pool since.
NOT_THE_WORK = ("pool",)
_ATTEMPTS = 6
#: Requests at a time where many are to be ended: at 50 ms each, 500 take less than 2 s.
_AT_ONCE = 32
#: Tags that Qarnot takes on one object.
_MOST_TAGS = 10
#: What tells of an object whether it has ended, and which try it belongs to.
_HELD_FIELDS = ("Uuid", "Shortname", "State", "Tags", "Labels", "CreationDate")


class Decision(StrEnum):
    """How a remote object was come by: this try made it, or an earlier one did."""

    FRESH_SUBMIT = "fresh_submit"
    ADOPTED = "adopted"
    ALREADY_SUCCEEDED = "already_succeeded"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The remote object that belongs to a life. ``found`` is what was seen of one that was already there."""

    uuid: str
    decision: Decision
    generation: int
    found: Pool | Task | None = None


def claim(
    resource: PoolResource | TaskResource,
    spec: PoolSpec | TaskSpec,
    life: Life,
    refine: Callable[[Any, Iterable[Any]], Any] | None = None,
    pause: Callable[[float], Any] = time.sleep,
    *,
    look: bool = False,
    create: Callable[[Any], str] | None = None,
    fingerprint: str | None = None,
    recorded: Recorded | None = None,
) -> Claim:
    """Return the one object that *life* has for *spec*, whatever crashed before.

    The first try costs one request. Later tries, a taken name and an answer that never came are resolved by
    looking up what is there (see :func:`airflow_qarnot_pool.identity.decide`). Right with a server that
    enforces unique shortnames and with one that does not: after an answer that never came, the oldest
    object of the lineage is kept and the others end.

    :param refine: makes the spec of a later generation, from the spec and what the earlier ones of this lineage
        left behind.
    :param pause: waits so many seconds between two attempts; a shorter wait ends nothing.
    :param look: look first on a first try, too: this try has made something already.
    :param create: makes what is stamped, and returns its uuid; default: a request of its own.
    :param fingerprint: of the spec, where *spec* is only a part of it.
    :param recorded: returns what is recorded of deleted objects of the owner (see
        :mod:`airflow_qarnot_pool.records`).
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
    fingerprint = fingerprint or spec.fingerprint(exclude=NOT_THE_WORK)
    found = _lookup(resource, life, recorded) if look or life.has_history else {}
    # What this try has seen end already is no news.
    known = frozenset(found) if look else frozenset()
    taken = False
    unanswered: QarnotUnavailableError | QarnotProtocolError | None = None
    #: Seconds that the server still wants to be asked for nothing new.
    left = 0.0
    # Of what is shared another may have been made meanwhile, as after an answer that never came.
    unsure = bool(life.shared)
    for attempt in range(1, _ATTEMPTS + 1):
        raise_if_overtaken(life, map(Relic.of, found.values()))
        plan = _plan(life, found, fingerprint)
        for uuid in plan.end:
            log.info(
                "Ending %s %s, %s",
                resource.kind,
                uuid,
                "a double" if life.shared else "of an earlier life of this Airflow task",
            )
            end(resource, uuid)
        if plan.use is not None:
            if _is_adopted(life, plan.use) and attempt < _ATTEMPTS:
                take_over(resource, life, [plan.use])
                now = resource.find(plan.use.uuid)
                if now is None or is_ending(now):
                    # It ended meanwhile, perhaps by a process of an earlier try that did not see the mark yet.
                    found = _lookup(resource, life, recorded)
                    continue
            return _use(resource, life, plan.use, found[plan.use.uuid])
        fresh = {uuid: one for uuid, one in found.items() if uuid not in known}
        if (spent := _ended_in_this_try(life, fresh, fingerprint)) is not None:
            return _use(resource, life, spent, found[spent.uuid])
        if unanswered is not None and left > DEFAULT_DEADLINE:
            raise unanswered  # a wait for Airflow, not for a worker
        if left:
            pause(left)
            left = 0.0
        generation = plan.generation
        name = life.shortname(generation)
        if taken and name not in {one.shortname for one in found.values()}:
            # The name is taken, and not by anything that carries our tags.
            stranger = resource.find(name)
            if stranger is not None and OWNER_TAG + life.owner not in (stranger.tags or ()):
                raise QarnotNameTakenError(
                    f"The shortname {name} belongs to {resource.kind} {stranger.uuid}, which this Airflow task "
                    "did not make; delete that object or clear the task",
                    kind=resource.kind,
                    ref=stranger.uuid,
                )
            if stranger is not None:
                found[stranger.uuid] = stranger
                continue
        wanted = refine(spec, _alike(found, life, fingerprint)) if refine and found else spec
        try:
            uuid = (create or resource.create_once)(stamp(wanted, life, generation, fingerprint))
        except QarnotNameTakenError:
            if attempt == _ATTEMPTS:
                raise
            taken = True
            log.info("%s %s exists already; looking it up", resource.kind.capitalize(), name)
            found = _lookup(resource, life, recorded)
        except (QarnotUnavailableError, QarnotProtocolError) as error:
            # An answer that cannot be understood says no more than none.
            if not getattr(error, "ambiguous", True) or attempt == _ATTEMPTS:
                raise
            unsure = True
            log.warning("No answer to the creation of %s %s; looking whether it exists", resource.kind, name)
            asked = getattr(error, "retry_after", None) or backoff(attempt)
            # To ask again may have to wait for hours; to know what is there, and costs, may not.
            pause(min(asked, MAX_WAIT))
            unanswered, left = error, max(0.0, asked - MAX_WAIT)
            found = _lookup(resource, life, recorded)
        else:
            log.info("Created %s %s (%s)", resource.kind, uuid, name)
            if unsure:
                return _oldest(resource, life, fingerprint, uuid, recorded)
            return Claim(uuid=uuid, decision=Decision.FRESH_SUBMIT, generation=generation)
    raise AssertionError("the last attempt returns or raises")


def stamp(spec: Any, life: Life, generation: int, fingerprint: str) -> Any:
    """*spec* with the name, tags, labels and time to live that make the object ours."""
    return replace(
        spec,
        name=spec.name,
        shortname=life.shortname(generation),
        tags=(*life.tags(), *(spec.tags or ())),
        labels={**(spec.labels or {}), **life.labels(generation, fingerprint)},
        completion_ttl=TIME_TO_LIVE if spec.completion_ttl is None else spec.completion_ttl,
    )


def end(resource: PoolResource | TaskResource, uuid: str) -> None:
    """Close a pool or abort a Qarnot task. One that has ended, is ending or is gone is fine, too.

    :raises QarnotRefusedError: the server refuses, and the object keeps running.
    """
    try:
        resource.end(uuid)
    except QarnotNotFoundError:
        # A single 404 proves nothing: a proxy or a replica that lags may have sent it.
        if _is_there_and_open(resource, uuid):
            resource.end(uuid)
    except QarnotRefusedError:
        # A server may refuse because an earlier request has ended the object, or is ending it.
        with suppress(QarnotNotFoundError):
            if not is_ending(resource.get(uuid)):
                raise


def _is_there_and_open(resource: PoolResource | TaskResource, uuid: str) -> bool:
    try:
        return not is_ending(resource.get(uuid))
    except QarnotNotFoundError as error:
        if error.foreign:
            raise QarnotUnavailableError(error.message, kind=resource.kind, ref=uuid) from error
        return False


def take_over(resource: PoolResource | TaskResource, life: Life, relics: Iterable[Relic]) -> None:
    """Leave a mark on what *life* takes over from an earlier try.

    The process of that try may only have stood still. When it resumes, it reads the mark and ends nothing. An object
    that has no room for one more tag, or does not take it, is taken over all the same.
    """
    mark = f"{TRY_TAG}{life.try_number}"

    def mark_one(relic: Relic) -> None:
        tags = [*(tag for tag in relic.tags if not tag.startswith(TRY_TAG)), mark]
        if len(tags) > _MOST_TAGS:
            log.info("%s %s has no room for the tag %s", resource.kind.capitalize(), relic.uuid, mark)
            return
        try:
            resource.update(relic.uuid, tags=tags)
        except (
            QarnotNotFoundError,
            QarnotRefusedError,
            QarnotUnavailableError,
            QarnotProtocolError,
        ) as error:
            log.warning(
                "%s %s does not take the tag %s: %s", resource.kind.capitalize(), relic.uuid, mark, error
            )

    wanted = [relic for relic in relics if _is_adopted(life, relic)]
    if len(wanted) < 2:
        for relic in wanted:
            mark_one(relic)
        return
    with ThreadPoolExecutor(max_workers=min(len(wanted), _AT_ONCE)) as threads:
        list(threads.map(mark_one, wanted))


def _is_adopted(life: Life, relic: Relic) -> bool:
    """Return whether *relic* runs and belongs to an earlier try."""
    return not life.shared and relic.fate is Fate.LIVE and relic.order < life.order


def raise_if_overtaken(life: Life, relics: Iterable[Relic]) -> None:
    """Raise QarnotKilledError if a later try has any of *relics*: this process has stood still."""
    if any(life.precedes(relic) for relic in relics):
        raise QarnotKilledError(
            "Airflow has started a later try of this task while this process stood still, and that try has what "
            "exists on Qarnot; nothing was created or ended here"
        )


def is_taken_over(resource: PoolResource | TaskResource, life: Life, uuid: str) -> bool:
    """Return whether a later try of the Airflow task of *life* has the object *uuid*."""
    found = resource.find(uuid)
    return found is not None and life.precedes(Relic.of(found))


def end_life(
    resource: PoolResource | TaskResource, life: Life, within: float | None = None
) -> list[str] | None:
    """End whatever is live of this lineage and return the uuids; None if a later try has taken it over.

    :param within: see :func:`end_all`.
    """
    return _end_tagged(resource, LINEAGE_TAG + life.lineage, life, within)


def end_owned(resource: PoolResource | TaskResource, life: Life) -> list[str]:
    """End whatever is live of the Airflow task instance of *life*, of all its lives; returns the uuids."""
    return _end_tagged(resource, OWNER_TAG + life.owner) or []


def _end_tagged(
    resource: PoolResource | TaskResource, tag: str, life: Life | None = None, within: float | None = None
) -> list[str] | None:
    began, tagged = time.monotonic(), filters.equal("Tags", tag)
    found: Sequence[Pool | Task] = resource.search_all(tagged, fields=_HELD_FIELDS)
    if life is not None and any(life.precedes(Relic.of(one)) for one in found):
        return None
    live = [one.uuid for one in found if not is_ending(one)]
    end_all(resource, live, None if within is None else within - (time.monotonic() - began))
    return live


def end_all(resource: PoolResource | TaskResource, uuids: Sequence[str], within: float | None = None) -> None:
    """End these, several at a time: whoever ends much has little time.

    A single one is ended by this thread: in a signal handler, another one might wait for a lock of the
    code that the signal has interrupted.

    :param within: seconds after which no more of them are begun; None: no limit.
    :raises QarnotUnavailableError: the time was over; says how many are left.
    """
    if len(uuids) < 2:
        for uuid in uuids:
            end(resource, uuid)
        return
    ends = None if within is None else time.monotonic() + within

    def begin(uuid: str) -> bool:
        if ends is not None and time.monotonic() >= ends:
            return False
        end(resource, uuid)
        return True

    with ThreadPoolExecutor(max_workers=min(len(uuids), _AT_ONCE)) as threads:
        left = sum(not begun for begun in threads.map(begin, uuids))
    if left:
        raise QarnotUnavailableError(
            f"{left} of {len(uuids)} {resource.kind}s could not be ended in time",
            remedy="They end with their pool, with the next life of the Airflow task, or by themselves.",
            kind=resource.kind,
        )


def _lookup(
    resource: PoolResource | TaskResource, life: Life, recorded: Recorded | None
) -> dict[str, Pool | Task]:
    """Everything that any life of this task instance made, deleted objects included if they are recorded.

    :raises QarnotUnavailableError: ``ambiguous``, as whoever looks has reason to think that something exists.
    """
    try:
        found = {one.uuid: one for one in resource.iterate(filters.equal("Tags", OWNER_TAG + life.owner))}
        # In this order: an object is recorded before it is deleted.
        return found if recorded is None else {**recorded(), **found}
    except QarnotUnavailableError as error:
        error.ambiguous = True
        raise


def _alike(found: dict[str, Any], life: Life, fingerprint: str) -> list[Any]:
    """What earlier generations of this life made from the same spec; ``retries`` as in :func:`decide`."""
    relics = {uuid: Relic.of(one) for uuid, one in found.items()}
    mine = (life.lineage, fingerprint, life.retries)
    return [
        one
        for uuid, one in found.items()
        if (relics[uuid].lineage, relics[uuid].fingerprint, relics[uuid].retries) == mine
    ]


def _plan(life: Life, found: dict[str, Pool | Task], fingerprint: str) -> Plan:
    relics = [Relic.of(one) for one in found.values()]
    return settle(relics) if life.shared else decide(life, relics, fingerprint)


def _ended_in_this_try(life: Life, found: dict[str, Any], fingerprint: str) -> Relic | None:
    """What this very try made, its answer lost, and what ended before it was looked up: that is its end."""
    if life.shared:
        return None  # anybody's, and whoever wants it wants one that lives
    mine = [Relic.of(one) for one in _alike(found, life, fingerprint)]
    ended = [one for one in mine if one.try_number == life.try_number and one.fate is not Fate.LIVE]
    return max(ended, key=lambda relic: relic.generation, default=None)


def _use(resource: PoolResource | TaskResource, life: Life, relic: Relic, found: Pool | Task) -> Claim:
    if relic.try_number == life.try_number and not life.shared:
        # Nobody left it behind: this try made it, and only now learns its uuid.
        decision = Decision.FRESH_SUBMIT
        log.info(
            "%s %s was created, its answer lost (%s)", resource.kind.capitalize(), relic.uuid, found.state
        )
    else:
        decision = Decision.ALREADY_SUCCEEDED if relic.fate is Fate.SUCCEEDED else Decision.ADOPTED
        made_by = "shared with other DAG runs" if life.shared else "made by an earlier try"
        log.info("Using %s %s, %s (%s, %s)", resource.kind, relic.uuid, made_by, found.state, decision)
    return Claim(uuid=relic.uuid, decision=decision, generation=relic.generation, found=found)


def _oldest(
    resource: PoolResource | TaskResource,
    life: Life,
    fingerprint: str,
    created: str,
    recorded: Recorded | None,
) -> Claim:
    """There may be a second one, made by the request that was not answered or by a sharer: keep the oldest."""
    found = _lookup(resource, life, recorded)
    plan = _plan(life, found, fingerprint)
    for uuid in plan.end:
        log.warning(
            "Ending %s %s, a double of %s", resource.kind, uuid, plan.use.uuid if plan.use else created
        )
        end(resource, uuid)
        metrics.incr("duplicates_ended", kind=resource.kind)
    if plan.use is None or plan.use.uuid == created:
        generation = plan.use.generation if plan.use else plan.generation
        return Claim(uuid=created, decision=Decision.FRESH_SUBMIT, generation=generation)
    return _use(resource, life, plan.use, found[plan.use.uuid])
