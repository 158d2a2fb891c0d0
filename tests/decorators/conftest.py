"""The fixtures of the operators' tests, with a server whose nodes boot sooner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from tests.operators.conftest import client, pool, qarnot, run_id

__all__ = ["client", "pool", "qarnot", "run_id", "server"]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.1, close_seconds=0.1) as qarnot:
        yield qarnot
