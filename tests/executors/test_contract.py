"""Airflow's contract for executors, as far as ``test_qarnot_executor.py`` does not test it already."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors import workloads

from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor
from airflow_qarnot_pool.executors.running import End, Outcome
from tests.executors import test_qarnot_executor as world
from tests.executors.test_qarnot_executor import (
    Database,
    adoptable,
    adopted_name,
    end,
    events,
    id_of,
    name,
    queue,
    sent,
    state_of,
    workload,
)

database, executor = world.database, world.executor
#: What the scheduler, the api-server and the command line ask of the class.
FLAGS = {
    "is_local": False,
    "is_production": True,
    "serve_logs": False,
    "supports_ad_hoc_ti_run": False,
    "supports_callbacks": False,
    "supports_connection_test": False,
    "supports_multi_team": False,
    "sentry_integration": "",
    "pre_assigns_external_executor_id": True,
}


def known(of: Any) -> Any:
    """The task instance of a workload, as the scheduler passes it."""
    return SimpleNamespace(id=of.ti.id, key=of.ti.key)


# --- what it is


def test_it_says_what_it_can_do() -> None:
    assert {flag: getattr(QarnotExecutor, flag, FLAGS[flag]) for flag in FLAGS} == FLAGS
    assert repr(QarnotExecutor(parallelism=3)) == "QarnotExecutor(parallelism=3)"


@pytest.mark.parametrize("parallelism", [0, -1])
def test_a_parallelism_below_1_is_refused(parallelism: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="parallelism"):
        QarnotExecutor(parallelism=parallelism)
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__PARALLELISM", str(parallelism))
    with pytest.raises(ValueError, match=r"\[qarnot_executor\] parallelism"):
        QarnotExecutor().start()


def test_a_callback_fails_with_the_reason_and_ends_no_scheduler(executor: QarnotExecutor) -> None:
    if not hasattr(workloads, "ExecuteCallback"):
        pytest.skip("Airflow 3.1 has no callbacks for executors")
    from airflow.models.callback import CallbackKey

    key = CallbackKey(str(uuid.uuid4()))
    workload = workloads.ExecuteCallback.model_construct(callback=SimpleNamespace(key=key))
    executor.queue_workload(workload, session=None)
    ((state, reason),) = executor.event_buffer.values()
    assert str(getattr(state, "value", state)) == "failed"
    assert "SyncCallback(..., executor='LocalExecutor')" in reason
    executor.heartbeat()
    assert executor.slots_occupied == 0


def test_a_test_of_a_connection_is_refused_when_it_is_queued(executor: QarnotExecutor) -> None:
    if not hasattr(workloads, "TestConnection"):
        pytest.skip("Airflow 3.3 has the first tests of connections for executors")
    with pytest.raises(NotImplementedError, match="TestConnection"):
        executor.queue_workload(workloads.TestConnection.model_construct(), session=None)


# --- slots


def test_a_heartbeat_without_work_sends_nothing(executor: QarnotExecutor, database: Database) -> None:
    executor.heartbeat()
    assert sent(executor).requests == []
    assert sent(executor).aborted == []
    assert (executor.slots_available, executor.slots_occupied) == (3, 0)


def test_a_task_has_its_slot_from_queue_to_end(executor: QarnotExecutor, database: Database) -> None:
    one, other = workload("one"), workload("other")
    executor.queue_workload(one, session=None)  # type: ignore[arg-type]
    assert (executor.slots_available, executor.slots_occupied) == (2, 1)
    assert executor.has_task(known(one))
    assert not executor.has_task(known(other))
    queue(executor, database, other)
    assert (executor.slots_available, executor.slots_occupied) == (1, 2)
    state_of(database, one, "success")
    end(executor, one)
    assert (executor.slots_available, executor.slots_occupied) == (2, 1)
    assert not executor.has_task(known(one))
    assert executor.has_task(known(other))


def test_a_task_that_is_queued_again_before_a_heartbeat_is_submitted_once(
    executor: QarnotExecutor, database: Database
) -> None:
    first = workload()
    second = workload(id=first.ti.id)
    executor.queue_workload(first, session=None)  # type: ignore[arg-type]
    queue(executor, database, second)
    assert [attempt.name for attempt in sent(executor).attempts] == [name(second)]


def test_adopted_tasks_may_take_more_than_all_slots_and_new_ones_wait_then(
    executor: QarnotExecutor, database: Database
) -> None:
    adopted = [workload(f"adopted-{n}") for n in range(4)]
    sent(executor).known = {name(each): f"uuid-{n}" for n, each in enumerate(adopted)}
    assert executor.try_adopt_task_instances([adoptable(each) for each in adopted]) == []
    assert (executor.slots_available, executor.slots_occupied) == (-1, 4)
    queue(executor, database, new := workload("new"))
    assert sent(executor).requests == []
    for attempt in sent(executor).watched:
        sent(executor).ends.append(End(attempt=attempt, outcome=Outcome.SUCCESS))
    for each in adopted:
        state_of(database, each, "success")
    executor.heartbeat()
    executor.heartbeat()
    assert [attempt.name for attempt in sent(executor).attempts] == [name(new)]
    assert events(executor) == {each.ti.key: ("success", None) for each in adopted}


# --- events


def test_events_are_taken_once_and_by_dag(executor: QarnotExecutor, database: Database) -> None:
    ours, theirs = workload(dag_id="ours"), workload(dag_id="theirs")
    queue(executor, database, ours, theirs)
    for each in (ours, theirs):
        state_of(database, each, "success")
        end(executor, each)
    assert executor.get_event_buffer({"ours"}) == {ours.ti.key: ("success", None)}
    assert executor.get_event_buffer({"ours"}) == {}
    assert executor.get_event_buffer() == {theirs.ti.key: ("success", None)}
    assert executor.get_event_buffer() == {}


def test_the_events_that_the_scheduler_itself_reports_keep_or_end_a_task(
    executor: QarnotExecutor, database: Database
) -> None:
    one = workload()
    queue(executor, database, one)
    executor.running_state(one.ti.key, info="seen")
    executor.heartbeat()
    assert executor.has_task(known(one))
    assert events(executor) == {one.ti.key: ("running", "seen")}
    executor.queued(one.ti.key)
    executor.heartbeat()
    assert events(executor) == {one.ti.key: ("queued", None)}
    assert sent(executor).aborted == [name(one)], "the scheduler has given it up"


def test_a_task_that_is_revoked_and_failed_has_one_event_and_one_abort(
    executor: QarnotExecutor, database: Database
) -> None:
    """As the scheduler does with a task that was stuck in queued too often."""
    one = workload()
    queue(executor, database, one)
    executor.revoke_task(ti=one.ti)
    executor.fail(one.ti.key)
    executor.heartbeat()
    assert events(executor) == {one.ti.key: ("failed", None)}
    assert sent(executor).aborted == [name(one)]


def test_the_end_of_a_revoked_attempt_is_not_that_of_the_next(
    executor: QarnotExecutor, database: Database
) -> None:
    first = workload()
    queue(executor, database, first)
    executor.revoke_task(ti=first.ti)
    queue(executor, database, second := workload(id=first.ti.id))
    end(executor, first, Outcome.FAILURE, "aborted")
    assert events(executor) == {}
    assert not database.requeued
    assert executor.has_task(known(second))


# --- adoption


def test_the_adoption_of_nothing_asks_nothing(
    executor: QarnotExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent(executor), "find", None)
    assert executor.try_adopt_task_instances([]) == []
    assert sent(executor).watched == {}


def test_an_adoption_reports_nothing_and_of_some_only_those_unknown_are_looked_up_later(
    executor: QarnotExecutor, database: Database
) -> None:
    there, absent, refused = workload("there"), workload("absent"), workload("refused")
    sent(executor).known = {adopted_name(there): "uuid", adopted_name(absent): None}
    tis = [adoptable(each) for each in (there, absent, refused)]
    assert executor.try_adopt_task_instances(tis) == [tis[1]]
    assert [*sent(executor).watched.values()] == ["uuid", None]
    assert executor.running == {there.ti.key, refused.ti.key}
    assert events(executor) == {}


# --- logs


def test_a_try_without_a_qarnot_task_has_no_log_and_a_connection_that_fails_is_said(
    executor: QarnotExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = workload()
    ti: Any = SimpleNamespace(id=one.ti.id, try_number=2, external_executor_id=id_of(one), key=one.ti.key)
    assert executor.get_task_log(ti, try_number=1) == ([], [])
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT", raising=False)
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__CONN_ID", "no_such_connection")
    messages, lines = executor.get_task_log(ti, try_number=2)
    assert messages == []
    (line,) = lines
    assert "could not be read" in line


def test_a_dump_for_debugging_shows_its_tasks_and_no_token(
    executor: QarnotExecutor, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    running, waiting = workload("runs"), workload("waits")
    queue(executor, database, running)
    executor.queue_workload(waiting, session=None)  # type: ignore[arg-type]
    executor.debug_dump()
    shown = capsys.readouterr().out
    for words in ("executor.queued", "executor.running (1)", "'runs'", "'waits'"):
        assert words in shown
    assert "secret-token" not in shown


# --- start and end


def test_an_executor_without_work_starts_no_thread_and_may_be_ended_twice() -> None:
    executor = QarnotExecutor()
    executor.start()
    executor.heartbeat()
    assert not executor._tasks._thread.is_alive, "LocalExecutor forks"
    executor.terminate()
    for _ in range(2):
        executor.end()


def test_the_tasks_of_an_executor_that_has_ended_are_adopted_by_the_next(
    executor: QarnotExecutor, database: Database
) -> None:
    one = workload()
    queue(executor, database, one)
    (attempt,) = sent(executor).attempts
    executor.end()
    following = QarnotExecutor(parallelism=3)
    following._remote = world.Sent()  # type: ignore[assignment]
    sent(following).known = {adopted_name(one): "uuid"}
    assert following.try_adopt_task_instances([adoptable(one)]) == []
    (adopted,) = sent(following).watched
    assert (adopted.name, adopted.key) == (adopted_name(one), attempt.key)
