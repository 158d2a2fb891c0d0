"""A local Qarnot for the tests of this folder, whose nodes boot at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from tests.operators.conftest import client, qarnot

__all__ = ["client", "qarnot", "server"]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.1, close_seconds=0.1) as started:
        yield started
