"""The Airflow that the demo and the slow tests start leaves nothing behind, even when its owner is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import ROOT

OWNER = """
import json, sys, time
from pathlib import Path
from tools.airflow_stack import AirflowStack

home, dags = map(Path, sys.argv[1:])
with AirflowStack(home, dags) as airflow:
    airflow.trigger("long")
    airflow.wait_for(lambda: list(home.glob("child-*")), what="the task's child process")
    print(json.dumps({name: airflow.pids(name) for name in airflow.components}), flush=True)
    time.sleep(600)
"""

LONG = """
import os
from airflow.sdk import DAG, task

with DAG("long", schedule=None):

    @task
    def sleep():
        import subprocess
        # A session of its own: no signal to a group would reach it.
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        open(os.path.join(os.environ["AIRFLOW_HOME"], f"child-{child.pid}"), "w").close()
        child.wait()

    sleep()
"""


def identities(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.airflow_stack
def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "long.py").write_text(LONG)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "home", dags], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert owner.stdout is not None
        pids: dict[str, list[int]] = json.loads(owner.stdout.readline())
    finally:
        owner.kill()
        owner.wait()
    assert set(pids) == {"api-server", "scheduler", "dag-processor", "triggerer"}
    (child,) = (tmp_path / "home").glob("child-*")
    # The task's own child is found as one of the scheduler's processes.
    assert int(child.name.partition("-")[2]) in pids["scheduler"]
    everything = [pid for some in pids.values() for pid in some]
    deadline = time.monotonic() + 60
    while any(map(identities, everything)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in everything if identities(pid)] == []
