"""Searches of the executor that are more than one request, and the deletion of what has finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotRefusedError, QarnotUnknownStateError
from airflow_qarnot_pool.executors.retries import is_permanent
from airflow_qarnot_pool.executors.running import EXECUTOR_TAG, Attempt
from airflow_qarnot_pool.ownership.identity import INSTANCE_TAG, is_ending
from airflow_qarnot_pool.ownership.termination import MAX_WORKERS, end
from airflow_qarnot_pool.triggers.poller import POLL_FIELDS

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task

log = logging.getLogger(__name__)

KeyT = TypeVar("KeyT")
ResultT = TypeVar("ResultT")
#: Maximum number of names in one search.
CHUNK = 200
#: Maximum number of finished Qarnot tasks that are deleted at once, if the account's quota of tasks is full.
MAX_DELETED = 20


def find_by_name(
    client: QarnotClient, attempts: Sequence[Attempt]
) -> tuple[dict[str, str | None], QarnotError | None]:
    """Return the uuids of the Qarnot tasks by the names of their attempts, or None for an attempt that has none.

    A name that no search shows is looked up itself, because a search may be late. An attempt whose name is not known is
    searched by the tag of its task instance: a live Qarnot task counts, or else the newest one. An attempt whose
    look-up fails is left out, and the error is returned, too.
    """
    shown = _search_names(client, [attempt.name for attempt in attempts if not attempt.by_tag])
    hidden = [attempt for attempt in attempts if attempt.name not in shown]
    looked_up, error = _for_each(partial(_look_up, client), hidden)
    found = {attempt.name: uuid for attempt, uuid in looked_up.items()}
    # A single 404 proves nothing.
    missing = [attempt.name for attempt, uuid in looked_up.items() if uuid is None and not attempt.by_tag]
    return shown | found | _search_names(client, missing), error


def _search_names(client: QarnotClient, names: Sequence[str]) -> dict[str, str | None]:
    """Return the uuids that searches show, by name. A server that refuses them shows none."""
    shown: dict[str, str | None] = {}
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        try:
            tasks = client.tasks.search(filters.in_("Shortname", chunk), fields=POLL_FIELDS, limit=len(chunk))
        except QarnotRefusedError:
            continue
        named = (task for task in tasks if task.shortname in chunk)
        shown |= {task.shortname: task.uuid for task in named if task.shortname is not None}
    return shown


def _look_up(client: QarnotClient, attempt: Attempt) -> str | None:
    if attempt.by_tag:
        return next((task.uuid for task in _tagged(client, attempt.tag)), None)
    task = client.tasks.find(attempt.name)
    return task.uuid if task is not None else None


def _for_each(
    request: Callable[[KeyT], ResultT], items: Sequence[KeyT]
) -> tuple[dict[KeyT, ResultT], QarnotError | None]:
    """Return the results of one request for each item, without those that fail, and an error of these."""
    if not items:
        return {}, None
    with ThreadPoolExecutor(max_workers=min(len(items), MAX_WORKERS)) as threads:
        futures = {item: threads.submit(request, item) for item in items}
    results: dict[KeyT, ResultT] = {}
    error: QarnotError | None = None
    for item, future in futures.items():
        try:
            results[item] = future.result()
        except QarnotError as caught:
            error = caught
    return results, error


def end_each(client: QarnotClient, uuids: Sequence[str]) -> tuple[dict[str, bool], QarnotError | None]:
    """Abort Qarnot tasks. Return whether each abort was accepted or not needed, and an error of those left out."""
    return _for_each(partial(_end, client), uuids)


def _end(client: QarnotClient, uuid: str) -> bool:
    try:
        end(client.tasks, uuid)
    except QarnotError as error:
        if not is_permanent(error) and not isinstance(error, QarnotUnknownStateError):
            raise
        log.warning("Qarnot task %s cannot be aborted: %s", uuid, error)
        return False
    return True


def find_twin(client: QarnotClient, attempt: Attempt, known: Iterable[str | None]) -> str | None:
    """Return the uuid of another live Qarnot task of the same task instance, besides those *known*; None for none."""
    kept = set(known)
    return next(
        (task.uuid for task in _tagged(client, attempt.tag) if task.uuid not in kept and _may_run(task)), None
    )


def _may_run(task: Task) -> bool:
    """Return whether a Qarnot task may run. One in a state that this release does not know may."""
    try:
        return not is_ending(task)
    except QarnotUnknownStateError:
        return True


def find_unwatched(
    client: QarnotClient, namespace: str, known: Iterable[str | None], before: datetime
) -> dict[str, str]:
    """Return the ids of task instances by the uuids of live Qarnot tasks of executors in *namespace*.

    :param known: uuids of Qarnot tasks that this scheduler watches.
    :param before: only those whose state is older than this, because others may be on their way.
    """
    unfinished = [state for state in states.TaskState if state not in states.TASK_TERMINAL]
    live = filters.and_(filters.equal("Tags", EXECUTOR_TAG + namespace), filters.in_("State", unfinished))
    kept = set(known)
    fields = ("Uuid", "State", "Tags", "StateTransitionTime")
    return {
        task.uuid: tag.removeprefix(INSTANCE_TAG)
        for task in client.tasks.search_all(live, fields=fields)
        for tag in task.tags
        if tag.startswith(INSTANCE_TAG)
        and task.uuid not in kept
        and task.state_transition_time is not None
        and task.state_transition_time < before
    }


def names_of_instance(client: QarnotClient, instance_id: str) -> list[str]:
    """Return the names of the Qarnot tasks of a task instance, the newest first."""
    return [task.shortname for task in _tagged(client, INSTANCE_TAG + instance_id) if task.shortname]


def _tagged(client: QarnotClient, tag: str) -> list[Task]:
    """Return the Qarnot tasks with the tag of a task instance: live ones first, and newer ones first."""
    fields = (*POLL_FIELDS, "CreationDate")
    tasks = client.tasks.search_all(filters.equal("Tags", tag), fields=fields)
    return sorted(tasks, key=lambda task: (_may_run(task), str(task.creation_date)), reverse=True)


def delete_finished(client: QarnotClient, namespace: str, known: Iterable[str | None]) -> int:
    """Delete the oldest finished Qarnot tasks of executors in *namespace*, and return their number.

    :param known: uuids of Qarnot tasks whose ends this scheduler has yet to read.
    """
    finished = filters.and_(
        filters.equal("Tags", EXECUTOR_TAG + namespace), filters.in_("State", sorted(states.TASK_TERMINAL))
    )
    fields = ("Uuid", "State", "StateTransitionTime")
    kept = set(known)
    tasks = [task for task in client.tasks.search_all(finished, fields=fields) if task.uuid not in kept]
    tasks.sort(key=lambda task: str(task.state_transition_time))
    oldest = tasks[: max(1, len(tasks) // 2)][:MAX_DELETED]
    for task in oldest:
        client.tasks.delete(task.uuid)
    return len(oldest)
