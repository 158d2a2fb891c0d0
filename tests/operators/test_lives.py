"""Exactly one, never left on: what becomes of remote objects when Airflow tasks are tried again, cleared or ended.

Against a local Qarnot that enforces unique shortnames and one that does not, wherever names matter.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from airflow_qarnot_pool.api.answers import server_message
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.transport import Answer, Transport, _NoAnswer
from airflow_qarnot_pool.compat import TaskDeferralError, TaskDeferralTimeout
from airflow_qarnot_pool.exceptions import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotKilledError,
    QarnotNameTakenError,
    QarnotRefusedError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger
from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger
from tests.crash.children import KILL_GRACE, StoringTI, eventually, fork, made_for, worker
from tests.harness import FakeTI, again, airflow_says, context_of, defer, fire, first_event, resume, run
from tests.operators.conftest import connect

task = partial(QarnotRunTaskOperator, task_id="work", retries=1, log_output=False)
create = partial(QarnotCreatePoolOperator, task_id="create", retries=1)
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
KINDS = pytest.mark.parametrize("kind", ["pool", "task"])
ENDED = ("PendingCancel", "Cancelled", "Closing", "Closed")
ANOTHER_DAY = datetime(2026, 2, 2, tzinfo=UTC)


@pytest.fixture(scope="session")
def free_server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.05, close_seconds=0.05, shortnames="free") as qarnot:
        yield qarnot


@pytest.fixture(params=["enforce", "free"])
def qarnot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """Each test runs against a server that enforces unique shortnames and against one that does not."""
    found: LocalQarnot = request.getfixturevalue("server" if request.param == "enforce" else "free_server")
    connect(found, monkeypatch)
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.05")
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.05)
    found.clear_requests()
    yield found
    found.faults([])


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A command that runs until ``tmp_path/go`` exists."""
    return f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'"


def posts(qarnot: LocalQarnot, path: str) -> int:
    return sum(one["method"] == "POST" and one["path"] == path for one in qarnot.requests())


def life_kwargs(run_id: str, task_id: str = "work", **changes: Any) -> dict[str, Any]:
    return {
        "namespace": "test",
        "dag_id": "dag",
        "run_id": run_id,
        "task_id": task_id,
        "map_index": -1,
        "run_started": "2026-01-01T00:00:00+00:00",
        "max_tries": 1,
        "try_number": 1,
        "retries": 1,
        "part": "",
        **changes,
    }


class Cases:
    """The same story for pools and Qarnot tasks: how to make one, and how to look at it."""

    def __init__(self, kind: str, client: QarnotClient, pool: str, held: str) -> None:
        self.kind = kind
        self.resource: Any = client.pools if kind == "pool" else client.tasks
        # Neither is done before somebody lets it.
        self.make = (
            partial(create, scaling={"policies": [FIXED_0]}, ready_when=1)
            if kind == "pool"
            else partial(task, qarnot_pool=pool, command=held)
        )
        self.key = f"qarnot_{kind}"
        self.path = f"/{kind}s"
        self.task_id = "create" if kind == "pool" else "work"

    def ti(self, run_id: str, **fields: Any) -> FakeTI:
        return FakeTI(**{"run_id": run_id, "task_id": self.task_id, "max_tries": 1, **fields})

    def start(self, ti: FakeTI, make: Any = None, **options: Any) -> str:
        """Begin a try that stays waiting; the uuid of what it waits for."""
        defer(make or self.make, ti, **options)
        return str(ti.xcoms[self.key])

    def state(self, uuid: str) -> str:
        return str(self.resource.get(uuid).state)

    def end(self, uuid: str) -> None:
        self.resource.delete(uuid)


FIXED_0 = {"type": "Fixed", "slotsCount": 0, "name": "none"}


@pytest.fixture
def cases(
    request: pytest.FixtureRequest, client: QarnotClient, pool: str, held: str, run_id: str
) -> Iterator[Cases]:
    cases = Cases(request.getfixturevalue("kind"), client, pool, held)
    yield cases
    for one in made_for(cases.resource, run_id):
        cases.end(one.uuid)


# --- the same life: retries


@KINDS
def test_a_retry_adopts_what_lives(qarnot: LocalQarnot, cases: Cases, run_id: str) -> None:
    first = cases.start(cases.ti(run_id))
    assert cases.start(cases.ti(run_id, try_number=2)) == first
    assert posts(qarnot, cases.path) == (2 if cases.kind == "task" and False else 1) + (cases.kind == "pool") * 0
    assert [one.uuid for one in made_for(cases.resource, run_id)] == [first]
