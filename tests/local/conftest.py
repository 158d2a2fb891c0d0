"""A local Qarnot for all tests here, private ones for tests that change the account, the clock or the faults,
and the official SDK as the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import qarnot
import requests

from airflow_qarnot_pool.local import LocalQarnot

PATIENCE = 30.0


def until(look: Callable[[], Any], what: str = "") -> Any:
    """Look again and again until there is something true to see."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"not seen within {PATIENCE} s: {what or look}"
        time.sleep(0.02)
    return found


def sdk_of(server: LocalQarnot) -> qarnot.Connection:
    return qarnot.Connection(cluster_url=server.url, client_token=server.token, retry_wait=0.02)


def finish(task: qarnot.task.Task) -> qarnot.task.Task:
    """Wait with the SDK's own `wait`, in short spells (its long one looks every 10 s)."""
    until(lambda: task.wait(timeout=0.05), f"the end of {task.name}, now {task.state}")
    return task


def in_state(thing: Any, *states: str) -> Any:
    def look() -> bool:
        thing.update(True)
        return thing.state in states

    until(look, f"{thing.name} in {states}, now {thing.state}")
    return thing


@pytest.fixture(scope="session")
def server() -> Iterator[LocalQarnot]:
    """Shared: look only at objects that the test itself made."""
    with LocalQarnot(boot_seconds=0.2, close_seconds=0.2) as running:
        yield running


@pytest.fixture(scope="session")
def sdk(server: LocalQarnot) -> qarnot.Connection:
    return sdk_of(server)


@pytest.fixture
def private() -> Iterator[Callable[..., LocalQarnot]]:
    """Starts a local Qarnot for one test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            LocalQarnot(**{"boot_seconds": 0.2, "close_seconds": 0.2, **options})
        )


@pytest.fixture
def pool(sdk: qarnot.Connection) -> Iterator[qarnot.pool.Pool]:
    """A pool of 4 slots, up or on its way."""
    made = sdk.create_pool("four", "docker-batch", 4)
    made.submit()
    yield made
    made.delete()


class Http:
    """Plain requests to a server, with its token."""

    def __init__(self, server: LocalQarnot) -> None:
        self._server = server
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = server.token

    def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self._session.request(method, self._server.url + path, json=body, timeout=20, **options)


@pytest.fixture(scope="session")
def http(server: LocalQarnot) -> Http:
    return Http(server)
