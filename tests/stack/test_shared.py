"""One pool for many DAG runs on a real scheduler: what they make, what each gets, and what is left."""

from __future__ import annotations

import re
from itertools import pairwise

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool
from tests.stack.world import Lane, Run, World

ALONE = True
#: Qarnot tasks of a run, by its DAG.
DAGS = {"shared_one": 1, "shared_mapped": 2, "shared_many": 3}
RUNS = 20


def shared_pools(lane: Lane) -> list[Pool]:
    """Every generation, the oldest first."""
    client = QarnotClient(lane.qarnot.url, lane.qarnot.token)
    found = [one for one in client.pools.list() if one.labels.get("airflow.shared") == "stress"]
    return sorted(found, key=lambda one: int(one.labels["airflow.generation"]))


def live(lane: Lane) -> list[Pool]:
    return [one for one in shared_pools(lane) if one.state not in ("Closing", "Closed")]


def wait_working(run: Run) -> None:
    """Wait until all of its Qarnot tasks are there, queued or running."""
    run.wait(lambda: len(run.tasks()) >= DAGS[run.dag_id], "its Qarnot tasks")


def test_twenty_overlapping_runs_of_three_dags(world: World) -> None:
    lane = world.lanes["shared"]
    lane.qarnot.clear_requests()
    before = len(shared_pools(lane))
    names = list(DAGS)
    runs = [world.run(names[n % 3], f"shared_{n}", lane="shared") for n in range(RUNS)]
    # The first to come are let go while the last have not come yet; some end alone, and open the next generation.
    for run in runs:
        wait_working(run)
        run.open_gate()
    for run in runs:
        assert run.wait_end() == "success"
    generations = shared_pools(lane)[before:]
    made = [
        one
        for one in lane.qarnot.requests()
        if one["method"] == "POST"
        and re.fullmatch(r"/pools(/[^/]+/clone)?", one["path"])
        and one["status"] == 200
    ]
    assert len(made) <= len(generations) < RUNS, (len(made), len(generations))
    for run in runs:
        good = [one for one in run.tasks() if one.state == "Success"]
        assert len(good) == DAGS[run.dag_id], [one.state for one in run.tasks()]
    runs[0].wait(
        lambda: {one.state for one in shared_pools(lane)} == {"Closed"}, "all generations to be closed"
    )
    for older, newer in pairwise(generations):
        closing, creation = older.previous_state_transition_time, newer.creation_date
        assert closing is not None
        assert creation is not None
        assert closing <= creation, "one at a time took tasks"
    client = QarnotClient(lane.qarnot.url, lane.qarnot.token)
    assert client.jobs.list() == [], "nobody holds anything any more"


def test_a_run_that_is_marked_failed_or_cleared_leaves_the_pool_to_the_others(world: World) -> None:
    lane = world.lanes["shared"]
    failed, goes_on, cleared = (
        world.run("shared_one", f"shared_{what}", lane="shared") for what in ("failed", "goes_on", "cleared")
    )
    for run in (failed, goes_on, cleared):
        run.wait_tasks("live")
        # Airflow tells a trigger of a mark only once it runs.
        run.wait_watched()
    (pool,) = live(lane)
    failed.mark_run("failed")
    failed.wait_tasks("Cancelled")
    assert failed.wait_end() == "failed"
    cleared.clear()
    cleared.wait(lambda: len(cleared.tasks()) == 2, "the cleared task to run again")
    assert [one.uuid for one in live(lane)] == [pool.uuid]
    assert [one.state for one in goes_on.tasks()] == ["FullyExecuting"]
    for run in (goes_on, cleared):
        run.open_gate()
        assert run.wait_end() == "success"
    assert {one.pool for run in (goes_on, cleared) for one in run.tasks()} == {pool.uuid}
    goes_on.wait(lambda: not live(lane), "the pool to be closed")
