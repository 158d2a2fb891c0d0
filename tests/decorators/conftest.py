"""The fixtures of the operators' tests, with a ``python3`` for the nodes that is there whoever runs the tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from tests.operators.conftest import client, pool, qarnot, run_id

__all__ = ["client", "pool", "qarnot", "run_id", "server"]


@pytest.fixture(scope="session")
def server() -> Iterator[LocalQarnot]:
    interpreter = Path(sys.executable).resolve().parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{interpreter}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
        with LocalQarnot(boot_seconds=0.1, close_seconds=0.1) as qarnot:
            yield qarnot
