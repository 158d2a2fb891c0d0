"""Two programs as Qarnot's documentation would have them, run unchanged as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_qarnot_pool.local import LocalQarnot

PROGRAMS = Path(__file__).parent / "programs"

DOCKER_BATCH = """\
pool submitted
task: Success
0> Hello from instance 0!
1> Hello from instance 1!
2> Hello from instance 2!
3> Hello from instance 3!
pool closed: Closing
"""
ELASTIC = """\
elastic: True 0 5
work-1 Success
0> part 0 of 1
nodes: 1
work-5 Success
0> part 0 of 5
1> part 1 of 5
2> part 2 of 5
3> part 3 of 5
4> part 4 of 5
nodes: 5
pool closed: Closing
"""


@pytest.fixture(scope="module")
def outputs() -> Iterator[dict[str, str]]:
    """What both print. Side by side, because the SDK looks at a running task every 10 s only."""
    with LocalQarnot(boot_seconds=0.5, close_seconds=600) as server:
        env = {**os.environ, "QARNOT_CLUSTER_URL": server.url, "QARNOT_CLIENT_TOKEN": server.token}
        started = {
            path.stem: subprocess.Popen(
                [sys.executable, str(path)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for path in sorted(PROGRAMS.glob("*.py"))
        }
        yield {name: process.communicate(timeout=120)[0] for name, process in started.items()}


@pytest.mark.parametrize(
    ("name", "printed"), [("docker_batch_pool", DOCKER_BATCH), ("elastic_pool", ELASTIC)]
)
def test_program(outputs: dict[str, str], name: str, printed: str) -> None:
    assert outputs[name] == printed
