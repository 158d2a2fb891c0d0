"""The Qarnot task of a workload, and what the first process on the node makes of it."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Connection
from airflow.sdk.execution_time import supervisor

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import MAX_CONSTANT_LENGTH
from airflow_qarnot_pool.executors import node
from airflow_qarnot_pool.executors.bundle_archives import BUNDLE_CLASS, BUNDLES
from airflow_qarnot_pool.executors.workload_task import (
    START_SECONDS,
    TOKEN_OPTION,
    constants_of,
    forwarded_settings,
    lifetime,
    task_of,
)

TOKEN = "eyJhbGciOiJIUzUxMiJ9.cGF5bG9hZCBvZiBhIHRva2Vu.c2lnbmF0dXJl"
LOGIN = "https://git:a-password@git.example/dags.git"


def workload(**ti: Any) -> Any:
    """A workload, as far as its Qarnot task needs it."""
    fields = {"dag_id": "dag", "task_id": "task", **ti}
    text = json.dumps({"ti": fields, "token": TOKEN, "type": "ExecuteTask"})
    bundle = SimpleNamespace(name="dags", version="1" * 32)
    return SimpleNamespace(ti=SimpleNamespace(**fields), bundle_info=bundle, model_dump_json=lambda: text)


def options(**given: Any) -> Any:
    return SimpleNamespace(
        **{
            "python": "python",
            "api_url": "https://airflow.example/execution/",
            "token_seconds": 600.0,
            "node_environment": {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": LOGIN},
            **given,
        }
    )


def spec_of(**given: Any) -> Any:
    return task_of(workload(), "airflow-1", options(**given), SimpleNamespace(image="airflow:1"))


def test_the_token_and_the_settings_are_in_secret_constants_only() -> None:
    body = spec_of().to_json()
    constants = {one["key"]: one["value"] for one in body.pop("constants")}
    secrets = {key: value for key, value in constants.items() if key.startswith("QARNOT_SECRET__")}
    shown = json.dumps([body, {key: value for key, value in constants.items() if key not in secrets}])
    for secret in (TOKEN, LOGIN, base64.b64encode(TOKEN.encode()).decode()[:-3], *secrets.values()):
        assert secret not in shown
    payload = node.unpack(dict(secrets))
    assert json.loads(payload["workload"])["token"] == TOKEN
    assert payload["environment"] == {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "https://airflow.example/execution/",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": LOGIN,
    }
    assert constants["DOCKER_CMD"] == "python -m airflow_qarnot_pool.executors.node"
    assert (constants["DOCKER_REPO"], constants["DOCKER_TAG"]) == ("library/airflow", "1")
    assert (body["shortname"], body["name"], body["maxTimeQueueSeconds"]) == ("airflow-1", "dag.task", 540)


def test_a_task_waits_less_than_its_token_is_valid() -> None:
    """The executor queues it again before Airflow takes it for stuck, and one that starts late has time for that."""
    default = spec_of().max_time_queue.total_seconds()
    assert default + START_SECONDS <= 600
    assert spec_of(token_seconds=60.0).max_time_queue.total_seconds() < 60


def test_a_setting_of_the_user_comes_before_those_of_the_deployment() -> None:
    own = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "https://inside.example/execution/"}
    constants = spec_of(node_environment=own).constants
    assert node.unpack(dict(constants))["environment"] == own


def test_a_task_waits_for_the_files_of_its_pool_if_they_bring_its_dag() -> None:
    assert "waitForPoolResourcesSynchronization" not in spec_of().to_json()
    bundle = {"name": "dags", "classpath": BUNDLE_CLASS, "kwargs": {"bucket": "b"}}
    spec = spec_of(node_environment={BUNDLES: json.dumps([bundle])})
    assert spec.to_json()["waitForPoolResourcesSynchronization"] is True


def noise(size: int) -> str:
    """Text that cannot be compressed much."""
    return base64.b64encode(random.Random(1).randbytes(size)).decode()[:size]


def test_a_payload_of_any_size_that_fits_is_split_and_joined() -> None:
    for size in (0, 1, 1500, 5_000, 58_000):
        text = noise(size)
        constants = constants_of(text, {"A": "1"})
        assert max(map(len, constants.values())) <= MAX_CONSTANT_LENGTH
        assert len(constants) <= node.MAX_PARTS
        assert node.unpack(dict(constants)) == {"workload": text, "environment": {"A": "1"}}


def test_constants_are_read_and_removed_under_both_names() -> None:
    constants = constants_of("a", {})
    short = {name.removeprefix("QARNOT_SECRET__"): value for name, value in constants.items()}
    for environment in (dict(constants), dict(short), {**short, **constants}):
        assert node.unpack(environment)["workload"] == "a"
        assert list(environment) == [node.SHARED]


def test_a_payload_that_is_too_large_is_refused_by_the_name_of_its_option() -> None:
    with pytest.raises(
        QarnotInvalidSpecError, match=r"environment of \[qarnot_executor\] is too large.*60,9"
    ):
        constants_of(noise(60_900), {})


DAMAGED = {
    "none": {},
    "no base64": {f"{node.PREFIX}0": "é"},
    "no archive": {f"{node.PREFIX}0": base64.urlsafe_b64encode(TOKEN.encode()).decode()},
    "the second part only": {f"{node.PREFIX}1": "eJw="},
    "one part of two": {
        f"{node.PREFIX}0": node.pack({"workload": noise(4000)}, MAX_CONSTANT_LENGTH)[f"{node.PREFIX}0"]
    },
    "more than fits": {
        f"{node.PREFIX}0": base64.urlsafe_b64encode(
            zlib.compress(b'{"workload": "' + b"a" * 100_000 + b'"}')
        ).decode()
    },
    "no mapping": node.pack([TOKEN], MAX_CONSTANT_LENGTH),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_constants_are_refused_without_what_they_contain(case: str) -> None:
    with pytest.raises(ValueError, match=r"is missing|are damaged") as caught:
        node.unpack(dict(DAMAGED[case]))
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


LIFETIMES = {
    # task_queued_timeout, boot, keeps nodes: whether it fits
    (600, 300, False): True,
    (360, 300, False): True,
    (359, 300, False): False,
    (600, 900, False): False,
    (600, 900, True): True,
    (60, 900, True): True,
    (59, 900, True): False,
}


@pytest.mark.parametrize("case", LIFETIMES)
def test_boot_and_start_fit_into_the_life_of_a_token(case: tuple[float, float, bool]) -> None:
    token, boot, keeps_nodes = case
    sentence = lifetime(token, boot, keeps_nodes=keeps_nodes)
    assert (sentence is None) is LIFETIMES[case]
    if sentence:
        assert f"{TOKEN_OPTION[1]} is too short for Qarnot, got {token} s" in sentence
        suggested = float(sentence.partition("Set it to ")[2].split()[0])
        assert lifetime(suggested, boot, keeps_nodes=keeps_nodes) is None


def test_only_options_that_are_set_are_forwarded() -> None:
    class Configuration:
        def get(self, section: str, key: str, **given: Any) -> str | None:
            assert given == {"fallback": None}
            given = {
                "executor": "LocalExecutor,x.QarnotExecutor",
                "xcom_objectstorage_path": "qarnot://b",
                "remote_logging": "",
            }
            return given.get(key)

    assert forwarded_settings(Configuration()) == {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,x.QarnotExecutor",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": "qarnot://b",
    }


def test_no_secret_of_the_scheduler_is_forwarded() -> None:
    from airflow.configuration import conf

    names = " ".join(forwarded_settings(conf))
    assert "AIRFLOW__CORE__EXECUTOR" in names
    # Airflow's default bundle has the DAG files there.
    assert "AIRFLOW__CORE__DAGS_FOLDER" in names
    for word in ("FERNET", "SQL_ALCHEMY", "JWT", "SECRET", "BACKEND_KWARGS"):
        assert word not in names


def test_each_launch_has_a_host_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for _ in range(2):
        environment = node.environment_of({"environment": {"A": "1"}}, {"A": "0", "B": "2"})
        assert (environment["A"], environment["B"]) == ("1", "2")
        assert (
            environment["AIRFLOW__CORE__HOSTNAME_CALLABLE"] == "airflow_qarnot_pool.executors.node.hostname"
        )
        monkeypatch.setenv(node.LAUNCH, environment[node.LAUNCH])
        names |= {node.hostname(), node.hostname()}
    assert len(names) == 2


def test_bundles_are_fetched_once_per_node_if_its_folder_can_be_written(tmp_path: Path) -> None:
    writable = {node.SHARED: str(tmp_path)}
    assert node.environment_of({}, writable)[node.BUNDLES] == str(tmp_path / "airflow-bundles")
    own = {"environment": {node.BUNDLES: "/own"}}
    assert node.environment_of(own, writable)[node.BUNDLES] == "/own"
    for missing in ({}, {node.SHARED: str(tmp_path / "missing")}):
        assert node.BUNDLES not in node.environment_of({}, missing)


PROGRAM = """
import json, os, sys
from airflow.executors.workloads import ExecuteTask

def main():
    (option, path) = sys.argv[1:]
    assert option == "--json-path"
    workload = open(path).read()
    shown = [open(f"/proc/self/{name}").read() for name in ("environ", "cmdline")]
    print(json.dumps({"workload": workload, "shown": shown, "environment": dict(os.environ),
                      "rest": os.read(int(path.rpartition("/")[2]), 10).decode(),
                      "is_logged": ExecuteTask.model_fields["token"].repr}))
"""
WORKLOADS = """
from types import SimpleNamespace

class ExecuteTask:
    model_fields = {"token": SimpleNamespace(repr=True)}
"""


def launched(tmp_path: Path, constants: dict[str, str], program: str) -> subprocess.CompletedProcess[str]:
    """Run the first process of a node, with stand-ins for the modules of Airflow that it imports."""
    stand_ins = {
        "sdk/execution_time/execute_workload.py": program,
        "sdk/execution_time/supervisor.py": "",
        "executors/workloads.py": WORKLOADS,
    }
    for name, text in stand_ins.items():
        path = tmp_path / "airflow" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in list(path.parents)[: len(Path(name).parts)]:
            (folder / "__init__.py").touch()
    root = str(Path(node.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", node.__name__],
        env={"PATH": os.defpath, "PYTHONPATH": f"{tmp_path}:{root}", **constants},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_process_of_airflow_has_the_token_in_a_pipe_only(tmp_path: Path) -> None:
    constants = constants_of(workload().model_dump_json(), {"AIRFLOW__CORE__EXECUTOR": "X"})
    done = launched(tmp_path, constants, PROGRAM)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert json.loads(seen["workload"])["token"] == TOKEN
    assert seen["rest"] == ""
    assert seen["environment"]["AIRFLOW__CORE__EXECUTOR"] == "X"
    assert seen["is_logged"] is False
    text = json.dumps([seen["shown"], seen["environment"]])
    for secret in (TOKEN, node.PREFIX, *(value for key, value in constants.items() if key != node.SHARED)):
        assert secret not in text


REFUSED = """
class TaskAlreadyRunningError(Exception):
    pass

def main():
    raise TaskAlreadyRunningError("Task instance 1 is already running")
"""
REFUSED_BY_3_1 = """
from types import SimpleNamespace

class ServerResponseError(Exception):
    response = SimpleNamespace(status_code=409, json=lambda: {"detail": {"previous_state": "running"}})

def main():
    raise ServerResponseError("Server returned error")
"""


@pytest.mark.parametrize("program", [REFUSED, REFUSED_BY_3_1])
def test_a_launch_that_airflow_refuses_says_why(tmp_path: Path, program: str) -> None:
    done = launched(tmp_path, constants_of("{}", {}), program)
    assert done.returncode == 1
    assert done.stderr.startswith("Airflow has seen another launch of this Qarnot task start the task.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "program",
    [
        REFUSED.replace("TaskAlreadyRunning", "Another"),
        REFUSED_BY_3_1.replace("409", "404"),
        REFUSED_BY_3_1.replace('"running"', '"success"'),
        REFUSED_BY_3_1.replace('{"previous_state": "running"}', '"gone"'),
    ],
)
def test_another_error_of_a_launch_is_shown(tmp_path: Path, program: str) -> None:
    assert "Traceback" in launched(tmp_path, constants_of("{}", {}), program).stderr


def test_a_refusal_of_the_connection_of_remote_logs_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Airflow 3.2.2 asks for it before the start of the task, when the token allows nothing else."""
    monkeypatch.setattr(supervisor, "_REMOTE_LOGGING_CONN_CACHE", {})
    node._ask_again()
    cache = supervisor._REMOTE_LOGGING_CONN_CACHE
    cache["qarnot_default"] = None
    assert "qarnot_default" not in cache
    cache["qarnot_default"] = found = Connection(conn_id="qarnot_default")
    assert cache["qarnot_default"] is found
