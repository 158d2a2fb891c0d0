"""A workload on a node: a real api-server, a real Airflow on the node, and no token anywhere else.

No scheduler runs here. The test queues the task itself, so it is about the node's side alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import airflow_qarnot_pool
from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.executors.environment import PYTHON
from airflow_qarnot_pool.executors.image import OWN
from airflow_qarnot_pool.executors.node import WORKLOAD
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION
from tools.airflow_stack import AirflowStack, Endpoint

#: The deployment is of this test's own, and the machine has two cores.
ALONE = True
EXECUTOR = "LocalExecutor,QarnotExecutor:airflow_qarnot_pool.executors.qarnot_executor.QarnotExecutor"
BUCKET = "executor-node-dags"
DAG = """
import glob, os, re, time
from airflow.sdk import DAG, get_current_context, task
from helper import VALUE

SECRET = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}[.][A-Za-z0-9_-]{10,}[.]|QARNOT[_]SECRET__")

with DAG("seen_on_node", schedule=None):

    @task(executor="QarnotExecutor")
    def look():
        print("the task says hello")
        conf = get_current_context()["dag_run"].conf
        with open(conf["starts"], "a") as file:
            file.write("started\\n")
        while not os.path.exists(conf["gate"]):
            time.sleep(0.1)
        launch = b"AIRFLOW_QARNOT_LAUNCH=" + os.environ["AIRFLOW_QARNOT_LAUNCH"].encode()
        seen, found = 0, []
        for environ in glob.glob("/proc/[0-9]*/environ"):
            try:
                content = open(environ, "rb").read()
                command = open(environ.replace("environ", "cmdline"), "rb").read()
            except OSError:
                continue
            if launch in content:
                seen += 1
                found += [environ for text in (content, command) if SECRET.search(text)]
        found += [name for name, value in os.environ.items() if SECRET.search((name + value).encode())]
        shared = os.environ["AIRFLOW_QARNOT_SHARED"]
        for folder, _, names in os.walk(shared):
            for name in names:
                path = os.path.join(folder, name)
                if SECRET.search(open(path, "rb").read()):
                    found.append(path)
        return {"processes": seen, "found": found, "value": VALUE, "file": __file__, "shared": shared}

    look()
"""
#: Queue the task as a scheduler does, and submit it as the executor does.
QUEUE = """
import json, sys
from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.workloads import ExecuteTask
from airflow.models.taskinstance import TaskInstance
from datetime import UTC, datetime
from airflow.utils.session import create_session
from sqlalchemy import select
from airflow_qarnot_pool.executors.bundle_archives import bundle_resources
from airflow_qarnot_pool.executors.options import TaskConfig, read_options
from airflow_qarnot_pool.executors.workload_task import task_of
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from dataclasses import replace
from airflow_qarnot_pool.api.specs import PoolSpec

options = read_options(conf)
client = QarnotHook().client
with create_session() as session:
    ti = session.scalar(select(TaskInstance).where(TaskInstance.dag_id == "seen_on_node"))
    ti.state, ti.try_number, ti.external_executor_id = "queued", 1, "node-test"
    ti.dag_run.state, ti.dag_run.start_date = "running", datetime.now(UTC)
    session.flush()
    workload = ExecuteTask.make(ti, generator=BaseExecutor().jwt_generator)
resources = bundle_resources(conf.get("dag_processor", "dag_bundle_config_list"))
pool = client.pools.create(PoolSpec(name="p", profile="docker-network", instance_count=2, resource_buckets=resources))
spec = task_of(workload, "airflow-node-test", options, TaskConfig())
task = client.tasks.create(replace(spec, pool=pool, profile=None))
told = {"token": workload.token, "constants": dict(spec.constants), "task": task, "pool": pool}
print(json.dumps({**told, "command": spec.command}))
"""


class ApiServer(AirflowStack):
    """An Airflow with an api-server only."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._commands = {"api-server": ["api-server"]}

    def run(self, *command: str, **environment: str) -> str:
        """Run a program with the settings of this Airflow, and return its output."""
        done = subprocess.run(
            [sys.executable, *command],
            env={**self.environment, **environment},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def qarnot() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.1) as server:
        yield server


@pytest.fixture
def airflow(qarnot: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    endpoint = Endpoint(qarnot.url, qarnot.token, qarnot.storage_url)
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", endpoint.connection())
    storage = QarnotStorageHook()
    storage.upload(BUCKET, DAG.encode(), key="prod/seen.py")
    storage.upload(BUCKET, b"VALUE = 42\n", key="prod/helper.py")
    classpath = "airflow_qarnot_pool.executors.bundle.QarnotDagBundle"
    bundle = {"name": "seen", "classpath": classpath, "kwargs": {"bucket": BUCKET, "prefix": "prod"}}
    settings = {
        "CORE__EXECUTOR": EXECUTOR,
        "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(tmp_path / "bundles"),
        "LOGGING__REMOTE_LOGGING": "True",
        "LOGGING__REMOTE_BASE_LOG_FOLDER": "qarnot://executor-node-logs/prod",
        "LOGGING__REMOTE_LOG_CONN_ID": "qarnot_default",
        "LOGGING__LOGGING_CONFIG_CLASS": "airflow_qarnot_pool.executors.logging_config.LOGGING_CONFIG",
        "QARNOT_EXECUTOR__PYTHON": sys.executable,
    }
    home = tmp_path / "airflow"
    home.mkdir()
    started = ApiServer(
        home,
        tmp_path,
        qarnot=endpoint,
        namespace="nodes",
        env={f"AIRFLOW__{name}": value for name, value in settings.items()},
    )
    with started:
        yield started


def test_a_workload_runs_on_a_node_and_its_token_is_nowhere(
    qarnot: LocalQarnot, airflow: ApiServer, tmp_path: Path
) -> None:
    airflow.run("-m", "airflow", "dags", "reserialize")
    gate, starts = tmp_path / "gate", tmp_path / "starts"
    run_id = airflow.trigger("seen_on_node", {"gate": str(gate), "starts": str(starts)})
    queued = json.loads(airflow.run("-c", QUEUE).splitlines()[-1])
    client = QarnotClient(qarnot.url, qarnot.token)

    task, pool = queued["task"], queued["pool"]

    def has_ended(uuid: str) -> bool:
        return states.is_terminal(client.tasks.get(uuid).state)

    airflow.wait_for(lambda: starts.exists() or has_ended(task), what="the start of the task")
    assert starts.exists(), _output(client, task)
    live = json.dumps(airflow.log("seen_on_node", run_id, "look"))
    assert "the task says hello" in live
    # Qarnot launches the task again, as after the loss of a node.
    again = client.tasks.create(
        TaskSpec(
            name="again",
            shortname="airflow-node-again",
            pool=pool,
            command=queued["command"],
            constants=queued["constants"],
        )
    )
    airflow.wait_for(lambda: has_ended(again), what="the end of the second launch")
    assert client.tasks.get(again).state == "Failure"
    assert "Airflow has seen another launch of this Qarnot task" in _output(client, again)
    gate.touch()
    airflow.wait_for(lambda: has_ended(task), what="the end of the task")
    output = _output(client, task)
    assert client.tasks.get(task).state == "Success", output
    assert airflow.task_instance("seen_on_node", run_id, "look")["state"] == "success", output
    assert starts.read_text() == "started\n"

    seen = airflow.xcom("seen_on_node", run_id, "look")
    assert seen["found"] == []
    assert seen["processes"] >= 2  # the supervisor and the task
    assert seen["value"] == 42
    # Unpacked once per node, beside the resources of the pool.
    assert seen["file"].startswith(f"{seen['shared']}/airflow-bundles/seen/versions/")
    assert "the task says hello" in output
    logged = json.dumps(airflow.log("seen_on_node", run_id, "look"))
    assert "the task says hello" in logged
    assert "qarnot://executor-node-logs/prod/dag_id=seen_on_node" in logged
    # By this the log view knows that the process that started last has uploaded.
    storage = QarnotStorageHook()
    (log,) = storage.list("executor-node-logs")
    metadata = storage.s3.head_object(Bucket="executor-node-logs", Key=log.key)["Metadata"]
    hostname = airflow.task_instance("seen_on_node", run_id, "look")["hostname"]
    assert metadata == {"airflow-hostname": hostname}

    told = [
        *(live, logged, output, _output(client, again)),
        *(json.dumps(qarnot.call("GET", path)) for path in (f"/tasks/{task}", "/tasks", "/pools")),
        json.dumps(qarnot.requests()),
        *(path.read_bytes().decode(errors="replace") for path in _files(airflow.home, Path(seen["shared"]))),
    ]
    parts = [value for key, value in queued["constants"].items() if WORKLOAD in key]
    assert parts
    for secret in (queued["token"], *parts, qarnot.token):
        assert not [text[:500] for text in told if secret in text]

    client.pools.delete(pool)
    if AIRFLOW_VERSION < (3, 2):
        return  # where providers bring no commands
    checked = airflow.run("-m", "airflow", "qarnot", "executor", "check")
    assert "A node can run the tasks of this Airflow." in checked
    assert {task.shortname for task in client.tasks.list()} == {"airflow-node-test", "airflow-node-again"}


def own_wheel(folder: Path) -> Path:
    """Make a wheel of the package as it is here, because no index has that."""
    package, found = Path(airflow_qarnot_pool.__file__).parent, metadata.distribution(OWN)
    stem = f"airflow_qarnot_pool-{found.version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for one in package.rglob("*"):
            if one.is_file() and "__pycache__" not in one.parts:
                file.write(one, one.relative_to(package.parent))
        texts = {name: found.read_text(name) or "" for name in ("METADATA", "entry_points.txt")}
        texts["WHEEL"] = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        for name, text in {**texts, "RECORD": ""}.items():
            file.writestr(f"{stem}.dist-info/{name}", text)
    return path


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 2), reason="providers bring no commands there")
@pytest.mark.skipif(importlib.util.find_spec("uv") is None, reason="pip would take minutes")
def test_a_node_that_has_only_python_gets_airflow_by_requirements(
    qarnot: LocalQarnot, airflow: ApiServer, tmp_path: Path
) -> None:
    """Airflow with all its packages in an archive, a Python without any, and the whole check of a node with them."""
    airflow.run("-m", "airflow", "dags", "reserialize")
    settings = {
        "AIRFLOW__QARNOT_EXECUTOR__PYTHON": str(Path(sys.base_prefix, "bin", f"python{PYTHON}")),
        "AIRFLOW__QARNOT_EXECUTOR__REQUIREMENTS": f"{OWN}[storage] @ {own_wheel(tmp_path).as_uri()}",
    }
    checked = airflow.run("-m", "airflow", "qarnot", "executor", "check", **settings)
    assert "A node can run the tasks of this Airflow." in checked


def _output(client: QarnotClient, task: str) -> str:
    return client.tasks.stdout(task, 0) + client.tasks.stderr(task, 0)


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path
