"""Task instances in Airflow's database, which the scheduler's process may read and change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.fields import is_uuid
from airflow_qarnot_pool.executors.running import FAILED, REQUEUED, Attempt, InstanceRow
from airflow_qarnot_pool.version_compat import earlier_tries, instance_ids

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: Maximum number of ids in one query.
CHUNK = 500


def read_instances(session: Session, ids: Iterable[str], job_id: Any) -> dict[str, InstanceRow]:
    """Return the task instances of *ids* that exist, by id.

    :param job_id: the job of this scheduler.
    """
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    found = {}
    for chunk in _chunks(ids):
        columns = (
            TaskInstance.id,
            TaskInstance.state,
            TaskInstance.external_executor_id,
            TaskInstance.queued_by_job_id,
        )
        query = select(*columns).where(TaskInstance.id.in_(chunk))
        for each_id, state, external_id, queued_by in session.execute(query):
            text = None if state is None else str(getattr(state, "value", state))
            found[str(each_id)] = InstanceRow(
                state=text, external_id=external_id, is_ours=queued_by == job_id
            )
    return found


def read_replaced(session: Session, ids: Iterable[str]) -> set[str]:
    """Return those of *ids* that a task instance had in an earlier try, or before it was cleared."""
    return {str(each) for chunk in _chunks(ids) for each, _ in session.execute(earlier_tries(chunk))}


def read_reasons(session: Session, ti: Any) -> list[str]:
    """Return why the executor has failed a try, or queued it again, from the audit log: the newest 10, oldest first.

    :param ti: its task instance, or the one of its history.
    """
    from airflow.models.log import Log
    from sqlalchemy import select

    query = select(Log.event, Log.extra).where(
        Log.dag_id == ti.dag_id,
        Log.task_id == ti.task_id,
        Log.run_id == ti.run_id,
        Log.map_index == ti.map_index,
        Log.try_number == ti.try_number,
        Log.event.in_((FAILED, REQUEUED)),
    )
    newest = session.execute(query.order_by(Log.id.desc()).limit(10)).all()
    return [f"{event[0].upper()}{event[1:]}: {reason}" for event, reason in reversed(newest)]


def requeue(session: Session, attempt: Attempt, job_id: Any) -> None:
    """Let the scheduler queue the task instance of *attempt* again, in the same try, if it is still queued.

    As the scheduler itself does with a task that is stuck in queued.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import update

    session.execute(
        update(TaskInstance)
        .where(*_still_queued(attempt, job_id))
        .values(
            state=TaskInstanceState.SCHEDULED,
            queued_dttm=None,
            queued_by_job_id=None,
            scheduled_dttm=datetime.now(UTC),
        )
        .execution_options(synchronize_session=False)
    )


def reset(session: Session, attempt: Attempt, job_id: Any) -> None:
    """Reset the task instance of *attempt* if it is still queued, as the scheduler does if it is not adopted."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    # Wait for another transaction, such as that of a heartbeat.
    query = select(TaskInstance).where(*_still_queued(attempt, job_id)).with_for_update(of=TaskInstance)
    instance = session.scalar(query)
    if instance is None:
        return
    following: Any = instance.prepare_db_for_next_try(session=session)
    instance = following or instance
    instance.state = None
    instance.queued_by_job_id = None
    instance.external_executor_id = None
    instance.clear_next_method_args()


def _still_queued(attempt: Attempt, job_id: Any) -> list[Any]:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState

    conditions: list[Any] = [
        TaskInstance.id.in_(instance_ids([attempt.instance_id])),
        TaskInstance.state == TaskInstanceState.QUEUED,
    ]
    if attempt.external_id:
        conditions.append(TaskInstance.external_executor_id == attempt.external_id)
    else:
        conditions.append(TaskInstance.queued_by_job_id == job_id)
    return conditions


def _chunks(ids: Iterable[str]) -> Iterator[list[Any]]:
    # A Qarnot task may have any text as its tag.
    wanted = sorted({each for each in ids if is_uuid(each)})
    for start in range(0, len(wanted), CHUNK):
        yield instance_ids(wanted[start : start + CHUNK])
