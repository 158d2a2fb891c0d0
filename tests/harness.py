"""Run operators through their real slices, triggers included, without an Airflow database.

``dag.test()`` and real deployments have their own suites; here a slice takes milliseconds, so that many cases
fit, and tries, clears and kills can be arranged exactly.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import NoneType, SimpleNamespace
from typing import Any
from unittest import mock

from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.triggers.base import QarnotTrigger
from airflow_qarnot_pool.version_compat import TaskDeferred

RUN_STARTED = datetime(2026, 1, 1, tzinfo=UTC)


#: Longest link that any slice may store.
LONGEST_LINK = 300
_ALL_MAP_INDEXES: Any = object()


@dataclass
class FakeTI:
    """A task instance as an operator sees it; XComs live as long as the try, as in Airflow.

    ``tests/dags/test_fakes.py`` compares it with Airflow's own task instance.

    :param others: task instances whose XComs it can pull, too.
    """

    dag_id: str = "dag"
    run_id: str = "run"
    task_id: str = "task"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    start_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    xcoms: dict[str, Any] = field(default_factory=dict)
    others: Sequence[FakeTI] = ()

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))  # an XCom must be JSON

    def xcom_pull(
        self,
        task_ids: str | Iterable[str] | None = None,
        dag_id: str | None = None,
        key: str = "return_value",
        include_prior_dates: bool = False,
        *,
        map_indexes: int | Iterable[int] | None = _ALL_MAP_INDEXES,
        default: Any = None,
        run_id: str | None = None,
    ) -> Any:
        """Pull as Airflow does: without *map_indexes* it is the list over all of them."""
        tasks = [self.task_id] if task_ids is None else [task_ids] if isinstance(task_ids, str) else task_ids
        one_task = isinstance(task_ids, (str, NoneType))
        dag_id, run_id = dag_id or self.dag_id, None if include_prior_dates else run_id or self.run_id
        if map_indexes is _ALL_MAP_INDEXES:
            pulled: list[Any] = []
            for task_id in tasks:
                pulled += self._stored(dag_id, run_id, task_id, key).values() or [None]
            return pulled[0] if one_task and len(pulled) == 1 else pulled
        one_index = isinstance(map_indexes, (int, NoneType))
        indexes = [map_indexes] if isinstance(map_indexes, (int, NoneType)) else list(map_indexes)
        pulled = [
            self._stored(dag_id, run_id, task_id, key).get(-1 if index is None else index, default)
            for task_id in tasks
            for index in indexes
        ]
        return pulled[0] if one_task and one_index else pulled

    def _stored(self, dag_id: str, run_id: str | None, task_id: str, key: str) -> dict[int, Any]:
        """The values of all map indexes, in order; without *run_id* the newest of all runs."""
        found = {
            ti.map_index: json.loads(json.dumps(ti.xcoms[key]))
            for ti in (*self.others, self)
            if (ti.dag_id, ti.task_id) == (dag_id, task_id)
            and key in ti.xcoms
            and run_id in (None, ti.run_id)
        }
        return {index: found[index] for index in sorted(found)}

    def end_slice(self, operator: Any) -> dict[str, str]:
        """Store the links of *operator* as Airflow does at the end of each slice, however it ends; return them."""
        links = {one.xcom_key: one.get_link(operator, ti_key=self) for one in operator.operator_extra_links}
        for link in links.values():
            assert isinstance(link, str)
            assert len(link) <= LONGEST_LINK, link
        self.xcoms.update(links)
        return links


def life_of(**fields: Any) -> TaskInstanceIdentity:
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
    return TaskInstanceIdentity(**{**values, **fields})


def context_of(operator: Any, ti: FakeTI | None = None, run_started: datetime = RUN_STARTED) -> Any:
    """The part of Airflow's context that the operators use."""
    ti = ti or FakeTI(task_id=operator.task_id)
    return {"ti": ti, "task": operator, "dag_run": SimpleNamespace(start_date=run_started)}


def with_spec(make: Any, **fields: Any) -> Any:
    """Return a partial operator like *make* with these fields in its ``pool_spec`` or ``task_spec``, too."""
    name = next(name for name in ("pool_spec", "task_spec") if name in make.func.template_fields)
    return partial(make, **{name: {**make.keywords.get(name, {}), **fields}})


def run(make: Any, ti: FakeTI | None = None, run_started: datetime = RUN_STARTED) -> Any:
    """Execute, and wait and resume for as long as it defers, with a new operator object for every slice.

    :param make: makes the operator anew, as each worker process does.
    """
    operator = make()
    context = context_of(operator, ti, run_started)
    try:
        with _slice(operator, context):
            return operator.execute(context)
    except TaskDeferred as deferred:
        return resume(make, deferred, context)


def defer(
    make: Any, ti: FakeTI | None = None, run_started: datetime = RUN_STARTED
) -> tuple[TaskDeferred, Any]:
    """Execute an operator that must defer; returns the deferral and the context.

    It also defers if the object has reached its target before.
    """
    operator = make()
    operator._wait_before_deferring = lambda *_: None
    operator._ends_soon = lambda *_: False
    context = context_of(operator, ti, run_started)
    try:
        with _slice(operator, context):
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
        kwargs = {**(deferred.kwargs or {}), "event": event}
        try:
            with _slice(operator, context):
                return operator.resume_execution(deferred.method_name, kwargs, context)
        except TaskDeferred as again:
            deferred = again


@contextmanager
def _slice(operator: Any, context: Any) -> Iterator[None]:
    """What a task process does around the operator."""
    try:
        yield
    finally:
        if isinstance(context["ti"], FakeTI):
            context["ti"].end_slice(operator)


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

    async def task_state(identity: Any) -> str | None:
        return state

    async def own_xcom(identity: Any, key: str) -> Any:
        return (xcoms or {}).get(key)

    with (
        mock.patch("airflow_qarnot_pool.triggers.task.task_state", task_state),
        mock.patch("airflow_qarnot_pool.triggers.pool.task_state", task_state),
        mock.patch("airflow_qarnot_pool.triggers.tasks.task_state", task_state),
        mock.patch("airflow_qarnot_pool.triggers.task.own_xcom", own_xcom),
        mock.patch("airflow_qarnot_pool.triggers.tasks.own_xcom", own_xcom),
        mock.patch(
            "airflow_qarnot_pool.operators.kill_after_deferral.task_instance_state", return_value=state
        ),
    ):
        yield


async def kill(trigger: QarnotTrigger) -> None:
    """What a triggerer does when a user ends a deferred task."""
    await trigger.on_kill()
