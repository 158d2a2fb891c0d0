"""The size of a pool against the local Qarnot: the sentence of the teardown, ``"auto"``, and the command."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool import cli
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators import create_pool
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from tests.crash.children import eventually
from tests.harness import FakeTI, defer, resume, run

SECONDS = 100.0
create = partial(QarnotCreatePoolOperator, task_id="create", retries=1)
auto = partial(create, instance_count="auto:8")
close = partial(QarnotClosePoolOperator, task_id="close", wait_for_completion=False)


class History:
    """Runs of one DAG, whose work takes exactly ``SECONDS`` of the virtual clock."""

    def __init__(self, qarnot: LocalQarnot, client: QarnotClient, dag_id: str, folder: Path) -> None:
        self.qarnot, self.client, self.dag_id, self._folder = qarnot, client, dag_id, folder
        self.pools: list[str] = []

    def ti(self, run_id: str, task_id: str = "create", **fields: Any) -> FakeTI:
        return FakeTI(dag_id=self.dag_id, run_id=run_id, task_id=task_id, **{"max_tries": 1, **fields})

    def run(self, run_id: str, make: Callable[..., Any], tasks: int = 1, exit_code: int = 0) -> str:
        """Open a pool, let *tasks* of one instance run side by side, and close it."""
        pool: str = run(make, self.ti(run_id))
        self.pools.append(pool)
        self.qarnot.set_speed(0)
        done = self._folder / run_id
        command = f"sh -c 'until test -e {done}; do sleep 0.02; done; exit {exit_code}'"
        for index in range(tasks):
            work = partial(QarnotRunTaskOperator, task_id="work", qarnot_pool=pool, command=command)
            run(partial(work, wait_for_completion=False), self.ti(run_id, "work", map_index=index))
        eventually(lambda: self.states(pool) == ["FullyExecuting"] * tasks)
        self.qarnot.advance_clock(SECONDS)
        done.touch()
        eventually(lambda: self.states(pool) == ["Failure" if exit_code else "Success"] * tasks)
        run(partial(close, qarnot_pool=pool), self.ti(run_id, "close"))
        self.qarnot.set_speed(1)
        return pool

    def states(self, pool: str) -> list[str]:
        return [task.state for task in self.client.pools.tasks(pool)]

    def creations(self) -> int:
        return sum((one["method"], one["path"]) == ("POST", "/pools") for one in self.qarnot.requests())


@pytest.fixture
def past(
    qarnot: LocalQarnot, client: QarnotClient, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[History]:
    past = History(qarnot, client, re.sub(r"\W", "_", request.node.name), tmp_path)
    yield past
    qarnot.set_speed(1)
    for pool in past.pools:
        client.pools.delete(pool)


def test_the_teardown_tells_what_another_size_would_have_taken_and_cost(
    past: History, capsys: pytest.CaptureFixture[str]
) -> None:
    past.run("r1", partial(create, instance_count=4))
    said = capsys.readouterr().out
    assert re.search(
        r"1 node: \d min \d\d s, 0\.010\d EUR instead of \d min \d\d s, 0\.040\d EUR with 4 nodes", said
    )


def test_a_run_that_failed_has_no_right_size(past: History, capsys: pytest.CaptureFixture[str]) -> None:
    past.run("r1", partial(create, instance_count=4), exit_code=1)
    said = capsys.readouterr().out
    assert "has cost" in said
    assert "instead of" not in said


def test_the_first_run_has_a_guess_and_the_next_ones_the_size_of_their_records(
    past: History, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [past.client.pools.get(past.run(name, auto, tasks=2)).instance_count for name in ("r1", "r2")]
    assert sizes == [4, 2]
    said = capsys.readouterr().out
    assert "instance_count is 4, the first guess, because no earlier run has a record" in said
    assert re.search(
        r"instance_count is 2 of at most 8, from 1 earlier run\. A run takes about \d min \d\d s", said
    )


def test_pools_of_a_number_are_records_too(past: History) -> None:
    past.run("r1", partial(create, instance_count=3))
    assert past.client.pools.get(past.run("r2", auto)).instance_count == 1


def test_a_run_with_several_pools_is_no_record_because_each_has_a_part_of_its_work(past: History) -> None:
    whole = past.client.pools.get(past.run("r1", partial(create, instance_count=3), tasks=3))
    past.pools.append(
        part := past.client.pools.create(PoolSpec(name="part", tags=whole.tags, labels=whole.labels))
    )
    past.client.pools.close(part)
    eventually(lambda: past.client.pools.get(part).state == "Closed")
    assert past.client.pools.get(past.run("r2", auto)).instance_count == 4


def test_deleted_records_leave_the_guess(past: History) -> None:
    past.client.pools.delete(pool := past.run("r1", auto))
    past.pools.clear()
    eventually(lambda: past.client.pools.find(pool) is None)
    assert past.client.pools.get(past.run("r2", auto)).instance_count == 4


def test_unreadable_records_leave_the_guess(
    past: History, qarnot: LocalQarnot, capsys: pytest.CaptureFixture[str]
) -> None:
    qarnot.faults([{"method": "POST", "path": "/pools/search", "times": 1, "kind": "status", "status": 403}])
    assert past.client.pools.get(past.run("r1", auto)).instance_count == 4
    assert "instance_count is 4, because no record could be read" in capsys.readouterr().out


KINDS = pytest.mark.parametrize(
    "fields", [{}, {"keep_warm": timedelta(minutes=5)}], ids=["fixed", "keep_warm"]
)


@KINDS
def test_a_retry_adopts_the_pool_though_it_would_choose_another_size(
    past: History, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, defers_at_once: None
) -> None:
    make = partial(auto, **fields)
    defer(make, past.ti("r1"))
    assert past.creations() == 1
    monkeypatch.setattr(create_pool, "choose_size", lambda *_: 7)
    second = past.ti("r1", try_number=2)
    pool = run(make, second)
    past.pools.append(pool)
    assert past.creations() == 1
    assert past.client.pools.get(pool).ready_slots == 4
    assert second.xcoms["qarnot_pool_size"] == 4


def test_a_retry_adopts_the_pool_on_a_worker_with_another_maximum(
    past: History, monkeypatch: pytest.MonkeyPatch, defers_at_once: None
) -> None:
    make = partial(create, instance_count="auto")
    monkeypatch.setenv("AIRFLOW__QARNOT__MAX_INSTANCE_COUNT", "8")
    defer(make, past.ti("r1"))
    monkeypatch.setenv("AIRFLOW__QARNOT__MAX_INSTANCE_COUNT", "2")
    past.pools.append(pool := run(make, past.ti("r1", try_number=2)))
    assert past.creations() == 1
    assert past.client.pools.get(pool).instance_count == 4


def test_a_pool_whose_response_was_lost_keeps_its_size(
    past: History, qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    qarnot.faults([{"method": "POST", "path": "/pools$", "times": 1, "kind": "lost"}])
    first = past.ti("r1")
    pool = run(auto, first)
    past.pools.append(pool)
    assert past.creations() == 1
    assert (past.client.pools.get(pool).instance_count, first.xcoms["qarnot_pool_size"]) == (4, 4)


@KINDS
def test_a_wait_resumes_with_the_chosen_size(
    past: History, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, defers_at_once: None
) -> None:
    monkeypatch.setattr(create_pool, "choose_size", lambda *_: 2)
    make = partial(auto, **fields)
    deferred, context = defer(make, past.ti("r1"))
    pool = resume(make, deferred, context)
    past.pools.append(pool)
    assert past.client.pools.get(pool).ready_slots == 2


def test_a_wait_whose_trigger_was_lost_knows_the_chosen_size(
    past: History, monkeypatch: pytest.MonkeyPatch, defers_at_once: None
) -> None:
    monkeypatch.setattr(create_pool, "choose_size", lambda *_: 2)
    make = partial(auto, keep_warm=timedelta(minutes=5))
    _, context = defer(make, past.ti("r1"))
    pool = context["ti"].xcoms["qarnot_pool"]
    past.pools.append(pool)
    eventually(lambda: past.client.pools.get(pool).ready_slots == 2)
    failed = {"error": "Trigger failure"}
    assert make().resume_execution("__fail__", failed, context) == pool
    assert past.client.pools.get(pool).state == "FullyExecuting"


def test_the_size_is_enough_for_ready_when(past: History) -> None:
    past.run("r1", auto)
    assert past.client.pools.get(past.run("r2", partial(auto, ready_when=3))).instance_count == 3


def test_the_guess_is_bounded(past: History) -> None:
    assert past.client.pools.get(past.run("r1", partial(create, instance_count="auto:2"))).instance_count == 2


WRONG = {
    "no number": ({"instance_count": "auto:x"}, "instance_count has no valid maximum after 'auto'"),
    "none": ({"instance_count": "auto:0"}, "instance_count has no valid maximum after 'auto'"),
    "a shared pool": (
        {"instance_count": "auto", "shared": "all"},
        "instance_count of the shared pool 'all' cannot be chosen",
    ),
    "more ready slots than it may have": (
        {"instance_count": "auto:4", "ready_when": 5},
        "ready_when is more than the pool of 4 has, got 5",
    ),
    "a pool that scales": (
        {"instance_count": "auto", "pool_spec": {"elastic": {"max_total_slots": 3}}},
        "Qarnot ignores it on a pool with elastic",
    ),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_size_is_refused_when_the_dag_is_parsed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=re.escape(message)):
        create(**fields)


def tune(dag_id: str, runs: int = 3) -> None:
    cli.tune(Namespace(dag_id=dag_id, conn_id="qarnot_default", runs=runs))


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's database does not have the DAG."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setattr("airflow_qarnot_pool.version_compat.dag_in_the_database", lambda dag_id: None)


def test_the_command_shows_a_table_of_sizes(
    past: History, no_database: None, capsys: pytest.CaptureFixture[str]
) -> None:
    past.run("r1", partial(create, instance_count=4), tasks=2)
    past.run("r2", partial(create, instance_count=4), exit_code=1)
    capsys.readouterr()
    tune(past.dag_id)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "create, mean of 1 run"
    assert [line.split()[0] for line in lines[1:]] == ["instance_count", "1", "2", "4"]
    assert [line.split()[-1] for line in lines[3:]] == ["tolerance", "recorded"]


def test_the_command_says_why_there_is_no_table(
    past: History, no_database: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=f"dag_id has no ended pool .*, got '{past.dag_id}'"):
        tune(past.dag_id)
    past.run("r1", partial(create, instance_count=4), exit_code=1)
    tune(past.dag_id)
    assert "No run can be replayed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--runs must be between 1 and 20, got 0"):
        tune(past.dag_id, runs=0)
