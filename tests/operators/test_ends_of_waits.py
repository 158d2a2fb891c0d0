"""However a wait ends, one more poll decides: a result that is there by then counts, and only what is left is ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.exceptions import (
    QarnotCostLimitError,
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotKilledError,
    QarnotPoolEndedError,
    QarnotRefusedError,
    QarnotTaskFailedError,
    QarnotUnavailableError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.triggers.poller import Poller
from airflow_qarnot_pool.version_compat import TaskDeferralError, TaskDeferralTimeout
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult
from airflow_qarnot_pool.waiting.polling import KillFlag, wait_on_worker
from tests.crash.children import eventually
from tests.harness import FakeTI, again, airflow_says, context_of, defer, fire, kill, resume, run
from tests.operators.conftest import WAITS

MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
task = partial(QarnotRunTaskOperator, task_id="work", log_output=False)
tasks = partial(QarnotRunTasksOperator, task_id="work")
create = partial(QarnotCreatePoolOperator, task_id="create", instance_count=1)


@dataclass
class Wait:
    """A deferred wait: how to make its operator, and whether what it waits for has come."""

    make: Callable[..., Any]
    reached: Callable[[Any], bool]


def succeeded(client: QarnotClient, run_id: str) -> bool:
    mine = [one for one in client.tasks.list() if one.labels.get("airflow.run_id") == run_id]
    return bool(mine) and all(one.state == "Success" for one in mine)


@pytest.fixture(
    params=["task", "tasks", "fixed pool", "managed pool", "closing", "pool sensor", "task sensor"]
)
def wait(request: pytest.FixtureRequest, client: QarnotClient, pool: str, run_id: str) -> Wait:
    def state_of(ti: FakeTI) -> str:
        return str(client.pools.get(ti.xcoms["qarnot_pool"]).state)

    def done(ti: FakeTI) -> bool:
        return succeeded(client, run_id)

    if request.param == "task":
        return Wait(partial(task, qarnot_pool=pool, command="sleep 0.2"), done)
    if request.param == "tasks":
        return Wait(partial(tasks, qarnot_pool=pool, commands=["sleep 0.2", "true"]), done)
    if request.param == "fixed pool":
        return Wait(create, lambda ti: state_of(ti) == "FullyExecuting")
    if request.param == "managed pool":
        make = partial(create, keep_warm=timedelta(minutes=5))
        return Wait(make, lambda ti: client.pools.get(ti.xcoms["qarnot_pool"]).ready_slots == 1)
    other = client.pools.create(PoolSpec(name="other"))
    if request.param == "closing":
        make = partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=other, wait_for_completion=True)
        return Wait(make, lambda ti: client.pools.get(other).state == "Closed")
    if request.param == "pool sensor":
        make = partial(QarnotPoolSensor, task_id="sense", qarnot_pool=other)
        return Wait(make, lambda ti: client.pools.get(other).state == "FullyExecuting")
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="sleep 0.2"))
    return Wait(
        partial(QarnotTaskSensor, task_id="sense", qarnot_task=uuid),
        lambda ti: client.tasks.get(uuid).state == "Success",
    )


def event_of(ending: EndReason, deferred: Any, error: str | None = None) -> dict[str, Any]:
    """What the trigger of *deferred* says when it ends its wait so."""
    trigger = deferred.trigger
    resume_state = {**trigger.resume_state, **({"error": error} if error else {})}
    return WaitResult(
        ending=ending, uuid=trigger.uuid, state="Submitted", message="said so", resume_state=resume_state
    ).to_event()


ENDINGS = {
    "deadline": (EndReason.TIMEOUT, None),
    "404": (EndReason.GONE, None),
    "token": (EndReason.ERROR, "QarnotCredentialsError"),
}


def end_wait(operator: Any, how: str, deferred: Any, context: Any) -> Any:
    """Resume as after a wait that has ended so."""
    if how not in ENDINGS:
        return operator.resume_execution("__fail__", {"error": how}, context)
    event = event_of(ENDINGS[how][0], deferred, ENDINGS[how][1])
    return operator.resume_execution(deferred.method_name, {"event": event}, context)


@pytest.mark.parametrize("how", [*ENDINGS, "Trigger timeout", "Trigger failure"])
def test_a_state_reached_by_then_counts_however_a_deferred_wait_ends(
    qarnot: LocalQarnot, client: QarnotClient, wait: Wait, how: str, run_id: str
) -> None:
    deferred, context = defer(wait.make, FakeTI(run_id=run_id, task_id=wait.make().task_id))
    eventually(lambda: wait.reached(context["ti"]))
    operator = wait.make()
    context = {**context, "task": operator}
    end_wait(operator, how, deferred, context)
    aborted = {one["path"] for one in qarnot.requests() if one["path"].endswith("/abort")}
    made = context["ti"].xcoms.get("qarnot_pool")
    warm_ups = [one.uuid for one in client.tasks.list() if made and one.pool == made]
    assert aborted == {f"/tasks/{uuid}/abort" for uuid in warm_ups}


@pytest.mark.parametrize("how", [*ENDINGS, "Trigger timeout", "Trigger failure"])
def test_an_object_that_has_not_reached_it_by_then_is_ended(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, how: str, run_id: str
) -> None:
    makes = [
        partial(task, qarnot_pool=pool, command="sleep 60"),
        partial(tasks, qarnot_pool=pool, commands=["sleep 60", "true"]),
    ]
    expected = (
        QarnotWaitTimeoutError,
        QarnotDeletedError,
        QarnotCredentialsError,
        TaskDeferralTimeout,
        TaskDeferralError,
    )
    for number, make in enumerate(makes):
        mine = f"{run_id} {number}"
        deferred, context = defer(make, FakeTI(run_id=mine, task_id=make().task_id))
        operator = make()
        context = {**context, "task": operator}
        with pytest.raises(expected):
            end_wait(operator, how, deferred, context)
        ours = [one for one in client.tasks.list() if one.labels.get("airflow.run_id") == mine]
        assert ours
        eventually(
            lambda ours=ours: all(
                client.tasks.get(one.uuid).state in ("Cancelled", "Success") for one in ours
            )
        )


def test_a_failure_before_the_deadline_is_told_as_such(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str
) -> None:
    make = partial(task, qarnot_pool=pool, command="false")
    deferred, context = defer(make, FakeTI(run_id=run_id))
    eventually(lambda: client.tasks.get(context["ti"].xcoms["qarnot_task"]).state == "Failure")
    operator = make()
    event = event_of(EndReason.TIMEOUT, deferred)
    with pytest.raises(QarnotTaskFailedError):
        operator.execute_complete({**context, "task": operator}, event)


def test_a_success_counts_though_the_limit_on_cost_ended_the_wait(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str
) -> None:
    """What has reached the limit is closed all the same, and work that is not done fails with the limit."""
    for command, expected in (("true", None), ("sleep 60", QarnotCostLimitError)):
        pool = client.pools.create(PoolSpec(name="x", instance_count=1))
        make = partial(task, qarnot_pool=pool, command=command)
        deferred, context = defer(make, FakeTI(run_id=f"{run_id} {command}"))
        uuid = context["ti"].xcoms["qarnot_task"]
        if expected is None:
            eventually(lambda uuid=uuid: client.tasks.get(uuid).state == "Success")
        event = event_of(EndReason.ERROR, deferred, "QarnotCostLimitError")
        event["resume_state"]["cost_limit"] = {
            "uuid": pool,
            "kind": "pool",
            "max_cost": 1.0,
            "max_run_cost": None,
            "warn_at": 0.8,
            "namespace": "test",
            "dag_id": "dag",
            "run_id": run_id,
            "since": None,
            "close": [pool],
        }
        operator = make()
        if expected is None:
            assert operator.execute_complete({**context, "task": operator}, event)["state"] == "Success"
        else:
            with pytest.raises(expected):
                operator.execute_complete({**context, "task": operator}, event)
        assert client.pools.get(pool).state in ("Closing", "Closed")


@MODES
def test_an_outage_around_the_deadline_throws_no_success_away(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, run_id: str
) -> None:
    """It begins before the success, and ends after the deadline."""
    make = partial(
        task,
        qarnot_pool=pool,
        command="sleep 0.3",
        wait_timeout=timedelta(seconds=1),
        deferrable=deferrable,
    )
    # Only what reads: the submission itself must get through.
    outage = {"kind": "status", "status": 503}
    reads = [
        {**outage, "method": "GET", "path": "^/tasks"},
        {**outage, "method": "POST", "path": "^/tasks/search"},
    ]
    deferred = None
    if deferrable:
        deferred, context = defer(make, FakeTI(run_id=run_id))
    qarnot.faults(reads)
    ends = threading.Timer(2.0, lambda: qarnot.faults([]))
    ends.start()
    try:
        result = resume(make, deferred, context) if deferred else run(make, FakeTI(run_id=run_id))
    finally:
        ends.join()
    assert result["state"] == "Success"


@pytest.mark.parametrize("ending", [EndReason.TIMEOUT, EndReason.GONE, EndReason.IMPOSSIBLE])
def test_a_success_by_then_counts_however_a_wait_on_the_worker_ends(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    run_id: str,
    ending: EndReason,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(resource: Any, uuid: str, *args: Any) -> WaitResult:
        eventually(lambda: succeeded(client, run_id))
        return WaitResult(ending=ending, uuid=uuid, state="Submitted", message="said so")

    monkeypatch.setattr("airflow_qarnot_pool.operators.bases.base.wait_on_worker", ended)
    result = run(partial(task, qarnot_pool=pool, command="true", deferrable=False), FakeTI(run_id=run_id))
    assert result["state"] == "Success"


def test_successes_by_the_deadline_count_though_no_poll_of_a_fan_out_on_the_worker_shows_them(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outage(*args: Any) -> None:
        eventually(lambda: succeeded(client, run_id))
        raise QarnotUnavailableError

    monkeypatch.setattr("airflow_qarnot_pool.triggers.tasks.poll_lineage", outage)
    make = partial(
        tasks,
        qarnot_pool=pool,
        commands=["true", "true"],
        deferrable=False,
        wait_timeout=timedelta(seconds=0.1),
    )
    assert run(make, FakeTI(run_id=run_id))["succeeded"] == 2


@pytest.mark.parametrize("command", ["true", "sleep 60"])
def test_a_success_before_a_kill_counts_and_what_runs_is_ended(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    run_id: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with the SIGTERM of a pod that goes: the code of the task has a few seconds more."""
    for kind, make in {
        "one": partial(task, qarnot_pool=pool, command=command, deferrable=False),
        "many": partial(tasks, qarnot_pool=pool, commands=[command, command], deferrable=False),
    }.items():
        operator = make()
        ti = FakeTI(run_id=f"{run_id} {kind}")

        def killed_after_the_end(
            *args: Any, operator: Any = operator, run: str = ti.run_id, **kwargs: Any
        ) -> None:
            if command == "true":
                eventually(lambda: succeeded(client, run))
            operator.on_kill()

        def killed_during_an_outage(*args: Any, end: Any = killed_after_the_end) -> None:
            end()
            raise QarnotUnavailableError

        monkeypatch.setattr("airflow_qarnot_pool.operators.bases.base.wait_on_worker", killed_after_the_end)
        monkeypatch.setattr("airflow_qarnot_pool.triggers.tasks.poll_lineage", killed_during_an_outage)
        context = context_of(operator, ti)
        if command == "true":
            result = operator.execute(context)
            assert result.get("state") == "Success" or result["succeeded"] == result["total"] == 2
        else:
            with pytest.raises(QarnotKilledError):
                operator.execute(context)
            mine = [one for one in client.tasks.list() if one.labels.get("airflow.run_id") == ti.run_id]
            assert {one.state for one in mine} <= {"PendingCancel", "Cancelled"}


# --- 404


NOT_THE_SERVICE = {"kind": "proxy", "status": 404}
NOT_FOUND = {"kind": "status", "status": 404, "message": "No such task"}
STRAY = pytest.mark.parametrize("stray", [NOT_THE_SERVICE, NOT_FOUND], ids=["a proxy", "a replica"])


@STRAY
def test_a_stray_404_ends_no_wait_on_the_worker(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, stray: dict[str, Any], run_id: str
) -> None:
    make = partial(task, qarnot_pool=pool, command="sleep 1", deferrable=False)
    qarnot.faults([{**stray, "method": "GET", "path": "^/tasks/[^/]+$", "times": 1}])
    assert run(make, FakeTI(run_id=run_id))["state"] == "Success"


@STRAY
def test_a_stray_404_ends_no_deferred_wait(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    stray: dict[str, Any],
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The search of the poller has missed it, too, as on a replica that lags."""
    search, missed = Poller._search, []

    def lagging(self: Poller, uuids: list[str]) -> Any:
        missed.append(uuids)
        return [] if len(missed) == 1 else search(self, uuids)

    monkeypatch.setattr(Poller, "_search", lagging)
    make = partial(task, qarnot_pool=pool, command="sleep 1")
    deferred, context = defer(make, FakeTI(run_id=run_id))
    qarnot.faults([{**stray, "method": "GET", "path": "^/tasks/[^/]+$", "times": 1}])
    assert resume(make, deferred, context)["state"] == "Success"
    assert len(missed) > 1


@STRAY
def test_a_stray_404_costs_no_result(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, stray: dict[str, Any], run_id: str
) -> None:
    """The one that is met when the wait has ended, and the result is fetched."""
    make = partial(task, qarnot_pool=pool, command="true")
    deferred, context = defer(make, FakeTI(run_id=run_id))
    eventually(lambda: succeeded(client, run_id))
    qarnot.faults([{**stray, "method": "GET", "path": "^/tasks/[^/]+$", "times": 1}])
    assert resume(make, deferred, context)["state"] == "Success"


@STRAY
def test_a_stray_404_about_its_pool_fails_no_task(
    qarnot: LocalQarnot, client: QarnotClient, stray: dict[str, Any], run_id: str
) -> None:
    """A fan-out asks how many slots the pool has, and a shortname stands for a uuid."""
    name = f"stray-{stray['kind']}"
    uuid = client.pools.create(PoolSpec(name="x", shortname=name, instance_count=1))
    for kind, make in {
        "slots": partial(tasks, qarnot_pool=uuid, commands=["true"]),
        "shortname": partial(task, qarnot_pool=name, command="true"),
    }.items():
        qarnot.faults([{**stray, "method": "GET", "path": "^/pools/[^/]+$", "times": 1}])
        result = run(make, FakeTI(run_id=f"{run_id} {kind}"))
        assert result.get("state") == "Success" or result["succeeded"] == 1


@STRAY
def test_a_stray_404_keeps_no_killed_task_running(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, stray: dict[str, Any], run_id: str
) -> None:
    deferred, context = defer(partial(task, qarnot_pool=pool, command="sleep 60"), FakeTI(run_id=run_id))
    qarnot.faults([{**stray, "method": "GET", "path": "^/tasks/[^/]+$", "times": 1}])
    with airflow_says("failed", context["ti"].xcoms):
        asyncio.run(kill(again(deferred.trigger)))
    (one,) = (one for one in client.tasks.list() if one.labels.get("airflow.run_id") == run_id)
    assert one.state in ("PendingCancel", "Cancelled")


@WAITS
def test_a_proxy_alone_never_says_that_something_is_gone(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, run_id: str
) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command="sleep 60",
        deferrable=deferrable,
        wait_timeout=timedelta(seconds=2),
    )
    read = {**NOT_THE_SERVICE, "path": "^/tasks/([^/]+|search)$"}
    qarnot.faults([{**read, "method": method} for method in ("GET", "POST")])
    with pytest.raises(QarnotWaitTimeoutError):
        run(make, ti := FakeTI(run_id=run_id))
    qarnot.faults([])
    assert client.tasks.get(ti.xcoms["qarnot_task"]).state in ("PendingCancel", "Cancelled")


@MODES
def test_an_object_given_up_as_deleted_is_ended(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, run_id: str
) -> None:
    """The service denies it for as long as it is asked, and yet it runs."""
    make = partial(task, qarnot_pool=pool, command="sleep 60", deferrable=deferrable)
    qarnot.faults([{**NOT_FOUND, "method": "GET", "path": "^/tasks/[^/]+$"}])
    ti = FakeTI(run_id=run_id)
    if deferrable:
        deferred, context = defer(make, ti)
        event = event_of(EndReason.GONE, deferred)
        operator = make()
        with pytest.raises(QarnotDeletedError):
            operator.execute_complete({**context, "task": operator}, event)
    else:
        with pytest.raises(QarnotDeletedError):
            run(make, ti)
    qarnot.faults([])
    assert client.tasks.get(ti.xcoms["qarnot_task"]).state in ("PendingCancel", "Cancelled")


@STRAY
def test_a_stray_404_leaves_no_pool_open(
    qarnot: LocalQarnot, client: QarnotClient, stray: dict[str, Any]
) -> None:
    uuid = client.pools.create(PoolSpec(name="x"))
    qarnot.faults([{**stray, "method": "POST", "path": "^/pools/[^/]+/close$", "times": 1}])
    run(partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=uuid))
    assert client.pools.get(uuid).state in ("Closing", "Closed")


@STRAY
@MODES
def test_a_stray_404_ends_no_sensor(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, stray: dict[str, Any], deferrable: bool
) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    qarnot.faults([{**stray, "method": "GET", "path": "^/tasks/[^/]+$", "times": 1}])
    make = partial(QarnotTaskSensor, task_id="sense", qarnot_task=uuid, poke_interval=0.1)
    run(partial(make, deferrable=deferrable))
    gone = partial(QarnotPoolSensor, task_id="sense", poke_interval=0.1, target_states="PendingDelete")
    other = client.pools.create(PoolSpec(name="x"))
    sensor = gone(qarnot_pool=other, deferrable=False)
    context = context_of(sensor)
    assert not sensor.poke(context)
    qarnot.faults([{**stray, "method": "GET", "path": "^/pools/[^/]+$", "times": 1}])
    assert not sensor.poke(context)
    client.pools.delete(other)


def test_items_that_searches_miss_are_asked_for_before_they_are_gone(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = partial(tasks, qarnot_pool=pool, commands=["sleep 0.1", "sleep 0.1"])
    deferred, context = defer(make, FakeTI(run_id=run_id))
    eventually(lambda: succeeded(client, run_id))
    monkeypatch.setattr("airflow_qarnot_pool.operators.tasks._MAX_LOOKUPS", 1)
    monkeypatch.setattr(QarnotRunTasksOperator, "_all_snapshots", lambda self, identity, fingerprints: [])
    assert resume(make, deferred, context)["succeeded"] == 2


# --- refusals


def waits_on_worker(pool: str, command: str) -> dict[str, tuple[Any, dict[str, str]]]:
    """The waits, and what each of their polls requests."""
    there = {"qarnot_pool": pool, "deferrable": False}
    return {
        "one": (partial(task, command=command, **there), {"method": "GET", "path": "^/tasks/[^/]+$"}),
        "many": (partial(tasks, commands=[command], **there), {"method": "POST", "path": "^/tasks/search$"}),
        "pool": (partial(create, deferrable=False), {"method": "GET", "path": "^/pools/[^/]+$"}),
    }


@pytest.mark.parametrize("status", [403, 401, 302])
@pytest.mark.parametrize("kind", ["one", "many", "pool"])
def test_a_stray_refusal_ends_no_wait_on_the_worker(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, kind: str, status: int, run_id: str
) -> None:
    make, poll = waits_on_worker(pool, "sleep 0.2")[kind]
    operator = make()
    qarnot.faults([{"kind": "status", "status": status, "times": 1, **poll}])
    result = operator.execute(context_of(operator, FakeTI(run_id=run_id, task_id=operator.task_id)))
    assert [one["status"] for one in qarnot.requests() if "fault" in one] == [status]
    if kind == "pool":
        client.pools.delete(result)
    else:
        assert result.get("state") == "Success" or result["succeeded"] == 1


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("one", 403, QarnotRefusedError),
        ("one", 401, QarnotCredentialsError),
        ("many", 401, QarnotCredentialsError),
        ("pool", 403, QarnotRefusedError),
    ],
)
def test_a_refusal_that_lasts_ends_the_wait_on_the_worker_and_the_work(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    kind: str,
    status: int,
    error: type[Exception],
    run_id: str,
) -> None:
    make, poll = waits_on_worker(pool, "sleep 60")[kind]
    operator = make()
    qarnot.faults([{"kind": "status", "status": status, **poll}])
    ti = FakeTI(run_id=run_id, task_id=operator.task_id)
    with pytest.raises(error):
        operator.execute(context_of(operator, ti))
    assert sum("fault" in one for one in qarnot.requests()) > 1
    qarnot.faults([])
    if kind == "one":
        assert client.tasks.get(ti.xcoms["qarnot_task"]).state in ("PendingCancel", "Cancelled")
    if kind == "pool":
        assert client.pools.get(ti.xcoms["qarnot_pool"]).state in ("Closing", "Closed")


@pytest.mark.parametrize(("kind", "method"), [("one", "_wait_here"), ("many", "_wait_for_some")])
def test_a_token_that_is_replaced_during_a_wait_on_the_worker_is_read_again(
    qarnot: LocalQarnot, pool: str, kind: str, method: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _ = waits_on_worker(pool, "true")[kind]
    waiting: list[Any] = []
    wait = getattr(make.func, method)

    def with_old_token(self: Any, *args: Any) -> Any:
        waiting.append(self)
        old = replace(self.hook.settings, token="expired")
        self.hook.settings, self.hook.client, self._work.settings = old, old.client(), old
        return wait(self, *args)

    monkeypatch.setattr(make.func, method, with_old_token)
    result = run(make, FakeTI(run_id=run_id))
    assert result.get("state") == "Success" or result["succeeded"] == 1
    assert any(one["status"] == 401 for one in qarnot.requests())
    assert waiting[0]._work.settings.token == qarnot.token  # for a kill


@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_wait_on_the_worker_heeds_retry_after(
    qarnot: LocalQarnot, pool: str, kind: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, poll = waits_on_worker(pool, "true")[kind]
    operator = make()
    qarnot.faults([{"kind": "status", "status": 429, "retry_after": 300, "times": 1, **poll}])
    pauses: list[float] = []
    wait = KillFlag.wait

    def short_wait(self: KillFlag, seconds: float) -> bool:
        pauses.append(seconds)
        return wait(self, min(seconds, 0.1))

    monkeypatch.setattr(KillFlag, "wait", short_wait)
    result = operator.execute(context_of(operator, FakeTI(run_id=run_id)))
    assert result.get("state") == "Success" or result["succeeded"] == 1
    assert max(pauses) == 300.0


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("status", [403, 401])
def test_a_stray_refusal_ends_no_sensor(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, status: int, deferrable: bool
) -> None:
    uuid = client.tasks.create(TaskSpec(name="x", pool=pool, command="true"))
    qarnot.faults(
        [{"kind": "status", "status": status, "method": "GET", "path": "^/tasks/[^/]+$", "times": 1}]
    )
    make = partial(QarnotTaskSensor, task_id="sense", qarnot_task=uuid, poke_interval=0.1)
    run(partial(make, deferrable=deferrable))


@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_stray_refusal_costs_no_result(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, kind: str, run_id: str
) -> None:
    """The one that is met when a deferred wait has ended."""
    make = partial(waits_on_worker(pool, "true")[kind][0], deferrable=True)
    deferred, context = defer(make, FakeTI(run_id=run_id))
    eventually(lambda: succeeded(client, run_id))
    event = fire(deferred)
    qarnot.faults([{"kind": "status", "status": 403, "path": "^/tasks/([^/]+|search)$", "times": 1}])
    operator = make()
    result = operator.execute_complete({**context, "task": operator}, event)
    assert result.get("state") == "Success" or result["succeeded"] == 1


# --- pools


@MODES
def test_a_pool_that_has_ended_is_not_returned_as_ready(
    qarnot: LocalQarnot,
    client: QarnotClient,
    deferrable: bool,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was ready between two polls, or when the trigger fired, and has ended since."""
    make = partial(create, deferrable=deferrable)
    ti = FakeTI(run_id=run_id, task_id="create")
    if not deferrable:
        operator = make()

        def end(*args: Any, **kwargs: Any) -> Any:
            uuid = ti.xcoms["qarnot_pool"]
            eventually(lambda: client.pools.get(uuid).state == "FullyExecuting")
            client.pools.close(uuid)
            return wait_on_worker(*args, **kwargs)

        monkeypatch.setattr("airflow_qarnot_pool.operators.bases.base.wait_on_worker", end)
        with pytest.raises(QarnotPoolEndedError):
            operator.execute(context_of(operator, ti))
        return
    deferred, context = defer(make, ti)
    uuid = ti.xcoms["qarnot_pool"]
    eventually(lambda: client.pools.get(uuid).state == "FullyExecuting")
    event = WaitResult(
        ending=EndReason.MET, uuid=uuid, state="FullyExecuting", resume_state=deferred.trigger.resume_state
    )
    client.pools.close(uuid)
    operator = make()
    with pytest.raises(QarnotPoolEndedError, match="Clos"):
        operator.execute_complete({**context, "task": operator}, event.to_event())
