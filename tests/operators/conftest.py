from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot

#: Options ``[qarnot] defer_after`` of waits that defer after some seconds, and that do not live to defer.
SOME_SECONDS, NEVER = "0.5", "60"

#: A wait in the triggerer, one on a worker, and one that begins on a worker and ends in the triggerer.
WAITS = pytest.mark.parametrize(
    "deferrable",
    [
        pytest.param((True, "0"), id="deferred"),
        pytest.param((False, "0"), id="on the worker"),
        pytest.param((True, SOME_SECONDS), id="first on the worker"),
    ],
    indirect=True,
)
#: A wait that stays on a worker, and one that is still there but defers later.
WORKER_WAITS = pytest.mark.parametrize(
    "deferrable",
    [
        pytest.param((False, "0"), id="on the worker"),
        pytest.param((True, NEVER), id="before it defers"),
    ],
    indirect=True,
)


@pytest.fixture
def deferrable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The parameter of the operator, in a deployment with the option ``defer_after``."""
    chosen, defer_after = request.param
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", defer_after)
    return bool(chosen)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopt pools without a pause."""
    monkeypatch.setattr("airflow_qarnot_pool.ownership.claim.ENDED_WITHIN", 0.0)


@pytest.fixture
def defers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every deferrable wait defer, whatever TEST_DEFER_AFTER says."""
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "0")


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A DAG run of the test's own."""
    return str(request.node.name)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalQarnot]:
    """A server for one file, because tests list all objects, and those of all files would be thousands."""
    with LocalQarnot(boot_seconds=0.3, close_seconds=0.2) as qarnot:
        yield qarnot


@pytest.fixture
def qarnot(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """The local Qarnot as connection ``qarnot_default``, with an empty request log and no faults."""
    connect(server, monkeypatch)
    server.clear_requests()
    yield server
    server.faults([])


def connect(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch, **extra: object) -> None:
    connection = {
        "conn_type": "qarnot",
        "host": server.url,
        "password": server.token,
        "extra": {"namespace": "test", "console_url": "https://console.example", **extra},
    }
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.2")


@pytest.fixture
def client(qarnot: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(qarnot.url, qarnot.token) as client:
        yield client


@pytest.fixture
def pool(client: QarnotClient) -> Iterator[str]:
    """A pool of two slots that somebody else made."""
    from airflow_qarnot_pool.api.specs import PoolSpec

    uuid = client.pools.create(PoolSpec(name="somebody's", instance_count=2))
    yield uuid
    client.pools.delete(uuid)
