from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_qarnot_pool.api.transport import Transport
from tests.api.stub import Stub, serve

TOKEN = "s3cret-token"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    """How long the transport would have slept."""
    return []


@pytest.fixture
def transport(stub: Stub, waits: list[float]) -> Iterator[Callable[..., Transport]]:
    """Makes transports to the stub that note their waits in place of sleeping."""
    made: list[Transport] = []

    def make(**options: Any) -> Transport:
        options = {
            "url": stub.url,
            "token": TOKEN,
            "sleep": waits.append,
            "wait": lambda attempt: 0.0,
            **options,
        }
        made.append(Transport(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()
