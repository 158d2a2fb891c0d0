"""End pools and Qarnot tasks: single ones, a lineage, or many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNotFoundError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot
from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG, OWNER_TAG, TaskInstanceIdentity, is_ending
from airflow_qarnot_pool.waiting.conditions import NOUNS

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.tasks import TaskResource

#: Maximum number of concurrent requests: at 50 ms each, 500 objects are ended in less than 2 s.
MAX_WORKERS = 32
#: Maximum number of requests to end one object, and the seconds between two of them. A kill has 4 s.
MAX_ATTEMPTS, PAUSE = 3, 0.2
#: Returns whether an object must not end any more.
Unless = Callable[[Any], bool]
#: The fields that show whether an object has ended, and which try it belongs to.
_HELD_FIELDS = ("Uuid", "Shortname", "State", "Tags", "Labels", "CreationDate")


def idle_close_policy(uuid: str) -> str:
    """Return the name of the scaling policy of a pool that the reaper closes once it is idle.

    Somebody has asked for it on the Pools page. It names the pool, because a clone has the policy of its original. A
    tag would not do: a request that adds one replaces all tags, also those that a retry adds at the same moment.
    """
    return f"close-when-idle-{uuid}"


def closes_when_idle(pool: Pool) -> bool:
    """Return whether the reaper closes *pool* once it is idle."""
    policies = pool.scaling.policies if pool.scaling else ()
    return any(getattr(policy, "name", None) == idle_close_policy(pool.uuid) for policy in policies)


def later_than(identity: TaskInstanceIdentity) -> Unless:
    """Return the function that says whether a later try has an object, for ``unless`` of :func:`end`."""
    return lambda remote: RemoteSnapshot.of(remote).is_later_than(identity)


def end(resource: PoolResource | TaskResource, uuid: str, unless: Unless | None = None) -> bool:
    """Close a pool or abort a Qarnot task, and return whether the server has accepted the request.

    Do nothing if the object has ended, is ending or is deleted. A 403 or 404 about an object that is open is asked
    again, because a proxy or a lagging replica may have sent it.

    :param unless: is called with the object before each further request, and returns whether to send none.
    :raises QarnotError: the server still refuses, and the object runs.
    """
    attempt = 1
    while True:
        try:
            resource.end(uuid, unless=unless)
            return True
        except (QarnotNotFoundError, QarnotRefusedError):
            # A server may refuse because an earlier request has ended the object, or is ending it.
            if not _is_there_and_open(resource, uuid, unless):
                return False
            if attempt == MAX_ATTEMPTS:
                raise
        attempt += 1
        time.sleep(PAUSE)


def _is_there_and_open(resource: PoolResource | TaskResource, uuid: str, unless: Unless | None) -> bool:
    try:
        remote = resource.get(uuid)
        return not is_ending(remote) and not (unless is not None and unless(remote))
    except QarnotNotFoundError as error:
        if error.foreign:
            raise QarnotUnavailableError(error.message, kind=resource.kind, ref=uuid) from error
        return False


def end_lineage(
    resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, within: float | None = None
) -> list[str] | None:
    """End the live objects of this lineage and return their uuids; None if a later try has adopted them.

    :param within: see :func:`end_all`.
    """
    return _end_tagged(resource, LINEAGE_TAG + identity.lineage, identity, within)


def end_lineages(
    resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, within: float | None = None
) -> list[str] | None:
    """Do the same for all lineages of the task instance: the claim has not yet ended those from before a clear."""
    return _end_tagged(resource, OWNER_TAG + identity.owner, identity, within)


def end_owned(resource: PoolResource | TaskResource, identity: TaskInstanceIdentity) -> list[str]:
    """End the live objects of the task instance of *identity* whichever try has them, and return their uuids."""
    return _end_tagged(resource, OWNER_TAG + identity.owner) or []


def _end_tagged(
    resource: PoolResource | TaskResource,
    tag: str,
    identity: TaskInstanceIdentity | None = None,
    within: float | None = None,
) -> list[str] | None:
    started = time.monotonic()
    tagged: Sequence[Pool | Task] = resource.search_all(filters.equal("Tags", tag), fields=_HELD_FIELDS)
    unless = None if identity is None else later_than(identity)
    if unless is not None and any(map(unless, tagged)):
        return None
    live = [remote.uuid for remote in tagged if not is_ending(remote)]
    if identity is not None and live and _is_of_a_later_try(resource, live[0], identity, within):
        return None
    remaining = None if within is None else within - (time.monotonic() - started)
    end_all(resource, live, remaining, unless)
    return live


def _is_of_a_later_try(
    resource: PoolResource | TaskResource, uuid: str, identity: TaskInstanceIdentity, within: float | None
) -> bool:
    """Read one object, because a search may be late. A later try adopts all of them."""
    if within is not None and identity.try_number > identity.max_tries:
        return False  # a kill has little time, and only a clear could have started a later try
    try:
        return later_than(identity)(resource.get(uuid))
    except QarnotError:
        return False


def end_all(
    resource: PoolResource | TaskResource,
    uuids: Sequence[str],
    within: float | None = None,
    unless: Unless | None = None,
) -> None:
    """End these objects concurrently, because a killed process has little time.

    A single object is ended in the calling thread. In a signal handler, another thread might wait for a lock of the
    code that the signal has interrupted.

    :param within: seconds after which no more requests are started; None: no limit.
    :param unless: see :func:`end`.
    :raises QarnotUnavailableError: the time was too short. The message has the number of remaining objects.
    """
    if len(uuids) < 2:
        for uuid in uuids:
            end(resource, uuid, unless)
        return
    deadline = None if within is None else time.monotonic() + within

    def end_in_time(uuid: str) -> bool:
        if deadline is not None and time.monotonic() >= deadline:
            return False
        end(resource, uuid, unless)
        return True

    with ThreadPoolExecutor(max_workers=min(len(uuids), MAX_WORKERS)) as threads:
        remaining = sum(not was_ended for was_ended in threads.map(end_in_time, uuids))
    if remaining:
        raise QarnotUnavailableError(
            f"{remaining} of {len(uuids)} {NOUNS[resource.kind]}s could not be ended in time",
            remedy="They end with their pool, with the next start of the Airflow task, or at their time limit.",
            kind=resource.kind,
        )
