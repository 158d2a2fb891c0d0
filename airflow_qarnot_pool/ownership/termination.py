"""End pools and Qarnot tasks: one, a lineage, or many at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import QarnotNotFoundError, QarnotRefusedError, QarnotUnavailableError
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot
from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG, OWNER_TAG, TaskInstanceIdentity, is_ending

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.pools import PoolResource
    from airflow_qarnot_pool.api.tasks import TaskResource


#: Requests at a time where many are to be ended: at 50 ms each, 500 take less than 2 s.
MAX_WORKERS = 32


#: What tells of an object whether it has ended, and which try it belongs to.
_HELD_FIELDS = ("Uuid", "Shortname", "State", "Tags", "Labels", "CreationDate")


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


def end_lineage(
    resource: PoolResource | TaskResource, identity: TaskInstanceIdentity, within: float | None = None
) -> list[str] | None:
    """End whatever is live of this lineage and return the uuids; None if a later try has taken it over.

    :param within: see :func:`end_all`.
    """
    return _end_tagged(resource, LINEAGE_TAG + identity.lineage, identity, within)


def end_owned(resource: PoolResource | TaskResource, identity: TaskInstanceIdentity) -> list[str]:
    """End whatever is live of the Airflow task instance of *identity*, of all its lives; returns the uuids."""
    return _end_tagged(resource, OWNER_TAG + identity.owner) or []


def _end_tagged(
    resource: PoolResource | TaskResource,
    tag: str,
    identity: TaskInstanceIdentity | None = None,
    within: float | None = None,
) -> list[str] | None:
    began, tagged = time.monotonic(), filters.equal("Tags", tag)
    found: Sequence[Pool | Task] = resource.search_all(tagged, fields=_HELD_FIELDS)
    if identity is not None and any(RemoteSnapshot.of(one).is_later_than(identity) for one in found):
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

    with ThreadPoolExecutor(max_workers=min(len(uuids), MAX_WORKERS)) as threads:
        left = sum(not begun for begun in threads.map(begin, uuids))
    if left:
        raise QarnotUnavailableError(
            f"{left} of {len(uuids)} {resource.kind}s could not be ended in time",
            remedy="They end with their pool, with the next life of the Airflow task, or by themselves.",
            kind=resource.kind,
        )
