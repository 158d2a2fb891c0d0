"""One pool for several DAGs and several of their runs at once.

A shared pool belongs to a name in a namespace and to no Airflow task instance. Its owner and lineage follow from the
two: see ``shared`` of :class:`~airflow_qarnot_pool.ownership.identity.TaskInstanceIdentity`. Opening a shared pool
reuses the live one, and creates the next generation if the last one was closed. If two were created at the same time,
the older one is kept.

*Who needs it* is read from Qarnot, and whether those still live from Airflow:

* a DAG run that has opened it, and not given it up, has a *hold*: a Qarnot job on the pool, which has no tasks, costs
  nothing and counts only as long as Airflow knows the DAG run as unfinished. So no process has to stay alive for it.
  Each task of the run that opens it has its own, and so has each copy of a mapped one;
* unfinished Qarnot tasks on the pool name their DAG runs in their labels.

The last one to give it up closes it. Looking and closing are two requests, so somebody may come in between; they find
the pool closing, at the latest when a Qarnot task is refused or cancelled, and go on with the next generation. A lost
race costs a boot and never a task.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError, QarnotSpecMismatchError
from airflow_qarnot_pool.ownership.decisions import (
    RemoteSnapshot,
    Usability,
    usability_of,
)
from airflow_qarnot_pool.ownership.identity import (
    MAX_COST_LABEL,
    OWNER_TAG,
    TRY_TAG,
    is_valid_size,
    label,
    last_try,
    namespace_tag,
)
from airflow_qarnot_pool.ownership.records import shared_name

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Job, Pool, Task
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

log = logging.getLogger(__name__)

#: How long a node of a shared pool may be idle before it goes, unless ``keep_warm`` says otherwise.
DEFAULT_KEEP_WARM = timedelta(minutes=10)
HOLD_TAG = "airflow-hold:"
#: A hold that nobody gave up is over by itself after this long; the DAG run it names is over long before.
HOLD_LIFETIME = timedelta(days=7)
#: The label with a hash for each field of the spec, so that a mismatch can be told by name.
FIELDS_LABEL = "airflow.spec_fields"
#: How often in a row a pool may be found closing before that is an error.
MAX_GENERATIONS = 6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_UNFINISHED = [state for state in states.TaskState if state not in states.TASK_TERMINAL]

#: Whether a DAG run (dag_id, run_id) is still unfinished.
IsRunUnfinished = Callable[[str, str], bool]


# --- decisions


def check_name(name: Any) -> None:
    """Refuse what cannot name a shared pool."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise QarnotInvalidSpecError(
            f"shared is no name, got {name!r}",
            field="shared",
            remedy="Write shared='name' with letters, digits, '-', '_' and '.', 63 at most.",
        )


def mismatched_fields(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The fields in which two specs differ, by what :meth:`PoolSpec.fingerprint_fields` says of them."""
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


@dataclass(frozen=True, kw_only=True, order=True)
class HoldOwner:
    """A DAG run that needs a shared pool.

    ``by`` is the task that opened it, or "" for tasks that moved there. One of several mapped copies has its map index
    after that, as in ``day.open_pool[3]``: a task id has no brackets, and releases that know nothing of copies take it
    for another task. If the ids together are too long for a name on Qarnot, a digest stands for the task.
    """

    dag_id: str
    run_id: str
    by: str = ""

    def same_run(self, other: HoldOwner) -> bool:
        return (self.dag_id, self.run_id) == (other.dag_id, other.run_id)

    def to_name(self) -> str:
        """Return the name of its hold. It fits, as Airflow takes 250 characters for each id."""
        task, mapped, index = self.by.partition("[")
        shortened = f"{_digest_of(task)}{mapped}{index}"
        names = [
            json.dumps([self.dag_id, self.run_id, by], ensure_ascii=False) for by in (self.by, shortened)
        ]
        return next((name for name in names if is_valid_size(name)), names[-1])

    def is_by(self, *task_ids: str) -> bool:
        """Return whether one of these tasks, or a mapped copy of it, has opened the pool."""
        task = self.by.partition("[")[0]
        return any(task in (one, _digest_of(one)) for one in task_ids)

    def is_given_up_by(self, identity: TaskInstanceIdentity, tasks: Collection[str] | None) -> bool:
        """Whether *identity*, which is done with what *tasks* opened (None: any task), gives this hold up.

        A mapped copy gives up its own: its siblings may be at work. What is not mapped is done with all copies.
        """
        _, mapped, index = self.by.partition("[")
        if (self.dag_id, self.run_id) != (identity.dag_id, identity.run_id):
            return False
        if mapped and identity.map_index >= 0 and index != f"{identity.map_index}]":
            return False
        return tasks is None or self.is_by("", *tasks)

    def __str__(self) -> str:
        return f"DAG run {self.run_id} of {self.dag_id}"


def _digest_of(task_id: str) -> str:
    """Return what stands for a task whose id is too long; "" for none."""
    return hashlib.sha256(task_id.encode()).hexdigest()[:16] if task_id else ""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Who needs a pool. ``working``: DAG runs with unfinished Qarnot tasks; ``unowned_tasks``: such of nobody's."""

    holders: frozenset[HoldOwner] = frozenset()
    working: frozenset[HoldOwner] = frozenset()
    unowned_tasks: int = 0


def describe_users(needs: Usage, me: HoldOwner, alive: Callable[[HoldOwner], bool]) -> list[str]:
    """Who else needs the pool, in words; empty where *me* may close it.

    Unfinished Qarnot tasks of its own run do not keep it open: who gives the pool up is done with them.
    """
    others = {one for one in needs.holders if one != me}
    others |= {one for one in needs.working if not one.same_run(me)}
    runs = {(one.dag_id, one.run_id): one for one in sorted(others)}
    words = [str(one) for one in runs.values() if alive(one)]
    if needs.unowned_tasks:
        words.append(f"{needs.unowned_tasks} Qarnot tasks that no Airflow task made")
    return words


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
    spec: PoolSpec,
    identity: TaskInstanceIdentity,
    pause: Callable[[float], Any],
    create: Callable[[Any], str] | None = None,
) -> Claim:
    """The pool of that name: the one that lives, or a new one; and a hold on it for this DAG run.

    :param create: makes what is stamped, and returns its uuid; default: a request of its own.
    :raises QarnotSpecMismatchError: it lives, and was made from another spec.
    """

    def create_labelled(stamped: PoolSpec) -> str:
        return (create or client.pools.create_once)(_with_label(stamped, _packed(fields)))

    fields = spec.fingerprint_fields()
    return _acquire(
        client, spec, identity, create_labelled, fields, spec.fingerprint(), pause, by=identity.task_id
    )


def open_replacement(
    client: QarnotClient, pool: str, identity: TaskInstanceIdentity, pause: Callable[[float], Any]
) -> str | None:
    """The pool that takes the place of *pool*, which no longer takes tasks; None where *pool* is not shared, or open.

    It is made like the one it replaces: who finds out need not know how that was.
    """
    old = client.pools.find(pool)
    if old is None:
        old = _newest_of_the_name(client, pool, identity)
    elif not is_shared_and_closed(old, identity):
        return None
    if old is None:
        return None
    name = label(old.labels, "shared") or ""
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.ownership.quota import QuotaRoom

    packed = old.labels.get(FIELDS_LABEL, "")
    spec = PoolSpec(
        name=old.name or name,
        tags=[tag for tag in old.tags if not tag.startswith("airflow-")],
        labels={key: value for key, value in old.labels.items() if not key.startswith("airflow")},
    )

    def create(stamped: PoolSpec) -> str:
        labelled = _with_label(stamped, packed)
        if limit := old.labels.get(MAX_COST_LABEL):
            labelled = replace(labelled, labels={**labelled.labels, MAX_COST_LABEL: limit})
        kept = ("name", "shortname", "tags", "labels", "completion_ttl")
        return client.pools.clone_once(old.uuid, **{name: getattr(labelled, name) for name in kept})

    mine = replace(identity, shared=name, role="", item=None)
    fingerprint = label(old.labels, "spec") or ""
    with_room = QuotaRoom(client, identity.namespace, mine).wrap_create("pool", create)
    claimed = _acquire(client, spec, mine, with_room, _unpacked(packed), fingerprint, pause, by="")
    # What holds a closed pool holds nothing.
    _drop(client, [one for one in _holds(client, mine) if one.pool == pool])
    log.info("Shared pool %r: %s takes no more tasks, going on with %s", name, pool, claimed.uuid)
    return claimed.uuid


def was_closed(client: QarnotClient, pool: str, identity: TaskInstanceIdentity) -> bool:
    """Whether *pool* is one that *identity*'s namespace shares, and was closed or, once closed, deleted."""
    found = client.pools.find(pool)
    return shared_name(client, pool) is not None if found is None else is_shared_and_closed(found, identity)


def _newest_of_the_name(client: QarnotClient, pool: str, identity: TaskInstanceIdentity) -> Pool | None:
    """Return the newest generation of a deleted shared pool, if its name is recorded."""
    name = shared_name(client, pool)
    if name is None:
        return None
    owner = replace(identity, shared=name, role="", item=None).owner
    found = client.pools.iterate(filters.equal("Tags", OWNER_TAG + owner))
    return max(found, key=lambda one: RemoteSnapshot.of(one).age, default=None)


def _acquire(
    client: QarnotClient,
    spec: PoolSpec,
    identity: TaskInstanceIdentity,
    create: Callable[[Any], str],
    fields: Mapping[str, str],
    fingerprint: str,
    pause: Callable[[float], Any],
    by: str,
) -> Claim:
    from airflow_qarnot_pool.ownership.claim import claim

    for _ in range(MAX_GENERATIONS):
        claimed = claim(client.pools, spec, identity, None, pause, create=create, fingerprint=fingerprint)
        if claimed.existing is not None:
            _refuse_mismatch(claimed.existing, identity.shared, fields, fingerprint)
        if create_hold(client, identity, claimed.uuid, by):
            return claimed
    raise QarnotPoolEndedError(
        f"Shared pool {identity.shared!r} was closed {MAX_GENERATIONS} times while it was being opened; look in the "
        "console who closes it",
        kind="pool",
    )


def _refuse_mismatch(found: Any, name: str, fields: Mapping[str, str], fingerprint: str) -> None:
    theirs = label(found.labels, "spec")
    if not theirs or theirs == fingerprint:
        return
    differ = mismatched_fields(fields, _unpacked(found.labels.get(FIELDS_LABEL, "")))
    said = ["scaling (keep_warm, instance_count)" if one == "scaling" else one for one in differ]
    maker = HoldOwner(
        dag_id=label(found.labels, "dag_id") or "?", run_id=label(found.labels, "run_id") or "?"
    )
    raise QarnotSpecMismatchError(
        f"Shared pool {name!r} exists ({found.uuid}, made by {maker}) and differs in {', '.join(said)}. All who share "
        "a pool ask for the same one: give the same parameters, share another name, or close that pool first",
        kind="pool",
        ref=found.uuid,
    )


def _with_label(spec: PoolSpec, packed: str) -> PoolSpec:
    return replace(spec, labels={**spec.labels, FIELDS_LABEL: packed})


def _packed(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(fields.items()))


def _unpacked(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)


# --- holding


def create_hold(client: QarnotClient, identity: TaskInstanceIdentity, pool: str, by: str) -> bool:
    """Let it be seen that this DAG run, or this mapped copy, needs *pool*. False: the pool takes no tasks any more.

    A hold that cannot be made for another reason is only a warning: without it the pool may be closed too early,
    which costs a boot.
    """
    by = by if identity.map_index < 0 else f"{by}[{identity.map_index}]"
    name = HoldOwner(dag_id=identity.dag_id, run_id=identity.run_id, by=by).to_name()
    # A try has a hold of its own: the process of an earlier one may stand still, and give up its hold when it resumes.
    mark = f"{TRY_TAG}{identity.try_number}" if by else ""
    try:
        client.jobs.create(
            name,
            shortname=f"hold-{hashlib.sha256(f'{pool} {name} {mark}'.encode()).hexdigest()[:20]}",
            pool=pool,
            tags=(namespace_tag(identity.namespace), HOLD_TAG + identity.owner, *([mark] if mark else [])),
            max_wall_time=HOLD_LIFETIME,
            completion_ttl=timedelta(days=1),
        )
    except QarnotNameTakenError:
        pass  # made by this try before
    except (QarnotRefusedError, QarnotUnavailableError, QarnotProtocolError) as error:
        now = client.pools.find(pool) if isinstance(error, QarnotRefusedError) else None
        if isinstance(error, QarnotRefusedError) and (now is None or not states.accepts_tasks(now.state)):
            return False
        log.warning("Other DAG runs may not see that this one needs pool %s: %s", pool, error)
    return True


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A job that says who needs which pool."""

    uuid: str
    pool: str | None
    holder: HoldOwner
    #: The try of its Airflow task that made it; 0 for one that belongs to the whole DAG run.
    try_number: int = 0

    def is_given_up_by(self, identity: TaskInstanceIdentity, tasks: Collection[str] | None) -> bool:
        """See :meth:`HoldOwner.is_given_up_by`. A task gives up nothing that a later try of it holds."""
        later = self.holder.is_by(identity.task_id) and self.try_number > identity.try_number
        return not later and self.holder.is_given_up_by(identity, tasks)


def _holds(client: QarnotClient, identity: TaskInstanceIdentity) -> list[Hold]:
    """The holds on every generation of the pool."""
    found: Iterable[Job] = client.jobs.list(tags=[HOLD_TAG + identity.owner])
    return [
        Hold(uuid=job.uuid, pool=job.pool, holder=holder, try_number=last_try(job.tags))
        for job in found
        if job.state == "Active" and (holder := _holder(job.name))
    ]


def _holder(name: str | None) -> HoldOwner | None:
    with suppress(ValueError, TypeError):
        dag_id, run_id, by = map(_id, parse_json(name or ""))
        return HoldOwner(dag_id=dag_id, run_id=run_id, by=by)
    return None


def _id(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} is no id")
    return value


# --- giving up, and closing


@dataclass(frozen=True, kw_only=True)
class ReleaseResult:
    """What became of a pool that was given up: closed, or still needed by these."""

    uuid: str
    needed_by: tuple[str, ...] = ()

    @property
    def closed(self) -> bool:
        return not self.needed_by


def release(
    client: QarnotClient,
    identity: TaskInstanceIdentity,
    alive: IsRunUnfinished | None = None,
    by: Collection[str] | None = None,
) -> list[ReleaseResult]:
    """Give up what this DAG run, or this mapped copy, holds of the shared pool; close it where nobody else needs it.

    :param alive: tells which DAG runs still live; None: nobody can be asked now, so all count as living.
    :param by: the tasks that opened it, and are done with it; None: every task of this DAG run.
    """
    me = HoldOwner(dag_id=identity.dag_id, run_id=identity.run_id)
    found = client.pools.iterate(filters.equal("Tags", OWNER_TAG + identity.owner))
    live = [pool for pool in found if usability_of(pool) is Usability.LIVE]
    holds = _holds(client, identity)
    mine = [one for one in holds if one.is_given_up_by(identity, by)]
    _drop(client, mine)
    if mine and len(mine) < len(holds):
        # Two who look before either has given up would each leave it to the other.
        holds = _holds(client, identity)
    others = [one for one in holds if one not in mine]
    return [
        _close_unless_needed(
            client, identity, pool, me, [one for one in others if one.pool == pool.uuid], alive
        )
        for pool in live
    ]


def _close_unless_needed(
    client: QarnotClient,
    identity: TaskInstanceIdentity,
    pool: Pool,
    me: HoldOwner,
    others: Sequence[Hold],
    alive: IsRunUnfinished | None,
) -> ReleaseResult:
    from airflow_qarnot_pool.ownership.termination import end

    asked: dict[tuple[str, str], bool] = {}

    def identities(one: HoldOwner) -> bool:
        run = (one.dag_id, one.run_id)
        if run not in asked:
            asked[run] = one.same_run(me) or alive is None or alive(*run)
        return asked[run]

    still = describe_users(_needs(client, pool.uuid, (one.holder for one in others)), me, identities)
    if not still:
        end(client.pools, pool.uuid)
        _drop(client, others)
    said = "; ".join(still)
    log.info(
        "Shared pool %r (%s) %s",
        identity.shared,
        pool.uuid,
        f"stays open for {said}" if said else "is closed",
    )
    return ReleaseResult(uuid=pool.uuid, needed_by=tuple(still))


def _needs(client: QarnotClient, pool: str, holders: Iterable[HoldOwner]) -> Usage:
    here = filters.and_(filters.equal("PoolUuid", pool), filters.in_("State", _UNFINISHED))
    working, unowned_tasks = set(), 0
    unfinished: Iterable[Task] = client.tasks.search_all(here, fields=("State", "Labels"))
    for task in unfinished:
        if task.phase is states.Phase.TERMINAL or label(task.labels, "shared"):
            continue  # a warm-up is demand of the pool's own
        dag_id, run_id = label(task.labels, "dag_id"), label(task.labels, "run_id")
        if dag_id and run_id:
            working.add(HoldOwner(dag_id=dag_id, run_id=run_id))
        else:
            unowned_tasks += 1
    return Usage(holders=frozenset(holders), working=frozenset(working), unowned_tasks=unowned_tasks)


def _drop(client: QarnotClient, holds: Iterable[Hold]) -> None:
    for one in holds:
        with suppress(QarnotNotFoundError):
            client.jobs.delete(one.uuid)
