"""The Airflow that the demo and the slow tests start leaves nothing behind, even when its owner is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil  # type: ignore[import-untyped]
import pytest

from airflow_qarnot_pool.local import LocalQarnot
from tests.conftest import ROOT
from tools.airflow_stack import AirflowStack, Endpoint

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

EVENTS = """
import json, os
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow_qarnot_pool.triggers.bucket_watcher import QarnotBucketWatcher

watcher = QarnotBucketWatcher(bucket="inbox", prefix="in/", existing=True, poll_interval=1)
inbox = Asset("inbox", watchers=[AssetWatcher(name="new files", trigger=watcher)])

with DAG("events", schedule=[inbox], is_paused_upon_creation=False):

    @task
    def read(run_id=None, triggering_asset_events=None):
        keys = [
            file["key"] for event in triggering_asset_events[inbox] for file in event.extra["payload"]["files"]
        ]
        folder = os.path.join(os.environ["AIRFLOW_HOME"], "keys")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "writing"), "w") as file:
            json.dump(keys, file)
        os.rename(file.name, os.path.join(folder, run_id.replace("/", "-")))

    read()
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


@pytest.mark.airflow_stack
def test_new_files_start_a_run_that_reads_their_keys(tmp_path: Path) -> None:
    dags, keys = tmp_path / "dags", tmp_path / "home" / "keys"
    dags.mkdir()
    (dags / "events.py").write_text(EVENTS)

    def read() -> list[str]:
        return sorted(key for file in keys.glob("asset*") for key in json.loads(file.read_text()))

    with LocalQarnot() as qarnot:
        address = Endpoint(qarnot.url, qarnot.token, qarnot.storage_url)
        storage = boto3.session.Session().client(
            "s3",
            endpoint_url=qarnot.storage_url,
            aws_access_key_id=qarnot.email,
            aws_secret_access_key=qarnot.token,
            region_name="us-east-1",
        )
        storage.create_bucket(Bucket="inbox")
        with AirflowStack(tmp_path / "home", dags, qarnot=address) as airflow:
            for uploaded in (["in/a", "in/b"], ["in/c"]):
                for key in uploaded:
                    storage.put_object(Bucket="inbox", Key=key, Body=b"x")
                airflow.wait_for(lambda last=uploaded[-1]: last in read(), what="a run that reads the keys")
            assert read() == ["in/a", "in/b", "in/c"]
