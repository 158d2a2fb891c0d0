"""What the scheduler calls: Airflow's contract for executors, as far as it applies to any of them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.executors import airflow_state, qarnot_executor
from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor
from airflow_qarnot_pool.executors.running import (
    MAX_REQUEUES,
    REQUEUED,
    Attempt,
    End,
    InstanceRow,
    Outcome,
    name_of,
)
from airflow_qarnot_pool.executors.workload_task import TOKEN_OPTION
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION, COMMITS_EXECUTOR_IDS


class Sent:
    """Takes the place of the thread, and keeps what it is told."""

    def __init__(self) -> None:
        self.requests: list[list[Any]] = []
        self.aborted: list[str] = []
        self.watched: dict[Attempt, str | None] = {}
        self.known: dict[str, str | None] = {}
        self.ends: list[End] = []
        self.started: set[str] = set()
        self.sweeps = 0
        self.unwatched: dict[str, str] | None = None
        self.ended: list[str] = []
        self.stopped = False

    def submit(self, submissions: Sequence[Any]) -> None:
        self.requests.append(list(submissions))

    def abort(self, names: Iterable[str]) -> None:
        self.aborted += names

    def watch(self, found: Mapping[Attempt, str | None]) -> None:
        self.watched |= found

    def find(self, attempts: Sequence[Attempt], timeout: float) -> dict[str, str | None]:
        return self.known

    def take_ends(self) -> list[End]:
        taken, self.ends = self.ends, []
        return taken

    def has_started(self, name: str) -> bool:
        return name in self.started

    def sweep(self) -> None:
        self.sweeps += 1

    def take_unwatched(self) -> dict[str, str] | None:
        found, self.unwatched = self.unwatched, None
        return found

    def end(self, uuids: Iterable[str]) -> None:
        self.ended += uuids

    def stop(self, seconds: float) -> None:
        self.stopped = True

    @property
    def attempts(self) -> list[Attempt]:
        return [submission.attempt for request in self.requests for submission in request]


class Database:
    """Takes the place of Airflow's database."""

    def __init__(self) -> None:
        self.instances: dict[str, InstanceRow] = {}
        self.replaced: set[str] = set()
        self.requeued: list[str] = []
        self.reset: list[str] = []
        self.is_away = False

    def read(self, session: Any, ids: Iterable[str], job_id: Any) -> dict[str, InstanceRow]:
        from sqlalchemy.exc import OperationalError

        if self.is_away:
            raise OperationalError("SELECT", {}, Exception("the server closed the connection"))
        return {each: self.instances[each] for each in ids if each in self.instances}


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    database = Database()
    monkeypatch.setattr(airflow_state, "read_instances", database.read)
    monkeypatch.setattr(airflow_state, "read_replaced", lambda _, ids: database.replaced & set(ids))
    monkeypatch.setattr(
        airflow_state, "requeue", lambda _, attempt, job_id: database.requeued.append(attempt.name)
    )
    monkeypatch.setattr(
        airflow_state, "reset", lambda _, attempt, job_id: database.reset.append(attempt.name)
    )

    @contextmanager
    def no_session() -> Iterator[None]:
        yield None

    monkeypatch.setattr("airflow.utils.session.create_session", no_session)
    return database


@pytest.fixture
def executor(database: Database) -> QarnotExecutor:
    executor = QarnotExecutor(parallelism=3)
    executor._options = ExecutorOptions(pools={"airflow": PoolOptions(), "gpu": PoolOptions(name="gpu")})
    executor._remote = Sent()  # type: ignore[assignment]
    return executor


def sent(executor: QarnotExecutor) -> Sent:
    assert isinstance(executor._remote, Sent)
    return executor._remote


def workload(task_id: str = "task", config: Any = None, priority: int = 1, **ti: Any) -> Any:
    from airflow.executors import workloads

    fields = {
        "id": uuid.uuid4(),
        "dag_version_id": uuid.uuid4(),
        "task_id": task_id,
        "dag_id": "dag",
        "run_id": "run",
        "try_number": 1,
        "map_index": -1,
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": priority,
        "executor_config": config,
        "external_executor_id": str(uuid.uuid4()),
        **ti,
    }
    if not COMMITS_EXECUTOR_IDS:
        del fields["external_executor_id"]
    return workloads.ExecuteTask(
        ti=workloads.TaskInstance(**fields),
        dag_rel_path=Path("dag.py"),
        bundle_info=workloads.BundleInfo(name="dags"),
        log_path="log",
        token=f"secret-token-{uuid.uuid4()}",
    )


def queue(executor: QarnotExecutor, database: Database, *queued: Any) -> None:
    """Queue workloads, and let the heartbeat take as many as it can."""
    for each in queued:
        executor.queue_workload(each, session=None)  # type: ignore[arg-type]
        state_of(database, each, "queued")
    executor.heartbeat()


def state_of(database: Database, of: Any, state: str) -> None:
    database.instances[str(of.ti.id)] = InstanceRow(state=state, external_id=id_of(of))


def id_of(of: Any) -> str | None:
    """The id that Airflow has committed, which Airflow before 3.2.2 does not."""
    return getattr(of.ti, "external_executor_id", None)


def end(executor: QarnotExecutor, of: Any, outcome: Outcome = Outcome.SUCCESS, reason: str = "") -> None:
    (attempt,) = [each for each in sent(executor).attempts if each.name == name(of)]
    sent(executor).ends.append(End(attempt=attempt, outcome=outcome, reason=reason))
    executor.heartbeat()


def name(of: Any) -> str:
    return name_of(id_of(of), str(of.ti.id), of.token)


def events(executor: QarnotExecutor) -> dict[Any, tuple[str, Any]]:
    return {key: (str(state), info) for key, (state, info) in executor.get_event_buffer().items()}


def test_all_tasks_of_a_heartbeat_are_one_request_and_the_most_urgent_come_first(
    executor: QarnotExecutor, database: Database
) -> None:
    priorities = (1, 9, 5, 0)
    if AIRFLOW_VERSION == (3, 2):  # which takes the least urgent first
        priorities = tuple(-each for each in priorities)
    low, high, middle, late = (workload(f"t{n}", priority=n) for n in priorities)
    queue(executor, database, low, high, middle, late)
    assert [len(request) for request in sent(executor).requests] == [3]
    assert [attempt.name for attempt in sent(executor).attempts] == [
        name(each) for each in (high, middle, low)
    ]
    assert executor.running == {high.ti.key, middle.ti.key, low.ti.key}
    assert (executor.slots_available, executor.slots_occupied) == (-1, 4)
    state_of(database, high, "success")
    end(executor, high)
    executor.heartbeat()
    assert sent(executor).attempts[-1].name == name(late)
    assert events(executor) == {high.ti.key: ("success", None)}
    assert executor.slots_available == 0


def test_the_spec_has_the_token_only_in_secrets_and_its_pool(
    executor: QarnotExecutor, database: Database
) -> None:
    one = workload(config={"pool": "gpu", "image": "mine:1"})
    queue(executor, database, one)
    ((submission,),) = sent(executor).requests
    assert submission.pool == ("gpu", 1)
    assert submission.spec.image == "mine:1"
    assert submission.attempt.external_id == (id_of(one) or "")
    assert "secret-token" not in str({**vars(submission.spec), "constants": None})
    assert "secret-token" not in repr(submission)


def test_a_wrong_executor_config_fails_its_task_by_name_and_no_other(
    executor: QarnotExecutor, database: Database
) -> None:
    wrong, right = workload("wrong", {"gpu": 1}), workload("right")
    queue(executor, database, wrong, right)
    (failed,) = events(executor).items()
    assert failed[0] == wrong.ti.key
    assert failed[1][0] == "failed"
    assert "unknown key, got 'gpu'" in failed[1][1]
    assert [attempt.key for attempt in sent(executor).attempts] == [right.ti.key]
    assert executor.running == {right.ti.key}


def test_a_node_that_is_lost_fails_its_running_task_with_the_reason(
    executor: QarnotExecutor, database: Database
) -> None:
    one = workload()
    queue(executor, database, one)
    state_of(database, one, "running")
    end(executor, one, Outcome.FAILURE, "node lost")
    assert events(executor) == {one.ti.key: ("failed", "node lost")}
    assert not executor.running
    assert not database.requeued


def test_a_task_that_airflow_never_saw_start_is_queued_again_in_its_try_and_not_for_ever(
    executor: QarnotExecutor, database: Database
) -> None:
    one = workload()
    for _ in range(MAX_REQUEUES):
        queue(executor, database, one)
        end(executor, one, Outcome.FAILURE, "node lost")
        assert database.requeued.pop() == name(one)
        assert events(executor) == {}
        assert not executor.has_task(SimpleNamespace(id=one.ti.id, key=one.ti.key))
        log = executor._task_event_logs.pop()
        assert (log.event, log.task_id) == (REQUEUED, "task")
        one = workload(id=one.ti.id)  # the scheduler commits another id with the next queueing
    queue(executor, database, one)
    end(executor, one, Outcome.FAILURE, "node lost")
    assert events(executor) == {one.ti.key: ("failed", "node lost")}


def test_a_wait_for_a_slot_is_no_lost_node(executor: QarnotExecutor, database: Database) -> None:
    """However often it has waited, its try goes on, and a node may still be lost as often as else."""
    instance = uuid.uuid4()
    waits = [Outcome.WAITED] * (2 * MAX_REQUEUES)
    for outcome in (*waits, *[Outcome.FAILURE] * MAX_REQUEUES, *waits):
        one = workload(id=instance)
        queue(executor, database, one)
        end(executor, one, outcome, "no slot of pool gpu")
        assert database.requeued.pop() == name(one)
        assert events(executor) == {}
        assert "no slot of pool gpu" in executor._task_event_logs.pop().extra  # type: ignore[operator]
    one = workload(id=instance)
    queue(executor, database, one)
    state_of(database, one, "success")
    end(executor, one)
    assert events(executor) == {one.ti.key: ("success", None)}
    assert not executor._requeues


def test_the_end_before_a_deferral_is_not_that_of_the_resumed_task(
    executor: QarnotExecutor, database: Database
) -> None:
    first = workload()
    queue(executor, database, first)
    resumed = workload(id=first.ti.id)
    queue(executor, database, resumed)
    assert first.ti.key == resumed.ti.key
    end(executor, first)
    assert events(executor) == {}
    assert executor.running == {resumed.ti.key}
    state_of(database, resumed, "success")
    end(executor, resumed)
    assert events(executor) == {resumed.ti.key: ("success", None)}
    assert not executor.running


def test_a_task_without_a_heartbeat_is_aborted(executor: QarnotExecutor, database: Database) -> None:
    one = workload()
    queue(executor, database, one)
    executor.change_state(one.ti.key, "failed", remove_running=True)  # type: ignore[arg-type]
    executor.heartbeat()
    assert sent(executor).aborted == [name(one)]
    executor.heartbeat()
    assert len(sent(executor).aborted) == 1


def test_revoke_aborts_and_adds_no_event(executor: QarnotExecutor, database: Database) -> None:
    running, queued, unknown = workload("running"), workload("queued"), workload("unknown")
    queue(executor, database, running)
    executor.queue_workload(queued, session=None)  # type: ignore[arg-type]
    for each in (running, queued, unknown):
        executor.revoke_task(ti=each.ti)
    assert sent(executor).aborted == [name(running)]
    executor.heartbeat()
    assert len(sent(executor).requests) == 1
    assert not executor.running
    assert events(executor) == {}


def test_what_airflow_does_not_need_any_more_is_aborted_after_a_while(
    executor: QarnotExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [executor._audited]
    monkeypatch.setattr(qarnot_executor.time, "monotonic", lambda: now[0])
    queued, running, kept = workload("queued"), workload("running"), workload("kept")
    queue(executor, database, queued, running, kept)
    for cleared in (queued, running):
        del database.instances[str(cleared.ti.id)]
    sent(executor).started = {name(running)}
    both = [name(queued), name(running)]
    for seconds, aborted in ((20, []), (20, []), (20, both[:1]), (180, both[:1]), (40, both), (100, both)):
        now[0] += seconds
        executor.heartbeat()
        assert sent(executor).aborted == aborted
    assert executor.running == {kept.ti.key}
    # One that was cleared while it ran waits for a report to run again.
    assert events(executor) == dict.fromkeys((queued.ti.key, running.ti.key), ("success", None))


def test_a_run_that_was_deleted_and_created_again_keeps_its_task(
    executor: QarnotExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the same keys, and other ids."""
    now = [executor._audited]
    monkeypatch.setattr(qarnot_executor.time, "monotonic", lambda: now[0])
    deleted, again = workload(), workload()
    assert deleted.ti.key == again.ti.key
    queue(executor, database, deleted)
    del database.instances[str(deleted.ti.id)]
    queue(executor, database, again)
    for _ in range(5):
        now[0] += 20
        executor.heartbeat()
    assert sent(executor).aborted == [name(deleted)]
    assert executor.running == {again.ti.key}
    assert events(executor) == {}


def test_what_no_scheduler_watches_and_airflow_does_not_need_is_aborted_after_a_while(
    executor: QarnotExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [executor._audited]
    monkeypatch.setattr(qarnot_executor.time, "monotonic", lambda: now[0])

    def sweeps(*expected: tuple[float, int]) -> None:
        for seconds, count in expected:
            now[0] += seconds
            executor.heartbeat()
            assert sent(executor).sweeps == count

    sweeps((0, 0), (299, 0), (1, 1), (3599, 1), (1, 2))
    database.instances |= {"over": InstanceRow(state="success"), "running": InstanceRow(state="running")}
    database.replaced = {"cleared"}
    sent(executor).unwatched = {f"uuid of {name}": name for name in ("over", "running", "cleared", "unknown")}
    sweeps((0, 2))
    assert sent(executor).ended == [], "the process may store its log, and its scheduler waits for that"
    sweeps((239, 2), (1, 3))
    sent(executor).unwatched = {"uuid of over": "over", "uuid of running": "running"}
    sweeps((0, 3))
    assert sent(executor).ended == ["uuid of over"]
    sent(executor).unwatched = {}
    sweeps((0, 3), (3599, 3), (1, 4))


def adoptable(of: Any) -> Any:
    return SimpleNamespace(id=of.ti.id, key=of.ti.key, external_executor_id=id_of(of), executor_config=None)


def adopted_name(of: Any) -> str:
    """The name of an adopted attempt, of which only Airflow's id is known."""
    return name_of(id_of(of), str(of.ti.id))


def test_tasks_that_qarnot_has_are_adopted_and_others_reset_at_once(
    executor: QarnotExecutor, database: Database
) -> None:
    there, absent = workload("there"), workload("absent")
    sent(executor).known = {adopted_name(there): "uuid", adopted_name(absent): None}
    tis = [adoptable(there), adoptable(absent)]
    assert executor.try_adopt_task_instances(tis) == tis[1:]
    assert {attempt.name: found for attempt, found in sent(executor).watched.items()} == {
        adopted_name(there): "uuid"
    }
    assert executor.running == {there.ti.key}
    (attempt,) = sent(executor).watched
    state_of(database, there, "running")
    sent(executor).ends.append(End(attempt=attempt, outcome=Outcome.FAILURE, reason="node lost"))
    executor.heartbeat()
    assert events(executor) == {there.ti.key: ("failed", "node lost")}


def test_a_qarnot_that_does_not_respond_makes_no_second_task_of_an_adopted_one(
    executor: QarnotExecutor, database: Database
) -> None:
    one = workload()
    sent(executor).known = {}
    assert executor.try_adopt_task_instances([adoptable(one)]) == []
    ((attempt, found),) = sent(executor).watched.items()
    assert found is None
    state_of(database, one, "queued")
    sent(executor).ends.append(End(attempt=attempt, outcome=Outcome.MISSING))
    executor.heartbeat()
    assert database.reset == [adopted_name(one)]
    assert events(executor) == {}
    assert not executor.running


def test_without_a_committed_id_the_adopted_task_is_searched_by_its_tag(executor: QarnotExecutor) -> None:
    one = workload(external_executor_id=None)
    sent(executor).known = {name_of(None, str(one.ti.id)): "uuid"}
    assert executor.try_adopt_task_instances([adoptable(one)]) == []
    (attempt,) = sent(executor).watched
    assert attempt.by_tag
    assert attempt.tag == f"airflow-executor:{one.ti.id}"


def test_no_end_is_lost_while_the_database_is_away(executor: QarnotExecutor, database: Database) -> None:
    one = workload()
    queue(executor, database, one)
    state_of(database, one, "running")
    database.is_away = True
    end(executor, one, Outcome.FAILURE, "node lost")
    assert events(executor) == {}
    database.is_away = False
    executor.heartbeat()
    assert events(executor) == {one.ti.key: ("failed", "node lost")}


def test_a_reason_with_a_nul_can_be_stored(executor: QarnotExecutor, database: Database) -> None:
    """PostgreSQL refuses it, which would end each scheduler that reads the output of the node."""
    one = workload()
    queue(executor, database, one)
    state_of(database, one, "running")
    end(executor, one, Outcome.FAILURE, "last line\0")
    assert events(executor) == {one.ti.key: ("failed", "last line\ufffd")}
    assert [entry.extra for entry in executor._audit_log] == ["last line\ufffd"]


def test_the_end_of_a_scheduler_leaves_its_tasks_to_the_next(
    executor: QarnotExecutor, database: Database
) -> None:
    queue(executor, database, workload())
    executor.terminate()
    executor.end()
    assert sent(executor).stopped
    assert sent(executor).aborted == []
    QarnotExecutor().end()  # one that never started, as in the command line


def test_the_provider_names_it_and_airflow_loads_it_by_its_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.executors import executor_loader
    from airflow.executors.executor_loader import ExecutorLoader

    (path,) = get_provider_info()["executors"]
    # What an earlier test of this process has loaded. Each version of Airflow has other names for it.
    for name, known in list(vars(executor_loader).items()):
        if re.fullmatch("_.*_to_executors.*|_executor_names", name):
            nothing = known.copy()
            nothing.clear()
            monkeypatch.setattr(executor_loader, name, nothing)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", f"LocalExecutor,QarnotExecutor:{path}")
    loaded = ExecutorLoader.load_executor(ExecutorLoader.lookup_executor_name_by_str("QarnotExecutor"))
    assert isinstance(loaded, QarnotExecutor)
    assert loaded.pre_assigns_external_executor_id


def test_risky_settings_are_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    section, option = TOKEN_OPTION
    monkeypatch.setenv(f"AIRFLOW__{section.upper()}__{option.upper()}", "60")
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__SLOTS", "2")
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__PARALLELISM", "40")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,QarnotExecutor:x.QarnotExecutor")
    executor = QarnotExecutor()
    executor.start()
    risks = executor._risks(executor._options)  # type: ignore[arg-type]
    for words in (f"[{section}] {option} is too short", "all 32 places"):
        assert any(words in risk for risk in risks), words
    executor.end()


@pytest.mark.parametrize("alias", [None, "qarnot", "QarnotExecutor"])
def test_an_alias_that_tasks_do_not_name_is_said_at_the_start(
    alias: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.executors.executor_utils import ExecutorName

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,x.QarnotExecutor")
    executor = QarnotExecutor()
    executor.name = ExecutorName(module_path="x.QarnotExecutor", alias=alias)
    executor.start()
    risks = executor._risks(executor._options)  # type: ignore[arg-type]
    said = any("Write QarnotExecutor:x.QarnotExecutor" in risk for risk in risks)
    assert said == (alias != "QarnotExecutor" and COMMITS_EXECUTOR_IDS)
    executor.end()


def test_tasks_that_wait_for_slots_leave_places_to_other_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow counts what all executors have, also what waits on Qarnot, against ``[core] parallelism``."""
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__SLOTS", "5")
    executor = QarnotExecutor()
    executor.start()
    assert executor.slots_available == 5
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__PARALLELISM", "7")
    executor = QarnotExecutor()
    executor.start()
    assert executor.slots_available == 7


def test_before_airflow_3_3_a_resumed_task_that_waits_here_is_not_queued_again(
    executor: QarnotExecutor, database: Database
) -> None:
    first = workload(external_executor_id=None)
    queue(executor, database, first)
    executor.parallelism = 1
    resumed = workload(external_executor_id=None, id=first.ti.id)
    queue(executor, database, resumed)
    (attempt,) = sent(executor).attempts
    sent(executor).ends.append(End(attempt=attempt, outcome=Outcome.SUCCESS))
    executor.sync()
    assert not database.requeued
    assert events(executor) == {}


def test_a_wrong_option_is_refused_when_the_scheduler_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT_EXECUTOR__SLOTS", "none")
    with pytest.raises(ValueError, match=r"\[qarnot_executor\] slots"):
        QarnotExecutor().start()
