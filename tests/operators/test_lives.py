"""Exactly one, never left on: what becomes of remote objects when Airflow tasks are tried again, cleared or ended.

Against a local Qarnot that enforces unique shortnames and one that does not.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.api.transport import Response, Transport, _NoResponse
from airflow_qarnot_pool.exceptions import (
    QarnotCredentialsError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotRefusedError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
    QarnotUnavailableError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators import create_pool
from airflow_qarnot_pool.operators.bases import task as bases_task
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.triggers import base as triggers_base
from airflow_qarnot_pool.version_compat import (
    AirflowNotFoundException,
    TaskDeferralError,
    TaskDeferralTimeout,
    TaskDeferred,
)
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult
from airflow_qarnot_pool.waiting.polling import KillFlag
from tests.crash.children import (
    KILL_GRACE,
    Child,
    StoringTI,
    eventually,
    fork,
    made_for,
    worker,
)
from tests.harness import (
    RUN_STARTED,
    FakeTI,
    again,
    airflow_says,
    context_of,
    defer,
    fire,
    first_event,
    kill,
    resume,
    run,
    with_spec,
)
from tests.operators.conftest import WAITS, WORKER_WAITS, connect

task = partial(QarnotRunTaskOperator, task_id="work", retries=1, log_output=False)
create = partial(QarnotCreatePoolOperator, task_id="create", retries=1)
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
KINDS = pytest.mark.parametrize("kind", ["pool", "task"], indirect=True)
TASKS = pytest.mark.parametrize("kind", ["task"], indirect=True)
#: Where names do not matter one server does.
ANY_SERVER = pytest.mark.parametrize("qarnot", ["enforce"], indirect=True)
ANOTHER_DAY = datetime(2026, 2, 2, tzinfo=UTC)
NO_NODE = {"type": "Fixed", "slotsCount": 0, "name": "none"}


@pytest.fixture(scope="module")
def free_server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.05, close_seconds=0.05, shortnames="free") as qarnot:
        yield qarnot


@pytest.fixture(params=["enforce", "free"])
def qarnot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """Each test runs against a server that enforces unique shortnames and against one that does not."""
    found: LocalQarnot = request.getfixturevalue("server" if request.param == "enforce" else "free_server")
    connect(found, monkeypatch)
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.05")
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.05)
    found.clear_requests()
    yield found
    found.faults([])


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A command that runs until ``tmp_path/go`` exists."""
    return f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'"


def life_kwargs(run_id: str, task_id: str = "work", **changes: Any) -> dict[str, Any]:
    return {
        "namespace": "test",
        "dag_id": "dag",
        "run_id": run_id,
        "task_id": task_id,
        "map_index": -1,
        "run_started": "2026-01-01T00:00:00+00:00",
        "max_tries": 1,
        "try_number": 1,
        "retries": 1,
        "role": "",
        **changes,
    }


class Story:
    """The same story for pools and Qarnot tasks: how to begin one that stays waiting, and how to look at it."""

    def __init__(self, kind: str, client: QarnotClient, make: Any, run_id: str) -> None:
        self.kind, self.make, self.run_id = kind, make, run_id
        self.resource: Any = client.pools if kind == "pool" else client.tasks
        self.key = {"pool": "qarnot_pool", "task": "qarnot_task", "many": "qarnot_tasks"}[kind]
        self.path = f"^/{kind}s$"
        self.end_path = "/close$" if kind == "pool" else "/abort$"
        self.task_id = "create" if kind == "pool" else "work"

    def ti(self, try_number: int = 1, **fields: Any) -> FakeTI:
        given = {"run_id": self.run_id, "task_id": self.task_id, "max_tries": 1, **fields}
        return FakeTI(try_number=try_number, **given)

    def start(self, try_number: int = 1, *, make: Any = None, **fields: Any) -> str:
        """Begin a try that defers and stays so; the uuid of what it waits for."""
        started = fields.pop("run_started", RUN_STARTED)
        ti = self.ti(try_number, **fields)
        defer(make or self.make, ti, started)
        return str(ti.xcoms[self.key])

    def child(
        self, try_number: int = 1, make: Any = None, *, deferrable: bool = False, **fields: Any
    ) -> Child:
        """The same on a worker of its own, waiting there. *deferrable*: with a long ``defer_after``."""
        given = {"run_id": self.run_id, "task_id": self.task_id, "max_tries": 1, **fields}
        ti = StoringTI(try_number=try_number, **given)
        return fork(worker(partial(make or self.make, deferrable=deferrable), ti))

    def wait_known(self, child: Child) -> None:
        """Wait until *child* has stored the uuid: other XComs, such as a link to its pool, come earlier."""
        while not any(one["kind"] == "xcom" and one["key"] == self.key for one in child.said):
            assert child.status is None, child.said
            child.read()

    def made(self) -> list[str]:
        return [one.uuid for one in made_for(self.resource, self.run_id, role="")]

    def state(self, uuid: str) -> str:
        return str(self.resource.get(uuid).state)

    def ended(self, uuid: str) -> bool:
        return self.state(uuid) in ("PendingCancel", "Cancelled", "Closing", "Closed")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def story(kind: str, client: QarnotClient, pool: str, held: str, run_id: str) -> Iterator[Story]:
    """What is begun here is never done by itself: tasks wait for a file, pools for a node that never comes."""
    makes = {
        "pool": partial(create, pool_spec={"scaling": {"policies": [NO_NODE]}}, ready_when=1),
        "task": partial(task, qarnot_pool=pool, command=held),
        "many": partial(QarnotRunTasksOperator, task_id="work", retries=1, qarnot_pool=pool, commands=[held]),
    }
    story = Story(kind, client, makes[kind], run_id)
    yield story
    for one in made_for(story.resource, run_id):
        with suppress(QarnotNotFoundError):  # one that is told to go may be gone by now
            story.resource.delete(one.uuid)


@contextmanager
def exchanging(replace: Any) -> Iterator[None]:
    """Stand between client and server: ``replace(send, call)``, where ``send()`` does what the client does."""
    real = Transport._exchange
    with mock.patch.object(
        Transport, "_exchange", lambda self, call: replace(partial(real, self, call), call)
    ):
        yield


# --- retries: the same life


@KINDS
def test_a_retry_takes_over_what_lives(qarnot: LocalQarnot, story: Story) -> None:
    first = story.start()
    assert story.start(try_number=2) == first
    assert story.made() == [first]
    assert not story.ended(first)


@MODES
def test_a_retry_takes_over_a_live_task_to_its_end(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    run_id: str,
    held: str,
    tmp_path: Path,
    deferrable: bool,
) -> None:
    make = partial(task, qarnot_pool=pool, command=held)
    first, _ = defer(make, FakeTI(run_id=run_id, max_tries=1))
    (tmp_path / "go").touch()
    result = run(partial(make, deferrable=deferrable), FakeTI(run_id=run_id, max_tries=1, try_number=2))
    assert result["uuid"] == first.trigger.uuid
    assert result["state"] == "Success"
    assert len(made_for(client.tasks, run_id)) == 1


def test_a_retry_takes_the_result_of_what_succeeded(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, tmp_path: Path
) -> None:
    make = partial(task, qarnot_pool=pool, command=f"sh -c 'echo ran >> {tmp_path}/ran'")
    first = run(make, FakeTI(run_id=run_id, max_tries=1))
    assert run(make, FakeTI(run_id=run_id, max_tries=1, try_number=2)) == first
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_a_retry_after_a_failure_submits_the_next_generation(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, tmp_path: Path
) -> None:
    make = partial(task, qarnot_pool=pool, command=f"test -e {tmp_path}/mended", retries=3)
    for try_number in (1, 2):
        with pytest.raises(QarnotTaskFailedError):
            run(make, FakeTI(run_id=run_id, max_tries=3, try_number=try_number))
    (tmp_path / "mended").touch()
    assert run(make, FakeTI(run_id=run_id, max_tries=3, try_number=3))["state"] == "Success"
    made = made_for(client.tasks, run_id)
    assert [one.shortname.rsplit("-", 1)[1] for one in made] == ["1", "2", "3"]
    assert [one.labels["airflow.try_number"] for one in made] == ["1", "2", "3"]


@KINDS
def test_an_object_ended_between_two_tries_is_replaced(qarnot: LocalQarnot, story: Story) -> None:
    first = story.start()
    story.resource.end(first)
    # Cancelled, and not just on its way there: that is the next test but one.
    eventually(lambda: story.state(first) in ("Cancelled", "Closing", "Closed"))
    second = story.start(try_number=2)
    assert story.made() == [first, second]


@KINDS
def test_another_spec_ends_the_old_one_and_takes_the_next_generation(
    qarnot: LocalQarnot, story: Story
) -> None:
    first = story.start()
    second = story.start(try_number=2, make=with_spec(story.make, constants={"TRY": "2"}))
    assert second != first
    assert story.ended(first)
    assert story.resource.get(second).shortname == story.resource.get(first).shortname[:-1] + "2"


def test_a_success_of_another_spec_is_not_this_work(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str
) -> None:
    first = run(partial(task, qarnot_pool=pool, command="echo a"), FakeTI(run_id=run_id, max_tries=1))
    second = run(
        partial(task, qarnot_pool=pool, command="echo b"), FakeTI(run_id=run_id, max_tries=1, try_number=2)
    )
    assert second["uuid"] != first["uuid"]


def test_a_success_on_another_pool_is_this_work(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str
) -> None:
    """Clearing a sibling makes the setup task run again: what succeeded on the old pool is done all the same."""
    first = run(partial(task, qarnot_pool=pool, command="true"), FakeTI(run_id=run_id, max_tries=1))
    client.pools.close(pool)
    other = client.pools.create(PoolSpec(name="other", instance_count=1))
    again = FakeTI(run_id=run_id, max_tries=1, try_number=2)
    assert run(partial(task, qarnot_pool=other, command="true"), again)["uuid"] == first["uuid"]
    client.pools.delete(other)


def taken_over(make: Callable[..., Any], run_id: str) -> tuple[TaskDeferred, TaskDeferred, Any]:
    """Let a retry take over what the first try waits for. Return both deferrals, and the retry's context."""
    first, _ = defer(make, FakeTI(run_id=run_id, max_tries=1))
    second, context = defer(make, FakeTI(run_id=run_id, max_tries=1, try_number=2))
    return first, second, context


def test_one_taken_over_and_cancelled_by_somebody_is_submitted_again_once(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, held: str
) -> None:
    make = partial(task, qarnot_pool=pool, command=held)
    first, second, context = taken_over(make, run_id)
    client.tasks.abort(first.trigger.uuid)
    with pytest.raises(TaskDeferred) as deferred:
        make().resume_execution(second.method_name, {"event": fire(second)}, context)
    resubmitted = deferred.value.trigger.uuid
    assert [one.uuid for one in made_for(client.tasks, run_id)] == [first.trigger.uuid, resubmitted]
    assert deferred.value.trigger.identity == second.trigger.identity
    client.tasks.abort(resubmitted)
    with pytest.raises(QarnotTaskCancelledError):
        resume(make, deferred.value, context)
    assert len(made_for(client.tasks, run_id)) == 2


def test_one_taken_over_and_cancelled_is_submitted_again_though_searches_still_show_it_as_live(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, held: str
) -> None:
    make = partial(task, qarnot_pool=pool, command=held)
    first, second, context = taken_over(make, run_id)
    qarnot.lag_searches(3600)
    try:
        client.tasks.abort(first.trigger.uuid)
        eventually(lambda: client.tasks.get(first.trigger.uuid).state == "Cancelled")
        outcome = WaitResult(
            ending=EndReason.MET,
            uuid=first.trigger.uuid,
            state="Cancelled",
            resume_state=second.trigger.resume_state,
        )
        with pytest.raises(TaskDeferred) as deferred:
            make().resume_execution(second.method_name, {"event": outcome.to_event()}, context)
    finally:
        qarnot.lag_searches(0)
    resubmitted = deferred.value.trigger.uuid
    assert [one.uuid for one in made_for(client.tasks, run_id)] == [first.trigger.uuid, resubmitted]
    client.tasks.abort(resubmitted)


@TASKS
@pytest.mark.parametrize("looked", [True, False], ids=["while it is waited for", "before it is looked up"])
def test_a_cancel_by_somebody_is_not_undone_where_only_the_answer_was_lost(
    qarnot: LocalQarnot, client: QarnotClient, story: Story, looked: bool
) -> None:
    """No earlier try has left it on its way out: whoever cancelled it meant this one."""

    def network(send: Any, call: Any) -> Response:
        if call.method == "POST" and re.search(story.path, call.path):
            made = json.loads(send().body)["uuid"]
            if not looked:
                client.tasks.abort(made)
                eventually(lambda: story.state(made) == "Cancelled")
            raise _NoResponse("no complete answer", touched=True)
        return send()  # type: ignore[no-any-return]

    with exchanging(network):
        if looked:
            deferred, context = defer(story.make, story.ti())
        else:
            with pytest.raises(QarnotTaskCancelledError):
                story.make().execute(context_of(story.make(), story.ti()))
    if looked:
        client.tasks.abort(deferred.trigger.uuid)
        with pytest.raises(QarnotTaskCancelledError):
            story.make().resume_execution(deferred.method_name, {"event": fire(deferred)}, context)
    assert len(story.made()) == 1


@MODES
@TASKS
@pytest.mark.usefixtures("defers_at_once")
def test_submitting_again_does_not_lengthen_the_wait(
    qarnot: LocalQarnot, client: QarnotClient, story: Story, deferrable: bool
) -> None:
    first = story.start()
    make = partial(story.make, wait_timeout=timedelta(seconds=1))
    if deferrable:
        deferred, context = defer(make, story.ti(try_number=2))
        client.tasks.abort(first)
        with pytest.raises(TaskDeferred) as again_deferred:
            make().resume_execution(deferred.method_name, {"event": fire(deferred)}, context)
        assert again_deferred.value.trigger.deadline == deferred.trigger.deadline
    else:
        child = story.child(try_number=2, make=make)
        story.wait_known(child)
        client.tasks.abort(first)
        child.wait(patience=20)
        assert child.said[-1]["error"] == "QarnotWaitTimeoutError"
    assert len(story.made()) == 2


# --- clears and neighbours: other lives


LATER = {"a clear": {"max_tries": 2}, "a clear of the finished run": {"run_started": ANOTHER_DAY}}


@KINDS
@pytest.mark.parametrize("change", LATER.values(), ids=LATER.keys())
def test_a_clear_ends_what_lives_and_starts_anew(
    qarnot: LocalQarnot, story: Story, change: dict[str, Any]
) -> None:
    old = story.start()
    new = story.start(try_number=2, **change)
    assert new != old
    assert story.ended(old)
    assert not story.ended(new)
    # And the retries of the new life are its own.
    assert story.start(try_number=3, **change) == new


@pytest.mark.parametrize("change", LATER.values(), ids=LATER.keys())
def test_a_clear_after_success_runs_again(
    qarnot: LocalQarnot, pool: str, run_id: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    make = partial(task, qarnot_pool=pool, command=f"sh -c 'echo ran >> {tmp_path}/ran'")
    started = change.get("run_started", RUN_STARTED)
    run(make, FakeTI(run_id=run_id, max_tries=1))
    cleared = FakeTI(run_id=run_id, try_number=2, max_tries=change.get("max_tries", 1))
    run(make, cleared, started)
    assert (tmp_path / "ran").read_text() == "ran\nran\n"


def test_a_clear_that_leaves_max_tries_alone_runs_again_all_the_same(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str
) -> None:
    """Editing ``retries`` and clearing can give the same max_tries, so the same lineage: the label tells."""
    command = "sh -c 'test $INSTANCE_ID -ne 1'"
    make = partial(task, qarnot_pool=pool, command=command, instance_count=3)
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id=run_id, max_tries=1))
    with pytest.raises(QarnotTaskFailedError):
        run(partial(make, retries=0), FakeTI(run_id=run_id, max_tries=1, try_number=2))
    # A clear means all of it, not only the instances that the life before left over.
    assert [one.instances for one in made_for(client.tasks, run_id)] == [3, 3]


@KINDS
def test_a_run_deleted_and_made_again_knows_nothing_of_its_predecessor(
    qarnot: LocalQarnot, story: Story
) -> None:
    old = story.start()
    new = story.start(run_started=ANOTHER_DAY)
    assert new != old
    assert story.start(try_number=2, run_started=ANOTHER_DAY) == new


NEIGHBOURS: dict[str, dict[str, Any]] = {
    "map index": {"map_index": 4},
    "run": {"run_id": "another"},
    "dag": {"dag_id": "another"},
    "task": {"task_id": "group.another"},
}


@KINDS
@pytest.mark.parametrize("change", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_neighbours_are_kept_apart(qarnot: LocalQarnot, story: Story, change: dict[str, Any]) -> None:
    mine = story.start(map_index=3)
    theirs = story.start(try_number=2, **{"map_index": 3, **change})
    assert theirs != mine
    assert not story.ended(mine)
    assert story.start(try_number=2, map_index=3) == mine
    story.resource.delete(theirs)


@KINDS
def test_two_namespaces_on_one_account_do_not_see_each_other(
    qarnot: LocalQarnot, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = story.start()
    connect(qarnot, monkeypatch, namespace="staging")
    theirs = story.start(try_number=2)
    cleared = story.start(try_number=2, max_tries=2)
    assert len({mine, theirs, cleared}) == 3
    assert story.ended(theirs)
    assert not story.ended(mine)


# --- answers that are lost, late or nonsense


@dataclass(frozen=True)
class Weather:
    """What happens to the first creating requests: rules for the server, or an answer from a proxy."""

    rules: tuple[dict[str, Any], ...] = ()
    answer: Response | None = None
    timeout: float = 30.0


def _answer(status: int, body: str) -> Response:
    return Response(status=status, body=body.encode(), content_type="text/html", retry_after=None)


WEATHER = {
    "lost": Weather(({"kind": "lost"},)),
    "garbage": Weather(({"kind": "garbage"},)),
    "reset": Weather(({"kind": "reset"},)),
    "reset twice": Weather(({"kind": "reset", "times": 2},)),
    "429": Weather(({"kind": "status", "status": 429, "retry_after": 0.01, "times": 3},)),
    **{f"{n}, not done": Weather(({"kind": "status", "status": n},)) for n in (408, 500, 502, 503, 504)},
    **{f"{n}, but done": Weather(answer=_answer(n, "<html>upstream")) for n in (408, 500, 502, 504, 520)},
    "done, but no uuid": Weather(answer=_answer(200, "{}")),
    "slower than the time-out": Weather(({"kind": "delay", "seconds": 5},), timeout=0.5),
    "slower than the time-out, and done late": Weather(
        ({"kind": "delay", "seconds": 1, "when": "before"},), timeout=0.5
    ),
    "lost, and so is the look": Weather(
        ({"kind": "lost"}, {"kind": "lost", "path": "paginate$"}, {"kind": "reset", "path": "paginate$"})
    ),
}


@KINDS
@pytest.mark.parametrize("weather", WEATHER.values(), ids=WEATHER.keys())
def test_whatever_becomes_of_the_answer_there_is_one(
    qarnot: LocalQarnot, story: Story, weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(qarnot, monkeypatch, timeout=weather.timeout)
    qarnot.faults([{"method": "POST", "path": story.path, "times": 1, **rule} for rule in weather.rules])
    answers = [weather.answer] if weather.answer else []

    def proxy(send: Any, call: Any) -> Response:
        answer: Response = send()
        return answers.pop() if answers and re.search(story.path, call.path) else answer

    with exchanging(proxy):
        uuid = story.start()
    qarnot.faults([])
    assert story.made() == [uuid]
    assert not story.ended(uuid)
    assert story.start(try_number=2) == uuid


@KINDS
@pytest.mark.parametrize("asked", [60, 7200])
@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_a_server_that_wants_to_be_left_alone_is_first_asked_what_it_has_made(
    qarnot: LocalQarnot, story: Story, done: bool, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have made a pool, which is billed meanwhile."""
    waits: list[float] = []
    monkeypatch.setattr("airflow_qarnot_pool.ownership.claim.MAX_WAIT", 20)
    monkeypatch.setattr(KillFlag, "wait", lambda self, seconds: waits.append(seconds) or self.is_set())
    answers = [replace(_answer(503, "<html>upstream"), retry_after=str(asked))]
    created: list[str] = []

    def proxy(send: Any, call: Any) -> Response:
        if not re.search(story.path, call.path):
            return send()  # type: ignore[no-any-return]
        created.append(call.path)
        answer: Response = send() if done or not answers else answers[0]
        return answers.pop() if answers else answer

    with exchanging(proxy):
        if done or asked < 120:
            uuid = story.start()
            assert story.made() == [uuid]
        else:
            with pytest.raises(QarnotUnavailableError):
                story.start()
            assert story.made() == []
    assert waits == ([20, 40] if asked == 60 and not done else [20])
    assert len(created) == len(waits)


@KINDS
@pytest.mark.parametrize("overtaken", [True, False], ids=["after the second", "before the second"])
def test_a_request_given_up_that_takes_effect_late_leaves_one(
    qarnot: LocalQarnot, story: Story, overtaken: bool
) -> None:
    """Where names are not enforced this makes two, and one stays: the oldest, as far as dates can tell."""
    given_up: list[Any] = []

    def network(send: Any, call: Any) -> Response:
        if call.method != "POST" or not re.search(story.path, call.path):
            return send()  # type: ignore[no-any-return]
        if not given_up:
            given_up.append(send)
            raise _NoResponse("no complete answer", touched=True)
        if not overtaken:
            given_up[0]()
            return send()  # type: ignore[no-any-return]
        answer: Response = send()
        given_up[0]()
        return answer

    with exchanging(network):
        uuid = story.start()
    assert len(story.made()) == (1 if enforces(qarnot, story.kind) else 2)
    assert [one for one in story.made() if not story.ended(one)] == [uuid]
    assert story.start(try_number=2) == uuid


@KINDS
def test_a_name_that_a_stranger_has_is_an_error_that_names_it(qarnot: LocalQarnot, story: Story) -> None:
    name = TaskInstanceIdentity.from_kwargs(life_kwargs(story.run_id, story.task_id)).shortname(1)
    spec = (
        PoolSpec(name="x", shortname=name)
        if story.kind == "pool"
        else TaskSpec(name="x", shortname=name, command="sleep 60", instance_count=1)
    )
    stranger = story.resource.create(spec)
    if enforces(qarnot, story.kind):
        with pytest.raises(QarnotNameTakenError, match=stranger):
            story.start()
    else:
        assert story.start() != stranger
    assert not story.ended(stranger)
    story.resource.delete(stranger)


def enforces(qarnot: LocalQarnot, kind: str) -> bool:
    answers = qarnot.call("GET", "/_local/readings")
    accepts = kind == "pool" and answers["pool_name_taken"] == "accepted"
    return not accepts and answers["name_of_closed_pool"] != "not enforced"


# --- what is written on them


@ANY_SERVER
@KINDS
def test_tags_and_labels_are_as_promised_and_tell_no_secret(
    qarnot: LocalQarnot, story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = {
        "QARNOT_SECRET__KEY": "very-secret",
        "DOCKER_REGISTRY_PASSWORD": "hush-hush",
        "COLOUR": "red",
    }
    make = with_spec(story.make, constants=constants, tags=["mine"], labels={"team": "x"})
    ti = story.ti(map_index=7)
    deferred, _ = defer(make, ti)
    one = story.resource.get(ti.xcoms[story.key])
    identity = TaskInstanceIdentity.from_kwargs(life_kwargs(story.run_id, story.task_id, map_index=7))
    assert set(one.tags) == {
        "mine",
        "airflow-namespace:test",
        f"airflow-owner:{identity.owner}",
        f"airflow-lineage:{identity.lineage}",
    }
    spec = one.labels["airflow.spec"]
    assert one.labels == {
        "team": "x",
        "airflow.format": "1",
        "airflow.namespace": "test",
        "airflow.dag_id": "dag",
        "airflow.run_id": story.run_id,
        "airflow.task_id": story.task_id,
        "airflow.map_index": "7",
        "airflow.role": "",
        "airflow.run_started": RUN_STARTED.isoformat(),
        "airflow.try_number": "1",
        "airflow.retries": "1",
        "airflow.lineage": identity.lineage,
        "airflow.generation": "1",
        "airflow.spec": spec,
        # A record is enough of the end of a Qarnot task whose output is not logged.
        **({"airflow.recordable": "true"} if story.kind == "task" else {}),
    }
    assert one.shortname == identity.shortname(1)
    # The server would delete what no one has read yet.
    assert one.auto_delete_on_completion is False
    assert one.completion_ttl == timedelta(days=7)
    told = json.dumps([one.labels, list(one.tags), deferred.trigger.serialize(), ti.xcoms, one.name])
    told += "".join(capsys.readouterr())
    assert not [word for word in ("very-secret", "hush-hush", qarnot.token) if word in told]


@ANY_SERVER
def test_labels_of_ours_cannot_be_given(qarnot: LocalQarnot, pool: str) -> None:
    make = partial(task, qarnot_pool=pool, command="true", task_spec={"labels": {"airflow.dag_id": "x"}})
    with pytest.raises(QarnotInvalidSpecError, match=r"airflow\.dag_id"):
        run(make)


# --- killed while it runs on a worker


@WORKER_WAITS
@KINDS
def test_a_kill_on_the_worker_ends_it_within_the_grace(
    qarnot: LocalQarnot, story: Story, deferrable: bool
) -> None:
    child = story.child(deferrable=deferrable)
    story.wait_known(child)
    child.kill(signal.SIGTERM)
    assert child.wait(patience=KILL_GRACE) == 0
    assert child.said[-1]["error"] == "QarnotKilledError"
    (uuid,) = story.made()
    assert story.ended(uuid)


def kill_in(owner: Any, name: str, work: Any, *, goes_on: bool = True) -> None:
    """Kill a worker while it is in that method for the first time.

    :param goes_on: it goes on after the handler of the signal. Otherwise the method takes longer than the grace.
    """
    method, handled = getattr(owner, name), []

    def stopped(say: Any) -> None:
        def slow(operator: Any, *args: Any) -> Any:
            if not handled:
                on_term: Any = signal.getsignal(signal.SIGTERM)
                signal.signal(signal.SIGTERM, lambda *given: handled.append(on_term(*given)))
                say({"kind": "there"})
                eventually(lambda: handled)
                say({"kind": "handled"})
            while not goes_on:
                signal.pause()
            return method(operator, *args)

        with mock.patch.object(owner, name, slow):
            work(say)

    child = fork(stopped)
    while child.last("there") is None:
        assert child.status is None, child.said
        child.read()
    child.kill(signal.SIGTERM)
    if goes_on:
        assert child.wait(patience=KILL_GRACE) == 0
        assert child.said[-1]["error"] == "QarnotKilledError"
    else:
        while child.last("handled") is None:
            child.read()
        child.kill(signal.SIGKILL)
        child.wait()


#: Importing and asking for the connection take longer than most requests.
kill_early = partial(kill_in, QarnotOperator, "_identity_of")


@ANY_SERVER
@KINDS
def test_a_kill_before_anything_is_begun_begins_nothing(qarnot: LocalQarnot, story: Story) -> None:
    make = partial(story.make, deferrable=False)
    ti = StoringTI(run_id=story.run_id, task_id=story.task_id)
    kill_early(worker(make, ti))
    assert story.made() == []
    # The same when it is resumed: what it had begun before is ended then.
    uuid = story.start()
    state = "FullyExecuting" if story.kind == "pool" else "Success"
    event = {"status": "met", "uuid": uuid, "state": state, "message": "", "resume_state": {}}
    kill_early(worker(make, ti, ("execute_complete", {"event": event})))
    assert story.ended(uuid)


@ANY_SERVER
@pytest.mark.parametrize("kind", ["many"], indirect=True)
@pytest.mark.parametrize("in_flight", [1, 2], ids=["one is to be submitted", "all are in flight"])
@pytest.mark.parametrize("method", ["execute_complete", "execute_with_quota_room"])
def test_a_killed_fan_out_that_resumes_ends_its_items(
    qarnot: LocalQarnot, story: Story, held: str, in_flight: int, method: str
) -> None:
    make = partial(story.make, commands=[held] * 2)
    deferred, _ = defer(partial(make, max_in_flight=in_flight), story.ti())
    carried = {"resume_state": deferred.trigger.resume_state, "deadline": ANOTHER_DAY.isoformat()}
    event = {"status": "met", "uuid": deferred.trigger.uuid, **carried}
    kill_early(worker(make, StoringTI(**vars(story.ti())), (method, {"event": event})))
    items = made_for(story.resource, story.run_id)
    assert [story.ended(item.uuid) for item in items] == [True] * in_flight


#: The try that does not get to its claim: whether another one would.
TRIES = {
    "the last try": ({"try_number": 2}, False),
    "the last try after a clear": ({"try_number": 3, "max_tries": 2}, False),
    "a try is left": ({"try_number": 2, "max_tries": 2}, True),
}


@ANY_SERVER
@pytest.mark.parametrize("kind", ["pool", "task", "many"], indirect=True)
@pytest.mark.parametrize(("fields", "is_retried"), TRIES.values(), ids=TRIES.keys())
def test_a_try_that_fails_before_its_claim_ends_what_earlier_ones_left(
    qarnot: LocalQarnot, story: Story, fields: dict[str, Any], is_retried: bool
) -> None:
    story.start()
    (old,) = story.made()
    operator = story.make(wait_timeout="{{ params.limit }}")
    operator.wait_timeout = "soon"
    with pytest.raises(QarnotInvalidSpecError):
        run(lambda: operator, story.ti(**fields))
    # A setup that fails closes its pool in any case.
    assert story.ended(old) is (story.kind == "pool" or not is_retried)


@ANY_SERVER
@pytest.mark.parametrize("kind", ["pool", "task", "many"], indirect=True)
@pytest.mark.parametrize("fields", [fields for fields, _ in TRIES.values()], ids=TRIES.keys())
def test_a_kill_before_the_claim_ends_what_earlier_tries_left(
    qarnot: LocalQarnot, story: Story, fields: dict[str, Any]
) -> None:
    """An environment may take minutes to resolve before that."""
    story.start()
    (old,) = story.made()
    ti = StoringTI(**vars(story.ti(**fields)))
    make = partial(story.make, deferrable=False)
    work = worker(make, ti)
    kill_in(create_pool if story.kind == "pool" else bases_task, "check_rendered", work, goes_on=False)
    assert story.made() == [old]
    assert story.ended(old)


@ANY_SERVER
@KINDS
def test_a_first_try_that_fails_before_its_claim_requests_nothing(qarnot: LocalQarnot, story: Story) -> None:
    operator = story.make(wait_timeout="{{ params.limit }}")
    operator.wait_timeout = "soon"
    qarnot.clear_requests()
    with pytest.raises(QarnotInvalidSpecError):
        run(lambda: operator, story.ti(max_tries=0))
    assert qarnot.requests() == []


def test_a_kill_may_come_at_any_moment_of_the_wait() -> None:
    """A lock that both the handler and the wait take would stop the task until SIGKILL, the remote end unasked."""

    def signals_in_a_hail(say: Any) -> None:
        killed = KillFlag()
        begun: list[float] = []

        def handler(*_: Any) -> None:
            if begun and time.monotonic() - begun[0] > 2:
                os._exit(3)  # the handler before this one is stuck
            if not begun:
                begun.append(time.monotonic())
                killed.set()
                begun.clear()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(5_000):
            killed.wait(1e-6)
            killed._set = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    assert fork(signals_in_a_hail).wait() == 0


@KINDS
@pytest.mark.parametrize("when", ["after", "before"])
def test_a_kill_in_the_middle_of_the_create_request_leaves_nothing(
    qarnot: LocalQarnot, story: Story, when: str
) -> None:
    """The request takes effect before, or after, the handler of the signal has looked."""
    slow = {"kind": "delay", "seconds": 0.8, "when": when, "times": 1}
    qarnot.faults([{"method": "POST", "path": story.path, **slow}])
    child = story.child()
    eventually(lambda: any(one.get("fault") == "delay" for one in qarnot.requests()))
    child.kill(signal.SIGTERM)
    assert child.wait(patience=KILL_GRACE) == 0
    assert child.said[-1]["error"] == "QarnotKilledError"
    (uuid,) = story.made()
    assert story.ended(uuid)


@ANY_SERVER
@WORKER_WAITS
@KINDS
def test_a_kill_ends_nothing_on_request(qarnot: LocalQarnot, story: Story, deferrable: bool) -> None:
    child = story.child(make=partial(story.make, cancel_on_kill=False), deferrable=deferrable)
    story.wait_known(child)
    child.kill(signal.SIGTERM)
    assert child.wait(patience=KILL_GRACE) == 0
    assert "continues" in child.said[-1]["message"]
    (uuid,) = story.made()
    assert not story.ended(uuid)


@ANY_SERVER
def test_a_kill_of_the_closing_task_undoes_nothing(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    operator = QarnotClosePoolOperator(task_id="close", qarnot_pool=pool, wait_for_completion=True)
    deferred, _ = defer(lambda: operator)
    operator.on_kill()
    assert deferred.trigger.cancel_on_kill is False
    assert client.pools.get(pool).state in ("Closing", "Closed")


# --- setup that fails half-way


class NoStore(FakeTI):
    """Airflow's API server is away when the XCom is stored."""

    def xcom_push(self, key: str, value: Any) -> None:
        raise RuntimeError("the API server is away")


def test_a_pool_that_cannot_be_told_of_is_closed(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    with pytest.raises(RuntimeError, match="API server"):
        run(create, NoStore(run_id=run_id))
    (pool,) = made_for(client.pools, run_id)
    assert pool.state in ("Closing", "Closed")


@pytest.mark.parametrize(("status", "times"), [(503, 2), (403, 1)])
def test_a_pool_that_was_made_unseen_is_closed(
    qarnot: LocalQarnot,
    client: QarnotClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    times: int,
) -> None:
    """The answer is lost, and no look succeeds for as long as the client asks."""
    connect(qarnot, monkeypatch, retries=1)
    qarnot.faults(
        [
            {"method": "POST", "path": "^/pools$", "kind": "lost", "times": 1},
            {"path": "^/pools/paginate$", "kind": "status", "status": status, "times": times},
        ]
    )
    with pytest.raises(QarnotError):
        run(create, FakeTI(run_id=run_id))
    (pool,) = made_for(client.pools, run_id)
    assert pool.state in ("Closing", "Closed")


@ANY_SERVER
@WAITS
@KINDS
def test_the_end_of_a_wait_is_not_lost_in_bad_weather(
    qarnot: LocalQarnot, story: Story, deferrable: bool
) -> None:
    qarnot.faults([{"method": "POST", "path": story.end_path, "kind": "status", "status": 503, "times": 4}])
    make = partial(story.make, deferrable=deferrable, wait_timeout=timedelta(seconds=0.3))
    with pytest.raises(QarnotWaitTimeoutError):
        run(make, story.ti())
    assert story.ended(story.made()[0])


@ANY_SERVER
def test_an_end_that_is_refused_is_an_error(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    qarnot.faults([{"method": "POST", "path": "/close$", "kind": "status", "status": 403}])
    with pytest.raises(QarnotRefusedError):
        run(partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=pool))
    assert client.pools.get(pool).state not in ("Closing", "Closed")


# --- time runs out


@ANY_SERVER
@KINDS
def test_the_execution_timeout_counts_across_the_deferral(qarnot: LocalQarnot, story: Story) -> None:
    started = datetime.now(UTC) - timedelta(minutes=10)
    make = partial(
        story.make, execution_timeout=timedelta(minutes=10, seconds=1), wait_timeout=timedelta(days=1)
    )
    deferred, context = defer(make, story.ti(start_date=started))
    deadline = datetime.fromisoformat(deferred.trigger.deadline)
    assert deadline == started + timedelta(minutes=10, seconds=1)
    # Airflow's own time-out of the deferral is the backstop: later than ours, and not by much.
    assert timedelta(minutes=4) < deferred.timeout < timedelta(minutes=6)
    with pytest.raises(QarnotWaitTimeoutError):
        resume(make, deferred, context)
    assert story.ended(story.made()[0])


FAILED_DEFERRALS = {
    "timeout": ("Trigger timeout", TaskDeferralTimeout),
    "failure": ("Trigger failure", TaskDeferralError),
}


@ANY_SERVER
@KINDS
@pytest.mark.parametrize("reason", FAILED_DEFERRALS)
@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_a_deferral_that_airflow_gave_up_ends_it(
    qarnot: LocalQarnot, story: Story, reason: str, cancel_on_kill: bool
) -> None:
    uuid = story.start()
    error, expected = FAILED_DEFERRALS[reason]
    operator = story.make(cancel_on_kill=cancel_on_kill)
    with pytest.raises(expected):
        operator.resume_execution("__fail__", {"error": error}, context_of(operator, story.ti()))
    assert story.ended(uuid) is cancel_on_kill


# --- resumed, and then something fails


class NoXComs(FakeTI):
    """Airflow's API takes none."""

    def xcom_push(self, key: str, value: Any) -> None:
        raise RuntimeError("503: the api-server is restarting")


@KINDS
@ANY_SERVER
def test_a_resumed_slice_goes_on_though_its_link_cannot_be_stored(
    qarnot: LocalQarnot, story: Story, pool: str
) -> None:
    makes = {
        "pool": partial(create, instance_count=1),
        "task": partial(task, qarnot_pool=pool, command="true"),
    }
    deferred, context = defer(make := makes[story.kind], story.ti())
    event, broken = fire(deferred), NoXComs(run_id=story.run_id, task_id=story.task_id)
    operator = make()
    operator.resume_execution(
        "execute_complete", {"event": event}, {**context, "ti": broken, "task": operator}
    )
    assert not story.ended(event["uuid"])


def resume_badly(story: Story, event: dict[str, Any], try_number: int = 1, **changes: Any) -> None:
    operator = story.make(**changes)
    context = context_of(operator, story.ti(try_number))
    with pytest.raises((QarnotError, AirflowNotFoundException)):
        operator.resume_execution("execute_complete", {"event": event}, context)


@KINDS
@ANY_SERVER
def test_a_slice_that_cannot_take_up_its_work_again_ends_it(
    qarnot: LocalQarnot, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = story.start()
    met = WaitResult(ending=EndReason.MET, uuid=uuid, state="FullyExecuting").to_event()
    resume_badly(
        story, met, **{"pool": {"max_cost": "{{ x }}"}, "task": {"registry_conn_id": "gone"}}[story.kind]
    )
    assert story.ended(uuid)


@KINDS
@ANY_SERVER
@pytest.mark.parametrize("try_number", [1, 2], ids=["a try is left", "the last try"])
def test_a_wait_that_fails_ends_the_qarnot_task_where_no_try_would_take_it_up(
    qarnot: LocalQarnot, story: Story, try_number: int
) -> None:
    uuid = story.start(try_number)
    refused = {"ending": EndReason.ERROR, "uuid": uuid, "resume_state": {"error": "QarnotCredentialsError"}}
    resume_badly(story, WaitResult(**refused).to_event(), try_number)
    # A setup that fails closes its pool in any case.
    assert story.ended(uuid) is (story.kind == "pool" or try_number == 2)


@TASKS
@ANY_SERVER
@pytest.mark.parametrize("try_number", [1, 2], ids=["a try is left", "the last try"])
def test_so_does_one_on_the_worker(qarnot: LocalQarnot, story: Story, try_number: int) -> None:
    # A poll has the uuid. The lookup before the submission of the last try has the name.
    qarnot.faults([{"method": "GET", "path": "^/tasks/[0-9a-f]{8}-", "kind": "status", "status": 401}])
    with pytest.raises(QarnotCredentialsError):
        run(partial(story.make, deferrable=False), story.ti(try_number))
    qarnot.faults([])
    (uuid,) = story.made()
    assert story.ended(uuid) is (try_number == 2)


@TASKS
@ANY_SERVER
@pytest.mark.parametrize("try_number", [1, 2], ids=["a try is left", "the last try"])
def test_so_do_many_that_cannot_be_taken_up_again(
    qarnot: LocalQarnot, story: Story, held: str, pool: str, try_number: int
) -> None:
    make = partial(QarnotRunTasksOperator, task_id="work", commands=[held], qarnot_pool=pool)
    deferred, context = defer(make, story.ti(try_number))
    event = WaitResult(
        ending=EndReason.MET, uuid=deferred.trigger.uuid, resume_state=deferred.trigger.resume_state
    ).to_event()
    broken, operator = NoXComs(**vars(story.ti(try_number))), make()
    with pytest.raises(RuntimeError, match="restarting"):
        operator.resume_execution("execute_complete", {"event": event}, {**context, "ti": broken})
    (uuid,) = [one.uuid for one in made_for(story.resource, story.run_id)]
    assert story.ended(uuid) is (try_number == 2)


# --- killed, cleared or moved while it is deferred: the guard of the trigger


ALL_STATES = (
    *("failed", "upstream_failed", "skipped", "removed", None, "success", "running", "queued", "scheduled"),
    *("up_for_retry", "up_for_reschedule", "restarting", "deferred"),
)
#: Kind, state of the Airflow task, whose uuid its XCom has -> whether the remote object ends.
GUARD = [
    *(
        ("pool", state, "ours", state in ("failed", "upstream_failed", "skipped", "removed", None))
        for state in ALL_STATES
    ),
    *(("task", state, "ours", state != "deferred") for state in ALL_STATES),
    ("task", "deferred", "another", True),
    ("task", "deferred", None, True),
    ("pool", "deferred", "another", False),
    ("pool", "deferred", None, False),
]


@ANY_SERVER
@pytest.mark.parametrize(("kind", "state", "xcom", "ends"), GUARD, indirect=["kind"])
def test_guard(qarnot: LocalQarnot, story: Story, state: str | None, xcom: str | None, ends: bool) -> None:
    ti = story.ti()
    deferred, _ = defer(story.make, ti)
    uuid = ti.xcoms[story.key]
    stored = {} if xcom is None else {story.key: uuid if xcom == "ours" else "another"}
    with airflow_says(state, stored):
        asyncio.run(kill(again(deferred.trigger)))
    assert story.ended(uuid) is ends


@ANY_SERVER
@KINDS
def test_guard_leaves_what_it_cannot_ask_about(qarnot: LocalQarnot, story: Story) -> None:
    deferred, _ = defer(story.make, ti := story.ti())

    async def no_answer(identity: Any) -> str:
        raise RuntimeError("the triggerer's parent is away")

    with mock.patch(f"airflow_qarnot_pool.triggers.{story.kind}.task_state", no_answer):
        asyncio.run(kill(again(deferred.trigger)))
    assert not story.ended(ti.xcoms[story.key])


@ANY_SERVER
@TASKS
def test_guard_asks_nothing_of_airflow_where_the_task_is_over(
    qarnot: LocalQarnot, client: QarnotClient, story: Story, tmp_path: Path
) -> None:
    deferred, _ = defer(story.make, ti := story.ti())
    (tmp_path / "go").touch()
    eventually(lambda: story.state(ti.xcoms[story.key]) == "Success")
    asyncio.run(kill(again(deferred.trigger)))
    assert not [one for one in qarnot.requests() if one["path"].endswith("/abort")]


@ANY_SERVER
@KINDS
def test_guard_opts_out(qarnot: LocalQarnot, story: Story) -> None:
    deferred, _ = defer(partial(story.make, cancel_on_kill=False), ti := story.ti())
    with airflow_says("failed"):
        asyncio.run(kill(again(deferred.trigger)))
    assert not story.ended(ti.xcoms[story.key])


@ANY_SERVER
@KINDS
def test_a_trigger_that_has_fired_ends_nothing(qarnot: LocalQarnot, story: Story, tmp_path: Path) -> None:
    """Airflow cancels a trigger that lingers after its event as if a user had ended the task."""
    deferred, _ = defer(story.make, ti := story.ti())
    trigger = again(deferred.trigger)
    trigger.condition = {"kind": story.kind, "targets": ["Submitted"], "accept_passed": True}

    async def fire_and_kill() -> None:
        await first_event(trigger)
        with airflow_says("failed"):
            await kill(trigger)

    asyncio.run(fire_and_kill())
    assert not story.ended(ti.xcoms[story.key])


@ANY_SERVER
@KINDS
def test_the_clean_up_survives_being_cancelled_again_and_again(qarnot: LocalQarnot, story: Story) -> None:
    deferred, _ = defer(story.make, ti := story.ti())
    trigger = again(deferred.trigger)

    async def cancelled_thrice() -> None:
        answer = asyncio.Event()

        async def slow_parent(identity: Any) -> str:
            await answer.wait()
            return "failed"

        with mock.patch(f"airflow_qarnot_pool.triggers.{story.kind}.task_state", slow_parent):
            for _ in range(3):
                ending = asyncio.create_task(trigger.on_kill())
                await asyncio.sleep(0)
                ending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await ending
                del ending
                gc.collect()
            cleanups = list(triggers_base._cleanups)
            assert cleanups
            answer.set()
            await asyncio.gather(*cleanups)

    asyncio.run(cancelled_thrice())
    assert story.ended(ti.xcoms[story.key])


@ANY_SERVER
@KINDS
def test_before_3_3_being_cancelled_is_the_only_sign(
    qarnot: LocalQarnot, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers_base, "TRIGGERS_HAVE_ON_KILL", False)
    deferred, _ = defer(story.make, ti := story.ti())
    trigger = again(deferred.trigger)

    async def cancel_while_it_waits() -> None:
        waiting = asyncio.create_task(first_event(trigger))
        qarnot.clear_requests()
        while not [one for one in qarnot.requests() if one["path"].endswith("/search")]:
            await asyncio.sleep(0.02)
        with airflow_says("failed"):
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(cancel_while_it_waits())
    assert story.ended(ti.xcoms[story.key])


# --- pools that cool down by themselves


managed = partial(create, instance_count=2, keep_warm=timedelta(minutes=5))


def warm_ups(client: QarnotClient, run_id: str) -> list[str]:
    return [one.state for one in made_for(client.tasks, run_id, role="warm-up")]


@ANY_SERVER
def test_a_managed_pool_left_behind_costs_nothing_soon_and_a_week_later(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    uuid = run(managed, FakeTI(run_id=run_id, task_id="create"))
    run(partial(task, qarnot_pool=uuid, command="true", instance_count=4), FakeTI(run_id=run_id))

    def meter() -> dict[str, Any]:
        found: dict[str, Any] = qarnot.get_account()["pools"][uuid]
        return found

    assert meter()["nodesUp"] == 2
    # The warm-up is over only when its processes are gone.
    eventually(lambda: warm_ups(client, run_id) == ["Cancelled"])
    qarnot.advance_clock(301)
    cooled = meter()
    assert cooled["nodesUp"] == 0
    assert cooled["nodeSeconds"] < 2 * 330
    for days in (1, 6, 1):
        qarnot.advance_clock(days * 86400)
        assert (meter()["nodesUp"], meter()["nodeSeconds"]) == (0, cooled["nodeSeconds"])
    # It is there for whoever comes back.
    run(partial(task, qarnot_pool=uuid, command="true"), FakeTI(run_id=f"{run_id}-back"))
    client.pools.delete(uuid)


@ANY_SERVER
def test_a_managed_pool_whose_maker_died_cools_down_too(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.operators.bases.warm_up.BOOT_DEADLINE", timedelta(seconds=1))
    defer(managed, FakeTI(run_id=run_id, task_id="create"))
    (pool,) = made_for(client.pools, run_id)
    eventually(lambda: warm_ups(client, run_id) == ["Success"], say="the forgotten sleep ends by itself")
    qarnot.advance_clock(301)
    assert qarnot.get_account()["pools"][pool.uuid]["nodesUp"] == 0
    client.pools.delete(pool.uuid)


@ANY_SERVER
def test_a_retry_that_finds_the_pool_ready_ends_the_warm_up(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    """Else it would sleep in all slots until the boot deadline."""
    ti = FakeTI(run_id=run_id, task_id="create", max_tries=1)
    defer(managed, ti)
    eventually(lambda: warm_ups(client, run_id) == ["FullyExecuting"])
    again = FakeTI(run_id=run_id, task_id="create", max_tries=1, try_number=2)
    assert run(managed, again) == ti.xcoms["qarnot_pool"]
    assert [one in ("PendingCancel", "Cancelled") for one in warm_ups(client, run_id)] == [True]
    client.pools.delete(ti.xcoms["qarnot_pool"])


@ANY_SERVER
def test_a_retry_that_finds_the_pool_cooled_down_warms_it_up_again(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.operators.bases.warm_up.BOOT_DEADLINE", timedelta(seconds=1))
    make = partial(managed, wait_timeout=timedelta(seconds=30))
    first = FakeTI(run_id=run_id, task_id="create", max_tries=1)
    defer(make, first)
    eventually(lambda: warm_ups(client, run_id) == ["Success"])
    qarnot.advance_clock(301)
    second = FakeTI(run_id=run_id, task_id="create", max_tries=1, try_number=2)
    uuid = run(make, second)
    assert uuid == first.xcoms["qarnot_pool"]
    assert len(warm_ups(client, run_id)) == 2
    client.pools.delete(uuid)


@ANY_SERVER
def test_a_task_that_does_not_wait_for_the_pool_does_not_warm_it_up(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    """Nobody would end the warm-up, and it would keep the work out of the slots."""
    uuid = run(partial(managed, wait_for_completion=False), FakeTI(run_id=run_id, task_id="create"))
    assert warm_ups(client, run_id) == []
    client.pools.delete(uuid)


@ANY_SERVER
@WAITS
def test_a_managed_pool_that_is_not_ready_in_time_is_closed_with_its_warm_up(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, deferrable: bool
) -> None:
    qarnot.set_speed(0)  # no node ever boots
    make = partial(managed, wait_timeout=timedelta(seconds=0.3), deferrable=deferrable)
    monitored = FakeTI(run_id=run_id, task_id="create")
    try:
        with pytest.raises(QarnotError):
            run(make, monitored)
    finally:
        qarnot.set_speed(1)
    assert all(one.state in ("Closing", "Closed") for one in made_for(client.pools, run_id))
    assert all(one in ("PendingCancel", "Cancelled") for one in warm_ups(client, run_id))


# --- the instances that a retry runs


def flaky(tmp_path: Path) -> str:
    """Instance 1 fails until ``tmp_path/mended`` exists; every success leaves a line."""
    return f"sh -c 'test $INSTANCE_ID -ne 1 -o -e {tmp_path}/mended && echo $INSTANCE_ID >> {tmp_path}/done'"


@pytest.mark.parametrize("profile", ["docker-batch", "docker-cluster"])
def test_a_retry_runs_the_instances_that_did_not_succeed(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, tmp_path: Path, profile: str
) -> None:
    make = partial(task, command=flaky(tmp_path), instance_count=3, task_spec={"profile": profile})
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id=run_id, max_tries=1))
    (tmp_path / "mended").touch()
    result = run(make, FakeTI(run_id=run_id, max_tries=1, try_number=2))
    assert (result["instances"], result["succeeded"], result["failed"]) == (3, 3, 0)
    done = sorted((tmp_path / "done").read_text().split())
    assert done == (["0", "0", "1", "2", "2"] if profile == "docker-cluster" else ["0", "1", "2"])
    # A third try finds all of it done.
    assert run(make, FakeTI(run_id=run_id, max_tries=1, try_number=3))["uuid"] == result["uuid"]
    assert sorted((tmp_path / "done").read_text().split()) == done


def test_a_clear_runs_all_instances_again(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, tmp_path: Path
) -> None:
    make = partial(task, qarnot_pool=pool, command=flaky(tmp_path), instance_count=3)
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id=run_id, max_tries=1))
    (tmp_path / "mended").touch()
    run(make, FakeTI(run_id=run_id, max_tries=2, try_number=2))
    assert sorted((tmp_path / "done").read_text().split()) == ["0", "0", "1", "2", "2"]
