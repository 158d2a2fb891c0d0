"""Run operators through their real slices, triggers included, without an Airflow database.

``dag.test()`` and real deployments have their own suites; here a slice takes milliseconds, so that many cases
fit, and tries, clears and kills can be arranged exactly.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock

from airflow_qarnot_pool.compat import TaskDeferred
from airflow_qarnot_pool.identity import Life
from airflow_qarnot_pool.triggers.base import QarnotTrigger

RUN_STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeTI:
    """A task instance as an operator sees it; XComs live as long as the try, as in Airflow."""

    dag_id: str = "dag"
    run_id: str = "run"
    task_id: str = "task"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    start_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    xcoms: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        json.dumps(value)  # an XCom must be JSON
        self.xcoms[key] = value

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.xcoms.get(key)


def life_of(**fields: Any) -> Life:
    """A first life of a task instance, for what needs no context."""
    values: dict[str, Any] = {
        "namespace": "test",
        "dag_id": "dag",
        "run_id": "run",
        "task_id": "create",
        "map_index": -1,
        "run_started": "",
        "max_tries": 0,
        "try_number": 1,
        "retries": 0,
    }
    return Life(**{**values, **fields})


def context_of(operator: Any, ti: FakeTI | None = None, run_started: datetime = RUN_STARTED) -> Any:
    """The part of Airflow's context that the operators use."""
    ti = ti or FakeTI(task_id=operator.task_id)
    return {"ti": ti, "task": operator, "dag_run": SimpleNamespace(start_date=run_started)}


def run(make: Any, ti: FakeTI | None = None, run_started: datetime = RUN_STARTED) -> Any:
    """Execute, and wait and resume for as long as it defers, with a new operator object for every slice.

    :param make: makes the operator anew, as each worker process does.
    """
    operator = make()
    context = context_of(operator, ti, run_started)
    try:
        return operator.execute(context)
    except TaskDeferred as deferred:
        return resume(make, deferred, context)


def defer(
    make: Any, ti: FakeTI | None = None, run_started: datetime = RUN_STARTED
) -> tuple[TaskDeferred, Any]:
    """Execute an operator that must defer; returns the deferral and the context."""
    operator = make()
    context = context_of(operator, ti, run_started)
    try:
        result = operator.execute(context)
    except TaskDeferred as deferred:
        return deferred, context
    raise AssertionError(f"{operator.task_id} did not defer but returned {result!r}")


def resume(make: Any, deferred: TaskDeferred, context: Any) -> Any:
    """Run the trigger of a deferral to its event, and resume in a new operator object."""
    while True:
        event = fire(deferred)
        operator = make()
        context = {**context, "task": operator}
        try:
            return operator.resume_execution(
                deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context
            )
        except TaskDeferred as again:
            deferred = again


def fire(deferred: TaskDeferred) -> Any:
    """The payload of the trigger's first event, after the trip through its serialized form."""
    return asyncio.run(fire_many([deferred]))[0]


async def fire_many(deferrals: list[TaskDeferred]) -> list[Any]:
    """The first events of several triggers that run together, as in one triggerer."""
    return list(await asyncio.gather(*(first_event(again(one.trigger)) for one in deferrals)))


async def first_event(trigger: Any) -> Any:
    """The payload of the first event, which must be JSON."""
    async for event in trigger.run():
        return json.loads(json.dumps(event.payload))
    raise AssertionError("the trigger ended without an event")


def again(trigger: Any) -> Any:
    """The trigger as the triggerer makes it: from class path and JSON kwargs."""
    path, kwargs = trigger.serialize()
    module, _, name = path.rpartition(".")
    made = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    made.task_instance = None
    return made


@contextmanager
def airflow_says(state: str | None, xcoms: dict[str, Any] | None = None) -> Iterator[None]:
    """What Airflow answers about a task instance: to its trigger, and to its process once it is deferred."""

    async def task_state(life: Any) -> str | None:
        return state

    async def own_xcom(life: Any, key: str) -> Any:
        return (xcoms or {}).get(key)

    with (
        mock.patch("airflow_qarnot_pool.triggers.task.task_state", task_state),
        mock.patch("airflow_qarnot_pool.triggers.pool.task_state", task_state),
        mock.patch("airflow_qarnot_pool.triggers.tasks.task_state", task_state),
        mock.patch("airflow_qarnot_pool.triggers.task.own_xcom", own_xcom),
        mock.patch("airflow_qarnot_pool.triggers.tasks.own_xcom", own_xcom),
        mock.patch("airflow_qarnot_pool.operators.handed_over.state_now", return_value=state),
    ):
        yield


async def kill(trigger: QarnotTrigger) -> None:
    """What a triggerer does when a user ends a deferred task."""
    await trigger.on_kill()
