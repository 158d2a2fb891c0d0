"""Logs of Airflow tasks in a bucket."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.executors import remote_logging
from airflow_qarnot_pool.executors.node import LAUNCH, hostname
from airflow_qarnot_pool.executors.remote_logging import QarnotRemoteLogIO
from airflow_qarnot_pool.executors.running import name_of
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot

pytest.importorskip("boto3")

LOG = "dag_id=d/run_id=r/task_id=t/attempt=1.log"
FINISHED = SimpleNamespace(state="success", executor=None, external_executor_id=None)


@pytest.fixture(autouse=True)
def of_this_qarnot(qarnot: LocalQarnot) -> None:
    remote_logging._client.cache_clear()


def io_on(folder: Path, place: str, *, delete: bool = False) -> QarnotRemoteLogIO:
    return QarnotRemoteLogIO(place, folder, "qarnot_default", delete)


def write(folder: Path, text: str, name: str = LOG) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(io: QarnotRemoteLogIO, ti: Any = FINISHED) -> tuple[list[str], list[list[str]]]:
    places, logs = io.stream(LOG, ti)
    return places, [list(lines) for lines in logs]


def test_a_task_that_resumes_on_another_node_continues_its_log(tmp_path: Path) -> None:
    place = "qarnot://logs-resumed/prod"
    for number, lines in enumerate(("one\ntwo\n", "three\n")):
        io = io_on(tmp_path / str(number), place)
        path = write(tmp_path / str(number), lines)
        io.upload(LOG)
        assert path.read_text() == ""
        io.upload(path)  # nothing new, by its whole path
    io = io_on(tmp_path, place)
    assert shown(io) == ([f"{place}/{LOG}"], [["one", "two", "three"]])
    assert io.read(LOG, FINISHED) == ([f"{place}/{LOG}"], ["one\ntwo\nthree"])


def run_to_end(client: QarnotClient, name: str, command: list[str]) -> None:
    client.tasks.create(TaskSpec(name=name, shortname=name, command=command))
    while not states.is_terminal(client.tasks.get(name).state):
        time.sleep(0.02)


OF_A_TRIGGERER = f"{LOG}.trigger.7.log"
#: What launch "one" of a try has uploaded, the state of the try, the launch that Airflow saw last, and whether the
#: output of the Qarnot task follows.
TRIES: dict[str, tuple[str | None, str, str, bool]] = {
    "its node was lost after a deferral": (LOG, "failed", "two", True),
    "it is retried": (LOG, "up_for_retry", "two", True),
    "only a triggerer has uploaded": (OF_A_TRIGGERER, "failed", "one", True),
    "nothing was uploaded": (None, "failed", "one", True),
    "it failed and uploaded": (LOG, "failed", "one", False),
    "it succeeded": (LOG, "success", "one", False),
    "it waits for a slot after a deferral": (LOG, "queued", "one", False),
    "it runs after a deferral": (LOG, "running", "two", False),
    "it is queued again after a deferral": (LOG, "queued", "two", False),
}


@pytest.mark.parametrize("case", TRIES)
def test_the_output_follows_if_the_last_process_of_a_try_lost_its_log(
    case: str, client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded, state, launch, follows = TRIES[case]
    monkeypatch.setattr(remote_logging, "_is_ours", lambda executor: executor == "QarnotExecutor")
    monkeypatch.setattr(remote_logging, "_reasons_of", lambda ti: [])
    external_id = f"lost-{list(TRIES).index(case)}"
    name, io = name_of(external_id, ""), io_on(tmp_path, f"qarnot://logs-{external_id}")
    if follows:
        run_to_end(client, name, ["echo", "two"])
    monkeypatch.setenv(LAUNCH, launch)
    ti = SimpleNamespace(
        state=state, executor="QarnotExecutor", external_executor_id=external_id, hostname=hostname()
    )
    monkeypatch.setenv(LAUNCH, "one")
    places, logs = [], []
    if uploaded:
        write(tmp_path, "one\n", uploaded)
        io.upload(uploaded)
        places, logs = [f"qarnot://{io.bucket}/{uploaded}"], [["one"]]
    if follows:
        places, logs = [*places, f"Output of Qarnot task {name}"], [*logs, ["two"]]
    assert shown(io, ti) == (places, logs)


def test_the_logs_of_triggerers_and_of_no_other_try_are_shown(tmp_path: Path) -> None:
    io = io_on(tmp_path, "qarnot://logs-several")
    names = [LOG, f"{LOG}.trigger.7.log", LOG.replace("=1.", "=11.")]
    for name in names:
        write(tmp_path, f"{name}\n", name)
        io.upload(name)
    places, logs = shown(io)
    assert places == [f"qarnot://logs-several/{name}" for name in names[:2]]
    assert logs == [[name] for name in names[:2]]


def test_a_local_copy_is_deleted_if_airflow_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "one\n")
    io_on(tmp_path, "qarnot://logs-deleted", delete=True).upload(LOG)
    assert not path.exists()


def test_nothing_outside_of_the_folder_of_logs_is_uploaded(tmp_path: Path) -> None:
    secret = write(tmp_path, "secret", "secret.txt")
    io = io_on(tmp_path / "logs", "qarnot://logs-outside")
    for path in ("../secret.txt", str(secret), "missing.log"):
        io.upload(path)
    assert QarnotStorageHook().s3.list_buckets()["Buckets"] == [] or "logs-outside" not in [
        bucket["Name"] for bucket in QarnotStorageHook().s3.list_buckets()["Buckets"]
    ]


def test_a_storage_that_fails_loses_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = io_on(tmp_path, "qarnot://logs-failing")
    write(tmp_path, "one\n")
    io.upload(LOG)
    path = write(tmp_path, "two\n")
    append = remote_logging._append

    def refuse(*_: Any) -> None:
        from botocore.exceptions import ClientError

        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject")

    def unreadable(s3: Any, *place: Any) -> bool:
        return append(SimpleNamespace(download_fileobj=refuse), *place)

    with monkeypatch.context() as patched:
        patched.setattr(remote_logging, "_append", unreadable)
        with pytest.raises(QarnotError, match="could not be written to bucket logs-failing"):
            io.upload(LOG)
    assert path.read_text() == "two\n"
    assert shown(io)[1] == [["one"]]


def test_a_log_without_end_is_shown_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_logging, "MAX_READ", 100)
    monkeypatch.setattr(remote_logging, "MAX_LINE", 10)
    monkeypatch.setattr(remote_logging, "_CHUNK", 50)
    io = io_on(tmp_path, "qarnot://logs-long")
    write(tmp_path, "a" * 500 + "\n")
    io.upload(LOG)
    (lines,) = shown(io)[1]
    assert lines == [f"... the log is longer: its first 150 bytes are shown. The rest is in {LOG}"]
    write(tmp_path, "short\n" * 3, f"{LOG}.x")
    io.upload(f"{LOG}.x")
    assert shown(io)[1][1] == ["short"] * 3


def test_a_bucket_that_does_not_exist_has_no_logs(tmp_path: Path) -> None:
    assert shown(io_on(tmp_path, "qarnot://logs-none")) == ([], [])
    assert io_on(tmp_path, "qarnot://logs-none").read(LOG, FINISHED) == ([], None)


@pytest.mark.parametrize("place", ["", "s3://bucket", "qarnot:///folder", "bucket"])
def test_a_place_without_a_bucket_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"remote_base_log_folder names no bucket, got .* Write qarnot://"):
        io_on(tmp_path, place)


def discovered(logging_config_class: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the remote log and its connection, as Airflow finds them."""
    try:
        from airflow._shared.logging.remote import discover_remote_log_handler
        from airflow._shared.module_loading import import_string
    except ImportError:  # 3.1
        from airflow import logging_config

        for name in ("REMOTE_TASK_LOG", "DEFAULT_REMOTE_CONN_ID"):
            monkeypatch.setitem(vars(logging_config), name, None)
        monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS", logging_config_class)
        logging_config.load_logging_config()
        return logging_config.REMOTE_TASK_LOG, logging_config.DEFAULT_REMOTE_CONN_ID
    return discover_remote_log_handler(logging_config_class, "", import_string)


def test_airflow_finds_the_logs_by_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_LOGGING", "True")
    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER", "qarnot://logs-configured/prod")
    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID", "qarnot_logs")
    name = "airflow_qarnot_pool.executors.logging_config"
    importlib.reload(importlib.import_module(name))
    io, conn_id = discovered(f"{name}.LOGGING_CONFIG", monkeypatch)
    assert isinstance(io, QarnotRemoteLogIO)
    assert (io.bucket, io._folder, io._conn_id, conn_id) == (
        "logs-configured",
        "prod",
        "qarnot_logs",
        "qarnot_default",
    )
    (entry,) = get_provider_info()["remote-logging"]
    assert entry["scheme"] == "qarnot"
    module, _, class_name = entry["classpath"].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), class_name).from_config(), QarnotRemoteLogIO)
