"""Searches of the executor that are more than one request, and the deletion of what has finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotRefusedError
from airflow_qarnot_pool.executors.running import INSTANCE_TAG, ROLE, Attempt
from airflow_qarnot_pool.ownership.identity import is_ending, label, namespace_tag
from airflow_qarnot_pool.ownership.termination import MAX_WORKERS, end
from airflow_qarnot_pool.triggers.poller import POLL_FIELDS

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

#: Maximum number of names in one search.
CHUNK = 200
#: Maximum number of finished Qarnot tasks that are deleted at once, if the account's quota of tasks is full.
MAX_DELETED = 20


def find_by_name(client: QarnotClient, attempts: Sequence[Attempt]) -> dict[str, str]:
    """Return the uuids of the Qarnot tasks by the names of their attempts.

    A name that no search shows is looked up itself, because a search may be late. An attempt whose name is not known is
    searched by the tag of its task instance: a live Qarnot task counts, or else the newest one.
    """
    names = [attempt.name for attempt in attempts if not attempt.by_tag]
    found: dict[str, str] = {}
    for start in range(0, len(names), CHUNK):
        found |= _search_names(client, names[start : start + CHUNK])
    found |= _look_up_names(client, [name for name in names if name not in found])
    for attempt in attempts:
        if attempt.by_tag and (tagged := _tagged(client, attempt)):
            found[attempt.name] = tagged[0].uuid
    return found


def _search_names(client: QarnotClient, names: Sequence[str]) -> dict[str, str]:
    """Return the uuids that one search shows, by name. A server that refuses it shows none."""
    named = filters.in_("Shortname", names)
    try:
        shown = client.tasks.search(named, fields=POLL_FIELDS, limit=len(names))
    except QarnotRefusedError:
        return {}
    return {
        task.shortname: task.uuid for task in shown if task.shortname is not None and task.shortname in names
    }


def _look_up_names(client: QarnotClient, names: Sequence[str]) -> dict[str, str]:
    """Return the uuids of names that no search shows, by one request for each, and by one more search."""
    if not names:
        return {}
    with ThreadPoolExecutor(max_workers=min(len(names), MAX_WORKERS)) as threads:
        tasks = threads.map(client.tasks.find, names)
        found = {name: task.uuid for name, task in zip(names, tasks, strict=True) if task is not None}
    missing = [name for name in names if name not in found]
    # A single 404 proves nothing.
    for start in range(0, len(missing), CHUNK):
        found |= _search_names(client, missing[start : start + CHUNK])
    return found


def end_each(client: QarnotClient, uuids: Sequence[str]) -> tuple[list[str], QarnotError | None]:
    """Abort Qarnot tasks. Return those whose abort was accepted or not needed, and an error of the others."""
    if not uuids:
        return [], None
    error: QarnotError | None = None
    ended = []
    with ThreadPoolExecutor(max_workers=min(len(uuids), MAX_WORKERS)) as threads:
        requests = [(uuid, threads.submit(end, client.tasks, uuid)) for uuid in uuids]
    for uuid, request in requests:
        try:
            request.result()
            ended.append(uuid)
        except QarnotError as caught:
            error = caught
    return ended, error


def find_twin(client: QarnotClient, attempt: Attempt, known: Iterable[str | None]) -> str | None:
    """Return the uuid of another live Qarnot task of the same task instance, besides those *known*; None for none."""
    kept = set(known)
    live = (task for task in _tagged(client, attempt) if not is_ending(task))
    return next((task.uuid for task in live if task.uuid not in kept), None)


def find_unwatched(
    client: QarnotClient, namespace: str, known: Iterable[str | None], before: datetime
) -> dict[str, str]:
    """Return the ids of task instances by the uuids of live Qarnot tasks of executors in *namespace*.

    :param known: uuids of Qarnot tasks that this scheduler watches.
    :param before: only those whose state is older than this, because others may be on their way.
    """
    unfinished = [state for state in states.TaskState if state not in states.TASK_TERMINAL]
    live = filters.and_(filters.equal("Tags", namespace_tag(namespace)), filters.in_("State", unfinished))
    kept = set(known)
    fields = ("Uuid", "State", "Labels", "Tags", "StateTransitionTime")
    return {
        task.uuid: tag.removeprefix(INSTANCE_TAG)
        for task in client.tasks.search_all(live, fields=fields)
        for tag in task.tags
        if tag.startswith(INSTANCE_TAG)
        and label(task.labels, "role") == ROLE
        and task.uuid not in kept
        and task.state_transition_time is not None
        and task.state_transition_time < before
    }


def _tagged(client: QarnotClient, attempt: Attempt) -> list[Task]:
    """Return the Qarnot tasks of the task instance of *attempt*: live ones first, and newer ones first."""
    fields = (*POLL_FIELDS, "CreationDate")
    tasks = client.tasks.search_all(filters.equal("Tags", attempt.tag), fields=fields)
    return sorted(tasks, key=lambda task: (not is_ending(task), str(task.creation_date)), reverse=True)


def delete_finished(client: QarnotClient, namespace: str, known: Iterable[str | None]) -> int:
    """Delete the oldest finished Qarnot tasks of executors in *namespace*, and return their number.

    :param known: uuids of Qarnot tasks whose ends this scheduler has yet to read.
    """
    finished = filters.and_(
        filters.equal("Tags", namespace_tag(namespace)), filters.in_("State", sorted(states.TASK_TERMINAL))
    )
    fields = ("Uuid", "State", "Labels", "StateTransitionTime")
    kept = set(known)
    tasks = [
        task
        for task in client.tasks.search_all(finished, fields=fields)
        if label(task.labels, "role") == ROLE and task.uuid not in kept
    ]
    tasks.sort(key=lambda task: str(task.state_transition_time))
    oldest = tasks[: max(1, len(tasks) // 2)][:MAX_DELETED]
    for task in oldest:
        client.tasks.delete(task.uuid)
    return len(oldest)
