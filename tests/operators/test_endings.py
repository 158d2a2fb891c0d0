"""Ending remote objects: when an ending operator, trigger or retry may do so, and when it must not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotRefusedError
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.claim import end
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.triggers import tasks as triggers_tasks
from airflow_qarnot_pool.triggers.tasks import resuming, still_waits
from tests.harness import FakeTI, again, airflow_says, defer, fire, kill, life_of
from tests.operators.conftest import connect

one = partial(QarnotRunTaskOperator, task_id="one", retries=1, log_output=False, command="sleep 300")
many = partial(QarnotRunTasksOperator, task_id="many", retries=1, commands=["sleep 300"])
ONE_AND_MANY = pytest.mark.parametrize("make", [one, many], ids=["one", "many"])


def of_run(client: QarnotClient, run_id: str) -> list[Task]:
    return [task for task in client.tasks.iterate() if task.labels.get("airflow.run_id") == run_id]


# --- an end that is refused


class Refusing:
    """A resource that refuses to end its one object."""

    def __init__(self, found: Pool | Task) -> None:
        self.found = found

    def end(self, uuid: str) -> None:
        raise QarnotRefusedError("Action forbidden", status=403)

    def get(self, uuid: str) -> Pool | Task:
        return self.found


@pytest.mark.parametrize("state", ["PendingCancel", "PendingDelete", "Cancelled", "Success", "Failure"])
def test_a_refused_abort_is_fine_once_the_qarnot_task_ends(state: str) -> None:
    end(Refusing(Task(uuid="u", state=state)), "u")  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["Closing", "PendingDelete", "Closed", "Failure"])
def test_a_refused_close_is_fine_once_the_pool_ends(state: str) -> None:
    end(Refusing(Pool(uuid="u", state=state)), "u")  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [Task(uuid="u", state="FullyExecuting"), Pool(uuid="u", state="Submitted")])
def test_a_refused_end_of_what_keeps_running_is_an_error(found: Pool | Task) -> None:
    with pytest.raises(QarnotRefusedError):
        end(Refusing(found), "u")  # type: ignore[arg-type]


@pytest.fixture
def slow_to_cancel(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """A server on which an aborted Qarnot task stays in PendingCancel."""
    with LocalQarnot(boot_seconds=0.05, cancel_seconds=600) as qarnot:
        connect(qarnot, monkeypatch)
        yield qarnot


@ONE_AND_MANY
def test_a_clear_goes_on_though_the_abort_of_a_task_in_pending_cancel_is_refused(
    slow_to_cancel: LocalQarnot, make: Any
) -> None:
    defer(make, FakeTI(max_tries=1, task_id=make.keywords["task_id"]))
    with QarnotClient(slow_to_cancel.url, slow_to_cancel.token) as client:
        (old,) = client.tasks.list()
        client.tasks.abort(old.uuid)
        assert client.tasks.get(old.uuid).state == "PendingCancel"
        refusal = "Action forbidden: abort of a task that is PendingCancel"
        slow_to_cancel.faults(
            [{"kind": "status", "status": 403, "method": "POST", "path": "/abort$", "message": refusal}]
        )
        defer(make, FakeTI(max_tries=3, try_number=2, task_id=make.keywords["task_id"]))
        assert sorted(str(task.state) == "PendingCancel" for task in client.tasks.list()) == [False, True]


# --- cleared while deferred


@pytest.mark.parametrize("state", ["queued", "scheduled", None, "failed", "up_for_retry", "restarting"])
@ONE_AND_MANY
def test_what_a_cleared_task_had_ends_before_its_new_try_starts(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, state: str | None, request: pytest.FixtureRequest
) -> None:
    """The XComs of the old try are there until the new one starts, which a user may prevent by marking it failed."""
    ti = FakeTI(run_id=request.node.name, task_id=make.keywords["task_id"], max_tries=1)
    deferred, _ = defer(make, ti)
    with airflow_says(state, ti.xcoms):
        asyncio.run(kill(again(deferred.trigger)))
    assert {task.state for task in of_run(client, ti.run_id)} <= {"PendingCancel", "Cancelled"}


@pytest.mark.parametrize("state", ["queued", "scheduled", "running", "deferred"])
def test_a_thawed_triggerer_leaves_the_tasks_of_a_fan_out_that_resumes(
    qarnot: LocalQarnot,
    client: QarnotClient,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    request: pytest.FixtureRequest,
) -> None:
    """Another triggerer has fired meanwhile: the same try is on its way to a worker, to submit more."""
    ti = FakeTI(run_id=request.node.name, task_id="many", max_tries=1)

    async def store(life: Any, key: str, value: Any) -> None:
        ti.xcom_push(key, value)

    monkeypatch.setattr(triggers_tasks, "store_xcom", store)
    make = partial(many, commands=["true", "sleep 300", "sleep 300"], max_in_flight=2)
    deferred, _ = defer(make, ti)
    thawed = again(deferred.trigger)
    assert fire(deferred)["carry"]["remembered"] == "0"
    with airflow_says(state, ti.xcoms):
        asyncio.run(kill(thawed))
    assert "FullyExecuting" in {task.state for task in of_run(client, ti.run_id)}
    with airflow_says("failed", ti.xcoms):
        asyncio.run(kill(thawed))


@pytest.mark.parametrize(
    ("state", "stored", "waits"),
    [
        ("deferred", "lineage", True),
        ("running", "lineage", True),
        ("running", "resumes", True),
        ("queued", "resumes", True),
        ("scheduled", "resumes", True),
        ("queued", "lineage", False),
        ("scheduled", "lineage", False),
        ("deferred", "another", False),
        ("running", None, False),
        ("success", "lineage", False),
        ("failed", "resumes", False),
        (None, "resumes", False),
    ],
)
def test_which_states_of_an_airflow_task_keep_its_fan_out(
    state: str | None, stored: str | None, waits: bool
) -> None:
    life = life_of()
    values = {"lineage": life.lineage, "resumes": resuming(life), "another": "another"}
    assert still_waits(state, values.get(stored or ""), life) is waits
