"""A worker that replaces a lost Qarnot task, killed at every boundary: one generation follows, on the same rung."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from tests import readings
from tests.crash.children import Child, StoringTI, eventually, fork, made_for, worker
from tests.crash.matrix import SERVERS, Point, in_order, moments_of, with_boundaries
from tests.harness import FakeTI, defer, fire, run
from tests.operators.conftest import connect

#: Requests and XComs of the slice that sees the loss, in order.
BOUNDARIES = (
    "GET /tasks/{u}",
    "POST /tasks/paginate",
    "GET /jobs",
    "GET /tasks/{name}",
    "POST /tasks",
    "XCom qarnot_task",
)
POINTS = [
    Point("lost", "worker, resumed", at, moment)
    for at in BOUNDARIES
    for moment in moments_of(at, is_last=at == BOUNDARIES[-1])
]
#: Both kinds of server only for the one request that creates something.
RUNS = [
    (point, server)
    for point in POINTS
    for server in SERVERS
    if server == SERVERS[0] or point.at == "POST /tasks"
]


class Loss:
    """An Airflow task whose first Qarnot task has lost its node."""

    def __init__(self, qarnot: LocalQarnot, run_id: str, folder: Path) -> None:
        self.qarnot, self.run_id, self.ran, self._go = qarnot, run_id, folder / "ran", folder / "go"
        self._client = QarnotClient(qarnot.url, qarnot.token)
        self._make = partial(
            QarnotRunTaskOperator,
            task_id="task",
            command=f"sh -c 'echo start >> {self.ran}; until test -e {self._go}; do sleep 0.02; done'",
            log_output=False,
            task_spec={"ladder": ["Flex", "OnDemand"]},
        )
        deferred, _ = defer(self._make, ti := FakeTI(run_id=run_id, max_tries=1))
        (node,) = eventually(self._nodes, say="the node")
        eventually(lambda: self.ran.exists() and self.ran.read_text(), say="the start of the command")
        qarnot.kill_node(node)
        self._resume = deferred.method_name, {"event": fire(deferred)}
        self._xcoms = ti.xcoms

    def _nodes(self) -> list[str]:
        history = [
            one["uuid"]
            for one in self.qarnot.task_history()
            if one["labels"]["airflow.run_id"] == self.run_id
        ]
        return [
            one["id"]
            for one in self.qarnot.nodes()
            if any(busy["task"] in history for busy in one["running"])
        ]

    def resume(self, point: Point | None) -> Child:
        """Run the slice that sees the loss in a child, which dies at *point*."""
        ti = StoringTI(run_id=self.run_id, max_tries=1, xcoms=dict(self._xcoms))
        child = fork(with_boundaries(worker(self._make, ti, self._resume), ti, self.qarnot, point))
        child.wait()
        return child

    def retry(self) -> None:
        """Run the next try to its end."""
        self._go.touch()
        assert run(self._make, FakeTI(run_id=self.run_id, try_number=2, max_tries=1))["state"] == "Success"

    def made(self) -> list[tuple[str, str]]:
        tasks: list[Any] = made_for(self._client.tasks, self.run_id)
        return [((one.scheduling_type or "").lower(), one.state) for one in tasks]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "0")
    return monkeypatch


def lost(
    servers: dict[str, LocalQarnot], server: str, settings: pytest.MonkeyPatch, run_id: str, folder: Path
) -> Loss:
    connect(servers[server], settings)
    settings.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.02")
    return Loss(servers[server], run_id, folder)


@pytest.mark.reading
def test_no_boundary_is_missing(
    servers: dict[str, LocalQarnot], settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loss = lost(servers, SERVERS[0], settings, "unharmed", tmp_path)
    assert tuple(in_order(loss.resume(None))) == BOUNDARIES
    loss.retry()


@pytest.mark.parametrize(("point", "server"), RUNS, ids=str)
def test_killed_at(
    servers: dict[str, LocalQarnot],
    settings: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    point: Point,
    server: str,
) -> None:
    loss = lost(servers, server, settings, request.node.name, tmp_path)
    child = loss.resume(point)
    servers[server].faults([])
    if child.status == 0 and readings.current() and point.at not in in_order(child):
        pytest.skip(f"no {point.at} under the readings {readings.current()}")
    assert child.status == -signal.SIGKILL, child.said
    loss.retry()
    assert loss.made() == [("flex", "Failure"), ("ondemand", "Success")]
    assert loss.ran.read_text().split() == ["start"] * 2
