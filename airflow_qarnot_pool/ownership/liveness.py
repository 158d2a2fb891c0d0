"""Whether an Airflow task that is not at work here still wants what it has on Qarnot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_qarnot_pool.version_compat import runtime_task_instance

if TYPE_CHECKING:
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.waiting.conditions import Kind

#: States in which the task that makes a pool will never hand it on. In any other the pool may be in use.
_POOL_UNUSED_STATES = {"failed", "upstream_failed", "skipped", "removed", None}
#: States of a task whose trigger waits for its Qarnot task, or has seen the end of it.
_TASK_AWAITED_STATES = {"deferred", "scheduled", "queued", "success"}


def is_still_wanted(kind: Kind, state: str | None, *, is_fan_out: bool = False) -> bool:
    """Whether the object of an Airflow task that was deferred is still wanted, by the task's state now.

    :param state: None for a task that is cleared or removed.
    :param is_fan_out: it is a fan-out, which runs on a worker now and then to submit more.
    """
    if kind == "pool":
        return state not in _POOL_UNUSED_STATES
    return state in _TASK_AWAITED_STATES or (is_fan_out and state == "running")


def check_addressable(identity: TaskInstanceIdentity) -> None:
    """Raise LookupError where Airflow's API cannot name the task instance of *identity*.

    It knows task instances by DAG, run, task and map index, which the iterations of a loop share. The answer would be
    that of another one.
    """
    if identity.iteration:
        raise LookupError(
            f"Airflow does not tell the iterations of {identity.task_id} apart ({identity.iteration})"
        )


def task_instance_state(identity: TaskInstanceIdentity) -> str | None:
    """Return the state of the Airflow task instance now; None when it is cleared or removed.

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
    """The state of a DAG run as a worker can see it; None where there is no such run."""
    task_instances = runtime_task_instance()
    if not task_instances.get_dr_count(dag_id=dag_id, run_ids=[run_id]):
        return None
    state = task_instances.get_dagrun_state(dag_id, run_id)
    # An enum at run time, whatever the annotation says; its str() is "DagRunState.FAILED".
    return str(getattr(state, "value", state))
