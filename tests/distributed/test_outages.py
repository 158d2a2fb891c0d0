"""What a distributed deployment goes through: all work is done exactly once, no pool stays open, nothing is stuck."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tests.distributed.cluster import Cluster, Run, waits

#: In the test of kills, the most DAG runs at once, and how many components are killed meanwhile for each run.
AT_ONCE, KILLS = 10, 0.6
SEED = 7


@contextmanager
def accounted(
    cluster: Cluster, event: str, *, aborts: bool = False, costs_a_try: bool = True
) -> Iterator[list[Run]]:
    """Everything about the runs that the block puts into the list is as it must be, in the end.

    :param aborts: whether a Qarnot task may be ended before its time, because Airflow gives up its task.
    :param costs_a_try: whether Airflow itself may lose tries of its tasks by what happens.
    """
    runs: list[Run] = []
    began, killed, revived = time.monotonic(), cluster.killed, cluster.airflow.revived.total()
    yield runs
    row = cluster.account(event, runs, began, cluster.killed - killed, revived)
    print(row)
    assert row.wrong == 0, f"{row}\n{cluster.story(runs)}"
    assert aborts or row.aborted == 0, row
    assert costs_a_try or row.retries == 0, row


def wait_deferred(cluster: Cluster, runs: Sequence[Run], count: int) -> None:
    found = cluster.eventually(
        lambda: len(cluster.deferred(runs)) >= count or not cluster.under_way(runs), f"{count} deferred tasks"
    )
    assert found, cluster.story(runs)
    assert cluster.under_way(runs), (
        f"The runs were over before anything was done to them\n{cluster.story(runs)}"
    )


def test_kill_9_of_workers_triggerers_and_schedulers(cluster: Cluster) -> None:
    with accounted(cluster, "kill -9 of workers, triggerers and schedulers", aborts=True) as runs:
        victims: Counter[str] = Counter()
        for start in range(0, cluster.runs, AT_ONCE):
            batch = cluster.start(min(AT_ONCE, cluster.runs - start), f"kills-{start}", seconds=2)
            runs += batch
            victims += cluster.kill_while(
                partial(cluster.under_way, batch), SEED + start, most=round(KILLS * len(batch))
            )
            cluster.eventually(lambda batch=batch: not cluster.under_way(batch), "the end of a batch")
        print(victims)
        least = KILLS * cluster.runs / 2
        assert victims.total() >= least, "the runs were over before they were disturbed"


def test_triggers_move_between_triggerers(cluster: Cluster) -> None:
    """One is told to stop, the other killed, then one stands still for too long: the same waits go on, and nobody
    ends a Qarnot task, not even who is thawed and told to give up waits that another has by now."""
    airflow = cluster.airflow
    with (
        accounted(cluster, "triggers moved to the other triggerer, three times") as runs,
        cluster.gate() as gate,
    ):
        runs += cluster.start(cluster.few, "moved", gate=gate)
        expected = waits(runs)

        def all_at(name: str) -> bool:
            found = cluster.deferred(runs)
            return len(found) == expected and all(
                one["triggerer_job"]["unixname"] == name and cluster.taken_up(one) for one in found
            )

        wait_deferred(cluster, runs, expected)
        airflow.signal("triggerer-1", signal.SIGTERM)
        assert cluster.eventually(lambda: all_at("triggerer-2"), "all waits at triggerer-2")
        airflow.restart("triggerer-1")
        airflow.signal("triggerer-2", signal.SIGKILL)
        cluster.killed += 1
        assert cluster.eventually(lambda: all_at("triggerer-1"), "all waits at triggerer-1")
        airflow.restart("triggerer-2")
        given_up, ended = cluster.given_up(runs), airflow.revived["triggerer-1"]
        airflow.signal("triggerer-1", signal.SIGSTOP)
        try:
            assert cluster.eventually(lambda: all_at("triggerer-2"), "all waits at triggerer-2 again")
        finally:
            airflow.signal("triggerer-1", signal.SIGCONT)
        assert cluster.eventually(
            lambda: cluster.given_up(runs) >= given_up + expected or airflow.revived["triggerer-1"] > ended,
            "triggerer-1 to give up its waits, or to end",
        )


def test_api_server_away_for_a_minute(cluster: Cluster) -> None:
    """Qarnot tasks end while nobody can be told, some Airflow tasks wait for them, others are about to begin."""
    with accounted(cluster, "api-server away for 60 s") as runs:
        with cluster.gate() as gate:
            runs += cluster.start(cluster.few, "no-api", gate=gate)
            wait_deferred(cluster, runs, waits(runs) // 2)
            cluster.airflow.signal("api-server", signal.SIGKILL)
            cluster.killed += 1
        cluster.away(60)
        cluster.airflow.restart("api-server")


def test_postgresql_restarted(cluster: Cluster) -> None:
    with accounted(cluster, "PostgreSQL crashed and back after 5 s") as runs:
        with cluster.gate() as gate:
            runs += cluster.start(cluster.few, "no-database", gate=gate)
            wait_deferred(cluster, runs, waits(runs) // 2)
        cluster.postgres.restart(seconds_away=5)


def test_qarnot_away_for_two_minutes(cluster: Cluster) -> None:
    """Its process stands still: requests are taken and never answered."""
    with accounted(cluster, "Qarnot away for 120 s", costs_a_try=False) as runs:
        process = cluster.qarnot.process
        assert process is not None
        with cluster.gate() as gate:
            runs += cluster.start(cluster.few, "no-qarnot", gate=gate)
            wait_deferred(cluster, runs, waits(runs) // 2)
            os.kill(process.pid, signal.SIGSTOP)
        try:
            cluster.away(120)
        finally:
            os.kill(process.pid, signal.SIGCONT)
