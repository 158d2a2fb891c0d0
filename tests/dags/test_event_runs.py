"""DAG runs that an event of a watcher has started read what came, on a real scheduler and triggerer.

With PostgreSQL where its server and driver are, and with SQLite elsewhere, as in the environments of `make matrix`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.version_compat import HAS_ASSET_STATE_STORE
from tests.conftest import ROOT
from tests.docs.blocks import blocks_of
from tests.stack.postgres import Postgres, binary
from tools.airflow_stack import AirflowStack, Endpoint

pytestmark = pytest.mark.airflow_stack

#: Buckets that the DAGs of `example_dags/qarnot_events.py` and of `docs/events.md` watch. Another one of that page
#: watches Qarnot tasks.
EXAMPLE, PAGE = "inbox", "scenes"
SETTINGS = {
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
}


def sooner(source: str) -> str:
    """Return a DAG file whose watcher polls every second."""
    return re.sub(r"\b(Qarnot\w+Watcher)\(", r"\1(poll_interval=1, ", source)


class Deployment:
    """Airflow with the DAGs, and what has become of the files and of Qarnot tasks."""

    def __init__(self, airflow: AirflowStack, qarnot: LocalQarnot) -> None:
        import boto3

        self.airflow, self._qarnot = airflow, qarnot
        self._s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=qarnot.storage_url,
            aws_access_key_id=qarnot.email,
            aws_secret_access_key=qarnot.token,
            region_name="us-east-1",
        )
        for bucket in (EXAMPLE, PAGE):
            self._s3.create_bucket(Bucket=bucket)

    def put(self, bucket: str, *keys: str) -> None:
        for key in keys:
            self._s3.put_object(Bucket=bucket, Key=key, Body=b"a few words")

    def watermarks(self) -> int:
        """Count the watchers that have stored what exists."""
        if not HAS_ASSET_STATE_STORE:
            names = [one["key"] for one in self.airflow.api("GET", "variables")["variables"]]
            return sum(name.startswith("qarnot-") for name in names)
        assets = self.airflow.api("GET", "assets")["assets"]
        return sum(
            self.airflow.api("GET", f"assets/{one['id']}/state-store")["total_entries"] for one in assets
        )

    def runs(self, dag_id: str) -> dict[str, str]:
        """Return the states of the runs that events have started, by id."""
        found = self.airflow.api("GET", f"dags/{dag_id}/dagRuns")["dag_runs"]
        assert {run["run_type"] for run in found} <= {"asset_triggered"}
        return {run["dag_run_id"]: run["state"] for run in found}

    def wait_runs(self, dag_id: str, read: Any, *keys: str) -> None:
        """Wait until ended runs have read all *keys*, as *read* returns them, and nothing else does."""

        def all_read() -> bool:
            states = self.runs(dag_id)
            assert "failed" not in states.values(), states
            return set(states.values()) == {"success"} and set(keys) <= {*read()}

        self.airflow.wait_for(all_read, timeout=300, what=f"runs of {dag_id} for {keys}")

    def processed(self) -> Counter[str]:
        """Return how often the example has processed each key, by a Qarnot task that has succeeded."""
        with QarnotClient(self._qarnot.url, self._qarnot.token) as client:
            work = [task for task in client.tasks.list() if not task.labels.get("airflow.role")]
        return Counter(task.constants["KEY"] for task in work if task.state == "Success")

    def failing_task(self) -> str:
        """Submit a Qarnot task that fails, as another program would, and return its uuid."""
        with QarnotClient(self._qarnot.url, self._qarnot.token) as client:
            spec = TaskSpec(
                name="foreign",
                command="sh -c 'exit 3'",
                profile="docker-batch",
                instance_count=1,
                tags=("nightly",),
            )
            return client.tasks.create(spec)

    def reported_failures(self) -> list[str]:
        """Return the logs of the runs for failures."""
        return [
            self.airflow.task_log("report_failures", run_id, "report", lines=1000)
            for run_id in self.runs("report_failures")
        ]

    def returned(self) -> Counter[str]:
        """Return how often the DAG of the page has returned each key."""
        found: Counter[str] = Counter()
        for run_id in self.runs("render_new_scenes"):
            value = self.airflow.xcom("render_new_scenes", run_id, "new_keys")
            # A list, or its JSON.
            found.update(json.loads(value) if isinstance(value, str) else value or ())
        return found


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    home, dags = tmp_path / "home", tmp_path / "dags"
    home.mkdir()
    dags.mkdir()
    (dags / "example.py").write_text(sooner((ROOT / "example_dags" / "qarnot_events.py").read_text()))
    for block in blocks_of(ROOT / "docs" / "events.md"):
        if block.language == "python":
            (dags / f"page_{block.line}.py").write_text(sooner(block.code))
    has_postgres = binary("initdb") is not None and importlib.util.find_spec("psycopg2") is not None
    with ExitStack() as ends:
        database = ends.enter_context(Postgres()).url if has_postgres else "sqlite"
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=0.2, close_seconds=0.2))
        endpoint = Endpoint(qarnot.url, qarnot.token, qarnot.storage_url)
        airflow = AirflowStack(
            home,
            dags,
            database=database,
            qarnot=endpoint,
            namespace="events",
            env={f"AIRFLOW__{name}": value for name, value in SETTINGS.items()},
        )
        made = Deployment(airflow, qarnot)
        made.put(EXAMPLE, "words/old.txt")
        made.put(PAGE, "in/old.blend")
        ends.enter_context(airflow)
        yield made


def test_a_run_reads_the_files_that_have_come(deployment: Deployment) -> None:
    airflow = deployment.airflow
    for dag_id in ("qarnot_events", "render_new_scenes", "report_failures"):
        airflow.wait_dag(dag_id)
    airflow.wait_for(lambda: deployment.watermarks() == 3, what="the watchers to start")
    deployment.put(EXAMPLE, "words/a.txt", "words/b.txt", "other/x.txt")
    deployment.put(PAGE, "in/a.blend", "in/notes.txt")
    deployment.wait_runs("qarnot_events", deployment.processed, "words/a.txt", "words/b.txt")
    deployment.wait_runs("render_new_scenes", deployment.returned, "in/a.blend")

    uuid = deployment.failing_task()
    airflow.wait_for(
        lambda: any(f"foreign {uuid}" in log for log in deployment.reported_failures()),
        what="a run for the failure",
    )

    # Files that come while there is no triggerer are read by later runs.
    airflow.signal("triggerer", signal.SIGKILL)
    deployment.put(EXAMPLE, "words/c.txt")
    deployment.put(PAGE, "in/c.blend")
    airflow.restart("triggerer")
    deployment.wait_runs("qarnot_events", deployment.processed, "words/a.txt", "words/b.txt", "words/c.txt")
    deployment.wait_runs("render_new_scenes", deployment.returned, "in/a.blend", "in/c.blend")

    processed, returned = deployment.processed(), deployment.returned()
    assert set(processed) == {"words/a.txt", "words/b.txt", "words/c.txt"}
    assert set(returned) == {"in/a.blend", "in/c.blend"}
    if HAS_ASSET_STATE_STORE:  # before, files may come twice after a kill
        assert {*processed.values(), *returned.values()} == {1}
