"""Processes that open a shared pool, give it up or move on to the next, killed at every boundary.

Two DAG runs share a pool. A worker of the first dies with SIGKILL at the boundary; Airflow retries it. Whatever became
of the request, there is one pool (or one for each generation), both runs get their work done on it, and it is closed.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import OWNER_TAG
from tests.crash.children import StoringTI, fork, worker
from tests.crash.matrix import SERVERS, Point, in_order, moments_of, with_boundaries
from tests.harness import FakeTI, life_of, run
from tests.operators.conftest import connect

#: What each process does, in order; links are of no interest.
STEPS = {
    "open": ("POST /pools/paginate", "POST /pools", "POST /pools/paginate", "POST /jobs", "XCom qarnot_pool"),
    "give up": (
        "POST /pools/paginate",
        "GET /jobs",
        "DELETE /jobs/{u}",
        "GET /jobs",
        "POST /tasks/search",
    ),
    "give up, the last": (
        "POST /pools/paginate",
        "GET /jobs",
        "DELETE /jobs/{u}",
        "POST /tasks/search",
        "POST /pools/{u}/close",
    ),
    "move": (
        "POST /tasks",
        "GET /pools/{u}",
        "POST /pools/paginate",
        "POST /pools/{u}/clone",
        "POST /pools/paginate",
        "POST /jobs",
        "GET /jobs",
        "DELETE /jobs/{u}",
        "POST /tasks",
        "XCom qarnot_task",
    ),
}


POINTS = [
    Point(step, "worker", at, moment)
    for step, boundaries in STEPS.items()
    for at in dict.fromkeys(boundaries)
    for moment in moments_of(at, is_last=at == boundaries[-1])
]


class Sharing:
    """The two runs, of which the first has one process that may die."""

    def __init__(self, qarnot: LocalQarnot, name: str, point: Point | None) -> None:
        self.qarnot, self.name, self.point = qarnot, name, point
        self.client = QarnotClient(qarnot.url, qarnot.token)
        self.passed: list[str] = []

    def whole(self, step: str) -> None:
        """Both open, work and leave; the process of *step* is the one that may die."""
        create = partial(
            QarnotCreatePoolOperator,
            task_id="open",
            shared=self.name,
            instance_count=2,
            warm_up=False,
            retries=3,
        )
        close = partial(QarnotClosePoolOperator, task_id="close", shared=self.name, retries=3)
        mortal = partial(self.killed, step)
        pool = mortal("open", create, "r1") if step == "open" else self.alive(create, "r1")
        if step != "give up, the last":
            assert self.alive(create, "r2") == pool
        if step == "move":
            self.client.pools.close(pool)
        work = partial(
            QarnotRunTaskOperator,
            task_id="work",
            qarnot_pool=pool,
            command="true",
            deferrable=False,
            retries=3,
        )
        done = mortal("move", work, "r1") if step == "move" else self.alive(work, "r1")
        assert done["state"] == "Success"
        if step.startswith("give up"):
            mortal(step, close, "r1")
        else:
            self.alive(close, "r1")
        if step == "give up, the last":
            return
        if step != "move":
            assert self.live() == [pool]
            assert self.alive(work, "r2")["pool"] == pool
        self.alive(close, "r2")

    def alive(self, make: Any, run_id: str, try_number: int = 1) -> Any:
        ti = FakeTI(
            dag_id=self.name,
            run_id=run_id,
            task_id=make.keywords["task_id"],
            try_number=try_number,
            max_tries=3,
        )
        return run(make, ti)

    def killed(self, step: str, what: str, make: Any, run_id: str) -> Any:
        """A child that dies at the point, and the retry that follows."""
        ti = StoringTI(dag_id=self.name, run_id=run_id, task_id=make.keywords["task_id"], max_tries=3)
        child = fork(with_boundaries(worker(make, ti), ti, self.qarnot, self.point))
        status = child.wait()
        self.passed = in_order(child)
        if self.point is None:
            assert status == 0
            return child.said[-1]["value"]
        assert status == -signal.SIGKILL, child.said
        self.qarnot.faults([])
        return self.alive(make, run_id, try_number=2)

    def live(self) -> list[str]:
        return [one.uuid for one in self.pools() if one.state not in ("Closing", "Closed")]

    def pools(self) -> list[Any]:
        return self.client.pools.list([OWNER_TAG + life_of(shared=self.name).owner])


@pytest.fixture(autouse=True)
def runs_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.ownership.liveness.dag_run_state", lambda *_: "running")
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.02")


def sharing(
    servers: dict[str, LocalQarnot], server: str, monkeypatch: pytest.MonkeyPatch, point: Any, step: str
) -> Sharing:
    connect(servers[server], monkeypatch)
    name = f"{step} {getattr(point, 'at', '')} {getattr(point, 'moment', '')}"
    return Sharing(servers[server], "".join(one if one.isalnum() else "-" for one in name).strip("-"), point)


@pytest.mark.parametrize("step", STEPS)
def test_no_boundary_is_missing(
    servers: dict[str, LocalQarnot], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    unharmed = sharing(servers, "enforce", monkeypatch, None, step)
    unharmed.whole(step)
    assert unharmed.passed[: len(STEPS[step])] == list(STEPS[step])


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_killed_at(
    servers: dict[str, LocalQarnot], monkeypatch: pytest.MonkeyPatch, point: Point, server: str
) -> None:
    story = sharing(servers, server, monkeypatch, point, point.step)
    story.whole(point.step)
    assert story.live() == []
    assert len(story.pools()) == (2 if point.step == "move" else 1)
    assert [one for pool in story.pools() for one in story.client.pools.jobs(pool.uuid)] == []
    lives = [life_of(dag_id=story.name, run_id=run_id, task_id="work") for run_id in ("r1", "r2")]
    mine = story.client.tasks.list([OWNER_TAG + life.owner for life in lives])
    assert {one.state for one in mine} == {"Success"}
    assert len(mine) == (1 if point.step in ("move", "give up, the last") else 2)
