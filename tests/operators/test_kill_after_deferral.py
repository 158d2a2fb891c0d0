"""A kill of the task process after it has deferred ends nothing that a recorded deferral waits for.

The first test runs Airflow's own supervisor and task process. Only the api-server is simulated: it records a deferral,
does not respond in time, and then reports that the task should not be running.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from airflow.sdk.execution_time import task_runner

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.liveness import is_still_wanted
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION, TaskDeferred
from tests.harness import FakeTI, airflow_says, context_of

DAG = """
from airflow.sdk import DAG
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator

with DAG("handed_over", schedule=None):
    QarnotRunTaskOperator(task_id="task", command="sleep 1000")
    QarnotRunTasksOperator(task_id="tasks", commands=["sleep 1000"] * 3)
    QarnotCreatePoolOperator(task_id="pool", instance_count=1)
"""
pytestmark = pytest.mark.usefixtures("defers_at_once")
NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


class ApiServer:
    """Answers a supervisor. *state* is what the task instance is once the answer to the deferral is lost."""

    def __init__(self, task_id: str, state: str | None, run_id: str) -> None:
        self.task_id, self.state, self.run_id = task_id, state, run_id
        self.deferred, self.asked = 0, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        if path.endswith("/run"):
            return httpx.Response(200, json=self._run())
        if path.endswith("/state") and body.get("state") == "deferred":
            self.deferred += 1
            if self.deferred == 1:
                raise httpx.ReadTimeout("too late", request=request)
        if path.endswith(("/state", "/heartbeat")) and self.deferred:
            detail = {
                "reason": "not_running",
                "message": "TI is no longer running",
                "current_state": self.state,
            }
            return httpx.Response(409, json={"detail": detail})
        if path.endswith("/states"):
            self.asked += 1
            return httpx.Response(200, json={"task_states": {self.run_id: {self.task_id: self.state}}})
        if request.method == "GET" and path.endswith("/slice"):
            return httpx.Response(200, json=[])
        if request.method == "GET":
            return httpx.Response(404, json={"detail": {"reason": "not_found", "message": path}})
        return httpx.Response(201, json={"message": "ok"})

    def _run(self) -> dict[str, Any]:
        dag_run = {
            "dag_id": "handed_over",
            "run_id": self.run_id,
            "logical_date": None,
            "data_interval_start": None,
            "data_interval_end": None,
            "run_after": NOW,
            "start_date": NOW,
            "end_date": None,
            "run_type": "manual",
            "state": "running",
            "consumed_asset_events": [],
            "partition_key": None,
        }
        return {"dag_run": dag_run, "max_tries": 0, "should_retry": False}


@pytest.fixture
def supervise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ApiServer], str]:
    """Run a task under Airflow's supervisor to the end of its process; returns its log."""
    import structlog
    from airflow.sdk.api.client import Client
    from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance
    from airflow.sdk.execution_time import supervisor
    from airflow.sdk.log import logging_processors

    (tmp_path / "dag.py").write_text(DAG)
    bundle = {
        "name": "here",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(tmp_path)},
    }
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
    # The next heartbeat comes at once, as it does after a request that took long.
    monkeypatch.setattr(supervisor, "MIN_HEARTBEAT_INTERVAL", 0)

    def run(server: ApiServer) -> str:
        log = tmp_path / "log"
        with log.open("wb") as file:
            logger = structlog.wrap_logger(
                structlog.BytesLogger(file), processors=logging_processors(json_output=True)
            ).bind()
            process = supervisor.ActivitySubprocess.start(
                what=TaskInstance(
                    id=uuid.uuid4(),
                    task_id=server.task_id,
                    dag_id="handed_over",
                    run_id=server.run_id,
                    try_number=1,
                    dag_version_id=uuid.uuid4(),
                ),
                dag_rel_path="dag.py",
                bundle_info=BundleInfo(name="here", version=None),
                client=Client(base_url="http://api.invalid", token="", transport=httpx.MockTransport(server)),
                logger=logger,
            )
            process.wait()
        return log.read_text()

    return run


@pytest.mark.skipif(
    AIRFLOW_VERSION < (3, 3),
    reason="the api-server's part is written for Airflow 3.3; before it the process just ends",
)
@pytest.mark.parametrize(
    ("task_id", "state"),
    [("task", "deferred"), ("task", "failed"), ("tasks", "running"), ("tasks", None), ("pool", "running")],
)
def test_a_response_that_comes_too_late_ends_no_object_that_a_trigger_may_wait_for(
    client: QarnotClient, supervise: Callable[[ApiServer], str], task_id: str, state: str | None
) -> None:
    """The supervisor sends the deferral again, and its refusal and SIGTERM race.

    SIGTERM usually comes while the channel waits for the response. Airflow cannot be asked then, and nothing is ended.
    If the refusal was read before, Airflow is asked, and only an object that no wait needs is ended.
    """
    resource = client.pools if task_id == "pool" else client.tasks
    before = {one.uuid for one in resource.list()}
    server = ApiServer(task_id, state, f"{task_id}-{state}")
    log = supervise(server)
    assert "Task killed!" in log
    assert server.deferred >= 1
    mine = [one for one in resource.list() if one.uuid not in before]
    assert len(mine) == (3 if task_id == "tasks" else 1)
    ended = {one.state in {"PendingCancel", "Cancelled", "Closing", "Closed"} for one in mine}
    if server.asked:
        kind = "pool" if task_id == "pool" else "task"
        assert ended == {not is_still_wanted(kind, state, is_fan_out=task_id == "tasks")}, log
    else:
        assert ended == {False}, log
        assert "Nothing is ended on Qarnot. The trigger, the next try, the teardown or the reaper" in log
    for one in mine:
        resource.delete(one.uuid)


def deferred(task_id: str, ti: FakeTI) -> Any:
    """Return the operator of a process that has deferred."""
    make: dict[str, Callable[[], Any]] = {
        "task": lambda: QarnotRunTaskOperator(task_id="task", command="sleep 1000"),
        "tasks": lambda: QarnotRunTasksOperator(task_id="tasks", commands=["sleep 1000"] * 3),
        "pool": lambda: QarnotCreatePoolOperator(task_id="pool", instance_count=1),
    }
    operator = make[task_id]()
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti))
    return operator


def ended(client: QarnotClient, run_id: str) -> set[bool]:
    made = [*client.pools.list(), *client.tasks.list()]
    mine = [one for one in made if one.labels.get("airflow.run_id") == run_id]
    return {one.state in {"Cancelled", "PendingCancel", "Closing", "Closed"} for one in mine}


@pytest.mark.parametrize(
    ("task_id", "state", "wanted"),
    [
        ("task", "deferred", True),
        ("task", "failed", False),
        ("tasks", "running", True),
        ("tasks", None, False),
        ("pool", "running", True),
        ("pool", "failed", False),
    ],
)
@pytest.mark.usefixtures("qarnot")
def test_a_kill_ends_only_an_object_that_no_deferral_waits_for(
    client: QarnotClient, task_id: str, state: str | None, wanted: bool
) -> None:
    ti = FakeTI(run_id=f"killed-{task_id}-{state}")
    operator = deferred(task_id, ti)
    with airflow_says(state):
        operator.on_kill()
    assert ended(client, ti.run_id) == {not wanted}


@pytest.mark.parametrize("channel", ["busy", "without a lock"])
@pytest.mark.usefixtures("qarnot")
def test_a_kill_asks_nothing_while_a_request_to_airflow_is_under_way(
    client: QarnotClient, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    ti = FakeTI(run_id=f"busy-{channel}")
    operator = deferred("task", ti)
    comms = mock.Mock(spec=["socket"] if channel == "without a lock" else ["socket", "_thread_lock"])
    if channel == "busy":
        comms._thread_lock = threading.Lock()
        comms._thread_lock.acquire()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    with airflow_says("failed"):
        operator.on_kill()
        assert ended(client, ti.run_id) == {False}
        if channel == "busy":
            comms._thread_lock.release()
            operator.on_kill()
            assert not comms._thread_lock.locked()
            assert ended(client, ti.run_id) == {True}


CASES = {
    "task": {"deferred", "scheduled", "queued", "success"},
    "tasks": {"deferred", "scheduled", "queued", "success", "running"},
    "pool": {"deferred", "scheduled", "queued", "success", "running", "up_for_retry", "restarting"},
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize(
    "state",
    [
        None,
        "deferred",
        "scheduled",
        "queued",
        "running",
        "success",
        "failed",
        "upstream_failed",
        "skipped",
        "removed",
        "up_for_retry",
        "restarting",
    ],
)
def test_states_in_which_the_object_is_still_needed(what: str, state: str | None) -> None:
    kind = "pool" if what == "pool" else "task"
    assert is_still_wanted(kind, state, is_fan_out=what == "tasks") is (state in CASES[what])  # type: ignore[arg-type]
