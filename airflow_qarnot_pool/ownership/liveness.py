"""Decide whether a remote object is still needed by an Airflow task that runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_qarnot_pool.version_compat import dag_as_stored, runtime_task_instance

if TYPE_CHECKING:
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.timetables.next_run import PlannedRun
    from airflow_qarnot_pool.waiting.conditions import Kind

#: States in which a setup task will never pass its pool on. In any other state the pool may be in use.
_POOL_UNUSED_STATES = {"failed", "upstream_failed", "skipped", "removed", None}
#: States of a task whose trigger waits for the Qarnot task, or has seen it end.
_TASK_AWAITED_STATES = {"deferred", "scheduled", "queued", "success"}


def is_still_wanted(kind: Kind, state: str | None, *, is_fan_out: bool = False) -> bool:
    """Return whether a deferred Airflow task still needs its remote object, given the task's current state.

    :param state: None for a task that is cleared or removed.
    :param is_fan_out: the task is a fan-out, which resumes on a worker now and then to submit more.
    """
    if kind == "pool":
        return state not in _POOL_UNUSED_STATES
    return state in _TASK_AWAITED_STATES or (is_fan_out and state == "running")


def check_addressable(identity: TaskInstanceIdentity) -> None:
    """Raise LookupError if Airflow's API cannot address the task instance of *identity*.

    The API addresses a task instance by DAG, run, task and map index, which the iterations of a loop share. It would
    return the state of another iteration.
    """
    if identity.iteration:
        raise LookupError(
            f"Airflow's API cannot distinguish the iterations of {identity.task_id} ({identity.iteration})"
        )


def task_instance_state(identity: TaskInstanceIdentity) -> str | None:
    """Return the current state of the Airflow task instance; None if it is cleared or removed.

    :raises LookupError: see :func:`check_addressable`.
    """
    check_addressable(identity)
    by_run = runtime_task_instance().get_task_states(
        dag_id=identity.dag_id,
        task_ids=[identity.task_id],
        run_ids=[identity.run_id],
        map_index=identity.map_index if identity.map_index >= 0 else None,
    )
    states = by_run.get(identity.run_id) or {}
    mapped = f"{identity.task_id}_{identity.map_index}"
    state: str | None = states.get(mapped) if identity.map_index >= 0 else states.get(identity.task_id)
    return state


def dag_run_state(dag_id: str, run_id: str) -> str | None:
    """Return the state of a DAG run, as seen from a worker; None if the run does not exist."""
    task_instances = runtime_task_instance()
    if not task_instances.get_dr_count(dag_id=dag_id, run_ids=[run_id]):
        return None
    state = task_instances.get_dagrun_state(dag_id, run_id)
    # An enum at run time, contrary to the annotation. Its str() is "DagRunState.FAILED".
    return str(getattr(state, "value", state))


def planned_run(dag_id: str) -> PlannedRun | None:
    """Return the plan of Airflow's scheduler for a DAG; None on Airflow 3.1, where no task can read it.

    :raises LookupError: there is no such DAG.
    """
    from airflow_qarnot_pool.timetables.next_run import PlannedRun

    stored = dag_as_stored(dag_id)
    if stored is None:
        return None
    return PlannedRun(is_paused=bool(stored.is_paused), logical_date=stored.next_dagrun)
