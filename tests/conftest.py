"""What Airflow must find before it is imported, and the local Qarnot that tests share.

Importing this sets an AIRFLOW_HOME of the test session; the database in it is made for the first test that asks for
``airflow_db``, so that tests without Airflow pay nothing.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.execution_api import serve_the_newest_execution_api

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.ui.browser import Browser

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(tempfile.mkdtemp(prefix="airflow-qarnot-pool-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
#: The folder of the ``python3`` for commands of the local Qarnot. It has no packages, as nodes have none, and starts
#: faster than one with packages, or than a script that chooses one.
NODE_PYTHON = HOME / "node" / "bin"
venv.create(NODE_PYTHON.parent, symlinks=True)
#: Programs for the recipes of docs/, which are not on every machine: Blender, OpenFOAM and the like.
STAND_INS = ROOT / "tests" / "docs" / "programs"

if "airflow" in sys.modules:
    raise RuntimeError("Airflow was imported before tests/conftest.py could give it a home of its own")
for _name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[_name]
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__QARNOT__POLL_INTERVAL": "0.3",
    # Most tests are about deferred waits. TEST_DEFER_AFTER=2 shows whether they hold after a wait on the worker, too.
    "AIRFLOW__QARNOT__DEFER_AFTER": os.environ.get("TEST_DEFER_AFTER", "0"),
    "PATH": os.pathsep.join([str(NODE_PYTHON), str(STAND_INS), os.environ.get("PATH", os.defpath)]),
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}

# After the home of Airflow is set, which these modules may look for.
from tests import readings  # noqa: E402

readings.follow(readings.current(), HOME)

#: Files that take longest, the longest first: one that starts late keeps the other processes waiting.
SLOW_FILES = (
    "dags/test_xcoms.py",
    "operators/quota/test_exactly_once.py",
    "operators/test_ends_of_waits.py",
    "operators/test_lives.py",
    "plugins/test_run_share.py",
    "dags/test_examples.py",
    "decorators/test_array.py",
    "crash/test_array.py",
    "environments/test_environments.py",
    "benchmarks/test_programs.py",
    "docs/test_code_blocks.py",
    "triggers/test_poller_hostile.py",
    "operators/quota/test_kills.py",
    "crash/test_shared_pool.py",
    "operators/test_run_tasks.py",
    "local/test_sdk.py",
    "triggers/test_poller.py",
    "operators/test_shared.py",
    "operators/test_endings.py",
    "operators/test_items.py",
    "operators/test_cost_limits.py",
    "decorators/test_qarnot_task.py",
    "environments/test_dag.py",
    "crash/test_crash_matrix_create.py",
    "crash/test_fault_storm.py",
    "operators/test_task_operators.py",
    "dags/test_shares.py",
    "operators/test_stranded.py",
    "test_tools.py",
    "operators/quota/test_room.py",
    "crash/test_crash_matrix_run.py",
    "operators/test_sensors.py",
    "local/test_programs.py",
    "crash/test_chaos.py",
    "crash/test_reaper.py",
)

#: Their tests share Airflow's api-server application, which takes seconds of CPU to build.
FOLDERS_OF_ONE_PROCESS = ("plugins",)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector what stays: thousands of tests, and all of Airflow."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_finish() -> None:
    """Let the sessions of boto3 share what they read of a service. Each reads for 0.1 s, and tests make hundreds."""
    if botocore := sys.modules.get("botocore.session"):
        vars(botocore)["create_loader"] = cache(vars(botocore)["create_loader"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first; see the option --no-loadscope-reorder of pytest-xdist."""
    ranks = {str(ROOT / "tests" / name): rank for rank, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(ranks)))
    for item in items:
        for mark in item.iter_markers("reading"):
            if readings.are_others(*mark.args):
                item.add_marker(
                    pytest.mark.skip(reason=f"{readings.SKIPPED}: {', '.join(mark.args) or 'all'}")
                )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the files of FOLDERS_OF_ONE_PROCESS together, and each other file to one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = file.removeprefix("tests/").partition("/")[0]
            return folder if folder in FOLDERS_OF_ONE_PROCESS else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def bundles_of_this_test() -> None:
    """Have ``dag.test()`` read the configured bundles. From Airflow 3.4 on a process reads them once."""
    manager = sys.modules.get("airflow.dag_processing.bundles.manager")
    if snapshot := getattr(manager, "_load_bundle_config_snapshot", None):
        snapshot.cache_clear()


@pytest.fixture(autouse=True)
def connections_of_this_test() -> None:
    """Forget the connections that triggers of earlier tests have read."""
    if requests := sys.modules.get("airflow_qarnot_pool.triggers.airflow_requests"):
        requests._last_read.clear()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser of this process. See :meth:`Browser.begin`."""
    from tests.ui.browser import Browser

    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty Airflow database to copy.

    The processes of a run share it. A migration takes seven seconds of CPU.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    database = folder / "migrated.db"
    with (folder / "migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            made = folder / "being-migrated.db"
            done = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env=os.environ | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{made}"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            made.rename(database)
    return database


@pytest.fixture(scope="session")
def airflow_db(migrated: Path) -> None:
    """An Airflow database, for ``dag.test()`` and for whatever else needs one."""
    shutil.copy(migrated, HOME / "airflow.db")
    serve_the_newest_execution_api()


@pytest.fixture(scope="session")
def qarnot() -> Iterator[LocalQarnot]:
    """A local Qarnot for the whole session: look only at objects that the test itself made."""
    from airflow_qarnot_pool.local import LocalQarnot

    with LocalQarnot(boot_seconds=0.2) as server:
        yield server


@pytest.fixture
def qarnot_connection(qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of an Airflow connection to ``qarnot``."""
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", qarnot.airflow_connection(namespace="tests"))
    return "qarnot_default"
