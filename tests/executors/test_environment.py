"""Airflow on nodes whose image has only Python."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError, QarnotUnavailableError
from airflow_qarnot_pool.api.fields import MAX_CONSTANT_LENGTH
from airflow_qarnot_pool.api.specs import ResourceBucket, TaskSpec
from airflow_qarnot_pool.environments.specification import PREFIX
from airflow_qarnot_pool.environments.storage import pack
from airflow_qarnot_pool.executors import environment
from airflow_qarnot_pool.executors.environment import IMAGE, PYTHON, Preparations, pins, with_environment
from airflow_qarnot_pool.executors.image import OWN, Installed, installed
from airflow_qarnot_pool.executors.node import SHARED
from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
from airflow_qarnot_pool.executors.pool import PoolKey
from airflow_qarnot_pool.executors.remote import RemoteTasks, Submission
from airflow_qarnot_pool.executors.running import Outcome
from airflow_qarnot_pool.local import LocalQarnot
from tests.environments.conftest import Wheels, wheels
from tests.executors.test_remote import attempt, ends

__all__ = ["wheels"]
ARCHIVE = f"{PREFIX}{PYTHON}-{'a' * 32}.tar.gz"
OWN_WHEEL = f"{OWN}[storage] @ file:///wheels/airflow_qarnot_pool-0.1.0-py3-none-any.whl"


def test_the_pins_are_airflow_its_providers_and_all_that_they_need_here() -> None:
    here = installed(freeze=True)
    found = pins(here, [OWN_WHEEL, "pandas==2.2.3", "--no-index"])
    for name in (
        "apache-airflow-core",
        "apache-airflow-providers-standard",
        "sqlalchemy",
        "boto3",
        "uvicorn",
    ):
        assert f"{name}=={here.packages[name]}" in found
    names = {pin.partition("==")[0] for pin in found}
    assert not names & {OWN, "pandas", "ruff", "mypy"}, "with a version of their own, or of no use on a node"


def test_a_package_from_a_folder_is_named_unless_its_wheel_is_given() -> None:
    here = installed(freeze=True)
    local = Installed(python=here.python, packages=here.packages, local=[OWN])
    with pytest.raises(
        QarnotInvalidSpecError, match=r"from no index, got 'airflow-qarnot-pool'. Add its wheel"
    ):
        pins(local, [])
    for given in (OWN_WHEEL, "/wheels/airflow_qarnot_pool-0.1.0-py3-none-any.whl"):
        assert not any(pin.startswith(OWN) for pin in pins(local, [given]))


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        shlex.split(command),
        env={SHARED: str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_unpacks_once_per_node_and_runs_with_the_packages(tmp_path: Path) -> None:
    with (tmp_path / ARCHIVE).open("wb") as file:
        pack({"packages": {"there.py": b"import sys; print('there', sys.argv[1:])"}}, file)
    command = with_environment([sys.executable, "-m", "there", "$x", "it's"], ARCHIVE)
    assert len(command) < MAX_CONSTANT_LENGTH
    assert "\n" not in command
    assert run(command, tmp_path).stdout == "there ['$x', \"it's\"]\n"
    module = tmp_path / ARCHIVE.removesuffix(".tar.gz") / "packages" / "there.py"
    module.write_text("print('not again')")
    assert run(command, tmp_path).stdout == "not again\n"
    other = with_environment(command=f"{sys.executable} -m there", archive=f"{PREFIX}3.8-{'a' * 32}.tar.gz")
    assert "requirements are for another Python than that of the image" in run(other, tmp_path).stderr


def test_a_pool_brings_its_environment_and_its_tasks_run_with_it(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch, wheels: Wheels
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", qarnot.airflow_connection(namespace="environment"))
    monkeypatch.setattr(environment, "pins", lambda here, given: [])
    requirements = tuple(wheels("brought", "1.0", "print('brought it')"))
    pool = PoolOptions(slots=2, image=IMAGE, requirements=requirements)
    tasks = RemoteTasks(ExecutorOptions(pools={"airflow": pool}))
    one = attempt()
    spec = TaskSpec(name="dag.task", command=["python3", "-m", "brought"], constants={SHARED: "/job"})
    tasks.submit([Submission(attempt=one, spec=spec, pool=PoolKey("airflow"))])
    (end,) = ends(tasks, 1)
    tasks.stop(10)
    assert end.outcome is Outcome.SUCCESS, end.reason


def test_an_environment_that_takes_long_holds_up_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = threading.Event(), []

    def prepare(settings: Any, requirements: Any) -> ResourceBucket:
        assert gate.wait(60)
        made.append(tuple(requirements))
        if "wrong" in requirements:
            raise QarnotError("no such package")
        return ResourceBucket(bucket="b", prefix=f"archives/{ARCHIVE}")

    monkeypatch.setattr(environment, "prepare", prepare)
    monkeypatch.setattr(environment, "PATIENCE", 0.01)
    preparations, settings = Preparations(), SimpleNamespace()
    for _ in range(2):
        with pytest.raises(QarnotUnavailableError, match="is being made and uploaded"):
            preparations.get(settings, ["a"])  # type: ignore[arg-type]
    gate.set()
    monkeypatch.setattr(environment, "PATIENCE", 60.0)
    assert environment.archive_of([preparations.get(settings, ["a"])]) == ARCHIVE  # type: ignore[arg-type]
    assert made == [("a",)]
    preparations.get(settings, ["a"])  # type: ignore[arg-type]
    assert made == [("a",), ("a",)], "a later pool looks for it again"
    with pytest.raises(QarnotError, match="no such package"):
        preparations.get(settings, ["wrong"])  # type: ignore[arg-type]
    assert environment.archive_of([]) is None
