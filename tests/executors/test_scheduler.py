"""Airflow's own scheduler with QarnotExecutor, and what each writes about a task instance into a real database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.executors import airflow_state, remote_logging
from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor
from airflow_qarnot_pool.executors.remote_logging import QarnotRemoteLogIO
from airflow_qarnot_pool.executors.running import REQUEUED, Attempt, End, Outcome, name_of
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION
from tests.executors.test_qarnot_executor import Sent, sent

pytestmark = pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="calls inner methods of the scheduler")
DAG_ID = "executor_contract"


@pytest.fixture(scope="module")
def dag(airflow_db: None) -> str:
    """A DAG of two tasks, as the DAG processor stores it."""
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with DAG(DAG_ID, schedule=None, default_args={"retries": 0}) as dag:
        for task_id in ("one", "two"):
            BashOperator(task_id=task_id, bash_command="true")
    with create_session() as session:
        session.add(DagBundleModel(name=DAG_ID))
        session.flush()
        lazy = [LazyDeserializedDAG.from_dag(dag)]
        update_dag_parsing_results_in_db(DAG_ID, None, lazy, {}, None, set(), session=session)
        model = session.get(DagModel, DAG_ID)
        assert model is not None
        model.is_paused = False
    return DAG_ID


@pytest.fixture
def run(dag: str) -> Iterator[str]:
    """A DAG run whose tasks are scheduled."""
    from airflow.models.dagbag import DBDagBag
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    from sqlalchemy import update

    run_id = uuid.uuid4().hex
    with create_session() as session:
        serialized = DBDagBag().get_latest_version_of_dag(dag, session=session)
        assert serialized is not None
        made = serialized.create_dagrun(
            run_id=run_id,
            run_after=datetime.now(UTC),
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )
        for ti in made.task_instances:
            ti.state = "scheduled"
    yield run_id
    with create_session() as session:
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(state="failed"))


class Scheduler:
    """A scheduler that does only what a test tells it, and whose executor sends nothing."""

    def __init__(self, run_id: str) -> None:
        from airflow.executors.executor_utils import ExecutorName
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.utils.session import create_session

        (path,) = get_provider_info()["executors"]
        self.run_id = run_id
        self.executor = QarnotExecutor(parallelism=8)
        self.executor.name = ExecutorName(module_path=path, alias="QarnotExecutor")
        self.executor._options = ExecutorOptions(pools={"airflow": PoolOptions()})
        self.executor._remote = Sent()  # type: ignore[assignment]
        with create_session() as session:
            job = Job(job_type="SchedulerJob", state="running")
            session.add(job)
            session.flush()
            self.executor.job_id = job.id
            session.expunge(job)
        self.job = job
        self.runner = SchedulerJobRunner(job, executors=[self.executor])

    def loop(self) -> None:
        """Queue what is scheduled, and take the events of the executor."""
        from airflow.utils.session import create_session

        with create_session() as session:
            self.runner._critical_section_enqueue_task_instances(session=session)
        self.executor.heartbeat()
        with create_session() as session:
            self.runner._process_executor_events(executor=self.executor, session=session)
        with create_session() as session:
            self.runner._process_task_event_logs(self.executor._task_event_logs, session)

    def die(self) -> None:
        from airflow.jobs.job import Job
        from airflow.utils.session import create_session
        from sqlalchemy import update

        with create_session() as session:
            session.execute(update(Job).where(Job.id == self.job.id).values(state="failed"))

    def adopt(self) -> None:
        self.runner.adopt_or_reset_orphaned_tasks()

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        sent(self.executor).ends.append(End(attempt=attempt, outcome=outcome, reason="node lost"))

    def attempts(self) -> dict[str, Attempt]:
        """The newest attempt of each task."""
        mine = [each for each in sent(self.executor).attempts if each.key.run_id == self.run_id]
        return {each.key.task_id: each for each in mine}

    def instance(self, task_id: str, **values: Any) -> Any:
        """A task instance as the database has it, after *values* are written."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            where = (TaskInstance.run_id == self.run_id, TaskInstance.task_id == task_id)
            instance = session.scalars(select(TaskInstance).where(*where)).one()
            for name, value in values.items():
                setattr(instance, name, value)
            session.flush()
            session.expunge(instance)
        return instance


@pytest.fixture
def scheduler(run: str) -> Scheduler:
    return Scheduler(run)


def row(instance: Any) -> tuple[str, Any, Any, Any]:
    return (
        str(instance.id),
        instance.state,
        instance.external_executor_id,
        instance.queued_by_job_id,
    )


def test_the_name_of_a_qarnot_task_is_in_the_database_before_it_is_sent(scheduler: Scheduler) -> None:
    scheduler.loop()
    ((*both,),) = sent(scheduler.executor).requests
    assert len(both) == 2
    for task_id, attempt in scheduler.attempts().items():
        instance = scheduler.instance(task_id)
        assert attempt.name == name_of(instance.external_executor_id, "")
        assert row(instance) == (attempt.instance_id, "queued", attempt.external_id, scheduler.job.id)


def test_the_ends_are_those_of_the_tasks(scheduler: Scheduler) -> None:
    scheduler.loop()
    one, two = scheduler.attempts()["one"], scheduler.attempts()["two"]
    scheduler.instance("one", state="success")
    scheduler.instance("two", state="running")
    scheduler.end(one, Outcome.SUCCESS)
    scheduler.end(two, Outcome.FAILURE)
    scheduler.loop()
    assert [scheduler.instance(task_id).state for task_id in ("one", "two")] == ["success", "failed"]
    assert scheduler.executor.slots_occupied == 0


def test_a_task_that_never_started_is_queued_again_in_its_try_under_another_name(
    scheduler: Scheduler,
) -> None:
    scheduler.loop()
    first = scheduler.attempts()["one"]
    before = scheduler.instance("one")
    scheduler.end(first, Outcome.FAILURE)
    scheduler.loop()
    scheduler.loop()
    second, after = scheduler.attempts()["one"], scheduler.instance("one")
    assert (after.id, after.try_number, after.state) == (before.id, before.try_number, "queued")
    assert second.name != first.name
    assert second.external_id == after.external_executor_id


def test_the_scheduler_stores_each_entry_for_the_audit_log(scheduler: Scheduler) -> None:
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    for _ in range(2):
        scheduler.loop()
        for attempt in scheduler.attempts().values():
            scheduler.end(attempt, Outcome.FAILURE)
        scheduler.loop()
    with create_session() as session:
        entries = select(Log.task_id, Log.extra).where(Log.run_id == scheduler.run_id, Log.event == REQUEUED)
        stored = sorted(tuple(entry) for entry in session.execute(entries))
    reasons = ("1 of 2: node lost", "2 of 2: node lost")
    assert stored == [(task_id, reason) for task_id in ("one", "two") for reason in reasons]


def test_the_log_view_says_why_a_task_was_refused(
    scheduler: Scheduler,
    qarnot: LocalQarnot,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_logging, "_is_ours", lambda executor: True)
    scheduler.instance("one", executor_config={"pool": "gpus"})
    scheduler.loop()
    sentence = "executor_config 'pool' names no pool of the executor, got 'gpus'. Give one of airflow"
    assert f"failed: {sentence}" in capsys.readouterr().out
    one = scheduler.instance("one")
    assert one.state == "failed"
    _, (lines,) = QarnotRemoteLogIO("qarnot://logs-refused", tmp_path, "qarnot_default", False).stream(
        "l", one
    )
    refused, absent = lines
    assert refused.startswith(f"Failed by QarnotExecutor: {sentence}")
    assert absent.startswith("Qarnot has no task ")


def test_the_tasks_of_a_dead_scheduler_are_adopted_or_reset(scheduler: Scheduler) -> None:
    scheduler.loop()
    there, absent = scheduler.attempts()["one"], scheduler.attempts()["two"]
    scheduler.die()
    following = Scheduler(scheduler.run_id)
    sent(following.executor).known = {there.name: "uuid", absent.name: None}
    following.adopt()
    adopted, reset = following.instance("one"), following.instance("two")
    assert row(adopted) == (there.instance_id, "queued", there.external_id, following.job.id)
    assert (reset.state, reset.external_executor_id, reset.queued_by_job_id) == (None, None, None)
    assert str(reset.id) != absent.instance_id, "its Qarnot task may appear later, and must not start it"
    (attempt,) = sent(following.executor).watched
    following.instance("one", state="running")
    following.end(attempt, Outcome.FAILURE)
    following.loop()
    assert following.instance("one").state == "failed"


def test_a_task_that_turns_out_not_to_be_on_qarnot_is_reset_as_at_adoption(scheduler: Scheduler) -> None:
    scheduler.loop()
    scheduler.die()
    following = Scheduler(scheduler.run_id)
    following.adopt()
    attempts = {attempt.key.task_id: attempt for attempt in sent(following.executor).watched}
    following.instance("two", state="running")
    for attempt in attempts.values():
        following.end(attempt, Outcome.MISSING)
    following.executor.heartbeat()
    reset = following.instance("one")
    assert (reset.state, reset.external_executor_id, reset.queued_by_job_id) == (None, None, None)
    assert str(reset.id) != attempts["one"].instance_id
    assert following.instance("two").state == "running"


def test_a_task_that_is_stuck_in_queued_is_aborted_and_queued_again(scheduler: Scheduler) -> None:
    from airflow.utils.session import create_session

    scheduler.loop()
    first = scheduler.attempts()["one"]
    scheduler.instance("one", queued_dttm=datetime.now(UTC) - timedelta(days=1))
    with create_session() as session:
        scheduler.runner._handle_tasks_stuck_in_queued(session=session)
    assert sent(scheduler.executor).aborted == [first.name]
    assert scheduler.instance("one").state == "scheduled"
    scheduler.loop()
    second = scheduler.attempts()["one"]
    assert second.instance_id == first.instance_id
    assert second.name != first.name


@pytest.mark.parametrize("change", ["requeue", "reset"])
@pytest.mark.parametrize("is_named", [True, False], ids=["with an id", "without an id"])
def test_only_the_attempt_that_is_queued_now_is_changed(
    scheduler: Scheduler, change: str, is_named: bool
) -> None:
    """Another scheduler may have queued the task meanwhile, or a late launch has started it."""
    from dataclasses import replace

    from airflow.utils.session import create_session

    def apply(attempt: Attempt, job_id: Any) -> Any:
        with create_session() as session:
            getattr(airflow_state, change)(session, attempt, job_id)
        return scheduler.instance("one")

    scheduler.loop()
    attempt, job_id = scheduler.attempts()["one"], scheduler.job.id
    if not is_named:
        attempt = replace(attempt, external_id="")
        assert apply(attempt, job_id + 1).state == "queued", "another scheduler has it"
    else:
        assert apply(replace(attempt, external_id="other"), job_id).state == "queued"
    scheduler.instance("one", state="running")
    assert apply(attempt, job_id).state == "running"
    scheduler.instance("one", state="queued")
    changed = apply(attempt, job_id)
    assert changed.state == ("scheduled" if change == "requeue" else None)
    assert (str(changed.id) == attempt.instance_id) is (change == "requeue")
