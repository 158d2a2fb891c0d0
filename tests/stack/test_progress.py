"""The waits of these tests end, although Airflow changes its tables all the time."""

from __future__ import annotations

from tests.stack.world import World

ALONE = True


def test_a_task_that_only_sends_heartbeats_makes_no_progress(world: World) -> None:
    run = world.run("on_worker", "only_heartbeats")
    (task,) = run.wait_tasks("live")
    run.wait_asked(task)
    progress, beat = world.database.progress(), run.instance()["last_heartbeat_at"]
    run.wait(lambda: run.instance()["last_heartbeat_at"] != beat, "a heartbeat")
    assert world.database.progress() == progress
    run.open_gate()
    assert run.wait_end() == "success"
    assert world.database.progress() != progress
