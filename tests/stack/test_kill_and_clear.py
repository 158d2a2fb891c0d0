"""A user ends or clears a task: what it has on Qarnot ends with it, and exactly one piece of work is done."""

from __future__ import annotations

import signal

from tests.stack.world import Run, World, stall


def test_marked_failed_while_deferred(world: World) -> None:
    run = world.run("deferred", "marked_failed_while_deferred")
    run.wait_watched()
    run.mark("failed")
    (task,) = run.wait_tasks("Cancelled")
    assert run.aborts(task)
    assert run.wait_end() == "failed"
    assert len(run.tasks()) == 1


def test_marked_failed_while_deferred_with_the_triggerers_parent_stalled(world: World) -> None:
    """``on_kill`` asks its questions of a parent that does not answer, and is cancelled again and again."""
    run = world.run("deferred", "marked_failed_parent_stalled")
    run.wait_watched()
    (task,) = run.wait_tasks("live")
    triggerer = run.triggerer()
    assert triggerer is not None
    question = f"/tasks/{task.uuid}"
    # The answer to the guard's first question is held back until the parent stands still.
    with run.lane.fault(kind="delay", method="GET", path=f"^{question}$", seconds=3):
        run.mark("failed")
        run.wait(lambda: run.lane.requests("GET", question), "the guard's first question", interval=0.05)
        world.airflow.signal(triggerer, signal.SIGSTOP, main_only=True)
        stall(5)
        assert run.aborts(task) == 0, "the parent was to stand still while the guard asks"
        world.airflow.signal(triggerer, signal.SIGCONT, main_only=True)
        run.wait_tasks("Cancelled")
    assert run.aborts(task)
    assert len(run.tasks()) == 1


def test_cleared_while_deferred(world: World) -> None:
    run = world.run("deferred", "cleared_while_deferred")
    run.wait_watched()
    (old,) = run.wait_tasks("live")
    run.clear()
    run.wait_tasks("Cancelled", "live")
    run.open_gate()
    old, new = run.wait_tasks("Cancelled", "Success")
    assert (old.state, new.state) == ("Cancelled", "Success")
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 2


def test_cleared_after_success(world: World) -> None:
    """It must run again."""
    run = world.run("deferred", "cleared_after_success")
    run.open_gate()
    (first,) = run.wait_tasks("Success")
    assert run.wait_end() == "success"
    run.clear()
    run.wait_tasks("Success", "Success")
    assert run.wait_end() == "success"
    assert run.aborts(first) == 0
    assert len(run.tasks()) == 2


def test_cleared_after_success_while_its_run_goes_on(world: World) -> None:
    """The same, where nothing but the raised ``max_tries`` tells the clear from an automatic retry."""
    run = world.run("two", "cleared_in_running_run")
    run.wait_tasks("live", "Success")
    run.wait_state("success", task="quick")
    run.clear("quick")
    run.wait_tasks("live", "Success", "Success")
    run.open_gate()
    tasks = run.wait_tasks("Success", "Success", "Success")
    assert run.wait_end() == "success"
    assert sorted(task.labels["airflow.task_id"] for task in tasks) == ["quick", "quick", "work"]


def test_marked_failed_while_waiting_on_the_worker(world: World) -> None:
    run = world.run("on_worker", "marked_failed_on_worker")
    (task,) = run.wait_tasks("live")
    run.mark("failed")
    run.wait_tasks("Cancelled")
    assert run.wait_end() == "failed"
    assert len(run.tasks()) == 1
    assert run.aborts(task)


def test_cleared_while_waiting_on_the_worker(world: World) -> None:
    run = world.run("on_worker", "cleared_on_worker")
    run.wait_tasks("live")
    run.clear()
    run.wait_tasks("Cancelled", "live")
    run.open_gate()
    old, new = run.wait_tasks("Cancelled", "Success")
    assert (old.state, new.state) == ("Cancelled", "Success")
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 2


def test_many_marked_failed_while_deferred(world: World) -> None:
    run = world.run("many", "many_marked_failed")
    run.wait_tasks("live", "live", "live")
    run.wait_trigger_log("starting")
    run.mark("failed")
    run.wait_tasks("Cancelled", "Cancelled", "Cancelled")
    assert run.wait_end() == "failed"
    assert len(run.tasks()) == 3


def test_many_cleared_while_deferred(world: World) -> None:
    run = world.run("many", "many_cleared")
    run.wait_tasks("live", "live", "live")
    run.wait_trigger_log("starting")
    run.clear()
    run.wait_tasks(*["Cancelled"] * 3, *["live"] * 3)
    run.open_gate()
    run.wait_tasks(*["Cancelled"] * 3, *["Success"] * 3)
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 6


def test_not_ended_on_kill_where_the_user_says_so(world: World) -> None:
    """``cancel_on_kill=False``"""
    run = world.run("left_running", "left_running")
    run.wait_watched()
    (task,) = run.wait_tasks("live")
    run.mark("failed")
    run.wait_trigger_log("trigger completed")
    assert run.wait_end() == "failed"
    run.open_gate()
    run.wait_tasks("Success")
    assert run.aborts(task) == 0


def test_execution_timeout_counts_across_the_deferral(world: World) -> None:
    run = world.run("execution_timeout", "execution_timeout")
    (task,) = run.wait_tasks("Cancelled")
    assert run.wait_end() == "failed"
    assert run.aborts(task)
    assert len(run.tasks()) == 1


def test_wait_timeout_while_deferred(world: World) -> None:
    run = world.run("wait_timeout", "wait_timeout")
    (task,) = run.wait_tasks("Cancelled")
    assert run.wait_end() == "failed"
    assert run.aborts(task)
    assert len(run.tasks()) == 1


def test_mapped_tasks_and_two_runs_at_once_keep_apart(world: World) -> None:
    """One of six is marked failed and one is cleared: the other four do not notice."""
    one, two = (world.run("mapped_3", f"apart_{n}") for n in (1, 2))
    for run in (one, two):
        for n in range(3):
            run.wait_watched(map_index=n)
        assert len({task.uuid for task in run.wait_tasks(*["live"] * 3)}) == 3
    one.mark("failed", map_index=0)
    one.wait_tasks("Cancelled", "live", "live")
    two.clear(("work", 2))
    two.wait_tasks("Cancelled", "live", "live", "live")
    for run in (one, two):
        run.open_gate()
    one.wait_tasks("Cancelled", "Success", "Success")
    two.wait_tasks("Cancelled", "Success", "Success", "Success")
    assert one.wait_end() == "failed"
    assert two.wait_end() == "success"
    assert _by_index(one) == {"0": ["Cancelled"], "1": ["Success"], "2": ["Success"]}
    assert _by_index(two) == {"0": ["Success"], "1": ["Success"], "2": ["Cancelled", "Success"]}


def _by_index(run: Run) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for task in run.tasks():
        found.setdefault(task.labels["airflow.map_index"], []).append(task.state)
    return dict(sorted(found.items()))
