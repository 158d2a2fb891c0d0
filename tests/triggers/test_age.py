"""No trigger fires before Airflow's scheduler has read that the process that deferred has ended."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.triggers import age
from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger
from airflow_qarnot_pool.triggers.quota import QarnotQuotaTrigger, QarnotWarmUpRoomTrigger
from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger
from airflow_qarnot_pool.triggers.tasks import QarnotTasksTrigger
from airflow_qarnot_pool.version_compat import TaskDeferred
from airflow_qarnot_pool.waiting.conditions import POOL_READY, TASK_ENDED
from tests.crash.children import eventually
from tests.harness import FakeTI, again, context_of, first_event

COMMON: dict[str, Any] = {"qarnot_conn_id": "qarnot_default", "poll_interval": 0.05}
PAST = "2026-01-01T00:00:00+00:00"
ENDED, READY = TASK_ENDED.to_kwargs(), POOL_READY.to_kwargs()


def seconds_to_fire(trigger: Any, *, scheduled: bool) -> float:
    async def fire() -> float:
        begun = asyncio.get_running_loop().time()
        made = again(trigger)
        made.task_instance = FakeTI() if scheduled else None
        await first_event(made)
        return asyncio.get_running_loop().time() - begun

    return asyncio.run(fire())


#: Each would fire at once.
TRIGGERS: dict[str, Any] = {
    "task": partial(QarnotTaskTrigger, condition=ENDED),
    "pool": partial(QarnotPoolTrigger, condition=READY),
    "out of time": partial(QarnotTaskTrigger, condition=READY, deadline=PAST),
    "many": partial(QarnotTasksTrigger, condition={"low_water": 0, "expected": 0}),
    "room": lambda uuid, **kwargs: QarnotQuotaTrigger(kind="task", deadline=PAST, **kwargs),
    "room for a warm-up": partial(QarnotWarmUpRoomTrigger, condition={}, deadline=PAST),
}


@pytest.mark.parametrize("kind", TRIGGERS)
def test_no_trigger_of_a_scheduled_task_fires_before_it_is_old_enough(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(age, "MIN_AGE", 1.5)
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    eventually(lambda: client.tasks.get(uuid).state == "Success")
    eventually(lambda: client.pools.get(pool).state == "FullyExecuting")
    trigger = TRIGGERS[kind](uuid=pool if kind == "pool" else uuid, **COMMON)
    assert seconds_to_fire(trigger, scheduled=True) >= 1.5


def test_without_a_scheduler_a_trigger_fires_at_once(qarnot: LocalQarnot) -> None:
    """As in ``dag.test()``."""
    assert seconds_to_fire(TRIGGERS["many"](uuid="none", **COMMON), scheduled=False) < age.MIN_AGE


def test_a_trigger_that_is_old_enough_fires_at_once(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: list[float] = []

    async def reached(self: age.TriggerAge) -> None:
        missing.append(self.missing)

    monkeypatch.setattr(age, "MIN_AGE", 0.5)
    monkeypatch.setattr(age.TriggerAge, "reached", reached)
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="sleep 1"))
    seconds_to_fire(TRIGGERS["task"](uuid=uuid, **COMMON), scheduled=True)
    assert missing[-1] == 0.0


@pytest.mark.parametrize("kind", ["task", "pool"])
def test_a_trigger_does_not_poll_before_it_may_fire(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its interval is a twentieth of that time, and a new trigger of a running object would poll in each."""
    monkeypatch.setattr(age, "MIN_AGE", 1.0)
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    eventually(lambda: client.tasks.get(uuid).state == "Success")
    eventually(lambda: client.pools.get(pool).state == "FullyExecuting")
    qarnot.clear_requests()
    seconds_to_fire(TRIGGERS[kind](uuid=pool if kind == "pool" else uuid, **COMMON), scheduled=True)
    assert sent(qarnot) == [f"POST /{kind}s/search"]


def test_a_trigger_that_follows_an_output_polls_before_it_may_fire(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to know that the Qarnot task runs."""
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    eventually(lambda: client.tasks.get(uuid).state == "Success")
    qarnot.clear_requests()
    monkeypatch.setattr(age.TriggerAge, "reached", lambda self: polled_once(qarnot))
    seconds_to_fire(TRIGGERS["task"](uuid=uuid, follow_logs={"uuid": uuid}, **COMMON), scheduled=True)


async def polled_once(qarnot: LocalQarnot) -> None:
    assert "POST /tasks/search" in sent(qarnot)


def sent(qarnot: LocalQarnot) -> list[str]:
    return [f"{one['method']} {one['path']}" for one in qarnot.requests()]


def test_a_state_reached_before_the_deferral_needs_none(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferral costs a second process, and the age of its trigger."""
    make = partial(QarnotRunTaskOperator, task_id="work", qarnot_pool=pool, command="true", log_output=False)
    operator = make(defer_after=5)
    wait = operator._wait_before_deferring

    def when_it_is_done(uuid: str, *args: Any) -> Any:
        eventually(lambda: client.tasks.get(uuid).state == "Success")
        return wait(uuid, *args)

    monkeypatch.setattr(operator, "_wait_before_deferring", when_it_is_done)
    assert operator.execute(context_of(operator, FakeTI(run_id="before")))["state"] == "Success"


def test_an_outage_at_the_poll_before_the_deferral_is_left_to_the_trigger(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    operator = QarnotRunTaskOperator(
        task_id="work", qarnot_pool=pool, command="sleep 60", log_output=False, defer_after=5
    )
    ti = FakeTI(run_id="outage")
    qarnot.faults([{"method": "GET", "path": "^/tasks/", "kind": "status", "status": 503}])
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))
    assert len([one for one in qarnot.requests() if one["method"] == "GET"]) == 1
    qarnot.faults([])
    client.tasks.abort(ti.xcoms["qarnot_task"])
