"""XComs that the provider itself relies on, as opposed to results.

They are written directly to Airflow's metadata database, as Airflow's links are, and bypass the XCom backend of the
deployment. A backend on object storage would keep one object for each link and each checkpoint, store a path in place
of a link, and delay a kill.

Every read names the task and the map index. Without a map index, Airflow returns the list of the values of all
mapped task instances.

Airflow logs an error for each read of an XCom that does not exist. A read of one that need not exist first asks
whether it can.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

from airflow_qarnot_pool.version_compat import database_xcom, runtime_task_instance

#: Keys under which a running try stores the uuids of its remote objects, before it waits.
POOL_KEY = "qarnot_pool"
TASK_KEY = "qarnot_task"
TASKS_KEY = "qarnot_tasks"
#: Slots of a pool whose size the provider has chosen.
SIZE_KEY = "qarnot_pool_size"
#: Key under which a try stores the name of the environment that it has brought to a shared pool.
ENVIRONMENT_KEY = "qarnot_environment"
#: Key of the seconds that the whole work of a Qarnot task took. The next DAG runs plan a ladder with them.
WORK_KEY = "qarnot_work_seconds"
#: Key of the lease on the log: which process writes the output of the Qarnot task.
OUTPUT_KEY = "qarnot_output"


def position_key(follower: str) -> str:
    """Return the key under which *follower* stores how much of the output it has written."""
    return f"{OUTPUT_KEY}_{follower}"


class TaskInstanceCoordinates(Protocol):
    """Address of the XComs of one task instance. A task instance and its identity have these fields."""

    @property
    def dag_id(self) -> str:
        """Id of the DAG."""

    @property
    def run_id(self) -> str:
        """Id of the DAG run."""

    @property
    def task_id(self) -> str:
        """Id of the task."""

    @property
    def map_index(self) -> int | None:
        """Map index; -1 or None if the task is not mapped."""


def push(ti: Any, key: str, value: Any) -> None:
    """Store *value* for the task instance of this process."""
    if _is_real(ti):
        set_direct(ti, key, value)
    else:
        ti.xcom_push(key=key, value=value)


def pull(ti: Any, key: str) -> Any:
    """Return the value that the current try of this task instance has stored, or None."""
    return pull_of(ti, ti.task_id, ti.map_index, key)


def pull_of(ti: Any, task_id: str, map_index: int | None, key: str) -> Any:
    """Return the value that another task of the DAG run has stored, or None."""
    if _is_real(ti):
        owner = SimpleNamespace(dag_id=ti.dag_id, run_id=ti.run_id, task_id=task_id, map_index=map_index)
        return _get_quietly(owner, key)
    return ti.xcom_pull(task_ids=task_id, key=key, map_indexes=map_index)


def pull_newest(ti: Any, key: str) -> Any:
    """Return the newest value that this task instance has stored, in this DAG run or an earlier one, or None."""
    if _is_real(ti):
        if not _has_succeeded_before(ti):
            return None
        return database_xcom().get_one(key=key, include_prior_dates=True, **_coordinates(ti))
    return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=ti.map_index, include_prior_dates=True)


def _get_quietly(owner: TaskInstanceCoordinates, key: str) -> Any:
    """Return the value, or None without the error that Airflow logs for one that is missing.

    Only for an unmapped task, because one request reads the values of all instances.
    """
    address = _coordinates(owner)
    if address.pop("map_index") < 0:
        values = database_xcom().get_all(key=key, **address)
        if values is None or len(values) == 1:
            return values[0] if values else None
    return get_direct(owner, key)


def _has_succeeded_before(ti: Any) -> bool:
    """Return whether this task instance has succeeded in any DAG run. Otherwise Airflow would log a missing XCom."""
    address = _coordinates(ti)
    return bool(
        runtime_task_instance().get_ti_count(
            dag_id=address["dag_id"],
            task_ids=[address["task_id"]],
            map_index=address["map_index"],
            states=["success"],
        )
    )


def set_direct(owner: TaskInstanceCoordinates, key: str, value: Any) -> None:
    """Store the JSON value *value* in Airflow's metadata database."""
    database_xcom().set(key, value, **_coordinates(owner))


def get_direct(owner: TaskInstanceCoordinates, key: str) -> Any:
    """Return the value that :func:`set_direct` has stored, or None."""
    return database_xcom().get_one(key=key, **_coordinates(owner))


def _coordinates(owner: TaskInstanceCoordinates) -> dict[str, Any]:
    return {
        "dag_id": owner.dag_id,
        "run_id": owner.run_id,
        "task_id": owner.task_id,
        "map_index": -1 if owner.map_index is None else owner.map_index,
    }


def _is_real(ti: Any) -> bool:
    """Return whether *ti* is a task instance of Airflow, as opposed to a fake in a unit test of a DAG author."""
    return isinstance(ti, runtime_task_instance())
