"""Runs of the shared-pool example side by side: each one's cost is its share, and the shares add up to the account."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.costs.model import Cost, sum_costs
from airflow_qarnot_pool.costs.queries import cost_of_run
from airflow_qarnot_pool.local import LocalQarnot
from tests.conftest import ROOT
from tests.crash.children import Child, Say, eventually, fork
from tests.dags.test_examples import LOCAL_BUNDLE

pytestmark = pytest.mark.usefixtures("airflow_db")

EXAMPLE = ROOT / "example_dags" / "qarnot_shared_pool.py"
BOOT = 3600.0
RUNS = ("dag", "check")
#: A dag.test() on a machine that others want, too.
PATIENCE = 240.0


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """A local Qarnot whose nodes boot when the test has the time pass, so that runs overlap as it wants."""
    # A bundle of its own: dag.test() writes all of a bundle's DAGs to the database.
    shutil.copy(EXAMPLE, tmp_path)
    bundles = [{"name": "shares", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    with LocalQarnot(boot_seconds=BOOT) as server:
        monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", server.airflow_connection(namespace="shares"))
        yield server


def example(work: Path) -> dict[str, Any]:
    """The DAGs of the example, with work that takes a moment and a first try of one task that fails."""
    dags = runpy.run_path(str(work / EXAMPLE.name))
    load, model = (dags["dag"].task_dict[f"nodes.{name}"] for name in ("load", "model"))
    load.command = f"sh -c 'sleep 0.3; mkdir {work}/tried-{{{{ ds }}}} 2>/dev/null && exit 1; true'"
    model.expand_input.value["command"] = ["sh -c 'sleep 0.4'", "sh -c 'sleep 0.1'"]
    for dag in (dags["dag"], dags["check"]):
        for task in dag.tasks:
            if not task.is_mapped:
                task.retry_delay = timedelta()
    return dags


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Processes, which end with the test."""
    forked: list[Child] = []
    yield forked
    for child in forked:
        child.kill()


def test_runs_that_share_the_pool_of_the_example_pay_its_account_together(
    slow: LocalQarnot, children: list[Child], tmp_path: Path
) -> None:
    """After a retry and a clear, too."""

    def run(number: int, dag: str, cleared: str = "") -> Child:
        def work(say: Say) -> None:
            forget_threads()
            if cleared:
                clear_instead_of_deleting(cleared)
            found = example(tmp_path)[dag].test(logical_date=datetime(2026, 2, number, tzinfo=UTC))
            instances = found.get_task_instances()
            (close,) = (one for one in instances if one.task_id == "nodes.close_pool")
            say(
                {
                    "kind": "run",
                    "id": found.run_id,
                    "dag": found.dag_id,
                    "states": sorted({str(one.state) for one in instances}),
                    "tries": {one.task_id: one.try_number for one in instances},
                    "cost": close.xcom_pull(task_ids=close.task_id, key="qarnot_cost"),
                }
            )

        children.append(child := fork(work, tmp_path / f"{number}.log"))
        return child

    def ends_well(child: Child) -> dict[str, Any]:
        assert child.wait(PATIENCE) == 0
        found = child.last("run")
        assert found is not None
        assert found["states"] == ["success"]
        return found

    with QarnotClient(slow.url, slow.token) as client:
        for number, dag in enumerate(RUNS, 1):
            run(number, dag)
            # Not at once: several dag.test() that begin together get in each other's way on SQLite.
            eventually(
                lambda: len(client.tasks.list()) == len(children),
                PATIENCE,
                say="its Qarnot task to be queued",
            )
        # All have opened the pool and wait on it; only now its nodes come.
        (pool,) = client.pools.list()
        slow.advance_clock(BOOT)
        runs = [ends_well(child) for child in children]
        assert [one["tries"].get("nodes.load") for one in runs] == [2, None]
        assert [one.uuid for one in client.pools.list()] == [pool.uuid]
        assert_shares_add_up(slow, client, runs)
        for one in runs:
            # Told when this run gave the pool up; others may have worked on, so only its sum can be checked.
            shares = [Cost.from_json(share["cost"]) for share in one["cost"]["pool"]["shares"]]
            whole = Cost.from_json(one["cost"]["pool"]["cost"])
            assert sum_costs(shares).euros == pytest.approx(whole.euros, abs=1e-5)

        # The first run is cleared: it opens the pool's next generation, and has its share of both.
        again = run(1, "dag", cleared=runs[0]["id"])
        eventually(lambda: len(client.pools.list()) == 2, PATIENCE, say="the next pool")
        (_, later) = sorted(client.pools.list(), key=lambda one: one.labels["airflow.generation"])
        eventually(lambda: client.pools.tasks(later.uuid), PATIENCE, say="its Qarnot task to be queued")
        slow.advance_clock(BOOT)
        assert ends_well(again)["tries"]["nodes.load"] == 3
        assert_shares_add_up(slow, client, runs)


def assert_shares_add_up(qarnot: LocalQarnot, client: QarnotClient, runs: list[dict[str, Any]]) -> None:
    """Each run's share is that of its execution seconds, pool by pool; together they are the account."""
    pools = {one.uuid for one in client.pools.list()}
    for uuid in pools:
        eventually(lambda uuid=uuid: client.pools.get(uuid).state == "Closed")
    account = qarnot.get_account()["pools"]
    executed = {uuid: {one["id"]: 0.0 for one in runs} for uuid in pools}
    for task in client.tasks.list():
        assert task.pool
        assert task.status
        executed[task.pool][task.labels["airflow.run_id"]] += task.status.execution_time_sec or 0.0
    costs = [cost_of_run(client, "shares", one["dag"], one["id"]).total for one in runs]
    for one, cost in zip(runs, costs, strict=True):
        expected = sum(
            account[uuid]["creditsSpent"] * of_run[one["id"]] / sum(of_run.values())
            for uuid, of_run in executed.items()
        )
        assert cost.euros == pytest.approx(expected, rel=1e-3)
    together = sum_costs(costs)
    assert together.euros == pytest.approx(sum(account[one]["creditsSpent"] for one in pools), rel=1e-3)
    assert together.node_seconds == pytest.approx(sum(account[one]["nodeSeconds"] for one in pools), rel=1e-3)


def forget_threads() -> None:
    """In a forked process: Airflow keeps an api-server, whose threads stay behind where a test has used it before."""
    from airflow.sdk.execution_time.supervisor import in_process_api_server

    # Airflow 3.1 makes one for each task.
    if hasattr(in_process_api_server, "cache_clear"):
        in_process_api_server.cache_clear()


def clear_instead_of_deleting(run_id: str) -> None:
    """Have dag.test() clear that run, as it does, and go on with it, in place of one made anew."""
    from airflow.models import dagrun
    from sqlalchemy import select

    def the_run(*, dag: Any, session: Any, **_: Any) -> Any:
        found = session.scalar(select(dagrun.DagRun).where(dagrun.DagRun.run_id == run_id))
        found.dag, found.state, found.start_date = dag, "running", datetime.now(UTC)
        session.commit()
        return found

    dagrun.get_or_create_dagrun = the_run  # this process is only for that
