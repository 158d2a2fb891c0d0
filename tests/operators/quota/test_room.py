"""Full quotas of tasks and pools: nothing is deleted unread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.jobs import JobResource
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.exceptions import QarnotCostLimitError, QarnotQuotaError, QarnotTaskFailedError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance.reaper import ReapLimits, reap
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.quota import QuotaRoom
from airflow_qarnot_pool.triggers import quota
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.crash.children import eventually
from tests.harness import FakeTI, defer, fire, resume, run
from tests.operators.conftest import connect
from tests.operators.deployment import Airflow
from tests.operators.quota.work import counting, many, once, ran, single

# --- what may go


def finished(client: QarnotClient, make: Any, ti: FakeTI) -> str:
    """Submit a Qarnot task that nothing has read yet, and wait for its end; its uuid."""
    defer(make, ti)
    (uuid,) = [one.uuid for one in client.tasks.list() if one.labels["airflow.run_id"] == ti.run_id]
    eventually(lambda: client.tasks.get(uuid).state in ("Success", "Failure"))
    return uuid


UNREAD = {
    "its output is still to be logged": {"log_output": True},
    "its failure is still to be reported": {"log_output": False, "command": "false"},
}


@pytest.mark.parametrize("parameters", UNREAD.values(), ids=UNREAD)
@pytest.mark.parametrize("state", ["running", "deferred", "queued", "up_for_retry", None, "unknown"])
def test_a_task_that_airflow_has_not_recorded_is_not_deleted(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, parameters: dict[str, Any], state: str | None
) -> None:
    ti = FakeTI(run_id="first", task_id="work")
    uuid = finished(client, partial(single, pool, **{"command": "true", **parameters}), ti)
    qarnot.set_account(maxTask=1)
    airflow = Airflow()
    if state != "unknown":
        airflow.note(ti, state)
    with airflow.answering(), pytest.raises(QarnotQuotaError):
        run(partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true"))
    assert client.tasks.find(uuid) is not None
    airflow.note(ti, "success")
    with airflow.answering():
        other = partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true")
        assert run(other)["state"] == "Success"
    assert client.tasks.find(uuid) is None


def test_the_result_of_a_python_function_goes_only_when_airflow_has_it(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    ti = FakeTI(run_id="function", task_id="call")
    uuid = finished(client, partial(function_task, pool), ti)
    assert "airflow.recordable" not in client.tasks.get(uuid).labels
    qarnot.set_account(maxTask=1)
    with pytest.raises(QarnotQuotaError):
        run(partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true"))
    assert client.tasks.find(uuid) is not None


def function_task(pool: str) -> Any:
    from airflow_qarnot_pool.decorators.qarnot import _QarnotDecoratedOperator

    return _QarnotDecoratedOperator(
        task_id="call",
        python_callable=one,
        image=None,
        qarnot_pool=pool,
        log_output=False,
        op_args=[],
        op_kwargs={},
    )


def one() -> int:
    return 1


def test_a_task_without_a_waiter_is_deleted_only_after_its_dag_run(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor may wait for it."""
    ti = FakeTI(run_id="detached", task_id="work")
    uuid = run(partial(single, pool, "true", wait_for_completion=False, log_output=False), ti)["uuid"]
    eventually(lambda: client.tasks.get(uuid).state == "Success")
    qarnot.set_account(maxTask=1)
    other = partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true")
    airflow = Airflow()
    airflow.note(ti, "success")
    with airflow.answering():
        monkeypatch.setattr("airflow_qarnot_pool.ownership.quota.dag_run_state", lambda *run: "running")
        with pytest.raises(QarnotQuotaError):
            run(other)
        monkeypatch.setattr("airflow_qarnot_pool.ownership.quota.dag_run_state", lambda *run: "success")
        assert run(other)["state"] == "Success"
    assert client.tasks.find(uuid) is None


def test_another_namespace_keeps_what_it_has(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ti = FakeTI(run_id="theirs", task_id="work")
    uuid = finished(client, partial(single, pool, "true", log_output=False), ti)
    connect(qarnot, monkeypatch, namespace="other")
    qarnot.set_account(maxTask=1)
    airflow = Airflow()
    airflow.note(ti, "success")
    with airflow.answering(), pytest.raises(QarnotQuotaError):
        run(partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true"))
    assert client.tasks.find(uuid) is not None


def test_no_more_goes_than_room_is_needed_for_and_the_oldest_first(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    airflow, uuids = Airflow(), []
    for n in range(3):
        ti = FakeTI(run_id=f"run-{n}", task_id="work")
        uuids.append(finished(client, partial(single, pool, "true"), ti))
        airflow.note(ti, "success")
    qarnot.set_account(maxTask=3)
    with airflow.answering():
        run(partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true"))
    assert [client.tasks.find(uuid) is None for uuid in uuids] == [True, False, False]


def test_a_first_try_with_room_asks_for_nothing_but_its_task(qarnot: LocalQarnot, pool: str) -> None:
    qarnot.clear_requests()
    defer(partial(single, pool, "true", log_output=False), FakeTI(run_id="cheap", task_id="work"))
    assert [(one["method"], one["path"]) for one in qarnot.requests()] == [("POST", "/tasks")]


# --- records


@pytest.mark.parametrize("gone_before", ["the trigger has seen its end", "the worker resumes"])
def test_a_task_whose_end_is_recorded_returns_what_it_would_have_returned(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, gone_before: str
) -> None:
    make = partial(single, pool, "true", log_output=False, instance_count=2)
    plain = run(make, FakeTI(run_id="plain", task_id="work"))
    ti = FakeTI(run_id="deleted", task_id="work", max_tries=2)
    deferred, context = defer(make, ti)
    uuid = ti.xcoms["qarnot_task"]
    eventually(lambda: client.tasks.get(uuid).state == "Success")
    event = None if gone_before == "the trigger has seen its end" else fire(deferred)
    client.tasks.delete(plain["uuid"])
    qarnot.set_account(maxTask=1)
    other = FakeTI(run_id="other", task_id="work")
    defer(make, other)
    assert client.tasks.find(uuid) is None
    operator = make()
    event = event or fire(deferred)
    result = operator.resume_execution(deferred.method_name, {"event": event}, {**context, "task": operator})
    same = {"uuid", "created", "ended", "wall_seconds", "execution_seconds"}
    assert {k: v for k, v in result.items() if k not in same} == {
        k: v for k, v in plain.items() if k not in same
    }
    assert result["uuid"] == uuid
    assert result["execution_seconds"] is not None
    # The process dies before Airflow has the result: the next try does not run the command again.
    again = run(make, FakeTI(run_id="deleted", task_id="work", max_tries=2, try_number=2))
    assert again == result


def test_instances_that_succeeded_in_a_recorded_try_do_not_run_again(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, tmp_path: Path
) -> None:
    """A quota of one: the failed Qarnot task of the first try has to go before the second can start."""
    qarnot.set_account(maxTask=1)
    command = f"sh -c 'echo $INSTANCE_ID >> {tmp_path}/ran; test $INSTANCE_ID != 1 -o -e {tmp_path}/mended'"
    make = partial(single, pool, command, instance_count=3)
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id="partly", task_id="work", max_tries=2))
    (tmp_path / "mended").touch()
    second = run(make, FakeTI(run_id="partly", task_id="work", max_tries=2, try_number=2))
    assert (second["state"], second["instances"]) == ("Success", 3)
    assert ran(tmp_path) == Counter({"0": 1, "1": 2, "2": 1})
    (left,) = client.tasks.list()
    assert left.labels["airflow.generation"] == "2"


def test_if_nothing_can_be_recorded_nothing_is_deleted(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    uuid = finished(
        client, partial(single, pool, "true", log_output=False), FakeTI(run_id="kept", task_id="work")
    )
    qarnot.set_account(maxTask=1, maxJob=0)
    with pytest.raises(QarnotQuotaError, match="tasks"):
        run(partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true"))
    assert client.tasks.find(uuid) is not None


def test_records_of_ended_task_instances_make_room_for_records(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(single, pool, "true", log_output=False)
    first, second = (FakeTI(run_id=name, task_id="work") for name in ("first", "second"))
    finished(client, make, first)
    qarnot.set_account(maxTask=1, maxJob=1)
    finished(client, make, second)
    airflow = Airflow()
    airflow.note(first, "success")
    airflow.note(second, "deferred")
    with airflow.answering():
        defer(make, FakeTI(run_id="third", task_id="work"))
    (job,) = client.jobs.list()
    assert "second" in (job.name or "")
    assert "first" not in (job.name or "")


def test_a_fan_out_keeps_one_record_however_many_items_go(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, tmp_path: Path
) -> None:
    qarnot.set_account(maxTask=2)
    make = partial(many, pool, [counting(tmp_path, n) for n in range(12)])
    assert run(make, ti := FakeTI(run_id="records", task_id="many", max_tries=2))["succeeded"] == 12
    outcomes = [
        job for job in client.jobs.list() if any(tag.startswith("airflow-outcome:") for tag in job.tags)
    ]
    assert len(outcomes) == 1
    assert outcomes[0].auto_delete_on_completion is True
    # It gives back the places it had, as other users of the account may wait for them.
    assert client.tasks.list() == []
    ti = FakeTI(run_id="records", task_id="many", max_tries=2, try_number=2)
    again = run(make, ti)
    assert (again["succeeded"], {one["uuid"] for one in again["results"]}) == (12, {None})
    assert ran(tmp_path) == once(*range(12))


def test_a_recorded_failure_of_an_item_runs_again_in_the_next_try(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, tmp_path: Path
) -> None:
    qarnot.set_account(maxTask=1)
    commands = [
        counting(tmp_path, 0),
        f"sh -c 'echo 1 >> {tmp_path}/ran; test -e {tmp_path}/mended'",
        counting(tmp_path, 2),
    ]
    make = partial(many, pool, commands)
    with pytest.raises(QarnotTaskFailedError, match=r"1 of 3 .*item 1\."):
        run(make, FakeTI(run_id="item", task_id="many", max_tries=2))
    (tmp_path / "mended").touch()
    assert run(make, FakeTI(run_id="item", task_id="many", max_tries=2, try_number=2))["succeeded"] == 3
    assert ran(tmp_path) == Counter({"0": 1, "1": 2, "2": 1})


@pytest.mark.parametrize("kind", ["single", "fan-out"])
def test_a_task_recorded_and_deleted_during_a_lookup_is_found(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process makes room right after this one has asked for records, or for Qarnot tasks."""
    command = counting(tmp_path, "x")
    make = (
        partial(single, pool, command, log_output=False)
        if kind == "single"
        else partial(many, pool, [command])
    )
    for asked in (JobResource, TaskResource):
        first = FakeTI(run_id=f"{kind}-{asked.__name__}", task_id="work", max_tries=2)
        finished(client, make, first)
        with monkeypatch.context() as patch:
            make_room_after(patch, client, asked)
            again = FakeTI(run_id=first.run_id, task_id="work", max_tries=2, try_number=2)
            run(make, again)
    assert ran(tmp_path) == Counter({"x": 2})


def make_room_after(patch: pytest.MonkeyPatch, client: QarnotClient, asked: type) -> None:
    """Delete all that may go, once, right after the next lookup of this kind has its answer."""
    names = ["list"] if asked is JobResource else ["iterate", "search_all"]
    done: list[bool] = []

    def after(real: Any) -> Any:
        def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = list(real(self, *args, **kwargs))
            if not done:
                done.append(True)
                room = QuotaRoom(client, "test")
                gone = room._make_room("task", 10)
                assert gone == 1
            return found

        return answer

    for name in names:
        patch.setattr(asked, name, after(getattr(asked, name)))


def test_a_record_that_is_not_listed_yet_lets_nothing_go(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = finished(
        client, partial(single, pool, "true", log_output=False), FakeTI(run_id="lag", task_id="work")
    )
    qarnot.set_account(maxTask=1)
    monkeypatch.setattr(JobResource, "list", lambda self, tags=(): [])
    with pytest.raises(QarnotQuotaError):
        run(partial(QarnotRunTaskOperator, task_id="other", qarnot_pool=pool, command="true"))
    assert client.tasks.find(uuid) is not None


# --- pools


def closed(client: QarnotClient, run_id: str, **kwargs: Any) -> str:
    """A closed pool that an operator has made; its uuid."""
    make = partial(QarnotCreatePoolOperator, task_id="create", instance_count=1, **kwargs)
    uuid: str = run(make, FakeTI(run_id=run_id, task_id="create"))
    client.pools.close(uuid)
    eventually(lambda: client.pools.get(uuid).state == "Closed")
    return uuid


@pytest.fixture
def one_more(qarnot: LocalQarnot, client: QarnotClient) -> Iterator[None]:
    """The account has one pool more than the others' now."""
    for one in client.pools.list():
        if one.name != "wide":
            client.pools.delete(one.uuid)
    eventually(lambda: len(client.pools.list()) == 1)
    qarnot.set_account(maxPool=2)
    yield
    qarnot.set_account(maxPool=1000)


def open_pool(run_id: str, **kwargs: Any) -> str:
    make = partial(QarnotCreatePoolOperator, task_id="create", instance_count=1, **kwargs)
    uuid: str = run(make, FakeTI(run_id=run_id, task_id="create"))
    return uuid


@pytest.mark.usefixtures("one_more")
def test_a_closed_pool_makes_room_for_the_next_and_an_open_one_does_not(
    client: QarnotClient, pool: str
) -> None:
    first = closed(client, "closed")
    second = open_pool("open")
    assert client.pools.find(first) is None
    with pytest.raises(QarnotQuotaError):
        open_pool("no room")
    assert client.pools.find(second) is not None


@pytest.mark.usefixtures("one_more")
def test_a_closed_pool_makes_room_for_the_next_of_the_same_airflow_task(
    client: QarnotClient, pool: str
) -> None:
    first = closed(client, "same")
    ti = FakeTI(run_id="same", task_id="create", try_number=2, max_tries=2)
    airflow = Airflow()
    airflow.note(ti, "running")
    with airflow.answering():
        second = run(partial(QarnotCreatePoolOperator, task_id="create", instance_count=1), ti)
    assert client.pools.find(first) is None
    assert client.pools.find(second) is not None


@pytest.mark.usefixtures("one_more")
@pytest.mark.parametrize("bills_deleted", [True, False])
def test_a_run_limit_counts_pools_that_made_room(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, bills_deleted: bool
) -> None:
    """Whether the service still tells the credits of a deleted pool or not."""
    qarnot.set_account(billsDeleted=bills_deleted)
    dear = partial(QarnotCreatePoolOperator, instance_count=1, max_run_cost=0.5)

    def opened(n: int) -> str:
        uuid: str = run(
            partial(dear, task_id=f"create{n}"), FakeTI(run_id=f"limit-{bills_deleted}", task_id=f"create{n}")
        )
        return uuid

    for n in range(2):
        uuid = opened(n)
        qarnot.advance_clock(3000)
        client.pools.close(uuid)
        eventually(lambda uuid=uuid: client.pools.get(uuid).state == "Closed")
    open_pool("another run")
    assert client.pools.find(uuid) is None
    with pytest.raises(QarnotCostLimitError, match=r"have cost 0\.6"):
        opened(2)


@pytest.mark.parametrize("bills_deleted", [True, False])
def test_a_pool_that_others_delete_is_not_taken_for_free(
    qarnot: LocalQarnot, client: QarnotClient, bills_deleted: bool
) -> None:
    qarnot.set_account(billsDeleted=bills_deleted)
    run_id = f"deleted-{bills_deleted}"
    make = partial(QarnotCreatePoolOperator, instance_count=1, max_run_cost=0.5)
    uuid = run(partial(make, task_id="create"), FakeTI(run_id=run_id, task_id="create"))
    qarnot.advance_clock(6000)
    client.pools.close(uuid)
    eventually(lambda: client.pools.get(uuid).state == "Closed")
    client.pools.delete(uuid)
    reason = "have cost" if bills_deleted else f"{uuid} is unknown"
    with pytest.raises(QarnotCostLimitError, match=reason):
        run(partial(make, task_id="again"), FakeTI(run_id=run_id, task_id="again"))


@pytest.mark.usefixtures("one_more")
def test_a_task_finds_the_successor_of_a_shared_pool_that_made_room(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.CONFIRM_AFTER", (0.0, 0.0))
    old = open_pool("shared", shared="team")
    client.pools.close(old)
    eventually(lambda: client.pools.get(old).state == "Closed")
    new = open_pool("shared again", shared="team")
    assert client.pools.find(old) is None
    ti = FakeTI(run_id="shared", task_id="work")
    result = run(partial(single, old, "true", log_output=False), ti)
    assert (result["state"], result["pool"]) == ("Success", new)
    for limit in (None, 2):
        make = partial(many, old, ["true"] * 3, max_in_flight=limit)
        deferred, context = defer(make, FakeTI(run_id=f"shared {limit}", task_id="many"))
        qarnot.clear_requests()
        assert resume(make, deferred, context)["succeeded"] == 3
        # Later slices know the successor.
        assert not any(old in one["path"] for one in qarnot.requests())
    client.pools.close(new)


# --- the reaper


def idle_pool(client: QarnotClient, qarnot: LocalQarnot, run_id: str) -> str:
    """A pool that was opened two hours ago."""
    uuid = open_pool(run_id)
    qarnot.advance_clock(7200)
    return uuid


def reaped(client: QarnotClient, uuid: str, at: datetime, state: str = "running", **kwargs: Any) -> str:
    report = reap(client, "test", lambda dag_id, run_id: state, ReapLimits(), now=lambda: at, **kwargs)
    assert report.failures == []
    return next(one.action for one in report.entries if one.uuid == uuid)


def test_a_pool_whose_finished_tasks_others_deleted_is_closed_only_if_it_stays_idle(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    uuid = idle_pool(client, qarnot, "e1")
    result = run(partial(single, uuid, "true", log_output=False), FakeTI(run_id="e1", task_id="work"))
    now = client.tasks.get(result["uuid"]).end_date
    assert now is not None
    client.tasks.delete(result["uuid"])
    assert reaped(client, uuid, now, dry_run=True) == "keep"
    assert reaped(client, uuid, now) == "keep"
    assert reaped(client, uuid, now + timedelta(minutes=50)) == "keep"
    assert reaped(client, uuid, now + timedelta(minutes=70)) == "close"


def test_making_room_records_when_a_pool_was_last_used(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    uuid = idle_pool(client, qarnot, "used")
    ti = FakeTI(run_id="used", task_id="work")
    ended = client.tasks.get(finished(client, partial(single, uuid, "true", log_output=False), ti)).end_date
    assert ended is not None
    qarnot.set_account(maxTask=1)
    defer(partial(single, pool, "true", log_output=False), FakeTI(run_id="needs room", task_id="work"))
    assert client.pools.tasks(uuid) == []
    assert reaped(client, uuid, ended + timedelta(minutes=50)) == "keep"
    # The record shows the use, so that no second look is needed.
    assert reaped(client, uuid, ended + timedelta(minutes=70)) == "close"


def test_a_pool_of_a_run_that_is_over_is_closed_at_first_sight(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    uuid = idle_pool(client, qarnot, "over")
    created = client.pools.get(uuid).creation_date
    assert created is not None
    assert reaped(client, uuid, created + timedelta(hours=2), state="failed") == "close"


def test_the_reaper_leaves_room_for_others_on_the_account(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    airflow, uuids = Airflow(), []
    for n in range(5):
        ti = FakeTI(run_id=f"run-{n}", task_id="work")
        uuids.append(finished(client, partial(single, pool, "true", log_output=False), ti))
        airflow.note(ti, "deferred" if n == 0 else "success")
    with airflow.answering():
        for limit, tidied in ((100, 0), (5, 2)):
            qarnot.set_account(maxTask=limit)
            report = reap(client, "test", lambda dag_id, run_id: "running")
            assert (report.tidied, report.failures) == (tidied, [])
    # Airflow has not recorded the first; of the others the oldest go.
    assert [client.tasks.find(uuid) is None for uuid in uuids] == [False, True, True, False, False]


# --- waiting for room


def test_all_that_wait_share_their_looks_and_one_place_wakes_a_few(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    waiters = 30
    client.tasks.create(TaskSpec(name="holder", pool=pool, command="sleep 600"))
    qarnot.set_account(maxTask=1)
    deadline = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()

    def looks() -> int:
        return sum(one["path"] == "/info" for one in qarnot.requests())

    async def story() -> tuple[int, int]:
        qarnot.clear_requests()
        waits = [
            asyncio.create_task(quota.wait_for_room("qarnot_default", "task", 0.4, deadline))
            for _ in range(waiters)
        ]
        while looks() < 3:
            await asyncio.sleep(0.1)
        early = sum(one.done() for one in waits)
        asked = looks()
        await asyncio.to_thread(lambda: qarnot.set_account(maxTask=2))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return early, asked

    early, asked = asyncio.run(story())
    assert early == 0
    # Three looks served thirty waiters, of whom each had waited for its own.
    assert asked < waiters


def test_a_try_that_finds_no_room_in_spite_of_what_the_account_shows_waits_longer(
    qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another quota than those in the account's answer is full: its organization's, say."""
    pauses: list[float] = []
    monkeypatch.setattr(quota.random, "uniform", lambda low, high: 1.0)
    real = asyncio.sleep

    async def sleep(seconds: float, *args: Any) -> None:
        pauses.append(seconds)
        await real(0, *args)

    qarnot.faults(
        [
            {
                "method": "POST",
                "path": "^/tasks$",
                "kind": "status",
                "status": 403,
                "message": "Maximum number of tasks reached: 5",
            }
        ]
    )
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "1")
    make = partial(single, pool, "true")
    deferred, context = defer(make, FakeTI(run_id="elsewhere", task_id="work"))
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        for _ in range(6):
            event = fire(deferred)
            with pytest.raises(TaskDeferred) as caught:
                make().resume_execution(deferred.method_name, {"event": event}, context)
            deferred = caught.value
    assert pauses == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0, 8.0])
