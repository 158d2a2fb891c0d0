"""What becomes of a pool when its DAG run does not end by itself, or its setup fails."""

from __future__ import annotations

from datetime import timedelta

from tests.stack.world import World


def test_run_timeout_skips_the_teardown_and_the_pool_cools_down_by_itself(world: World) -> None:
    run = world.run("group_of_timed_out_run", "timed_out", lane="clock")
    qarnot = run.lane.qarnot
    for n in range(2):
        run.wait_watched(map_index=n)
    world.database.outlive(run.run_id, days=2)
    assert run.wait_end() == "failed"
    # The deferred tasks end with their run; the teardown is skipped by Airflow, so the pool stays.
    run.wait_tasks("Cancelled", "Cancelled")
    (pool,) = run.pools()
    assert run.instance("close_pool")["state"] in ("skipped", "upstream_failed")
    assert pool.state not in ("Closing", "Closed")
    assert len(_nodes(world, pool.uuid)) == 2
    qarnot.advance_clock(timedelta(minutes=15).total_seconds())
    run.wait(lambda: not _nodes(world, pool.uuid), "the nodes to be gone")
    spent = qarnot.get_account()["pools"][pool.uuid]["nodeSeconds"]
    qarnot.advance_clock(timedelta(days=2).total_seconds())
    assert qarnot.get_account()["pools"][pool.uuid]["nodeSeconds"] == spent
    assert run.pools()[0].state not in ("Closing", "Closed")


def _nodes(world: World, pool: str) -> list[str]:
    return [one["id"] for one in world.lanes["clock"].qarnot.nodes() if one["pool"] == pool]


def test_reaper_closes_the_pool_of_a_run_that_is_over(world: World) -> None:
    """The user marks the teardown as done, which leaves the pool open. A run that goes on keeps its pool."""
    over, going_on = (world.run("pool", name, lane="reaped") for name in ("reaped", "not_reaped"))
    for run in (over, going_on):
        run.wait_tasks("live", "live")
    over.mark("success", "stop")
    over.open_gate()
    over.wait_tasks("Success", "Success")
    over.wait_end()
    (pool,), (kept,) = over.pools(), going_on.pools()
    assert pool.state == "FullyExecuting"
    assert world.run("reap", "reap", lane="reaped").wait_end() == "success"
    report = world.airflow.xcom("reap", "reap", "reap")
    assert {one["uuid"]: (one["action"], one["done"]) for one in report["pools"]} == {
        pool.uuid: ("close", True),
        kept.uuid: ("keep", False),
    }, report
    over.wait_pools("Closed")
    assert going_on.pools()[0].state == "FullyExecuting"
    going_on.open_gate()
    assert going_on.wait_end() == "success"


def test_run_marked_failed_while_its_tasks_are_deferred(world: World) -> None:
    run = world.run("pool", "run_failed_tasks_deferred")
    for n in range(2):
        run.wait_watched(map_index=n)
    run.mark_run("failed")
    run.wait_tasks("Cancelled", "Cancelled")
    run.wait_pools("Closed")
    assert run.wait_end() == "failed"


def test_run_marked_failed_while_its_setup_is_deferred(world: World) -> None:
    run = world.run("pool", "run_failed_setup_deferred", lane="never_boots")
    run.wait_watched("start")
    run.mark_run("failed")
    run.wait_pools("Closed")
    run.wait_end()  # Airflow calls it a success
    assert not run.tasks()


def test_run_marked_failed_while_its_setup_waits_on_the_worker(world: World) -> None:
    run = world.run("pool_on_worker", "run_failed_setup_running", lane="never_boots")
    run.wait(run.pools, "the pool")
    run.mark_run("failed")
    run.wait_pools("Closed")
    run.wait_end()  # Airflow calls it a success
    assert not run.tasks()


def test_setup_that_fails_after_its_last_retry_leaves_no_pool_open(world: World) -> None:
    run = world.run("pool_never_ready", "setup_fails", lane="never_boots")
    assert run.wait_end() == "failed"
    assert run.wait_all_pools("Closed")
    assert not run.tasks()


def test_run_deleted_and_made_again_does_not_take_over_its_predecessors_result(world: World) -> None:
    first = world.run("deferred", "deleted_and_made_again")
    first.open_gate()
    (old,) = first.wait_tasks("Success")
    assert first.wait_end() == "success"
    first.airflow.api("DELETE", f"dags/{first.dag_id}/dagRuns/{first.run_id}")
    first.again()
    assert first.wait_end() == "success"
    assert [task.state for task in first.wait_tasks("Success", "Success")] == ["Success", "Success"]
    assert first.aborts(old) == 0


def test_two_runs_at_once_have_a_pool_each(world: World) -> None:
    """One run ends, and closes its own pool only."""
    one, two = (world.run("pool", f"pools_apart_{n}") for n in (1, 2))
    for run in (one, two):
        run.wait_tasks("live", "live")
    one.open_gate()
    one.wait_all_pools("Closed")
    assert one.wait_end() == "success"
    assert two.pools()[-1].state == "FullyExecuting"
    two.open_gate()
    two.wait_all_pools("Closed")
    assert two.wait_end() == "success"
    for run in (one, two):
        assert {(task.pool, task.state) for task in run.tasks()} == {(run.pools()[-1].uuid, "Success")}


def test_setup_marked_success_while_deferred(world: World) -> None:
    """The setup is told to be done and returns nothing: the teardown finds its pool all the same."""
    run = world.run("pool", "setup_marked_success", lane="never_boots")
    run.wait_watched("start")
    run.mark("success", "start")
    run.wait_pools("Closed")
    run.wait_end()
    assert run.instance("stop")["state"] == "success"
    assert not run.tasks()
