"""A fast local Qarnot, and sessions of the probe against it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.probe.budget import RunBudget
from airflow_qarnot_pool.probe.ledger import clean_up
from airflow_qarnot_pool.probe.session import Session

#: Commands do not run faster, so only what is virtual is short.
OPTIONS: dict[str, Any] = {"boot_seconds": 2, "close_seconds": 2, "speed": 40}
PAUSE = 0.02
MakeSession = Callable[..., Session]


@pytest.fixture(scope="session")
def asked() -> Iterator[LocalQarnot]:
    """The local Qarnot that is asked. A test that changes it changes it back."""
    with LocalQarnot(**OPTIONS) as server:
        yield server


@pytest.fixture(scope="session")
def client(asked: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(asked.url, asked.token) as one:
        yield one


@pytest.fixture(scope="module")
def new_session(asked: LocalQarnot, client: QarnotClient) -> Iterator[MakeSession]:
    """Make sessions, and delete afterwards what they have created."""
    made: list[Session] = []

    def make(euros: float = 100.0, **options: Any) -> Session:
        budget = RunBudget(euros, 6.0, time.monotonic() + 600)
        made.append(Session(client, budget, asked.token, **{"pause": PAUSE, "boot_seconds": 60, **options}))
        return made[-1]

    yield make
    for session in made:
        assert delete_all(session) == []


def delete_all(session: Session) -> list[str]:
    left = clean_up(session.client.transport, session.ledger.tag, session.ledger.objects, pause=PAUSE)
    return [*left, *session.storage.clean_up()]
