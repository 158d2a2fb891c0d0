"""Triggerers die and freeze: the waits go on, and what is waited for lives.

In the order of this file: each test begins with the triggerers as the one before left them.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.stack.world import Run, World

ALONE = True
ONE, TWO = "triggerer-1", "triggerer-2"
WAITERS = 12


def test_triggerers_killed_and_restarted(world: World) -> None:
    """The waits go on in one poll, with no new Qarnot task."""
    airflow = world.airflow
    run = world.run("mapped_12", "triggerers_killed", lane="counted")
    for n in range(WAITERS):
        run.wait_watched(map_index=n)
    before = run.wait_tasks(*["live"] * WAITERS)
    for name in (ONE, TWO):
        airflow.signal(name, signal.SIGKILL)
    airflow.restart(ONE)

    def at(state: str) -> bool:
        found = run.instances()
        return len(found) == WAITERS and all(
            one["state"] == state and one["triggerer"] == ONE for one in found
        )

    run.wait(lambda: at("deferred"), "one triggerer to have all waits")
    known = len(_searches(run))
    searches = run.wait(
        lambda: found if len(found := _searches(run)[known:]) > 20 else None, "twenty more rounds of polling"
    )
    seconds = searches[-1]["at"] - searches[0]["at"]
    # A round is one search for changes, now and then one by uuid; a poll per waiter would make 12 a second.
    assert len(searches) / seconds < WAITERS / 2, f"{len(searches)} searches in {seconds:.1f} s"
    assert [task.uuid for task in run.tasks()] == [task.uuid for task in before]
    run.open_gate()
    run.wait_tasks(*["Success"] * WAITERS)
    assert run.wait_end() == "success"
    assert sum(run.aborts(task) for task in before) == 0
    assert len(run.tasks()) == WAITERS
    airflow.restart(TWO)


def _searches(run: Run) -> list[dict[str, object]]:
    return run.lane.requests("POST", "/tasks/search")


@dataclass
class Thawed:
    """DAG runs whose triggers were in a triggerer that was frozen, and is thawed."""

    waiting: Run
    resumed: Run
    pool: Run
    many: Run


@pytest.fixture(scope="module")
def thawed(world: World) -> Iterator[Thawed]:
    """A triggerer stands still past the health threshold, the other takes its triggers, and it goes on."""
    airflow = world.airflow
    # All triggers have to be where the frost comes.
    airflow.signal(TWO, signal.SIGKILL)
    runs = Thawed(
        waiting=world.run("deferred", "thawed_waiting"),
        resumed=world.run("deferred", "thawed_resumed"),
        pool=world.run("pool", "thawed_pool", lane="boots_on_demand"),
        many=world.run("many", "thawed_many"),
    )
    waits = [(runs.waiting, "work"), (runs.resumed, "work"), (runs.pool, "start"), (runs.many, "work")]
    for run, task in waits:
        run.wait(lambda run=run, task=task: _triggerer(run, task) == ONE, f"{task} to wait in {ONE}")
        run.wait_trigger_log("starting", task)
    airflow.restart(TWO)
    airflow.signal(ONE, signal.SIGSTOP)
    frozen = [set(run.trigger_logs(task)) for run, task in waits]
    for (run, task), before in zip(waits, frozen, strict=True):
        run.wait(lambda run=run, task=task: _triggerer(run, task) == TWO, f"{task} to wait in {TWO}")
        run.wait(
            lambda run=run, task=task, before=before: set(run.trigger_logs(task)) - before,
            f"{TWO} to take up the wait of {task}",
        )
    runs.resumed.open_gate()
    runs.resumed.wait_tasks("Success")
    assert runs.resumed.wait_end() == "success"
    runs.pool.lane.qarnot.advance_clock(2e6)
    runs.pool.wait_pools("FullyExecuting")
    runs.pool.wait_tasks("live", "live")
    # The thawed poll must not see by itself what has happened, or its triggers end before Airflow cancels them.
    late = {"kind": "delay", "method": "POST", "path": "/search$", "seconds": 20}
    with runs.waiting.lane.fault(**late), runs.pool.lane.fault(**late):
        airflow.signal(ONE, signal.SIGCONT)
        for (run, task), files in zip(waits, frozen, strict=True):
            run.wait(
                lambda run=run, task=task, files=files: any(
                    "invoking on_kill" in text and "trigger completed" in text
                    for name, text in run.trigger_logs(task).items()
                    if name in files
                ),
                f"the thawed {ONE} to let go of {task}",
            )
    yield runs
    for run, _ in waits:
        run.open_gate()


def _triggerer(run: Run, task: str) -> str | None:
    return run.triggerer(task)


def test_task_lives_when_the_triggerer_is_thawed_while_it_is_deferred(world: World, thawed: Thawed) -> None:
    run = thawed.waiting
    (task,) = run.wait_tasks("live")
    run.wait_trigger_log(f"Qarnot task {task.uuid} keeps running")
    run.open_gate()
    run.wait_tasks("Success")
    assert run.wait_end() == "success"
    assert run.aborts(task) == 0
    assert len(run.tasks()) == 1


def test_many_live_when_the_triggerer_is_thawed_while_they_are_deferred(world: World, thawed: Thawed) -> None:
    run = thawed.many
    tasks = run.wait_tasks("live", "live", "live")
    run.wait_trigger_log("The Qarnot tasks keep running")
    run.open_gate()
    run.wait_tasks("Success", "Success", "Success")
    assert run.wait_end() == "success"
    assert not any(run.aborts(task) for task in tasks)
    assert len(run.tasks()) == 3


def test_pool_lives_when_the_triggerer_is_thawed_while_it_is_used(world: World, thawed: Thawed) -> None:
    """Its setup has resumed elsewhere: it is no longer deferred, and its pool is in use."""
    run = thawed.pool
    (pool,) = run.pools()
    run.wait_trigger_log(f"Pool {pool.uuid} stays open", "start")
    assert run.wait_pools("FullyExecuting")
    run.wait_tasks("live", "live")
    run.open_gate()
    run.wait_tasks("Success", "Success")
    run.wait_pools("Closed")
    assert run.wait_end() == "success"
    assert len(run.lane.requests("POST", f"/pools/{pool.uuid}/close")) == 1


def test_task_that_ended_elsewhere_stays_ended_when_the_triggerer_is_thawed(
    world: World, thawed: Thawed
) -> None:
    run = thawed.resumed
    (task,) = run.wait_tasks("Success")
    assert run.aborts(task) == 0
    assert len(run.tasks()) == 1


def test_live_output_when_the_triggerer_is_killed(world: World) -> None:
    """Every line is there once for who looks at the task's log, whichever process has written it; what is in the
    files twice was announced.
    """
    airflow = world.airflow
    airflow.restart(ONE)
    run = world.run("live", "live_triggerer_killed")
    (task,) = run.wait_tasks("live")
    run.wait_trigger_log(r"\[stdout 0\] line 5\b")
    holder = run.wait(lambda: _triggerer(run, "work"), "a triggerer to have the wait")
    # The parent stands still for a moment: lines on their way stay there.
    airflow.signal(holder, signal.SIGSTOP, main_only=True)
    said = len(run.stdout(task).splitlines())
    run.wait(lambda: len(run.stdout(task).splitlines()) > said + 3, "more output")
    airflow.signal(holder, signal.SIGKILL)
    airflow.restart(holder)
    run.wait(
        lambda: any(
            "the lines that another triggerer has written" in text for text in run.trigger_logs().values()
        ),
        "the wait to be taken over",
    )
    seen = max(map(int, re.findall(r"\[stdout 0\] line (\d+)", "".join(run.trigger_logs().values()))))
    run.wait_trigger_log(rf"\[stdout 0\] line {seen + 3}\b")
    run.open_gate()
    assert run.wait_end() == "success"
    (task,) = run.wait_tasks("Success")
    token, *wrote = run.stdout(task).splitlines()
    number = re.compile(r"\[stdout 0\] line (\d+)")
    shown = [entry["event"] for entry in airflow.log(run.dag_id, run.run_id, "work")]
    lines = [int(found[1]) for event in shown if (found := number.match(event))]
    assert lines == list(range(len(wrote)))
    logged = "".join((*run.trigger_logs().values(), *run.worker_logs().values()))
    announced = sum(map(int, re.findall(r"(\d+) lines? of the output may not", logged.replace("One", "1"))))
    assert len(number.findall(logged)) - len(wrote) <= announced
    # The API token is masked in the triggerer, too.
    assert run.lane.qarnot.token in token
    assert run.lane.qarnot.token not in logged
    assert "[stdout 0] token ***" in logged
