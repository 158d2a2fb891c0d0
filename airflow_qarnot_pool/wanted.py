"""Whether an Airflow task that is not at work here still wants what it has on Qarnot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_qarnot_pool.conditions import Kind
    from airflow_qarnot_pool.identity import Life

#: States in which the task that makes a pool will never hand it on. In any other the pool may be in use.
_OVER = {"failed", "upstream_failed", "skipped", "removed", None}
#: States of a task whose trigger waits for its Qarnot task, or has seen the end of it.
_WAITS = {"deferred", "scheduled", "queued", "success"}


def goes_on(kind: Kind, state: str | None, *, many: bool = False) -> bool:
    """Whether the object of an Airflow task that was deferred is still wanted, by the task's state now.

    :param state: None for a task that is cleared or removed.
    :param many: it is a fan-out, which runs on a worker now and then to submit more.
    """
    if kind == "pool":
        return state not in _OVER
    return state in _WAITS or (many and state == "running")


def check_addressable(life: Life) -> None:
    """Raise LookupError where Airflow's API cannot name the task instance of *life*.

    It knows task instances by DAG, run, task and map index, which the iterations of a loop share. The answer would be
    that of another one.
    """
    if life.iteration:
        raise LookupError(f"Airflow does not tell the iterations of {life.task_id} apart ({life.iteration})")


def state_now(life: Life) -> str | None:
    """Return the state of the Airflow task instance now; None when it is cleared or removed.

    :raises LookupError: see :func:`check_addressable`.
    """
    check_addressable(life)
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    by_run = RuntimeTaskInstance.get_task_states(
        dag_id=life.dag_id,
        task_ids=[life.task_id],
        run_ids=[life.run_id],
        map_index=life.map_index if life.map_index >= 0 else None,
    )
    states = by_run.get(life.run_id) or {}
    mapped = f"{life.task_id}_{life.map_index}"
    state: str | None = states.get(mapped) if life.map_index >= 0 else states.get(life.task_id)
    return state
