"""The api-server and the machine of the scheduler are lost and come back."""

from __future__ import annotations

import signal

from tests.stack.world import World

ALONE = True


def test_api_server_killed_and_restarted_while_deferred(world: World) -> None:
    """The job ends while nobody can be told of it. To Airflow each start of a worker until then is a try."""
    run = world.run("deferred_patiently", "api_server_killed")
    run.wait_watched()
    (task,) = run.wait_tasks("live")
    world.airflow.signal("api-server", signal.SIGKILL)
    run.open_gate()
    run.wait_tasks("Success")
    world.airflow.restart("api-server")
    assert run.wait_end() == "success"
    assert len(run.tasks()) == 1
    assert run.aborts(task) == 0


def test_scheduler_killed_with_its_workers_and_restarted(world: World) -> None:
    """What waits in the triggerer and what waits on a worker that is gone: neither runs again."""
    deferred = world.run("deferred", "scheduler_killed_deferred")
    on_worker = world.run("on_worker", "scheduler_killed_on_worker")
    deferred.wait_watched()
    on_worker.wait_state("running")
    for run in (deferred, on_worker):
        run.wait_tasks("live")
    world.airflow.restart("scheduler")
    on_worker.wait_taken_up()
    for run in (deferred, on_worker):
        run.open_gate()
        (task,) = run.wait_tasks("Success")
        assert run.wait_end() == "success"
        assert len(run.tasks()) == 1
        assert run.aborts(task) == 0
