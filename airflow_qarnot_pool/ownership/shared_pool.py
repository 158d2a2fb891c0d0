"""One pool for several DAGs and several of their runs at once.

A shared pool belongs to a name in a namespace and to no Airflow task instance. Its owner and lineage follow from the
two: see ``shared`` of :class:`~airflow_qarnot_pool.ownership.identity.TaskInstanceIdentity`. Opening a shared pool
reuses the live one, and creates the next generation if the last one was closed. If two were created at the same time,
the older one is kept.

The users of a pool are read from Qarnot, and the states of their DAG runs from Airflow:

* A DAG run that has opened the pool and not released it has a *hold*. A hold is a Qarnot job on the pool. It has no
  tasks, costs nothing, and counts only while Airflow knows the DAG run as unfinished, so no process has to stay alive
  for it. Each task of the run that opens the pool has a separate hold, and so has each copy of a mapped task.
* Unfinished Qarnot tasks on the pool name their DAG runs in their labels.

The last user to release the pool closes it. Reading the users and closing are two requests, and another run may open
the pool in between. That run finds the pool closing, at the latest when a Qarnot task is refused or cancelled, and
continues with the next generation. A lost race costs a boot and never a task.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import (
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.fields import is_secret_constant
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.environments.shared import comparable
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError, QarnotSpecMismatchError
from airflow_qarnot_pool.ownership.claim import ClaimRequest, claim
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, usability_of
from airflow_qarnot_pool.ownership.identity import (
    MAX_COST_LABEL,
    MAX_GENERATIONS,
    OWNER_TAG,
    TRY_TAG,
    RunKey,
    is_valid_size,
    label,
    last_try,
    namespace_tag,
    owner_of,
    run_of,
)
from airflow_qarnot_pool.ownership.quota import QuotaRoom
from airflow_qarnot_pool.ownership.records import shared_name
from airflow_qarnot_pool.ownership.termination import end
from airflow_qarnot_pool.waiting.polling import find_confirmed

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Job, Pool, Task
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

log = logging.getLogger(__name__)

HOLD_TAG = "airflow-hold:"
#: How long a hold lasts that was never released: longer than any DAG run, because the hold ends without a notice.
HOLD_LIFETIME = timedelta(days=7)
#: Label with a hash for each field of the spec, because a mismatch must name the fields.
FIELDS_LABEL = "airflow.spec_fields"
#: Maximum number of users that an error names.
MAX_NAMED = 3
_UNFINISHED = [state for state in states.TaskState if state not in states.TASK_TERMINAL]

#: Returns whether a DAG run (dag_id, run_id) is unfinished.
IsRunUnfinished = Callable[[str, str], bool]
#: Returns the reason to keep a pool that has no user; None to close it. The second argument is :attr:`Usage.is_busy`.
KeepUnused = Callable[["Pool", bool], str | None]


# --- decisions


def mismatched_fields(own: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the fields in which two specs differ, given the result of :meth:`PoolSpec.fingerprint_fields` of each."""
    return sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))


@dataclass(frozen=True, kw_only=True, order=True)
class HoldOwner:
    """A DAG run that needs a shared pool.

    ``opened_by`` is the id of the task that opened the pool, or "" for tasks that moved to it. A copy of a mapped task
    has its map index appended, as in ``day.open_pool[3]``. A task id contains no brackets. A digest replaces the task
    id if the ids together are too long for a name on Qarnot.
    """

    dag_id: str
    run_id: str
    opened_by: str = ""

    @property
    def run(self) -> RunKey:
        """The DAG run."""
        return RunKey(self.dag_id, self.run_id)

    def to_name(self) -> str:
        """Return the name of the hold. It fits, because Airflow accepts at most 250 characters for each id."""
        task, mapped, index = self.opened_by.partition("[")
        shortened = f"{_digest_of(task)}{mapped}{index}"
        names = [
            json.dumps([self.dag_id, self.run_id, task], ensure_ascii=False)
            for task in (self.opened_by, shortened)
        ]
        return next((name for name in names if is_valid_size(name)), names[-1])

    def is_by(self, *task_ids: str) -> bool:
        """Return whether one of these tasks, or a mapped copy of it, has opened the pool."""
        task = self.opened_by.partition("[")[0]
        return any(task in (task_id, _digest_of(task_id)) for task_id in task_ids)

    def is_given_up_by(self, identity: TaskInstanceIdentity, tasks: Collection[str] | None) -> bool:
        """Return whether *identity* releases this hold, given that *tasks* are done with the pool (None: all tasks).

        A mapped copy releases only its own hold, because its siblings may still run. A task that is not mapped
        releases the holds of all copies.
        """
        _, mapped, index = self.opened_by.partition("[")
        if self.run != (identity.dag_id, identity.run_id):
            return False
        if mapped and identity.map_index >= 0 and index != f"{identity.map_index}]":
            return False
        return tasks is None or self.is_by("", *tasks)

    def __str__(self) -> str:
        return f"DAG run {self.run_id} of {self.dag_id}"


#: No DAG run, so that every user of a pool is another one.
_NOBODY = HoldOwner(dag_id="", run_id="")


def _digest_of(task_id: str) -> str:
    """Return the replacement for a task id that is too long; "" for none."""
    return hashlib.sha256(task_id.encode()).hexdigest()[:16] if task_id else ""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The users of a pool.

    ``working``: DAG runs with unfinished Qarnot tasks. ``unowned_tasks``: number of unfinished Qarnot tasks of other
    programs and namespaces, whose need Airflow does not know. ``is_warming_up``: a warm-up holds nodes, and nothing has
    aborted it.
    """

    holders: frozenset[HoldOwner] = frozenset()
    working: frozenset[HoldOwner] = frozenset()
    unowned_tasks: int = 0
    is_warming_up: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether any Qarnot task holds nodes or will take some, even one that nothing needs."""
        return bool(self.working or self.unowned_tasks or self.is_warming_up)


def describe_users(usage: Usage, releasing: HoldOwner, alive: Callable[[HoldOwner], bool]) -> Iterator[str]:
    """Yield a text for each other user of the pool; none if *releasing* may close it.

    Unfinished Qarnot tasks of the releasing run do not keep the pool open, because the run no longer needs them.
    """
    others = {owner for owner in usage.holders if owner != releasing}
    others |= {owner for owner in usage.working if owner.run != releasing.run}
    runs = {owner.run: owner for owner in sorted(others)}
    yield from (str(owner) for owner in runs.values() if alive(owner))
    if usage.unowned_tasks:
        yield f"{usage.unowned_tasks} Qarnot tasks that no DAG run of this namespace made"


def is_shared_and_closed(pool: Pool | None, identity: TaskInstanceIdentity) -> bool:
    """Return whether *pool* is shared in the namespace of *identity* and was closed on request, without a failure."""
    return (
        pool is not None
        and bool(label(pool.labels, "shared"))
        and label(pool.labels, "namespace") == identity.namespace
        and not states.accepts_tasks(pool.state)
        and pool.state != states.PoolState.FAILURE
    )


# --- opening


def acquire_shared_pool(
    client: QarnotClient,
    request: ClaimRequest,
    alive: IsRunUnfinished | None = None,
    yields: Callable[[HoldOwner], bool] = lambda _: False,
) -> Claim:
    """Return the live pool of that name or a new one, and create a hold on it for this DAG run.

    A live pool with another spec is closed, and the next generation created, if no other DAG run uses it.

    :param alive: as that of :func:`release`.
    :param yields: returns whether a hold is no use of the pool, such as that of the companion DAG of this one.
    :raises QarnotSpecMismatchError: another DAG run uses a pool with another spec. Environments may differ.
    """
    compared = comparable(cast("PoolSpec", request.spec))
    fields = compared.fingerprint_fields()
    request = replace(
        request,
        labels={**request.labels, FIELDS_LABEL: _packed(fields)},
        fingerprint=compared.fingerprint(),
    )
    lookup = _RunLookup(request.identity, alive)
    replaced = False

    def replace_unused(existing: Pool, fields_that_differ: str) -> None:
        nonlocal replaced
        users = list(
            describe_users(_foreign_usage(client, request.identity, existing, yields), _NOBODY, lookup)
        )
        if users or replaced:
            raise _mismatch(existing, fields_that_differ, users)
        replaced = True  # once, because two runs with different specs may come at the same moment
        log.warning(
            "Shared pool %r (%s) differs in %s, and no other DAG run uses it. Closing it, and opening the next",
            request.identity.shared,
            existing.uuid,
            fields_that_differ,
        )
        end(client.pools, existing.uuid)
        _drop(client, [hold for hold in _holds(client, request.identity.owner) if hold.pool == existing.uuid])

    return _acquire(client, request, fields, request.identity.task_id, replace_unused)


def _foreign_usage(
    client: QarnotClient, identity: TaskInstanceIdentity, pool: Pool, yields: Callable[[HoldOwner], bool]
) -> Usage:
    """Return the use of *pool* besides the holds that yield, and those of this and earlier tries of *identity*."""
    own = _hold_name(identity, identity.task_id)

    def is_foreign(hold: Hold) -> bool:
        is_own = hold.holder.to_name() == own and hold.try_number <= identity.try_number
        return not (is_own or yields(hold.holder))

    return _usage_of(client, pool, filter(is_foreign, _holds(client, identity.owner)))


def open_replacement(
    client: QarnotClient, pool: str, identity: TaskInstanceIdentity, pause: Callable[[float], Any]
) -> str | None:
    """Return the pool that replaces *pool*; None if *pool* is not shared, or still accepts tasks.

    The replacement has the same specification, so the caller need not know it.
    """
    closed = client.pools.find(pool)
    if closed is None:
        closed = _newest_of_the_name(client, pool, identity)
    elif not is_shared_and_closed(closed, identity):
        return None
    if closed is None:
        return None
    name = label(closed.labels, "shared") or ""
    shared_identity = _shared_identity(identity, name)
    labels = {FIELDS_LABEL: closed.labels.get(FIELDS_LABEL, "")}
    if limit := closed.labels.get(MAX_COST_LABEL):
        labels[MAX_COST_LABEL] = limit
    request = ClaimRequest(
        resource=client.pools,
        spec=_user_spec(closed, name),
        identity=shared_identity,
        pause=pause,
        labels=labels,
        create=partial(_clone, client, closed),
        make_room=partial(QuotaRoom(client, identity.namespace, shared_identity).make_room, "pool"),
        fingerprint=label(closed.labels, "spec") or "",
    )
    fields = _unpacked(closed.labels.get(FIELDS_LABEL, ""))
    claimed = _acquire(client, request, fields, "", _refuse)
    # Drop the holds of the closed pool.
    _drop(client, [hold for hold in _holds(client, shared_identity.owner) if hold.pool == pool])
    log.info("Shared pool %r: %s accepts no more tasks, continuing with %s", name, pool, claimed.uuid)
    return claimed.uuid


def _shared_identity(identity: TaskInstanceIdentity, name: str) -> TaskInstanceIdentity:
    return replace(identity, shared=name, role="", index=None)


def _user_spec(pool: Pool, name: str) -> PoolSpec:
    """Return the name, tags and labels that the user gave to *pool*."""
    from airflow_qarnot_pool.api.specs import PoolSpec

    return PoolSpec(
        name=pool.name or name,
        tags=[tag for tag in pool.tags if not tag.startswith("airflow-")],
        labels={key: value for key, value in pool.labels.items() if not key.startswith("airflow")},
    )


def _clone(client: QarnotClient, pool: Pool, stamped: PoolSpec) -> str:
    """Create a pool like *pool*, with the name, tags and labels of *stamped*."""
    own = {
        field: getattr(stamped, field) for field in ("name", "shortname", "tags", "labels", "completion_ttl")
    }
    try:
        return client.pools.clone_once(pool.uuid, **own)
    except QarnotRefusedError as error:
        if type(error) is not QarnotRefusedError:
            raise
        # A server may clone no closed pool.
        if hidden := [name for name in pool.constants if is_secret_constant(name)]:
            raise QarnotPoolEndedError(
                f"Pool {pool.uuid} is {pool.state}, and its secret constants ({', '.join(hidden)}) cannot be read back",
                remedy="Run the task that opens it again: clearing this task clears its setup, too.",
                kind="pool",
                ref=pool.uuid,
            ) from error
        return client.pools.create_once(spec_of(pool).with_values(**own))


def spec_of(pool: Pool) -> PoolSpec:
    """Return the specification of a pool that exists. Secret constants have no values, because no response has them."""
    from airflow_qarnot_pool.api.fields import normalise, wire_fields
    from airflow_qarnot_pool.api.specs import PoolSpec

    is_elastic = pool.elastic is not None and pool.elastic.is_elastic
    known = {normalise(wire.name) for _, wire in wire_fields(PoolSpec) if wire.name}
    known -= {"instancecount"} if is_elastic or pool.scaling else {"elasticproperty"}
    return PoolSpec.from_mapping(
        {
            key: value
            for key, value in pool.raw.items()
            if normalise(key) in known and value not in ([], {}, "")
        }
    )


def was_closed(client: QarnotClient, pool: str, identity: TaskInstanceIdentity) -> bool:
    """Return whether *pool* is shared in the namespace of *identity*, and closed or deleted after it was closed."""
    existing = client.pools.find(pool)
    if existing is None:
        return shared_name(client, pool) is not None
    return is_shared_and_closed(existing, identity)


def _newest_of_the_name(client: QarnotClient, pool: str, identity: TaskInstanceIdentity) -> Pool | None:
    """Return the newest generation of a deleted shared pool, if its name is recorded."""
    name = shared_name(client, pool)
    if name is None:
        return None
    generations = client.pools.iterate(
        filters.equal("Tags", OWNER_TAG + _shared_identity(identity, name).owner)
    )
    return max(generations, key=lambda generation: RemoteSnapshot.of(generation).age, default=None)


def _acquire(
    client: QarnotClient,
    request: ClaimRequest,
    fields: Mapping[str, str],
    opened_by: str,
    on_mismatch: Callable[[Pool, str], None],
) -> Claim:
    """Return the live pool or a new one, with a hold.

    :param on_mismatch: closes a live pool with another spec, or raises. It gets the fields that differ, as a text.
    """
    name = request.identity.shared
    for _ in range(MAX_GENERATIONS):
        claimed = claim(request)
        existing = cast("Pool | None", claimed.existing)
        if existing is not None and (differing := _differing(existing, request, fields)):
            on_mismatch(existing, differing)
        elif create_hold(client, request.identity, claimed.uuid, opened_by):
            return claimed
        # A search may still show it as live.
        request.ended[claimed.uuid] = find_confirmed(client.pools, claimed.uuid, request.pause)
    raise QarnotPoolEndedError(
        f"Shared pool {name!r} was closed {MAX_GENERATIONS} times while it was being opened. Check in the console "
        "which user or program closes it.",
        kind="pool",
    )


def _differing(existing: Pool, request: ClaimRequest, fields: Mapping[str, str]) -> str:
    """Return the fields in which *existing* differs from the request; "" if it does not."""
    fingerprint = label(existing.labels, "spec")
    if not fingerprint or fingerprint == request.fingerprint:
        return ""
    mismatched = mismatched_fields(fields, _unpacked(existing.labels.get(FIELDS_LABEL, "")))
    spec = cast("PoolSpec", request.spec)
    shown = [_scaling_parameters(spec, existing) if field == "scaling" else field for field in mismatched]
    return ", ".join(shown) or "its specification"


def _scaling_parameters(spec: PoolSpec, existing: Pool) -> str:
    """Return "scaling" with the parameters of an operator that differ, if those of two pools with one policy do."""
    policies = [one.policies if one is not None else () for one in (spec.scaling, existing.scaling)]
    if any(len(one) != 1 for one in policies):
        return "scaling"
    own, other = (one[0] for one in policies)
    parameters = {"keep_warm": "min_idle_time", "instance_count": "max_total_slots"}
    names = [name for name, key in parameters.items() if getattr(own, key, None) != getattr(other, key, None)]
    return f"scaling ({', '.join(names)})" if names else "scaling"


def _refuse(existing: Pool, differing: str) -> None:
    raise _mismatch(existing, differing, ())


def _mismatch(existing: Pool, differing: str, users: Sequence[str]) -> QarnotSpecMismatchError:
    creator = HoldOwner(
        dag_id=label(existing.labels, "dag_id") or "?", run_id=label(existing.labels, "run_id") or "?"
    )
    used = f" It is used by {'; '.join(users[:MAX_NAMED])}." if users else ""
    return QarnotSpecMismatchError(
        f"Shared pool {label(existing.labels, 'shared')!r} exists ({existing.uuid}, made by {creator}) and differs in "
        f"{differing}.{used} All users of a shared pool must request the same one. If the DAG was changed, clear this "
        "task when no run uses the pool any more: it is replaced then. Else use the same parameters or another name.",
        kind="pool",
        ref=existing.uuid,
    )


def _packed(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(fields.items()))


def _unpacked(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)


# --- holding


def create_hold(client: QarnotClient, identity: TaskInstanceIdentity, pool: str, opened_by: str) -> bool:
    """Record that this DAG run, or this mapped copy, needs *pool*. Return False if the pool accepts no more tasks.

    A hold that cannot be created for another reason is only a warning. Without it the pool may be closed too early,
    which costs a boot.
    """
    name = _hold_name(identity, opened_by)
    # Each try has a separate hold, because the suspended process of an earlier try releases its hold when it resumes.
    mark = f"{TRY_TAG}{identity.try_number}" if opened_by or identity.map_index >= 0 else ""
    try:
        client.jobs.create(
            name,
            shortname=f"hold-{hashlib.sha256(f'{pool} {name} {mark}'.encode()).hexdigest()[:20]}",
            pool=pool,
            tags=(namespace_tag(identity.namespace), HOLD_TAG + identity.owner, *([mark] if mark else [])),
            max_wall_time=HOLD_LIFETIME,
            completion_ttl=timedelta(days=1),
        )
    except (QarnotRefusedError, QarnotNotFoundError, QarnotUnavailableError, QarnotProtocolError) as error:
        if isinstance(error, (QarnotRefusedError, QarnotNotFoundError)):
            current = client.pools.find(pool)
            if current is None or not states.accepts_tasks(current.state):
                return False
        if not isinstance(error, QarnotNameTakenError):  # this try has created it before
            log.warning("Other DAG runs may not see that this one needs pool %s: %s", pool, error)
    return True


def _hold_name(identity: TaskInstanceIdentity, opened_by: str) -> str:
    opened_by = opened_by if identity.map_index < 0 else f"{opened_by}[{identity.map_index}]"
    return HoldOwner(dag_id=identity.dag_id, run_id=identity.run_id, opened_by=opened_by).to_name()


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A job that records which DAG run needs which pool."""

    uuid: str
    pool: str | None
    holder: HoldOwner
    #: The try of the Airflow task that created it; 0 if it belongs to the whole DAG run.
    try_number: int = 0

    def is_given_up_by(self, identity: TaskInstanceIdentity, tasks: Collection[str] | None) -> bool:
        """See :meth:`HoldOwner.is_given_up_by`. A task never releases the hold of a later try."""
        is_later = self.holder.is_by(identity.task_id) and self.try_number > identity.try_number
        return not is_later and self.holder.is_given_up_by(identity, tasks)


def _holds(client: QarnotClient, owner: str) -> list[Hold]:
    """Return the holds on every generation of the shared pool of *owner*."""
    jobs: Iterable[Job] = client.jobs.list(tags=[HOLD_TAG + owner])
    return [
        Hold(uuid=job.uuid, pool=job.pool, holder=holder, try_number=last_try(job.tags))
        for job in jobs
        if job.state == "Active" and (holder := _holder(job.name))
    ]


def drop_holds_of_dag(client: QarnotClient, owner: str, dag_id: str, until: datetime) -> None:
    """Release the holds of a DAG on the shared pool of *owner*, except those of runs scheduled after *until*."""
    held = [hold for hold in _holds(client, owner) if hold.holder.dag_id == dag_id]
    _drop(client, [hold for hold in held if (scheduled_time(hold.holder.run_id) or until) <= until])


def scheduled_time(run_id: str) -> datetime | None:
    """Return when a DAG run was scheduled, which Airflow writes into its id; None for other runs."""
    kind, _, written = run_id.partition("__")
    with suppress(ValueError):
        when = datetime.fromisoformat(written)
        return when if kind == "scheduled" and when.tzinfo is not None else None
    return None


def holders_of(client: QarnotClient, pool: Pool) -> set[RunKey]:
    """Return the DAG runs that have opened a shared pool and not released it. Some of them may have ended."""
    return {hold.holder.run for hold in _holds(client, owner_of(pool)) if hold.pool == pool.uuid}


def _holder(name: str | None) -> HoldOwner | None:
    with suppress(ValueError, TypeError):
        dag_id, run_id, opened_by = map(_id, parse_json(name or ""))
        return HoldOwner(dag_id=dag_id, run_id=run_id, opened_by=opened_by)
    return None


def _id(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} is no id")
    return value


# --- releasing, and closing


@dataclass(frozen=True, kw_only=True)
class ReleaseResult:
    """The pool that was released, and its remaining users. Without any, it was closed."""

    uuid: str
    needed_by: tuple[str, ...] = ()
    #: Whether the request of this run has closed it, and not that of another run at the same moment.
    is_closer: bool = False

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return not self.needed_by


def release(
    client: QarnotClient,
    identity: TaskInstanceIdentity,
    alive: IsRunUnfinished | None = None,
    opened_by: Collection[str] | None = None,
    *,
    keep_unused: KeepUnused = lambda pool, is_busy: None,
    only_held: bool = False,
) -> list[ReleaseResult]:
    """Release the holds of this DAG run, or this mapped copy, on the shared pool, and close it if it has no other user.

    :param alive: returns whether a DAG run is unfinished. None: Airflow cannot be asked now, so every run counts.
    :param opened_by: the tasks that opened the pool and are done with it. None: every task of this DAG run.
    :param keep_unused: called with a pool that has no other user, before it is closed.
    :param only_held: if this DAG run has no hold, another run has taken the pool over. Then close only a pool that this
        run has created and no run has worked on, because its hold could not be created.
    """
    generations = client.pools.iterate(filters.equal("Tags", OWNER_TAG + identity.owner))
    live = [pool for pool in generations if usability_of(pool) is Usability.LIVE]
    holds = _holds(client, identity.owner)
    released = [hold for hold in holds if hold.is_given_up_by(identity, opened_by)]
    if only_held and not released:
        live = [pool for pool in live if _is_unclaimed(client, pool, identity)]
    _drop(client, released)
    if released and len(released) < len(holds):
        # Read the holds again: two runs that both read before either has released would each leave the pool open.
        holds = _holds(client, identity.owner)
    remaining = [hold for hold in holds if hold not in released]
    lookup = _RunLookup(identity, alive)
    return [_close_unless_needed(client, identity, pool, remaining, lookup, keep_unused) for pool in live]


def _is_unclaimed(client: QarnotClient, pool: Pool, identity: TaskInstanceIdentity) -> bool:
    """Return whether the run of *identity* has created *pool*, and no Qarnot task but warm-ups was ever on it."""
    if run_of(pool) != (identity.dag_id, identity.run_id):
        return False
    return all(
        label(task.labels, "shared") for task in client.tasks.iterate(filters.equal("PoolUuid", pool.uuid))
    )


class _RunLookup:
    """Look up whether DAG runs are unfinished, once for each run. The releasing run counts as unfinished."""

    def __init__(self, identity: TaskInstanceIdentity, alive: IsRunUnfinished | None) -> None:
        self._alive = alive
        self._known = {RunKey(identity.dag_id, identity.run_id): True}

    def __call__(self, owner: HoldOwner) -> bool:
        if owner.run not in self._known:
            self._known[owner.run] = self._alive is None or self._alive(*owner.run)
        return self._known[owner.run]


def _close_unless_needed(
    client: QarnotClient,
    identity: TaskInstanceIdentity,
    pool: Pool,
    holds: Sequence[Hold],
    alive: Callable[[HoldOwner], bool],
    keep_unused: KeepUnused,
) -> ReleaseResult:
    releasing = HoldOwner(dag_id=identity.dag_id, run_id=identity.run_id)
    usage = _usage_of(client, pool, holds)
    users = list(describe_users(usage, releasing, alive))
    is_closer = False
    if not users and (reason := keep_unused(pool, usage.is_busy)) is not None:
        users = [reason]
    if users:
        log.info("Shared pool %r (%s) stays open for %s", identity.shared, pool.uuid, "; ".join(users))
    else:
        is_closer = end(client.pools, pool.uuid)
        _drop(client, [hold for hold in holds if hold.pool == pool.uuid])
        log.info("Requested closing of shared pool %r (%s)", identity.shared, pool.uuid)
    return ReleaseResult(uuid=pool.uuid, needed_by=tuple(users), is_closer=is_closer)


def user_of(client: QarnotClient, pool: Pool, alive: IsRunUnfinished) -> str:
    """Return a text for one user of *pool* besides the DAG run that it belongs to; "" if there is none.

    Any DAG may use a pool by its uuid or shortname. Qarnot tasks of other programs and namespaces use a shared pool. A
    pool of one DAG run ends under them.
    """
    if label(pool.labels, "shared") is not None:
        own, usage = _NOBODY, _usage_of(client, pool, _holds(client, owner_of(pool)))
    else:
        own = HoldOwner(**run_of(pool)._asdict())
        usage = replace(_usage_of(client, pool, ()), unowned_tasks=0)
    return next(describe_users(usage, own, lambda user: alive(*user.run)), "")


def _usage_of(client: QarnotClient, pool: Pool, holds: Iterable[Hold]) -> Usage:
    """Return the users of *pool*, given the *holds* on all generations."""
    on_pool = filters.and_(filters.equal("PoolUuid", pool.uuid), filters.in_("State", _UNFINISHED))
    working, unowned_tasks, is_warming_up = set(), 0, False
    unfinished: Iterable[Task] = client.tasks.search_all(on_pool, fields=("State", "Labels"))
    for task in unfinished:
        if task.phase is states.Phase.TERMINAL:
            continue
        if label(task.labels, "shared"):  # a warm-up is demand of the pool, not of a run
            is_warming_up |= task.state not in states.TASK_ENDING
            continue
        dag_id, run_id = run_of(task)
        if dag_id and run_id and label(task.labels, "namespace") == label(pool.labels, "namespace"):
            working.add(HoldOwner(dag_id=dag_id, run_id=run_id))
        else:
            unowned_tasks += 1
    holders = frozenset(hold.holder for hold in holds if hold.pool == pool.uuid)
    return Usage(
        holders=holders,
        working=frozenset(working),
        unowned_tasks=unowned_tasks,
        is_warming_up=is_warming_up,
    )


def _drop(client: QarnotClient, holds: Iterable[Hold]) -> None:
    for hold in holds:
        with suppress(QarnotNotFoundError):
            client.jobs.delete(hold.uuid)
