from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.local import LocalQarnot
from tests.crash.children import eventually
from tests.operators.conftest import connect


@pytest.fixture(scope="module", params=["enforce", "free"])
def own_server(request: pytest.FixtureRequest) -> Iterator[LocalQarnot]:
    """A server for this module alone, as its quotas are changed."""
    with LocalQarnot(boot_seconds=0, close_seconds=0, shortnames=request.param) as server:
        yield server


@pytest.fixture
def qarnot(own_server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    connect(own_server, monkeypatch)
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.05")
    yield own_server
    own_server.faults([])
    own_server.set_account(maxTask=100_000, maxPool=1000, maxJob=1000, billsDeleted=True)
    with QarnotClient(own_server.url, own_server.token) as client:
        for one in client.tasks.list():
            client.tasks.delete(one.uuid)
        for job in client.jobs.list():
            client.jobs.delete(job.uuid)
        # A deletion takes until the processes have ended, and the next test would see its quota grow meanwhile.
        eventually(lambda: not client.tasks.list())


@pytest.fixture(scope="module")
def pool(own_server: LocalQarnot) -> Iterator[str]:
    """A pool of eight slots that another user made."""
    with QarnotClient(own_server.url, own_server.token) as client:
        uuid = client.pools.create(PoolSpec(name="wide", instance_count=8))
        yield uuid
        client.pools.delete(uuid)


@pytest.fixture
def client(qarnot: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(qarnot.url, qarnot.token) as client:
        yield client
