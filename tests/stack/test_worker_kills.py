"""Worker and task processes are killed (SIGKILL): the automatic retry takes up what is there.

At the end of each there was exactly one Qarnot task (or pool) per piece of work, whatever Airflow's tries were.
"""

from __future__ import annotations

import os
import signal

import psutil

from tests.stack.world import Run, World


def _one_success(run: Run) -> None:
    """The work was done once, and nobody ended anything."""
    (task,) = run.wait_tasks("Success")
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 1
    assert run.aborts(task) == 0


def test_task_process_killed_before_the_answer_to_the_creation(world: World) -> None:
    run_in = world.lanes["no_answer"]
    with run_in.fault(kind="delay", method="POST", path="^/tasks$", seconds=20, times=1):
        run = world.run("deferred", "killed_before_answer", lane="no_answer")
        run.wait(lambda: run_in.requests("POST", "/tasks"), "the creation")
        run.kill(run.processes().task)
        assert run_in.requests("POST", "/tasks")[0]["status"] is None, "the answer came before the kill"
        run.wait_state("deferred", tries=2)
        run.open_gate()
        _one_success(run)
    assert len(run_in.requests("POST", "/tasks")) == 1


def test_task_process_killed_and_its_creation_takes_effect_after_the_retry(world: World) -> None:
    run_in = world.lanes["late_effect"]
    with run_in.fault(kind="delay", when="before", method="POST", path="^/tasks$", seconds=25, times=1):
        run = world.run("deferred", "killed_late_effect", lane="late_effect")
        run.wait(lambda: run_in.requests("POST", "/tasks"), "the creation")
        run.kill(run.processes().task)
        run.wait_state("deferred", tries=2)
        late, own = run.wait(
            lambda: [
                found
                for found in [run_in.requests("POST", "/tasks")]
                if len(found) == 2 and found[0]["status"]
            ],
            "the late creation",
        )[0]
        assert (late["status"], own["status"]) == (400, 200)
        run.open_gate()
        _one_success(run)


def test_task_process_killed_between_creation_and_deferral(world: World) -> None:
    run = world.run("deferred", "killed_before_deferral", halt="before the deferral")
    run.wait(run.halts["before the deferral"].exists, "the process to stand still")
    run.wait_tasks("live")
    run.kill(run.processes().task)
    run.wait_state("deferred", tries=2)
    run.open_gate()
    _one_success(run)


def test_task_process_killed_while_waiting_on_the_worker(world: World) -> None:
    run = world.run("on_worker", "killed_task_waiting")
    (task,) = run.wait_tasks("live")
    run.wait_asked(task)
    run.kill(run.processes().task)
    run.wait_taken_up()
    run.open_gate()
    _one_success(run)


def test_worker_and_task_process_killed_while_waiting(world: World) -> None:
    """An automatic retry: it must not run again."""
    run = world.run("on_worker", "killed_worker_and_task")
    (task,) = run.wait_tasks("live")
    run.wait_asked(task)
    processes = run.processes()
    # The worker first: it would report the death of the task process.
    run.kill(processes.worker, processes.task)
    run.wait_taken_up()
    run.open_gate()
    _one_success(run)


def test_worker_process_killed_alone(world: World) -> None:
    """The task process lives on without anybody to talk to, while the retry waits for the same Qarnot task."""
    run = world.run("on_worker", "killed_worker")
    (task,) = run.wait_tasks("live")
    run.wait_asked(task)
    processes = run.processes()
    orphan = psutil.Process(processes.task)
    run.kill(processes.worker)
    run.wait_taken_up()
    run.open_gate()
    _one_success(run)
    run.wait(lambda: not orphan.is_running(), "the orphaned task process to end")


def test_worker_process_killed_before_the_answer_to_the_creation(world: World) -> None:
    """The orphaned task process resumes after the retry has adopted the Qarnot task, and ends nothing."""
    run_in = world.lanes["no_answer_to_orphan"]
    with run_in.fault(kind="delay", method="POST", path="^/tasks$", seconds=15, times=1):
        run = world.run("on_worker", "killed_worker_before_answer", lane="no_answer_to_orphan")
        (task,) = run.wait_tasks("live")
        processes = run.processes()
        orphan = psutil.Process(processes.task)
        # In this order, because the kernel sends SIGHUP to a process that is stopped when it becomes an orphan.
        run.kill(processes.worker)
        orphan.suspend()
        assert run_in.requests("POST", "/tasks")[0]["status"] is None, "the response came before the kill"
    run.wait_taken_up()
    orphan.resume()
    run.wait(lambda: not orphan.is_running(), "the orphaned task process to end")
    assert [one.uuid for one in run.tasks()] == [task.uuid]
    run.open_gate()
    _one_success(run)


def test_task_process_killed_in_execute_complete(world: World) -> None:
    run = world.run("deferred", "killed_in_execute_complete")
    (task,) = run.wait_tasks("live")
    run.wait_watched()
    question = f"/tasks/{task.uuid}"
    with run.lane.fault(kind="delay", method="GET", path=f"^{question}$", seconds=60):
        run.open_gate()
        run.wait(lambda: run.lane.requests("GET", question), "execute_complete")
        run.kill(run.processes().task)
    _one_success(run)
    assert run.instance()["try_number"] >= 2


def test_worker_told_to_stop_while_waiting(world: World) -> None:
    """SIGTERM, as when a worker's pod goes: what runs is ended, and the retry runs it again."""
    run = world.run("on_worker", "worker_told_to_stop")
    (task,) = run.wait_tasks("live")
    run.wait_asked(task)
    os.kill(run.processes().task, signal.SIGTERM)
    run.wait_tasks("Cancelled", "live")
    run.open_gate()
    run.wait_tasks("Cancelled", "Success")
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 2


def test_task_process_killed_before_the_answer_to_the_creation_of_many(world: World) -> None:
    run_in = world.lanes["no_answer_to_many"]
    with run_in.fault(kind="delay", method="POST", path="^/tasks$", seconds=20, times=1):
        run = world.run("many", "killed_before_many", lane="no_answer_to_many")
        run.wait_tasks("live", "live", "live")
        run.kill(run.processes().task)
        run.wait_state("deferred", tries=2)
    run.open_gate()
    tasks = run.wait_tasks("Success", "Success", "Success")
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 3
    assert not any(run.aborts(task) for task in tasks)
    assert len(run_in.requests("POST", "/tasks")) == 1


def test_setup_killed_before_the_answer_to_the_creation_of_its_pool(world: World) -> None:
    run_in = world.lanes["no_answer_to_setup"]
    with run_in.fault(kind="delay", method="POST", path="^/pools$", seconds=20, times=1):
        run = world.run("pool", "killed_setup", lane="no_answer_to_setup")
        run.open_gate()
        run.wait(lambda: run_in.requests("POST", "/pools"), "the creation")
        run.kill(run.processes("start").task)
        (pool,) = run.wait_pools("Closed")
        assert run.wait_end() == "success"
    assert run.instance("start")["try_number"] >= 2
    assert len(run_in.requests("POST", "/pools")) == 1
    assert {task.pool for task in run.wait_tasks("Success", "Success")} == {pool.uuid}


def test_teardown_killed_before_the_answer_to_the_end_of_its_pool(world: World) -> None:
    run = world.run("pool", "killed_teardown")
    (pool,) = run.wait(run.pools, "the pool")
    close = f"/pools/{pool.uuid}/close"
    with run.lane.fault(kind="delay", when="before", method="POST", path=f"^{close}$", seconds=60):
        run.open_gate()
        run.wait(lambda: run.lane.requests("POST", close), "the teardown")
        run.kill(run.processes("stop").task)
    run.wait_pools("Closed")
    assert run.wait_end() == "success"
    assert len(run.wait_tasks("Success", "Success")) == 2
