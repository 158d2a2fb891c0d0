"""QarnotExecutor with real schedulers on PostgreSQL: ordinary tasks on the nodes of a local Qarnot."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_qarnot_pool.api.models import Task
from tests.stack import moments
from tests.stack.executor_world import Account, Deployment
from tests.stack.world import stall

#: It has a deployment of its own.
ALONE = True
RIGHT = Account(twice=0, lost=0, stuck=0, left_on=0)


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    folder = Path(tempfile.mkdtemp(prefix="airflow-executor-"))
    failed = request.session.testsfailed
    with Deployment.started(folder, schedulers=2) as deployment:
        yield deployment
    if request.session.testsfailed == failed:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"\nLogs are kept in {folder}")


def test_ordinary_operators_give_the_same_as_under_local_executor(deployment: Deployment) -> None:
    """Python, Bash, a mapped fan, a deferral, setup and teardown, with retries=0."""
    for dag_id in ("ordinary_local", "ordinary_qarnot"):
        deployment.start(dag_id, f"same-{dag_id}")
    results = {}
    for dag_id in ("ordinary_local", "ordinary_qarnot"):
        run_id = f"same-{dag_id}"
        assert deployment.wait_end(dag_id, run_id) == "success", deployment.states(dag_id, run_id)
        instances = deployment.database.instances(dag_id, run_id)
        results[dag_id] = {
            (one["task_id"], one["map_index"]): (
                one["state"],
                one["try_number"],
                deployment.airflow.xcom(dag_id, run_id, one["task_id"], map_index=one["map_index"]),
            )
            for one in instances
        }
        assert [line.split()[3] for line in deployment.notes(run_id)] == ["made", "removed"]
    assert results["ordinary_qarnot"] == results["ordinary_local"]
    assert results["ordinary_qarnot"]["total", -1] == ("success", 1, "14 from a shell")
    assert results["ordinary_qarnot"]["later", -1] == ("success", 1, "resumed")
    deployment.airflow.wait_for(lambda: not deployment.tasks(), what="all Qarnot tasks to be over")
    mine = [task for task in deployment.tasks("Success") if task.labels["airflow.run_id"] == run_id]
    # One for each task instance, and one more for the one that has resumed.
    assert len(mine) == len(results["ordinary_qarnot"]) + 1
    assert deployment.pools() == 1


def test_the_tasks_of_a_heartbeat_are_one_request(deployment: Deployment) -> None:
    deployment.qarnot.clear_requests()
    deployment.start("counted", "bulk", count=12, seconds=0)
    assert deployment.wait_end("counted", "bulk") == "success"
    assert deployment.account("bulk", 12) == RIGHT
    # Airflow takes them in at most a few of its loops. Each is one request.
    assert deployment.posts() <= 6


@pytest.mark.parametrize("moment", [*moments.BEFORE, *moments.AFTER])
def test_a_scheduler_killed_around_the_submission_loses_and_doubles_nothing(
    deployment: Deployment, moment: str
) -> None:
    run_id, before = f"killed-{moment}", deployment.database.schedulers()
    gate = deployment.folder / f"gate-{moment}"
    (deployment.moments / moment).write_text("0")
    deployment.start("counted", run_id, count=3, seconds=600, gate=str(gate))
    # A task that ends before it is adopted does not need to be.
    deployment.wait_adopted(run_id, before)
    gate.touch()
    state = deployment.wait_end("counted", run_id)
    assert not (deployment.moments / moment).exists()
    assert (state, deployment.account(run_id, 3)) == ("success", RIGHT)
    tries = {one["try_number"] for one in deployment.database.instances("counted", run_id)}
    assert max(tries) == (1 if moment in moments.AFTER else 2)


def test_a_frozen_qarnot_stops_no_other_task(deployment: Deployment) -> None:
    process = deployment.qarnot.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        deployment.start("counted", "frozen", count=2, seconds=0)
        deployment.airflow.wait_for(
            lambda: "queued" in deployment.states("counted", "frozen").values(), what="a task to be queued"
        )
        began = time.monotonic()
        deployment.start("beside", "beside-frozen")
        assert deployment.wait_end("beside", "beside-frozen") == "success"
        assert time.monotonic() - began < 60
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert deployment.wait_end("counted", "frozen") == "success"
    assert deployment.account("frozen", 2) == RIGHT


def test_a_lost_node_fails_its_tasks_at_once_and_with_the_reason(deployment: Deployment) -> None:
    deployment.airflow.wait_for(lambda: not deployment.tasks(), what="all Qarnot tasks before to be over")
    deployment.start("counted", "lost", count=1, seconds=600)
    deployment.airflow.wait_for(lambda: deployment.noted("lost", "start"), what="the task to run")
    (node,) = [node for node in deployment.qarnot.nodes() if node["running"]]
    deployment.qarnot.kill_node(node["id"])
    began = time.monotonic()
    assert deployment.wait_end("counted", "lost") == "failed"
    assert time.monotonic() - began < 45, "before the heartbeat of the task times out"
    events = deployment.airflow.api("GET", "eventLogs", dag_id="counted", run_id="lost")["event_logs"]
    assert any("Extra info" in str(one["extra"]) and "Qarnot task" in str(one["extra"]) for one in events)


def test_a_task_cleared_while_it_runs_is_ended_there_and_runs_again(deployment: Deployment) -> None:
    deployment.start("counted", "cleared", count=1, seconds=600)
    deployment.airflow.wait_for(lambda: deployment.noted("cleared", "start"), what="the task to run")
    deployment.airflow.clear("counted", "cleared", [("work", 0)])
    deployment.airflow.wait_for(
        lambda: deployment.noted("cleared", "start")["work[0]"] == 2,
        what="the task to run again",
        timeout=180,
    )
    assert deployment.noted("cleared", "end") == {}
    deployment.airflow.wait_for(lambda: len(deployment.tasks()) == 1, what="the first to be over")
    deployment.airflow.mark_run("counted", "cleared", "failed")
    deployment.airflow.wait_for(lambda: not deployment.tasks(), what="the second to be over", timeout=180)


def test_a_queued_task_of_a_failed_run_is_aborted(deployment: Deployment) -> None:
    """Nothing on a node can notice: it has never started."""
    deployment.qarnot.withhold_nodes(True)
    try:
        for node in deployment.qarnot.nodes():
            deployment.qarnot.kill_node(node["id"])
        deployment.start("counted", "given-up", count=1, seconds=0)
        deployment.airflow.wait_for(lambda: deployment.tasks(), what="the task to be submitted")
        deployment.airflow.mark_run("counted", "given-up", "failed")
        deployment.airflow.wait_for(lambda: not deployment.tasks(), what="the abort", timeout=180)
    finally:
        deployment.qarnot.withhold_nodes(False)
    assert deployment.noted("given-up", "start") == {}


def test_a_queued_task_that_no_scheduler_watches_any_more_is_aborted(deployment: Deployment) -> None:
    """Schedulers adopt no task that was failed while they were away."""
    sweeps = deployment.moments / moments.SWEEPS
    deployment.qarnot.withhold_nodes(True)
    try:
        for node in deployment.qarnot.nodes():
            deployment.qarnot.kill_node(node["id"])
        deployment.start("counted", "unwatched", count=1, seconds=0)
        deployment.airflow.wait_for(deployment.tasks, what="the task to be submitted")
        for scheduler in ("scheduler-1", "scheduler-2"):
            deployment.kill_scheduler(scheduler, with_workers=True)
        deployment.airflow.mark_run("counted", "unwatched", "failed")
        sweeps.touch()
        deployment.airflow.wait_for(lambda: not deployment.tasks(), what="the abort", timeout=180)
    finally:
        sweeps.unlink(missing_ok=True)
        deployment.qarnot.withhold_nodes(False)
    assert deployment.noted("unwatched", "start") == {}


def test_a_task_that_is_queued_too_long_is_aborted_before_the_next_is_submitted(
    deployment: Deployment,
) -> None:
    # Another scheduler that queues the task again knows nothing of the abort.
    deployment.airflow.signal("scheduler-2", signal.SIGKILL)
    deployment.qarnot.withhold_nodes(True)
    try:
        for node in deployment.qarnot.nodes():
            deployment.qarnot.kill_node(node["id"])
        deployment.start("counted", "stuck", count=1, seconds=0)
        (first,) = deployment.airflow.wait_for(deployment.tasks, what="the task to be submitted")
        deployment.database.queued_long_ago("counted", "stuck")

        def next_one() -> list[Task]:
            return [task for task in deployment.tasks() if task.uuid != first.uuid]

        (second,) = deployment.airflow.wait_for(next_one, what="the next attempt")
    finally:
        deployment.qarnot.withhold_nodes(False)
        deployment.airflow.restart("scheduler-2")
    assert deployment.wait_end("counted", "stuck") == "success"
    assert deployment.account("stuck", 1) == RIGHT
    first = deployment.client.tasks.get(first.uuid)
    assert first.state == "Cancelled"
    assert second.creation_date is not None
    assert first.state_transition_time is not None
    assert second.creation_date >= first.state_transition_time
    (instance,) = (
        one for one in deployment.database.instances("counted", "stuck") if one["task_id"] == "work"
    )
    assert instance["try_number"] == 1


def test_a_task_that_waits_for_a_slot_again_and_again_is_not_lost(deployment: Deployment) -> None:
    """Airflow itself takes a task for stuck twice, and fails it then."""
    deployment.qarnot.withhold_nodes(True)
    try:
        for node in deployment.qarnot.nodes():
            deployment.qarnot.kill_node(node["id"])
        deployment.start("counted", "waits", count=1, seconds=0)
        seen: set[str] = set()
        for _ in range(4):
            (waiting,) = deployment.airflow.wait_for(
                lambda: [task for task in deployment.tasks() if task.uuid not in seen],
                what="the next attempt",
            )
            seen.add(waiting.uuid)
            deployment.qarnot.advance_clock(541)
    finally:
        deployment.qarnot.withhold_nodes(False)
    assert deployment.wait_end("counted", "waits") == "success"
    assert deployment.account("waits", 1) == RIGHT
    (instance,) = (
        one for one in deployment.database.instances("counted", "waits") if one["task_id"] == "work"
    )
    assert instance["try_number"] == 1


def test_tasks_outlive_an_outage_of_postgresql(deployment: Deployment) -> None:
    deployment.start("counted", "outage", count=2, seconds=15)
    deployment.airflow.wait_for(
        lambda: len(deployment.noted("outage", "start")) == 2, what="the tasks to run", timeout=180
    )
    deployment.restart_postgres(seconds_away=3)
    assert deployment.wait_end("counted", "outage") == "success"
    assert deployment.account("outage", 2) == RIGHT


def test_a_restart_of_all_schedulers_leaves_running_tasks_alone(deployment: Deployment) -> None:
    deployment.start("counted", "deploy", count=2, seconds=20)
    deployment.airflow.wait_for(
        lambda: len(deployment.noted("deploy", "start")) == 2, what="the tasks to run", timeout=180
    )
    for scheduler in ("scheduler-1", "scheduler-2"):
        deployment.airflow.signal(scheduler, signal.SIGTERM, main_only=True)
    stall(3)
    for scheduler in ("scheduler-1", "scheduler-2"):
        deployment.airflow.restart(scheduler)
    assert deployment.wait_end("counted", "deploy") == "success"
    assert deployment.account("deploy", 2) == RIGHT


def test_nothing_is_left_on(deployment: Deployment) -> None:
    """Runs last: after ``keep_warm`` no node is left of all that the tests before have run."""
    deployment.airflow.wait_for(
        lambda: not deployment.tasks(), what="all Qarnot tasks to be over", timeout=180
    )
    for _ in range(4):
        deployment.qarnot.advance_clock(700)
    assert [node for node in deployment.qarnot.nodes() if node["state"] == "up"] == []
