"""Ending remote objects: when an ending operator, trigger or retry may do so, and when it must not."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.exceptions import (
    QarnotCreditsError,
    QarnotDeletedError,
    QarnotInvalidSpecError,
    QarnotKilledError,
    QarnotPoolEndedError,
    QarnotRefusedError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity, is_ending
from airflow_qarnot_pool.ownership.termination import end
from airflow_qarnot_pool.triggers import tasks as triggers_tasks
from airflow_qarnot_pool.triggers.tasks import is_still_waiting, resuming_marker
from airflow_qarnot_pool.version_compat import TaskDeferralError, TaskDeferred
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult
from tests.crash.children import StoringTI, eventually, fork, worker
from tests.harness import (
    RUN_STARTED,
    FakeTI,
    again,
    airflow_says,
    context_of,
    defer,
    fire,
    kill,
    life_of,
    resume,
    run,
    with_spec,
)
from tests.operators.conftest import connect

one = partial(QarnotRunTaskOperator, task_id="one", retries=1, log_output=False, command="sleep 300")
many = partial(QarnotRunTasksOperator, task_id="many", retries=1, commands=["sleep 300"])
#: Responses that say nothing about the object.
STRAY = pytest.mark.parametrize(
    "answer",
    [
        {"kind": "status", "status": 403, "message": "Forbidden"},
        {"kind": "proxy", "status": 404},
        {"kind": "status", "status": 503},
    ],
    ids=["403", "404 of a proxy", "503"],
)
ONE_AND_MANY = pytest.mark.parametrize("make", [one, many], ids=["one", "many"])


def of_run(client: QarnotClient, run_id: str) -> list[Task]:
    return [task for task in client.tasks.iterate() if task.labels.get("airflow.run_id") == run_id]


# --- an end that is refused


class Refusing:
    """A resource that refuses to end its one object."""

    def __init__(self, found: Pool | Task) -> None:
        self.found = found

    def end(self, uuid: str, **_: Any) -> None:
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


@STRAY
@pytest.mark.parametrize("kind", ["pool", "task"])
def test_a_kill_ends_the_object_though_two_answers_are_stray(
    monkeypatch: pytest.MonkeyPatch, kind: str, answer: dict[str, Any]
) -> None:
    with LocalQarnot(boot_seconds=300) as qarnot, QarnotClient(qarnot.url, qarnot.token) as client:
        connect(qarnot, monkeypatch)
        resource = client.pools if kind == "pool" else client.tasks
        make = (
            partial(QarnotCreatePoolOperator, task_id="create", instance_count=1) if kind == "pool" else one
        )
        child = fork(worker(partial(make, deferrable=False), StoringTI(task_id=make.keywords["task_id"])))
        eventually(lambda: resource.list())
        qarnot.faults([{"method": "POST", "path": "/(close|abort)$", "times": 2, **answer}])
        child.kill(signal.SIGTERM)
        child.wait()
        assert child.said[-1]["error"] == "QarnotKilledError"
        assert [is_ending(remote) for remote in resource.list()] == [True]


def test_a_killed_task_does_not_claim_an_end_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalQarnot(boot_seconds=300) as qarnot:
        connect(qarnot, monkeypatch)
        child = fork(worker(partial(one, deferrable=False), StoringTI(task_id="one")))
        eventually(lambda: child.read() is not None and child.last("xcom"))
        qarnot.faults([{"kind": "status", "status": 403, "method": "POST", "path": "/abort$"}])
        child.kill(signal.SIGTERM)
        child.wait()
        assert "may still run, because it could not be ended" in child.said[-1]["message"]


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


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
def test_a_qarnot_task_that_is_being_deleted_ends_its_wait_at_once(
    slow_to_cancel: LocalQarnot, deferrable: bool
) -> None:
    """Its state can last for minutes. No end follows that a wait could see."""
    deleted: list[str] = []

    def delete(uuid: str) -> None:
        if not deleted and slow.tasks.get(uuid).state == "FullyExecuting":
            slow.tasks.abort(uuid)
            slow.tasks.delete(uuid)
            deleted.append(uuid)
            slow_to_cancel.clear_requests()

    with QarnotClient(slow_to_cancel.url, slow_to_cancel.token) as slow:
        make = partial(one, deferrable=deferrable)
        if deferrable:
            deferred, context = defer(make)
            eventually(lambda: delete(context["ti"].xcoms["qarnot_task"]) or deleted)
            with pytest.raises(QarnotDeletedError, match="before its end was seen"):
                resume(make, deferred, context)
        else:
            with (
                mock.patch.object(
                    QarnotRunTaskOperator, "_still_waiting", lambda self, task: delete(task.uuid)
                ),
                pytest.raises(QarnotDeletedError, match="before its end was seen"),
            ):
                run(make)
        assert slow.tasks.get(deleted[0]).state == "PendingDelete"
    assert len(slow_to_cancel.requests()) < 20


# --- cleared while deferred


@pytest.mark.parametrize("state", ["queued", "scheduled", None, "failed", "up_for_retry", "restarting"])
@ONE_AND_MANY
def test_the_objects_of_a_cleared_task_end_before_its_new_try_starts(
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

    async def store(identity: Any, key: str, value: Any) -> None:
        ti.xcom_push(key, value)

    monkeypatch.setattr(triggers_tasks, "store_xcom", store)
    make = partial(many, commands=["true", "sleep 300", "sleep 300"], max_in_flight=2)
    deferred, _ = defer(make, ti)
    thawed = again(deferred.trigger)
    assert fire(deferred)["resume_state"]["succeeded"] == "0"
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
    identity = life_of()
    values = {"lineage": identity.lineage, "resumes": resuming_marker(identity), "another": "another"}
    assert is_still_waiting(state, values.get(stored or ""), identity) is waits


# --- a process that stood still

pool_of_its_own = partial(
    QarnotCreatePoolOperator,
    task_id="create",
    retries=2,
    ready_when=1,
    pool_spec={"scaling": {"policies": [{"type": "Fixed", "slotsCount": 0, "name": "none"}]}},
)
KINDS = pytest.mark.parametrize("make", [pool_of_its_own, one, many], ids=["pool", "one", "many"])


def made_in(client: QarnotClient, run_id: str) -> list[Pool | Task]:
    pools = [one for one in client.pools.iterate() if one.labels.get("airflow.run_id") == run_id]
    return [*pools, *of_run(client, run_id)]


def ended(client: QarnotClient, run_id: str) -> list[bool]:
    return [is_ending(one) for one in made_in(client, run_id)]


@pytest.fixture
def tries(request: pytest.FixtureRequest, client: QarnotClient) -> Iterator[Callable[..., FakeTI]]:
    """Task instances of one run, by try; ends what they leave."""
    run_id = request.node.name

    def of(make: Any, try_number: int, **fields: Any) -> FakeTI:
        given = {"run_id": run_id, "max_tries": 2, "task_id": make.keywords["task_id"], **fields}
        return FakeTI(try_number=try_number, **given)

    yield of
    for one in made_in(client, run_id):
        (client.pools if isinstance(one, Pool) else client.tasks).delete(one.uuid)


@KINDS
def test_a_worker_that_stood_still_leaves_what_its_retry_has_taken_over(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, tries: Callable[..., FakeTI]
) -> None:
    """A suspended machine: Airflow declares the worker lost, and its supervisor ends it as soon as it resumes."""
    ti = tries(make, 1)
    frozen = StoringTI(run_id=ti.run_id, task_id=ti.task_id, max_tries=2)
    child = fork(worker(partial(make, deferrable=False), frozen))
    eventually(lambda: made_in(client, ti.run_id) and child.read() is not None and child.last("xcom"))
    child.kill(signal.SIGSTOP)
    defer(make, tries(make, 2))
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGCONT)
    assert child.wait() == 0
    assert child.said[-1]["error"] == "QarnotKilledError"
    assert ended(client, ti.run_id) == [False]


@STRAY
@KINDS
def test_a_stray_response_lets_no_worker_that_stood_still_end_what_its_retry_has_taken_over(
    qarnot: LocalQarnot,
    client: QarnotClient,
    make: Any,
    tries: Callable[..., FakeTI],
    answer: dict[str, Any],
) -> None:
    ti = tries(make, 1)
    frozen = StoringTI(run_id=ti.run_id, task_id=ti.task_id, max_tries=2)
    child = fork(worker(partial(make, deferrable=False), frozen))
    eventually(lambda: made_in(client, ti.run_id) and child.read() is not None and child.last("xcom"))
    child.kill(signal.SIGSTOP)
    defer(make, tries(make, 2))
    qarnot.faults([{"method": "GET", "path": "/(pools|tasks)/[0-9a-f-]{36}$", "times": 2, **answer}])
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGCONT)
    assert child.wait() == 0
    assert ended(client, ti.run_id) == [False]


def kill_it(operator: Any) -> None:
    operator.on_kill()


def run_out_of_time(operator: Any) -> None:
    with pytest.raises(QarnotWaitTimeoutError):
        operator._raise_for(WaitResult(ending=EndReason.TIMEOUT, uuid="u", message="late"))


def be_given_up(operator: Any) -> None:
    with pytest.raises(TaskDeferralError):
        operator.resume_execution("__fail__", {"error": "Trigger failure"}, operator.context)


def fail_for_good(operator: Any) -> None:
    with pytest.raises(RuntimeError), operator._ending_on_error("it failed"):
        raise RuntimeError


ENDS = pytest.mark.parametrize("end_it", [kill_it, run_out_of_time, be_given_up, fail_for_good])


def waiting(make: Any, ti: FakeTI) -> Any:
    """The operator of a try that waits on its worker."""
    operator = make()
    operator.context = context_of(operator, ti)
    with pytest.raises(TaskDeferred):
        operator.execute(operator.context)
    operator._kill_after_deferral = None
    return operator


@KINDS
@ENDS
@pytest.mark.parametrize("taken_over", [True, False])
def test_an_earlier_try_ends_only_what_no_later_one_has_taken_over(
    qarnot: LocalQarnot,
    client: QarnotClient,
    make: Any,
    end_it: Callable[[Any], None],
    taken_over: bool,
    tries: Callable[..., FakeTI],
) -> None:
    operator = waiting(make, ti := tries(make, 1))
    if taken_over:
        defer(make, tries(make, 2))
    end_it(operator)
    assert ended(client, ti.run_id) == [not taken_over]


@KINDS
@pytest.mark.parametrize("taken_over", [True, False])
def test_a_thawed_triggerer_ends_only_what_no_later_try_has_taken_over(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, taken_over: bool, tries: Callable[..., FakeTI]
) -> None:
    deferred, _ = defer(make, ti := tries(make, 1))
    if taken_over:
        defer(make, tries(make, 2))
    with airflow_says("failed", ti.xcoms):
        asyncio.run(kill(again(deferred.trigger)))
    assert ended(client, ti.run_id) == [not taken_over]


@KINDS
@pytest.mark.parametrize(
    "later", [{"try_number": 2}, {"try_number": 2, "max_tries": 4}], ids=["retry", "clear"]
)
def test_a_process_that_resumes_beside_a_later_try_makes_and_ends_nothing(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, later: dict[str, int], tries: Callable[..., FakeTI]
) -> None:
    """It stood still before its request, or before it could look at what there was."""
    defer(make, ti := tries(make, **later))
    operator = make()
    with (
        mock.patch.object(TaskInstanceIdentity, "has_history", True),
        pytest.raises(QarnotKilledError, match="later try"),
    ):
        operator.execute(context_of(operator, tries(make, 1)))
    assert ended(client, ti.run_id) == [False]


def test_a_process_that_fails_beside_a_later_try_ends_nothing_though_searches_are_late(
    qarnot: LocalQarnot, client: QarnotClient, tries: Callable[..., FakeTI]
) -> None:
    """It stood still before its claim, and a search does not show yet that a later try has the pool."""
    make = partial(pool_of_its_own, task_id="create", deferrable=True)
    defer(make, ti := tries(make, 1))
    qarnot.lag_searches(1000)
    try:
        defer(make, tries(make, 3))
        operator = make(wait_timeout="{{ params.it }}")
        operator.wait_timeout = "soon"
        with pytest.raises(QarnotInvalidSpecError, match="wait_timeout"):
            operator.execute(context_of(operator, tries(make, 2)))
    finally:
        qarnot.lag_searches(0)
    assert ended(client, ti.run_id) == [False]


@KINDS
def test_a_new_run_of_the_same_id_ends_what_a_deleted_one_left_whatever_its_tries(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, tries: Callable[..., FakeTI]
) -> None:
    defer(make, ti := tries(make, 3))
    defer(make, tries(make, 2), RUN_STARTED + timedelta(hours=1))
    assert sorted(ended(client, ti.run_id)) == [False, True]


@KINDS
def test_an_adopted_object_names_the_try_that_has_it(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, tries: Callable[..., FakeTI]
) -> None:
    for try_number in (1, 2, 3):
        defer(with_spec(make, tags=["mine"]), ti := tries(make, try_number))
    (found,) = made_in(client, ti.run_id)
    assert [
        tag for tag in found.tags if not tag.startswith(("airflow-owner", "airflow-lin", "airflow-name"))
    ] == [
        "mine",
        "airflow-try:3",
    ]


@KINDS
def test_an_object_without_room_for_a_tag_is_adopted_all_the_same(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, tries: Callable[..., FakeTI]
) -> None:
    make = with_spec(make, tags=[f"tag-{number}" for number in range(7)])
    for try_number in (1, 2):
        defer(make, ti := tries(make, try_number))
    assert [len(found.tags) for found in made_in(client, ti.run_id)] == [10]


def test_a_try_gives_up_only_its_own_hold_on_a_shared_pool(
    qarnot: LocalQarnot, client: QarnotClient, tries: Callable[..., FakeTI]
) -> None:
    make = partial(pool_of_its_own, shared="standing-still", task_id="create")
    operator = waiting(make, ti := tries(make, 1))
    defer(make, tries(make, 2))
    operator.on_kill()
    assert ended(client, ti.run_id) == [False]
    waiting(make, tries(make, 2)).on_kill()
    assert ended(client, ti.run_id) == [True]


# --- cancel_on_kill=False


@KINDS
@ENDS
def test_cancel_on_kill_false_exempts_kills_and_time_limits_but_no_failure(
    qarnot: LocalQarnot,
    client: QarnotClient,
    make: Any,
    end_it: Callable[[Any], None],
    tries: Callable[..., FakeTI],
) -> None:
    keywords = make.keywords
    make = partial(make, cancel_on_kill=False, task_id=keywords["task_id"])
    end_it(waiting(make, ti := tries(make, 1)))
    assert ended(client, ti.run_id) == [end_it is fail_for_good]


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_a_setup_that_fails_closes_its_pool_whatever_cancel_on_kill_says(
    qarnot: LocalQarnot, client: QarnotClient, cancel_on_kill: bool, tries: Callable[..., FakeTI]
) -> None:
    make = partial(
        QarnotCreatePoolOperator,
        task_id="create",
        instance_count=2,
        keep_warm=timedelta(minutes=10),
        cancel_on_kill=cancel_on_kill,
    )
    qarnot.faults([{"kind": "status", "status": 402, "method": "POST", "path": "^/tasks$"}])
    with pytest.raises(QarnotCreditsError):
        run(make, ti := tries(make, 1))
    assert ended(client, ti.run_id) == [True]


def test_a_pool_that_cannot_be_closed_by_the_task_that_waits_for_its_end_is_not_asked_twice(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    """The closing task owns nothing: a failure of it must end nothing more."""
    operator = QarnotClosePoolOperator(task_id="close", qarnot_pool=pool, wait_for_completion=True)
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator))
    qarnot.clear_requests()
    fail_for_good(operator)
    assert qarnot.requests() == []


# --- iterations of a loop


@KINDS
def test_an_iteration_neither_takes_nor_ends_what_another_one_has(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, tries: Callable[..., FakeTI]
) -> None:
    """They share task, map index and try, so that each would be a retry of the other."""
    for number in (1, 2):
        for try_number in (1, 2):
            ti = tries(make, try_number)
            ti.iteration = number  # type: ignore[attr-defined]
            defer(make, ti)
    assert ended(client, ti.run_id) == [False, False]
    assert len({one.labels["airflow.lineage"] for one in made_in(client, ti.run_id)}) == 2


@KINDS
def test_a_coordinate_that_is_not_known_is_refused_before_anything_is_made(
    qarnot: LocalQarnot, client: QarnotClient, make: Any, tries: Callable[..., FakeTI]
) -> None:
    ti = tries(make, 1)
    ti.shard = 3  # type: ignore[attr-defined]
    with pytest.raises(QarnotInvalidSpecError, match=r"ti\.shard"):
        defer(make, ti)
    assert made_in(client, ti.run_id) == []


# --- the warm-up of a shared pool

warm = partial(QarnotCreatePoolOperator, task_id="open", shared="warm", instance_count=2, retries=1)


def warm_ups(client: QarnotClient, pool: str) -> list[bool]:
    """Whether each warm-up of a pool has ended, oldest first."""
    found = sorted(client.pools.tasks(pool), key=lambda one: int(one.labels["airflow.generation"]))
    return [is_ending(one) for one in found]


@pytest.fixture(scope="module")
def frozen_clock() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.2) as qarnot:
        yield qarnot


@pytest.fixture
def qarnot_that_boots_nothing(
    frozen_clock: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalQarnot]:
    """A server on which no node boots until its clock runs."""
    connect(frozen_clock, monkeypatch)
    frozen_clock.set_speed(0)
    yield frozen_clock
    frozen_clock.set_speed(1)


@pytest.fixture
def client_there(qarnot_that_boots_nothing: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(qarnot_that_boots_nothing.url, qarnot_that_boots_nothing.token) as found:
        yield found


@pytest.fixture
def cold(client_there: QarnotClient, run_id: str) -> Iterator[Any]:
    """A shared pool without nodes, which another run needs, too."""
    make = partial(warm, keep_warm=timedelta(minutes=5))
    pool = run(partial(make, wait_for_completion=False), FakeTI(run_id="other", task_id="open"))
    with mock.patch("airflow_qarnot_pool.ownership.liveness.dag_run_state", return_value="running"):
        yield make, pool
    client_there.pools.close(pool)


def on_the_worker(make: Any, ti: FakeTI) -> None:
    waiting(make, ti).on_kill()


def out_of_time(make: Any, ti: FakeTI) -> None:
    operator = waiting(make, ti)
    run_out_of_time(operator)


def while_deferred(make: Any, ti: FakeTI) -> None:
    deferred, _ = defer(make, ti)
    with airflow_says("failed", ti.xcoms):
        asyncio.run(kill(again(deferred.trigger)))


def after_the_trigger_was_given_up(make: Any, ti: FakeTI) -> None:
    _, context = defer(make, ti)
    with pytest.raises(TaskDeferralError):
        make().resume_execution("__fail__", {"error": "Trigger failure"}, context)


@pytest.mark.parametrize(
    "leave", [on_the_worker, out_of_time, while_deferred, after_the_trigger_was_given_up]
)
def test_a_run_that_leaves_a_shared_pool_ends_its_warm_up_in_the_slots_of_the_others(
    client_there: QarnotClient, cold: Any, run_id: str, leave: Callable[[Any, FakeTI], None]
) -> None:
    make, pool = cold
    leave(make, FakeTI(run_id=run_id, task_id="open", max_tries=1))
    assert not is_ending(client_there.pools.get(pool))
    assert warm_ups(client_there, pool) == [True]


def test_a_wait_whose_warm_up_another_run_has_ended_starts_it_again(
    qarnot_that_boots_nothing: LocalQarnot, client_there: QarnotClient, cold: Any, run_id: str
) -> None:
    """They share one warm-up, and nothing else boots the nodes."""
    make, pool = cold
    mine, context = defer(make, FakeTI(run_id=run_id, task_id="open", max_tries=1))
    while_deferred(make, FakeTI(run_id=f"{run_id} 2", task_id="open", max_tries=1))
    event = fire(mine)
    assert event["resume_state"]["cold"] is True
    qarnot_that_boots_nothing.set_speed(1)
    assert resume_with(make, mine, event, context) == pool
    assert warm_ups(client_there, pool) == [True, True]


def resume_with(make: Any, deferred: TaskDeferred, event: Any, context: Any) -> Any:
    try:
        return make().resume_execution(deferred.method_name, {"event": event}, context)
    except TaskDeferred as again:
        return resume(make, again, context)


def test_a_wait_on_the_worker_whose_warm_up_another_run_has_ended_starts_it_again(
    qarnot_that_boots_nothing: LocalQarnot, client_there: QarnotClient, cold: Any, run_id: str
) -> None:
    make, pool = cold
    ended: list[str] = []

    class Abort(QarnotCreatePoolOperator):
        def _still_waiting(self, remote: Any) -> None:
            if not ended:
                (one,) = client_there.pools.tasks(pool)
                client_there.tasks.abort(one.uuid)
                assert client_there.tasks.get(one.uuid).state == "Cancelled"
                ended.append(one.uuid)
                qarnot_that_boots_nothing.set_speed(1)
            super()._still_waiting(remote)

    ti = FakeTI(run_id=run_id, task_id="open", max_tries=1)
    operator = Abort(**make.keywords, deferrable=False)
    assert operator.execute(context_of(operator, ti)) == pool
    assert warm_ups(client_there, pool) == [True, True]


def test_a_pool_that_is_closed_with_its_warm_up_is_not_warmed_up_again(
    qarnot: LocalQarnot, client: QarnotClient, tries: Callable[..., FakeTI]
) -> None:
    make = partial(
        pool_of_its_own,
        pool_spec=None,
        keep_warm=timedelta(minutes=1),
        instance_count=1,
        ready_when=None,
    )
    deferred, context = defer(make, tries(make, 1))
    client.pools.close(deferred.trigger.uuid)
    with pytest.raises(QarnotPoolEndedError):
        resume(make, deferred, context)
