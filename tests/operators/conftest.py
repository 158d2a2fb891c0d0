from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot


@pytest.fixture(scope="session")
def server() -> Iterator[LocalQarnot]:
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
